"""Lists what there is: bases, methods, the roles of a base, recipes, or every option of a training.

`options` takes the names of a method and of a recipe, and prints all that may stand in a config file with them.
"""

import argparse
import json
from collections.abc import Mapping
from typing import Any

from ..config import REQUIRED, Option, unknown
from ..errors import Refused
from .arguments import add_base, load

SUMMARY = "list bases, methods, roles, recipes and options"
EXAMPLES = """\
  diffadapt list
  diffadapt list roles --base embedded
  diffadapt list options lora
  diffadapt list options oft control
  diffadapt list options token --json
"""
TOPICS = ("bases", "methods", "roles", "recipes", "options")
BASES = {
    "embedded": "ships with diffadapt: 64 x 64 pixels, runs on a CPU, needs no download",
    "embedded-dit": "ships with diffadapt: a class-conditional transformer on emoji, to transfer from",
    "a hub id": "Stable Diffusion 1.x or 2.x, such as stable-diffusion-v1-5/stable-diffusion-v1-5",
    "a folder": "in diffusers format, with model_index.json",
    "a file": "a single .safetensors checkpoint of Stable Diffusion 1.x or 2.x",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    topics = f"{', '.join(TOPICS)}; default: all but roles and options"
    parser.add_argument("topic", nargs="?", metavar="TOPIC", help=topics)
    parser.add_argument("method", nargs="?", metavar="METHOD", help="for options: whose (default lora)")
    parser.add_argument("recipe", nargs="?", metavar="RECIPE", help="for options: of which (default subject)")
    add_base(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(arguments: argparse.Namespace) -> int:
    if arguments.topic is not None and arguments.topic not in TOPICS:
        nearest = unknown(arguments.topic, TOPICS).rpartition("did you mean ")[2]
        raise Refused(f"no list of {arguments.topic!r}; did you mean {nearest} there are {', '.join(TOPICS)}")
    if arguments.topic == "options":
        rows = training_options(arguments.method or "lora", arguments.recipe or "subject")
        print(json.dumps([_jsonable(row) for row in rows], indent=1) if arguments.json else options_text(rows))
        return 0
    topics = [arguments.topic] if arguments.topic else ["bases", "methods", "recipes"]
    found = {topic: _entries(topic, arguments) for topic in topics}
    text = "\n\n".join(_text(topic, entries) for topic, entries in found.items())
    print(json.dumps(found, indent=1) if arguments.json else text)
    return 0


def training_options(method: str, recipe: str = "subject") -> list[Option]:
    """Every option of a training with this method and recipe.

    Raises:
        Refused: there is no such method or recipe.
    """
    from ..recipes.job import RECIPES, job_options

    methods = _find(recipe, RECIPES, "recipe").methods
    return job_options(_find(method, methods, "method"), RECIPES[recipe])


def _find(name: str, known: Mapping[str, Any], kind: str) -> Any:
    if name not in known:
        nearest = unknown(name, known).rpartition("did you mean ")[2]
        raise Refused(f"no {kind} {name!r}; did you mean {nearest} there are {', '.join(known)}")
    return known[name]


def options_text(rows: list[Option]) -> str:
    """One paragraph a table: name = default, meaning, limits."""
    width = max(len(row.name) + len(row.default_text) for row in rows) + 3
    lines: list[str] = []
    for i, row in enumerate(rows):
        if i and row.name.rpartition(".")[0] != rows[i - 1].name.rpartition(".")[0]:
            lines.append("")
        lines.append(f"{row.name} = {row.default_text}".ljust(width) + f"  {row.doc} [{row.limits}]")
    return "\n".join(lines)


def _jsonable(row: Option) -> dict[str, Any]:
    required = row.default is REQUIRED
    return row._asdict() | {"default": None if required else row.default, "required": required}


def _entries(topic: str, arguments: argparse.Namespace) -> dict[str, str]:
    if topic == "bases":
        return BASES
    if topic == "methods":
        from ..adapters import TRAINED

        return {name: (method.__doc__ or "").strip().splitlines()[0] for name, method in TRAINED.items()}
    if topic == "recipes":
        from ..recipes.job import RECIPES

        return {name: recipe.doc for name, recipe in RECIPES.items()}
    base = load(arguments)
    return {role: f"{len(paths)} layer{'s' if len(paths) != 1 else ''}" for role, paths in base.roles.items()}


def _text(topic: str, entries: dict[str, str]) -> str:
    width = max(map(len, entries))
    return "\n".join([f"{topic}:", *(f"  {name.ljust(width)}  {text}" for name, text in entries.items())])
