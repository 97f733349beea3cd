"""The rules of the code's shape, one test each. A message says which rule, file and line, and what to do instead."""

import ast
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "src" / "diffadapt"
FILES = sorted(PACKAGE.rglob("*.py"))
LEAVES = ("adapters", "bases", "controls", "data", "metrics", "objectives")
SHARED = {
    "errors",
    "files",
    "shapes",
    "config",
    "config_values",
    "progress",
    "run_layout",
    "threads",
    "conditioning",
    "noise_schedule",
    "network",
    "fingerprint",
}  # fmt: skip  (modules that all may import)

# folder -> the other folders of the package that it may import
MAY_IMPORT: dict[str, set[str]] = {
    **{leaf: set() for leaf in LEAVES},
    "metrics": {"controls"},
    "data": {"controls"},
    "report": {*LEAVES},
    "interchange": {"adapters"},
    "sampling": {*LEAVES},
    "evaluation": {*LEAVES, "sampling"},
    "training": {*LEAVES, "sampling", "evaluation", "report"},
    "recipes": {*LEAVES, "sampling", "evaluation", "training", "report"},
    "evidence": {*LEAVES, "sampling", "evaluation", "training", "recipes", "report"},
    "cli": {*LEAVES, "sampling", "evaluation", "training", "recipes", "report", "evidence", "interchange"},
}
# Only these load networks of others, and only inside functions.
MAY_LOAD_NETWORKS = ("bases/", "metrics/features.py", "metrics/questions.py", "controls/")
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


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), name_of(path), feature_version=(3, 10))


def folder_of(path: Path) -> str:
    """The top folder of a module ("adapters"), or its own name ("errors") when it lies beside them."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return parts[0]


@cache
def imports(path: Path) -> list[tuple[int, str, bool]]:
    """(line, absolute module, whether it runs when the file is loaded) of every import, those in functions too."""
    package = ("diffadapt", *path.relative_to(PACKAGE).parts[:-1])

    def visit(node: ast.AST, loading: bool) -> Iterator[tuple[int, str, bool]]:
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name, loading) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*above, *([node.module] if node.module else [])])
            yield node.lineno, module, loading
            if node.level and not node.module or module == "diffadapt":  # `from .. import adapters`
                yield from ((node.lineno, f"{module}.{alias.name}", loading) for alias in node.names)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            loading = False
        inside = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.iter_child_nodes(node):
            yield from visit(child, loading and not inside)

    return list(visit(tree_of(path), True))


def refuse(faults: Iterable[str]):
    """Fail with every fault on a line of its own, so that one run shows all of them."""
    found = list(faults)
    if found:
        pytest.fail("\n".join(found), pytrace=False)


def test_the_package_is_found():
    assert len(FILES) > 20


def test_folders_import_only_what_they_may():
    refuse(
        f"{name_of(path)}:{line} imports {module}; {folder_of(path)} may import {sorted(allowed)}; "
        "what needs more belongs in recipes"
        for path in FILES
        if (allowed := allowed_in(path)) is not None
        for line, module, _ in imports(path)
        if module.startswith("diffadapt.") and module.split(".")[1] not in allowed
    )


def allowed_in(path: Path) -> set[str] | None:
    """The folders and modules of the package that a file may import; None where it may import all."""
    here = folder_of(path)
    if here in ("__init__", "__main__"):
        return None
    return SHARED if here in SHARED else SHARED | MAY_IMPORT[here] | {here}


def test_no_modules_import_each_other_in_a_circle():
    """Imports for type checkers count, those inside functions do not."""
    known = {module_of(path): path for path in FILES}
    left = {name: {each for each in loaded_with(path, known) if each != name} for name, path in known.items()}

    def outside() -> list[str]:
        """Those that import none of what is left, or that none of it imports."""
        imported = {each for others in left.values() for each in others}
        return [name for name, others in left.items() if not others & left.keys() or name not in imported]

    while free := outside():
        for name in free:
            del left[name]
    refuse(f"{name} imports {', '.join(sorted(others & left.keys()))}, in a circle" for name, others in left.items())


def module_of(path: Path) -> str:
    return ".".join(("diffadapt", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")


def loaded_with(path: Path, known: Mapping[str, Path]) -> Iterator[str]:
    """The modules of the package that a file names outside of functions."""
    package = ("diffadapt", *path.relative_to(PACKAGE).parts[:-1])

    def visit(node: ast.AST) -> Iterator[str]:
        if isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                yield f"{module}.{alias.name}" if f"{module}.{alias.name}" in known else module
        for child in ast.iter_child_nodes(node):
            if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                yield from visit(child)

    return (module for module in visit(tree_of(path)) if module in known)


def test_diffusers_and_transformers_stay_in_their_places():
    def faults() -> Iterator[str]:
        for path in FILES:
            for line, module, loading in imports(path):
                if module.split(".")[0] not in NETWORKS:
                    continue
                if not name_of(path).startswith(MAY_LOAD_NETWORKS):
                    yield f"{name_of(path)}:{line} imports {module}; only {MAY_LOAD_NETWORKS} may"
                elif loading:
                    yield f"{name_of(path)}:{line}: import {module} inside the function that needs it, not at the top"

    refuse(faults())


def test_nothing_banned_is_imported():
    refuse(
        f"{name_of(path)}:{line} imports {module}: {BANNED_IMPORTS[module.split('.')[0]]}"
        for path in FILES
        for line, module, _ in imports(path)
        if module.split(".")[0] in BANNED_IMPORTS
    )


def test_nothing_is_unpickled_or_evaluated():
    def faults() -> Iterator[str]:
        for path in FILES:
            for node in ast.walk(tree_of(path)):
                if isinstance(node, ast.Attribute) and ast.unparse(node) in ("torch.load", "torch.save"):
                    yield f"{name_of(path)}:{node.lineno} {ast.unparse(node)}: use safetensors"
                if isinstance(node, ast.Call):
                    called = ast.unparse(node.func)
                    if called in ("eval", "exec"):
                        yield f"{name_of(path)}:{node.lineno} calls {called}"
                    for keyword in node.keywords:
                        if keyword.arg == "trust_remote_code" and getattr(keyword.value, "value", None) is not False:
                            yield f"{name_of(path)}:{node.lineno} runs code from a model's folder"

    refuse(faults())


def test_text_is_utf_8_on_every_machine():
    """A call that leaves the encoding to the machine reads and writes something else under Windows' code pages."""

    def faults() -> Iterator[str]:
        for path in FILES:
            for node in ast.walk(tree_of(path)):
                if not isinstance(node, ast.Call):
                    continue
                called = ast.unparse(node.func).rpartition(".")[2]
                said = {keyword.arg for keyword in node.keywords}
                binary = any("b" in str(getattr(each, "value", "")) for each in node.args[1:2])
                is_file = called in ("read_text", "write_text") and isinstance(node.func, ast.Attribute)
                is_open = ast.unparse(node.func) == "open" and not binary
                if (is_file or is_open) and "encoding" not in said:
                    yield f"{name_of(path)}:{node.lineno} {called} without encoding; use diffadapt.files, or say utf-8"

    refuse(faults())


def test_a_home_folder_is_written_out_in_one_way():
    """`Path.expanduser` raises a RuntimeError where "~somebody" is no user; `files.at_home` leaves such a path."""
    refuse(
        f"{name_of(path)}:{node.lineno} calls expanduser; use diffadapt.files.at_home"
        for path in FILES
        if name_of(path) != "files.py"
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.Attribute) and node.attr in ("expanduser", "home")
    )


def test_loading_a_module_does_nothing_but_define():
    harmless = (
        ast.Import, ast.ImportFrom, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Assign, ast.AnnAssign,
        ast.If,
    )  # fmt: skip

    def faults() -> Iterator[str]:
        for path in FILES:
            for node in tree_of(path).body:
                docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
                if not docstring and not isinstance(node, harmless):
                    yield f"{name_of(path)}:{node.lineno} has an effect when imported"
                if isinstance(node, ast.If):
                    test = ast.unparse(node.test)
                    known = test in ("TYPE_CHECKING", "__name__ == '__main__'") or test.startswith("sys.version_info")
                    if not known:
                        yield f"{name_of(path)}:{node.lineno} decides something when imported"

    refuse(faults())


def test_files_are_short():
    refuse(
        f"{name_of(path)}:{lines} is its last line, {LINES} are allowed: it holds two ideas, split it"
        for path in FILES
        if (lines := len(path.read_text(encoding="utf-8").splitlines())) > LINES
    )


def test_files_are_well_named():
    refuse(f"{name_of(path)}: name the file for the one idea in it" for path in FILES if path.stem in BANNED_NAMES)


def test_files_begin_with_a_docstring():
    refuse(
        f"{name_of(path)}:1: the first line says what the file is"
        for path in FILES
        if not ast.get_docstring(tree_of(path))
    )


def test_source_is_ascii():
    refuse(
        f"{name_of(path)}:{number} is not ASCII; write an escape where a character is needed"
        for path in FILES
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if not line.isascii()
    )


def test_every_code_folder_is_a_package():
    refuse(
        f"{name_of(folder)} has no __init__.py, so it would not be installed"
        for folder in sorted({path.parent for path in FILES})
        if not (folder / "__init__.py").is_file()
    )


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
