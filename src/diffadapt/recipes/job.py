"""A training as a TOML file: recipe, base, out and seed at the top, then the tables of data, method and settings.

    base = "embedded"
    out = "runs/biscuit"

    [concept]
    folder = "photos/biscuit"
    noun = "cat"

    [method]
    name = "lora"
    rank = 4

The recipe says which table the data have: [concept] for a subject, [pairs] for control, and so on. `diffadapt train`
reads the file, a run writes it, and `diffadapt list options` prints what may stand in it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from ..adapters import TRAINED, Method, Selective
from ..bases import Base, load_base, load_classifier
from ..config import Option, build, option, options, unknown
from ..data.captioned import load_captioned
from ..data.class_folders import load_classes
from ..data.class_tasks import split_classes
from ..data.concept import Concept, load_concept
from ..data.control_pairs import load_control_pairs
from ..data.joined import join_concepts
from ..data.sequence import load_sequence
from ..data.shards import load_shards
from ..data.styles import load_styles
from ..errors import Refused
from ..files import at_home, filled_lines
from ..training.run import Run
from .classify import ClassifyConfig, train_classify
from .control import ControlConfig, train_control
from .data_tables import (
    ClassifyTable,
    ConceptTable,
    DistillTable,
    PairsTable,
    SequenceTable,
    StyleTable,
    TransferTable,
)
from .distill import DistillConfig, train_distill
from .own_settings import PRESET_OPTION, own_options, own_settings
from .sequence import SequenceConfig, train_sequence
from .style import StyleConfig, train_style
from .subject import SubjectConfig, train_subject


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A recipe as `diffadapt train` sees it.

    Args:
        doc: what it does.
        table: the name of its data's table, and `data`: that table.
        settings: its table [train].
        methods: the methods it knows, by name.
        start: trains what a job says.
    """

    doc: str
    table: str
    data: type
    settings: type
    methods: Mapping[str, type[Method]]
    start: Callable[["Job", str | None], Run]


def _start_subject(job: "Job", device: str | None) -> Run:
    concept = job.concept()
    base = job.load_base(device)
    return train_subject(base, concept, method=job.method, out=job.out, seed=job.top.seed, config=job.train)


def _also(entries: Sequence[str]) -> list[Concept]:
    """The concepts of `concept.also`."""
    result = []
    for entry in entries:
        parts, shorter = entry.rsplit("=", 2), entry.rsplit("=", 1)
        if not at_home(parts[0]).is_dir() and at_home(shorter[0]).is_dir():  # a folder with a = in its name
            parts = shorter
        folder, noun, *token = [*parts, ""] if len(parts) == 1 else parts
        if not noun:
            raise Refused(f"concept.also: expected FOLDER=NOUN or FOLDER=NOUN=TOKEN, got {entry!r}")
        result.append(load_concept(folder, noun, token=token[0] if token else None))
    return result


def _start_control(job: "Job", device: str | None) -> Run:
    whole = load_control_pairs(job.data.folder, job.data.signals, kind=job.data.kind)
    pairs, held_out = whole.split(job.data.held_out)
    base = job.load_base(device)
    return train_control(
        base, pairs, held_out=held_out, method=job.method, out=job.out, seed=job.top.seed, config=job.train
    )


def _start_style(job: "Job", device: str | None) -> Run:
    table = job.data
    if table.shards:
        if table.also:
            raise Refused("style.also names folders of pictures; with shards = true put all shards into style.folder")
        styles = load_shards(table.folder)
    else:
        styles = load_styles([table.folder, *table.also], held_out=table.held_out)
    base = job.load_base(device)
    return train_style(base, styles, method=job.method, out=job.out, seed=job.top.seed, config=job.train)


def _start_transfer(job: "Job", device: str | None) -> Run:
    classes = load_classes(job.data.folder, held_out=job.data.held_out)
    base = job.load_base(device)
    return train_style(base, classes, method=job.method, out=job.out, seed=job.top.seed, config=job.train)


def _start_distill(job: "Job", device: str | None) -> Run:
    table: DistillTable = job.data
    captions = filled_lines(table.captions)
    taught = filled_lines(table.teacher_captions) if table.teacher_captions else None
    pictures = load_captioned(table.pictures) if table.pictures else None
    base = job.load_base(device)
    named = [(Path(teacher).name, teacher) for teacher in (table.folder, *table.also)]
    if len({name for name, _ in named}) < len(named):
        raise Refused(f"two teachers are called {', '.join(name for name, _ in named)}; rename a folder")
    teachers = {name: load_base(teacher, device=device) for name, teacher in named}
    return train_distill(
        base, teachers, captions, teacher_captions=taught, pictures=pictures, source=asdict(table), method=job.method,
        out=job.out, seed=job.top.seed, config=job.train,
    )  # fmt: skip


def _start_sequence(job: "Job", device: str | None) -> Run:
    tasks = load_sequence(job.data.folder, job.data.noun, order=job.data.order)
    base = job.load_base(device)
    return train_sequence(base, tasks, method=job.method, out=job.out, seed=job.top.seed, config=job.train)


def _start_classify(job: "Job", device: str | None) -> Run:
    folders = load_classes(job.data.folder, held_out=job.data.held_out)
    tasks = split_classes(folders, job.data.tasks, seed=job.top.seed, order=job.data.order)
    network = load_classifier(job.top.base, tasks[-1].last, device=device)
    return train_classify(network, tasks, method=job.method, out=job.out, seed=job.top.seed, config=job.train)


def _methods(recipe: str) -> dict[str, type[Method]]:
    """The methods that a recipe trains, by name."""
    return {name: method for name, method in TRAINED.items() if recipe in method.recipes}


RECIPES: dict[str, Recipe] = {
    "subject": Recipe(
        doc="one subject from 1 to 30 pictures (DreamBooth)",
        table="concept", data=ConceptTable, settings=SubjectConfig,
        methods=_methods("subject"), start=_start_subject,
    ),
    "sequence": Recipe(
        doc="one concept after another, without forgetting (C-LoRA)",
        table="sequence", data=SequenceTable, settings=SequenceConfig,
        methods=_methods("sequence"), start=_start_sequence,
    ),
    "control": Recipe(
        doc="a control signal, such as edges, from captioned pictures",
        table="pairs", data=PairsTable, settings=ControlConfig,
        methods=_methods("control"), start=_start_control,
    ),
    "style": Recipe(
        doc="one or many styles from captioned pictures",
        table="style", data=StyleTable, settings=StyleConfig, methods=_methods("style"), start=_start_style,
    ),
    "transfer": Recipe(
        doc="a domain from class folders, whose names are the captions",
        table="transfer", data=TransferTable, settings=StyleConfig, methods=_methods("style"), start=_start_transfer,
    ),
    "distill": Recipe(
        doc="one or several frozen teachers, such as fine-tuned models, from captions alone",
        table="distill", data=DistillTable, settings=DistillConfig, methods=_methods("style"), start=_start_distill,
    ),
    "classify": Recipe(
        doc="classes task after task, by a vision transformer (C-LoRA's second setting)",
        table="classify", data=ClassifyTable, settings=ClassifyConfig,
        methods=_methods("classify"), start=_start_classify,
    ),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class TopLevel:
    """The keys above the tables."""

    recipe: str = option("subject", "what kind of training", choices=tuple(RECIPES))
    base: str = option("embedded", "embedded, embedded-dit, a hub id, a folder or a .safetensors file", path=True)
    base_config: str = option(
        "", "for a .safetensors base: a diffusers folder with its configuration and tokenizer", path=True
    )
    prediction_type: str = option(
        "",
        "epsilon or v_prediction, for files that do not say; empty believes the base",
        choices=("", "epsilon", "v_prediction"),
    )
    out: str = option("", "the run's folder; empty means runs/NAME, with the name of the data's folder", path=True)
    seed: int = option(0, "of everything random", low=0, high=2**63 - 1)


@dataclass(frozen=True, kw_only=True)
class Job:
    """A training, read and checked. `preset` is the one whose settings are in `method` and `train`, or empty."""

    top: TopLevel
    data: Any
    method: Method
    train: Any
    preset: str = ""

    @property
    def recipe(self) -> Recipe:
        return RECIPES[self.top.recipe]

    @property
    def out(self) -> Path:
        return Path(self.top.out) if self.top.out else Path("runs") / Path(self.data.folder).resolve().name

    def run(self, device: str | None = None) -> Run:
        """Does it: reads the data, loads the base and trains."""
        return self.recipe.start(self, device)

    def concept(self) -> Concept:
        """The data of a subject: its concept, or several to be learned together."""
        data = self.data
        return join_concepts([load_concept(data.folder, data.noun, token=data.token), *_also(data.also)])

    def load_base(self, device: str | None = None) -> Base:
        """The base that the top of the file names; see `base_precision`."""
        top = self.top
        return load_base(
            top.base, device=device, config=top.base_config or None, prediction_type=top.prediction_type or None,
            dtype=base_precision(self.method, self.train.mixed_precision, device),
        )  # fmt: skip

    def table(self) -> dict[str, Any]:
        """The same as `read_job` reads it, resolved; `config.dump_toml` writes it."""
        return {
            **{field.name: getattr(self.top, field.name) for field in fields(self.top)},
            "out": str(self.out),
            self.recipe.table: self.data,
            "method": method_table(self.method),
            "train": {**({"preset": self.preset} if self.preset else {}), **vars(self.train)},
        }


def base_precision(method: Method, mixed_precision: str, device: str | None) -> str | None:
    """The precision that a frozen base is loaded in: on a GPU the one that is computed in, which halves its memory.

    What trains stays in float32. A method that trains the base's own weights starts from them, so it needs them whole.

    Args:
        method: what trains.
        mixed_precision: no, bf16 or fp16.
        device: as asked for; None is a GPU where there is one.

    Returns:
        "bfloat16", "float16", or None for float32
    """
    import torch

    on_gpu = torch.cuda.is_available() if device is None else str(device).startswith("cuda")
    if not on_gpu or isinstance(method, Selective):
        return None
    return {"bf16": "bfloat16", "fp16": "float16"}.get(mixed_precision)


def read_job(table: Mapping[str, Any]) -> Job:
    """A training from a TOML table.

    Args:
        table: as `config.read_toml` gives it, with `config.override` applied; a table "made_by" is passed over, so that
            the run.toml of a run can be run again.

    Raises:
        Refused: a key that is not known (names the nearest known one), a missing one, a wrong type or value.
    """
    recipe = _choose(RECIPES, table.get("recipe", "subject"), "recipe")
    tables = {name: dict(_inner(table, name)) for name in (recipe.table, "method", "train")}
    above = {key: value for key, value in table.items() if key not in tables and key != "made_by"}
    method_class = _choose(recipe.methods, tables["method"].pop("name", "lora"), "method.name")
    known = [each.name for each in job_options(method_class, recipe)]
    preset = tables["train"].pop("preset", "")
    if recipe.settings is SubjectConfig:
        asked = str(above.get("base", "embedded")), method_class.name, str(preset)
        tables["train"] = {**own_settings(*asked), **tables["train"]}
        tables["method"] = {**own_options(*asked), **tables["method"]}
    elif preset:
        raise Refused(f"train.preset is for recipe = subject, got it with recipe = {above.get('recipe')}; leave it out")
    return Job(
        top=build(TopLevel, above, known=known),
        data=build(recipe.data, tables[recipe.table], name=recipe.table, known=known),
        method=build(method_class, tables["method"], name="method", known=known),
        train=build(recipe.settings, tables["train"], name="train", known=known),
        preset=str(preset),
    )


def job_options(method_class: type[Method], recipe: Recipe) -> list[Option]:
    """All that may stand in the file of a training with this method and recipe."""
    name = Option("method.name", "text", method_class.name, "what may change, and how", choices=tuple(recipe.methods))
    data, train = options(recipe.data, recipe.table), options(recipe.settings, "train")
    if recipe.settings is SubjectConfig:
        train = [PRESET_OPTION, *train]
    return [*options(TopLevel), *data, name, *options(method_class, "method"), *train]


def method_table(method: Method) -> dict[str, Any]:
    """The table [method] of a method: its name and settings."""
    return {"name": method.name, **asdict(method)}


def _inner(table: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    inner = table.get(name, {})
    if not isinstance(inner, Mapping):
        example = {"method": "method.name=lora", "train": "train.steps=200"}.get(name, f"{name}.folder=photos/biscuit")
        raise Refused(f"{name} is a table with options, such as {example}; got {name} = {str(inner)!r}")
    return inner


def _choose(known: Mapping[str, Any], name: Any, option_name: str) -> Any:
    if not isinstance(name, str) or name not in known:
        nearest = unknown(str(name), known).rpartition("did you mean ")[2]
        raise Refused(f"{option_name}: expected {' or '.join(known)}, got {str(name)!r}; did you mean {nearest}")
    return known[name]
