"""The documentation names what exists: code compiles, commands parse, links resolve, tables agree with the code."""

import ast
import importlib.util
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

import diffadapt
from diffadapt.adapters import METHODS, attach
from diffadapt.cli.main import COMMANDS, parser
from diffadapt.config import REQUIRED, Option, options
from diffadapt.recipes.job import RECIPES, job_options
from diffadapt.recipes.own_settings import own_config

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
METHOD_PAGES = sorted((DOCS / "methods").glob("*.md"))
every_page = pytest.mark.parametrize("page", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
every_method_page = pytest.mark.parametrize("page", METHOD_PAGES, ids=lambda path: path.stem)


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def prose(page: Path) -> str:
    """A page without its fenced blocks."""
    return re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def tables(page: Path) -> Iterator[tuple[list[str], list[list[str]]]]:
    """(header cells, rows of cells) of every table."""
    for text in re.findall(r"(?:^\|.*\n)+", prose(page) + "\n", re.MULTILINE):
        rows = [[cell.strip() for cell in line.strip("|\n").split("|")] for line in text.splitlines()]
        yield rows[0], rows[2:]


def option_rows(page: Path) -> dict[str, str]:
    """Option -> default, as the page's tables of options have them."""
    found = {}
    for header, rows in tables(page):
        if header[:2] == ["option", "default"]:
            found |= {row[0].strip("`"): row[1].strip("`") for row in rows}
    return found


def known_options(*recipes: str) -> dict[str, str]:
    """Option -> default, of every method of the recipes."""
    found: dict[str, str] = {}
    for recipe in (RECIPES[name] for name in recipes):
        for method in recipe.methods.values():
            found |= {row.name: default(row) for row in job_options(method, recipe)}
    return found


def method_options() -> dict[str, str]:
    """Option -> default, of every method, those that no recipe takes by name included."""
    return {row.name: default(row) for method in METHODS.values() for row in options(method, "method")}


def default(row: Option) -> str:
    """A default as the tables write it."""
    return "(required)" if row.default is REQUIRED else "none" if row.default is None else json.dumps(row.default)


def commands(page: Path) -> Iterator[list[str]]:
    """The words of every command line, without variables set in front of it."""
    for block in blocks(page, "sh"):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
                words = words[1:]
            if words:
                yield words


def diffadapt_arguments(words: list[str]) -> list[str] | None:
    """The words after `diffadapt` in a command line, or None when it is another program's."""
    if Path(words[0]).name == "diffadapt":
        return words[1:]
    for i, (flag, module) in enumerate(zip(words, words[1:], strict=False)):
        if (flag, module) == ("-m", "diffadapt"):
            return words[i + 2 :]
    return None


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub makes of a page's headings."""
    headings = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@every_page
def test_python_blocks_compile(page: Path):
    for block in blocks(page, "python"):
        ast.parse(block, str(page), feature_version=(3, 10))


@every_page
def test_names_imported_in_python_blocks_exist(page: Path):
    for block in blocks(page, "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("diffadapt"):
                module = importlib.import_module(node.module or "")
                missing = [alias.name for alias in node.names if not hasattr(module, alias.name)]
                assert not missing, f"{page.name}: {node.module} has no {missing}"
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "da":
                assert node.attr in diffadapt.__all__, f"{page.name}: da.{node.attr} is no public name"


@every_page
def test_diffadapt_command_lines_parse(page: Path, capsys):
    for words in commands(page):
        given = diffadapt_arguments(words)
        if given is None:
            continue
        try:
            parser().parse_args(given)
        except SystemExit as end:  # --help leaves with 0
            assert end.code == 0, f"{page.name}: {shlex.join(words)}: {capsys.readouterr().err}"


@every_page
def test_settings_and_configs_on_command_lines_exist(page: Path):
    known = known_options(*RECIPES)
    for words in commands(page):
        given = diffadapt_arguments(words) or []
        if given[:1] not in (["train"], ["demo"]):
            continue
        for word in given[1:]:
            name, equals, _ = word.partition("=")
            if equals and not word.startswith("-"):
                assert name in known, f"{page.name}: no option {name}"
            if word.endswith(".toml"):
                assert (ROOT / word).is_file(), f"{page.name}: no config {word}"


@every_page
def test_other_commands_name_what_exists(page: Path):
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for words in commands(page):
        if words[0] == "make":
            assert words[1] in targets, f"{page.name}: make has no target {words[1]}"
        if words[:2] == ["python", "-m"]:
            assert importlib.util.find_spec(words[2]), f"{page.name}: no module {words[2]}"


@every_page
def test_commands_and_configs_named_in_the_text_exist(page: Path):
    for code in re.findall(r"`([^`\n]+)`", prose(page)):
        if match := re.match(r"diffadapt (\w+)", code):
            assert match[1] in COMMANDS, f"{page.name}: no command in {code!r}"
        if re.fullmatch(r"configs/[\w./-]+\.toml", code):
            assert (ROOT / code).is_file(), f"{page.name}: no file {code}"
        if match := re.match(r"(?:train|method|concept|pairs)\.[\w.]*\w", code):
            assert match[0] in known_options(*RECIPES) | method_options(), f"{page.name}: no option {match[0]}"


@every_page
def test_relative_links_resolve(page: Path):
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        assert file.exists(), f"{page.name}: link to {target}, where nothing is"
        if anchor and file.suffix == ".md":
            assert anchor in anchors(file), f"{page.name}: {file.name} has no heading #{anchor}"


def test_every_public_name_is_documented():
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES[1:])
    missing = [name for name in diffadapt.__all__ if not re.search(rf"\b{name}\b", text)]
    assert not missing, f"not in docs/: {', '.join(missing)}"


def test_every_method_has_a_page_and_every_page_a_method():
    assert {page.stem for page in METHOD_PAGES} == set(METHODS)


@every_method_page
def test_a_methods_table_holds_its_options_and_their_defaults(page: Path):
    assert option_rows(page) == {row.name: default(row) for row in options(METHODS[page.stem], "method")}


def test_the_page_of_full_fine_tuning_has_its_rates():
    text = " ".join((ROOT / "docs/methods/selective.md").read_text(encoding="utf-8").split())
    small, photos = (own_config(base, "selective").learning_rate for base in ("embedded", "sd15"))
    assert f"{small:.0e} on the embedded base and {photos:.0e} on Stable Diffusion".replace("e-0", "e-") in text


@pytest.mark.parametrize("page", [p for p in PAGES if p not in METHOD_PAGES and option_rows(p)], ids=lambda p: p.stem)
def test_other_tables_of_options_have_the_right_defaults(page: Path):
    recipe = {"distillation": "distill", "classification": "classify"}.get(page.stem, page.stem)
    known = known_options(recipe if recipe in RECIPES else "subject")
    for name, written in option_rows(page).items():
        assert known.get(name) == written, f"{page.name}: {name} is {known.get(name)!r} and not {written!r}"


def test_costs_on_the_embedded_base_are_as_written():
    base = diffadapt.load_base("embedded", device="cpu")
    checked = 0
    for page in METHOD_PAGES:
        for header, rows in tables(page):
            if header != ["setting", "layers", "trainable parameters"]:
                continue
            for setting, layers, parameters in rows:
                call = ", ".join(re.findall(r"`([^`]+)`", setting))  # "LoRA(rank=4), roles=[...]"
                more = {"tokens": {"<new>": "cat"}} if page.stem == "token" else {}
                names = {"attach": attach, "base": base, "more": more, "__builtins__": {}}
                names |= {method.__name__: method for method in METHODS.values()}
                attachment = eval(f"attach(base, {call}, **more)", names)
                found = len(attachment.adapters), sum(parameter.numel() for parameter in attachment.parameters())
                attachment.detach()
                written = int(layers), int(parameters.replace(",", ""))
                assert found == written, f"{page.name}: {call} has {found} layers and parameters"
                checked += 1
    assert checked >= len(METHODS)


def test_the_probes_accuracy_is_as_written():
    path = ROOT / "src" / "diffadapt" / "metrics" / "probe" / "probe.json"
    accuracy = json.loads(path.read_text())["accuracy"]
    found = [rows for header, rows in tables(DOCS / "evaluation.md") if header == ["probe", "accuracy"]]
    assert found
    for name, written in found[0]:
        assert accuracy[name.strip("`")] == float(written), f"evaluation.md: {name} is {accuracy[name.strip('`')]}"


def test_the_page_about_methods_quotes_the_contract_test():
    tested = (ROOT / "tests" / "adapters" / "test_contract.py").read_text()
    quoted = [block for block in blocks(DOCS / "adding_a_method.md", "python") if "Toy" in block]
    assert len(quoted) == 3 and all(block.strip() in tested for block in quoted)


def test_the_page_about_families_quotes_the_toy_family():
    tested = (ROOT / "tests" / "bases" / "test_toy_family.py").read_text()
    (quoted,) = [block for block in blocks(DOCS / "adding_a_family.md", "python") if "class Toy" in block]
    assert quoted.strip() in tested


def test_the_page_about_objectives_quotes_the_toy_objective():
    tested = (ROOT / "tests" / "objectives" / "test_toy_objective.py").read_text()
    (quoted,) = [block for block in blocks(DOCS / "adding_an_objective.md", "python") if "class Halves" in block]
    assert quoted.strip() in tested
