"""A training as a TOML file: recipe, base, out and seed at the top, then the tables concept, method and train.

    base = "embedded"
    out = "runs/biscuit"

    [concept]
    folder = "photos/biscuit"
    noun = "cat"

    [method]
    name = "lora"
    rank = 4

`diffadapt train` reads it, a run writes it, and `diffadapt list options` prints what may stand in it.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from ..adapters import METHODS, Method
from ..bases import Base, load_base
from ..config import REQUIRED, Option, build, option, options, unknown
from ..errors import Refused
from .subject import SubjectConfig

# name -> (settings of its [train] table, what it does)
RECIPES: dict[str, tuple[type, str]] = {"subject": (SubjectConfig, "one subject from 1 to 30 pictures (DreamBooth)")}


PREDICTIONS = ("epsilon", "v_prediction")


@dataclass(frozen=True, kw_only=True)
class TopLevel:
    """What stands above the tables."""

    recipe: str = option("subject", "what kind of training", choices=tuple(RECIPES))
    base: str = option("embedded", "embedded, a hub id, a diffusers folder or a .safetensors file")
    base_config: str = option("", "for a .safetensors base: a diffusers folder with its configuration and tokenizer")
    prediction_type: str = option(
        "", "epsilon or v_prediction, for files that do not say; empty believes the base", choices=("", *PREDICTIONS)
    )
    out: str = option("", "the run's folder; empty means runs/NAME, with the name of the concept's folder")
    seed: int = option(0, "of everything random", low=0)


@dataclass(frozen=True, kw_only=True)
class ConceptTable:
    """The table [concept]."""

    folder: str = option(REQUIRED, "folder with 1 to 30 pictures of one thing")
    noun: str = option(REQUIRED, "what it is one of, such as cat")
    token: str | None = option(None, "the new word for it; unset means <NAME> with the name of the folder")


@dataclass(frozen=True, kw_only=True)
class Job:
    """A training, read and checked."""

    top: TopLevel
    concept: ConceptTable
    method: Method
    train: Any

    def load_base(self, device: str | None = None) -> Base:
        """The base that the top of the file names."""
        top = self.top
        return load_base(
            top.base, device=device, config=top.base_config or None, prediction_type=top.prediction_type or None
        )

    @property
    def out(self) -> Path:
        return Path(self.top.out) if self.top.out else Path("runs") / Path(self.concept.folder).resolve().name

    def table(self) -> dict[str, Any]:
        """The same as `read_job` reads it, resolved; `config.dump_toml` writes it."""
        return {
            **{field.name: getattr(self.top, field.name) for field in fields(self.top)},
            "out": str(self.out),
            "concept": self.concept,
            "method": method_table(self.method),
            "train": self.train,
        }


def read_job(table: Mapping[str, Any]) -> Job:
    """A training from a TOML table.

    Args:
        table: as `config.read_toml` gives it, with `config.override` applied; a table "made_by" is passed over, so that
            the run.toml of a run can be run again.

    Raises:
        Refused: a key that is not known (names the nearest known one), a missing one, a wrong type or value.
    """
    tables = {name: dict(_inner(table, name)) for name in ("concept", "method", "train")}
    above = {key: value for key, value in table.items() if key not in tables and key != "made_by"}
    method_class = _choose(METHODS, tables["method"].pop("name", "lora"), "method.name")
    settings_class, _ = _choose(RECIPES, above.get("recipe", "subject"), "recipe")
    known = [each.name for each in job_options(method_class, settings_class)]
    return Job(
        top=build(TopLevel, above, known=known),
        concept=build(ConceptTable, tables["concept"], name="concept", known=known),
        method=build(method_class, tables["method"], name="method", known=known),
        train=build(settings_class, tables["train"], name="train", known=known),
    )


def job_options(method_class: type[Method], settings_class: type) -> list[Option]:
    """All that may stand in the file of a training with this method and recipe."""
    name = Option("method.name", "text", method_class.name, "what may change, and how", choices=tuple(METHODS))
    tables = (("concept", ConceptTable), ("method", method_class), ("train", settings_class))
    concept, method, train = (options(config_class, table) for table, config_class in tables)
    return [*options(TopLevel), *concept, name, *method, *train]


def method_table(method: Method) -> dict[str, Any]:
    """The table [method] of a method: its name and settings."""
    return {"name": method.name, **asdict(method)}


def _inner(table: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    inner = table.get(name, {})
    if not isinstance(inner, Mapping):
        example = {"concept": "concept.folder=photos/biscuit", "method": "method.name=lora", "train": "train.steps=200"}
        raise Refused(f"{name} is a table with options, such as {example[name]}; got {name} = {str(inner)!r}")
    return inner


def _choose(known: Mapping[str, Any], name: Any, option_name: str) -> Any:
    if name not in known:
        nearest = unknown(str(name), known).rpartition("did you mean ")[2]
        raise Refused(f"{option_name}: expected {' or '.join(known)}, got {str(name)!r}; did you mean {nearest}")
    return known[name]
