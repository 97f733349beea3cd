"""The rules of the code's shape. A message here says which rule, which file, and what to do instead."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "src" / "diffadapt"
FILES = sorted(PACKAGE.rglob("*.py"))
LEAVES = ("adapters", "bases", "controls", "data", "metrics", "objectives", "training")
SHARED = {"errors", "files", "config", "config_values"}  # modules that all may import

# folder -> the other folders of the package that it may import
MAY_IMPORT: dict[str, set[str]] = {
    **{leaf: set() for leaf in LEAVES},
    "metrics": {"controls"},
    "data": {"controls"},
    "report": {*LEAVES},
    "interchange": {"adapters"},
    "recipes": {*LEAVES, "report"},
    "evidence": {*LEAVES, "report", "recipes"},
    "cli": {*LEAVES, "report", "recipes", "evidence", "interchange"},
}
# Only these load networks of others, and only inside functions.
MAY_LOAD_NETWORKS = ("bases/", "metrics/features.py", "controls/")
NETWORKS = {"diffusers", "transformers"}
BANNED_NAMES = {"utils", "helpers", "common", "misc", "core", "manager", "other"}
BANNED_IMPORTS = {
    "pickle": "save tensors as safetensors and the rest as JSON",
    "shelve": "save tensors as safetensors and the rest as JSON",
    "dill": "save tensors as safetensors and the rest as JSON",
    "joblib": "save tensors as safetensors and the rest as JSON",
    "torchvision": "its wheels replace the installed torch; use Pillow and torch",
    "timm": "it pulls torchvision",
    "open_clip": "it pulls torchvision; transformers has CLIP",
    "lpips": "it pulls torchvision",
}
LINES = 400


def name_of(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), name_of(path), feature_version=(3, 10))


def folder_of(path: Path) -> str:
    """The top folder of a module ("adapters"), or its own name ("errors") when it lies beside them."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return parts[0]


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """(absolute module, whether the import runs when the module is loaded) of every import, those in functions too."""
    package = ("diffadapt", *path.relative_to(PACKAGE).parts[:-1])

    def visit(node: ast.AST, loading: bool) -> Iterator[tuple[str, bool]]:
        if isinstance(node, ast.Import):
            yield from ((alias.name, loading) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*above, *([node.module] if node.module else [])])
            yield module, loading
            if node.level and not node.module or module == "diffadapt":  # `from .. import adapters`
                yield from ((f"{module}.{alias.name}", loading) for alias in node.names)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            loading = False
        inside = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.iter_child_nodes(node):
            yield from visit(child, loading and not inside)

    yield from visit(tree_of(path), True)


every_file = pytest.mark.parametrize("path", FILES, ids=name_of)


def test_the_package_is_found():
    assert len(FILES) > 20


@every_file
def test_folders_import_only_what_they_may(path: Path):
    here = folder_of(path)
    if here in ("__init__", "__main__"):
        return
    allowed = SHARED if here in SHARED else SHARED | MAY_IMPORT[here] | {here}
    for module, _ in imports(path):
        parts = module.split(".")
        if parts[0] == "diffadapt" and len(parts) > 1:
            rule = f"{here} may import {sorted(allowed)}; what needs more belongs in recipes"
            assert parts[1] in allowed, f"{name_of(path)} imports {module}; {rule}"


@every_file
def test_diffusers_and_transformers_stay_in_their_places(path: Path):
    for module, loading in imports(path):
        if module.split(".")[0] in NETWORKS:
            here = name_of(path).startswith(MAY_LOAD_NETWORKS)
            assert here, f"{name_of(path)} imports {module}; only {MAY_LOAD_NETWORKS} may"
            assert not loading, f"{name_of(path)}: import {module} inside the function that needs it, not at the top"


@every_file
def test_nothing_banned_is_imported(path: Path):
    for module, _ in imports(path):
        reason = BANNED_IMPORTS.get(module.split(".")[0])
        assert reason is None, f"{name_of(path)} imports {module}: {reason}"


@every_file
def test_nothing_is_unpickled_or_evaluated(path: Path):
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Attribute):
            called = ast.unparse(node)
            pickles = called in ("torch.load", "torch.save")
            assert not pickles, f"{name_of(path)}:{node.lineno} {called}: use safetensors"
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in ("eval", "exec"), f"{name_of(path)}:{node.lineno} calls {called}"
            for keyword in node.keywords:
                trusts = keyword.arg == "trust_remote_code" and getattr(keyword.value, "value", None) is not False
                assert not trusts, f"{name_of(path)}:{node.lineno} runs code from a model's folder"


@every_file
def test_loading_a_module_does_nothing_but_define(path: Path):
    harmless = (
        ast.Import, ast.ImportFrom, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Assign, ast.AnnAssign,
        ast.If,
    )  # fmt: skip
    for node in tree_of(path).body:
        docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        assert docstring or isinstance(node, harmless), f"{name_of(path)}:{node.lineno} has an effect when imported"
        if isinstance(node, ast.If):
            test = ast.unparse(node.test)
            known = test in ("TYPE_CHECKING", "__name__ == '__main__'") or test.startswith("sys.version_info")
            assert known, f"{name_of(path)}:{node.lineno} decides something when imported"


@every_file
def test_file_is_short_and_well_named(path: Path):
    lines = len(path.read_text().splitlines())
    assert lines <= LINES, f"{name_of(path)} has {lines} lines, {LINES} are allowed: it holds two ideas, split it"
    assert path.stem not in BANNED_NAMES, f"{name_of(path)}: name the file for the one idea in it"


@every_file
def test_file_begins_with_a_docstring(path: Path):
    assert ast.get_docstring(tree_of(path)), f"{name_of(path)}: the first line says what the file is"


@every_file
def test_source_is_ascii(path: Path):
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        assert line.isascii(), f"{name_of(path)}:{number} is not ASCII; write an escape where a character is needed"


def test_every_code_folder_is_a_package():
    for folder in {path.parent for path in FILES}:
        assert (folder / "__init__.py").is_file(), f"{name_of(folder)} has no __init__.py, so it would not be installed"


def loaded_by(statement: str) -> set[str]:
    """The top-level modules that are loaded after a statement in a new interpreter."""
    path = f"import sys; sys.path.insert(0, {str(PACKAGE.parent)!r})"
    code = f"{path}; {statement}; print(*{{m.split('.')[0] for m in sys.modules}})"
    return set(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split())


def test_importing_the_package_loads_neither_diffusers_nor_transformers():
    assert not loaded_by("import diffadapt") & {*NETWORKS, "accelerate", "torch"}


def test_the_leaves_load_neither_diffusers_nor_transformers():
    present = [leaf for leaf in LEAVES if (PACKAGE / leaf / "__init__.py").exists()]
    found = loaded_by("; ".join(f"import diffadapt.{leaf}" for leaf in present))
    assert not found & NETWORKS


def test_every_public_name_exists():
    names = loaded_by("import diffadapt; [getattr(diffadapt, name) for name in diffadapt.__all__]")
    assert "torch" in names
