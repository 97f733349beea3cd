"""Teaches a vision transformer classes task after task, without pictures of past tasks: class-incremental learning.

The protocol is CODA-Prompt's (Smith et al. 2023, arXiv:2211.13218, and its code), in which the C-LoRA paper
(arXiv:2304.06027) reports its second experiment: one linear head over all classes, tested on all classes seen so far
without being told the task; past logits masked in the loss; a new optimizer for every task; no picture is kept.

Interrupt at any time, inside a task or between two; the same call goes on.
"""

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..adapters import Attachment, Method, Selective, SideInputs, attach, load_adapter
from ..bases import Classifier
from ..config import check, dump_toml, option, with_overrides
from ..data.class_record import FILES, ClassRecord, LearnedClasses
from ..data.class_tasks import ClassTask
from ..data.sequence_record import digest
from ..errors import Refused
from ..evaluation.classification import right, summary
from ..files import write_atomic, write_json
from ..objectives import CrossEntropy
from ..progress import say
from ..report.classes_report import write_classes_report
from ..training import seeds
from ..training.fit import fit
from ..training.labelled import LabelledBatches, LabelledPictures
from ..training.learner import make_accelerator, refuse_the_impossible, release
from ..training.loop_config import LoopConfig
from ..training.run import Run, open_run, open_task
from ..training.task_log import penalty_ratio, read_log, unlearned

OBSERVED_BATCHES = 8  # that a method which keeps statistics of a task is shown at its end
NOT_USED = "not used by a classifier"


@dataclass(frozen=True, kw_only=True)
class ClassifyConfig(LoopConfig):
    """Settings of `train_classify`; each task has `steps` steps."""

    steps: int = option(200, "optimizer steps of each task", low=1)
    batch_size: int = option(32, "pictures a step", low=1)
    learning_rate: float = option(1e-3, "peak learning rate of the layers' adapters; 0 trains the head alone", low=0)
    head_learning_rate: float = option(1e-2, "peak learning rate of the head", low=0)
    weight_decay: float = option(0.0, "AdamW's decoupled weight decay of the layers; the head has none", low=0)
    mask_past: bool = option(True, "the loss of a task is over its own classes; false: over all classes seen so far")
    smallest_crop: float = option(0.6, "least share of a picture's area that a random crop keeps", low=0.01, high=1)
    mirror: bool = option(True, "half of the training pictures are mirrored; switch off where left is not right")
    snr_gamma: float = option(0.0, NOT_USED, low=0, high=0)
    caption_dropout: float = option(0.0, NOT_USED, low=0, high=0)
    start_from: str = option("", NOT_USED, choices=("",))
    resolution: int = option(0, "not used: pictures have the size of the transformer's", low=0, high=0)
    sample_every: int = option(0, NOT_USED, low=0, high=0)


def train_classify(
    network: Classifier,
    tasks: Sequence[ClassTask],
    *,
    method: Method,
    out: str | Path,
    seed: int = 0,
    config: ClassifyConfig | None = None,
    watch: Callable[[int, float], None] | None = None,
    quiet: bool = False,
    **overrides: Any,
) -> Run:
    """Learns the classes of one task after another and writes the run's folder.

    Args:
        network: what `load_classifier` returned, for as many classes as all tasks have; without attachments.
        tasks: what `split_classes` returned.
        method: `CLoRA()`; `CLoRA(penalty_weight=0)` merges and starts anew, `CLoRA(importance="fisher")` is EWC; with
            others (`LoRA()`, `Selective()`) training goes on from task to task in the same parameters.
        out: the folder: new, empty, or that of the same training, which then goes on.
        seed: of everything random.
        config: settings; `overrides` replace single ones, for example steps=100.
        watch: called with (step of the task, loss) after every step.
        quiet: print nothing.

    Returns:
        the run; its adapter and `head.safetensors` are those after the last task

    Raises:
        Refused: settings that cannot be met, a folder of another run, pictures or files that were changed since.
        Failed: the loss is not a number (finished tasks stay), the disk is full.
    """
    started = time.time()
    config = with_overrides(config or ClassifyConfig(), overrides)
    check(method)
    refuse_the_impossible(network, config)
    if "classify" not in method.recipes:
        raise Refused(f"method {method.name!r} cannot learn classes; use c_lora, lora, oft or selective")
    classes = [name for task in tasks for name in task.classes]
    if len(classes) != network.classes:
        raise Refused(
            f"the tasks have {len(classes)} classes, the head {network.classes}; load the classifier with as many"
        )
    folder, accelerator = Path(out), make_accelerator(network, config)
    if accelerator.num_processes > 1:
        raise Refused("a sequence of classes trains in one process; start it without a launcher")
    record = ClassRecord.read(folder)
    settings = {"seed": seed, "method": {"name": method.name, **asdict(method)}, "train": config}
    table = {"folder": str(tasks[0].folders.root), "held_out": tasks[0].folders.kept}
    table |= {"tasks": len(tasks), "order": classes}
    identity = {"order": classes, "tasks": len(tasks)}
    open_run(folder, network, "classify", settings, identity=identity, tables={"classify": table})
    record.refuse_changes(tasks)

    for number, task in enumerate(tasks[len(record.learned) :], len(record.learned)):
        say(f"task {number + 1} of {len(tasks)}: {', '.join(task.classes[:4])} ...", quiet=quiet)
        place = record.place(number)
        open_task(place, network, "classify", settings, {"contents": task.contents()})
        attached = begin(network, method, config, record, seeds.number(seed, number))
        try:
            objective = CrossEntropy(task.first, task.last, mask_past=config.mask_past)
            batches = LabelledBatches(
                network, objective, LabelledPictures(task.train, first=task.first, size=network.size),
                batch_size=config.batch_size, parts=config.gradient_accumulation, seed=seed,
                smallest_crop=config.smallest_crop, mirror=config.mirror,
            )  # fmt: skip
            facts = fit(
                network, attached, batches, objective,
                config=config, groups=groups(attached, config), folder=place, accelerator=accelerator,
                settings=dump_toml(settings), seed=seed, model=network, averaged_after=True, watch=watch,
                quiet=quiet,
            )  # fmt: skip
            if method.observes():
                show(network, attached["adapter"], batches, objective)
                attached["adapter"].save(place / "adapter.safetensors", {"settings": dump_toml(settings)})
            answers = [tested(network, each, task.last) for each in tasks[: number + 1]]
        finally:
            release(network, attached.values())
        keep(record, task, facts["trainable_parameters"], answers)
        if warning := unlearned(str(len(record.learned)), record.learned[0].change, record.learned[-1].change):
            say(warning, quiet=quiet)
        say(f"  right: {summary(record.answers)['stages'][-1]:.3f} of all classes so far", quiet=quiet)
    for name in FILES:
        file = f"{name}.safetensors"
        write_atomic(folder / file, (record.place(len(tasks) - 1) / file).read_bytes())
    metrics = figures(network, record) | {"seconds_total": round(time.time() - started, 1)}
    write_json(folder / "metrics.json", metrics)
    write_classes_report(folder)
    say(f"report: {folder / 'report.html'}", quiet=quiet)
    return Run(folder, metrics)


def begin(
    network: Classifier, method: Method, config: ClassifyConfig, record: ClassRecord, seed: int
) -> dict[str, Attachment]:
    """The attachments at the start of a task: new, or those of the task before with its past folded in."""
    if not record.learned:
        layers = [role for role in network.roles if role not in ("head", "input.tokens")]
        adapter = attach(network, method, list(config.roles) or method.default_roles(layers), seed=seed)
        try:
            return {"adapter": adapter, "head": attach(network, Selective(), ["head"])}
        except Refused:
            adapter.detach()
            raise
    before = record.place(len(record.learned) - 1)
    attached: dict[str, Attachment] = {}
    try:
        for name in FILES:
            attached[name] = load_adapter(network, before / f"{name}.safetensors")
        attached["adapter"].fold_(seed=seed)
    except Refused:
        release(network, attached.values())
        raise
    return attached


def groups(attached: dict[str, Attachment], config: ClassifyConfig) -> list[dict[str, Any]]:
    """Parameter groups; the head has no weight decay, which would wear down the rows of past classes."""
    return [
        {"params": list(attached["adapter"].parameters()), "peak": config.learning_rate},
        {"params": list(attached["head"].parameters()), "peak": config.head_learning_rate, "weight_decay": 0.0},
    ]


def show(network: Classifier, adapter: Attachment, batches: LabelledBatches, objective: CrossEntropy) -> None:
    """Shows a method that keeps statistics of a task some of its batches."""
    with adapter.observing():
        for step in range(OBSERVED_BATCHES):
            batch = batches.batch(step, 0)
            adapter.begin(SideInputs.of(batch.condition))
            objective.losses(network, batch).sum().backward()
    for attachment in network.attachments:
        for parameter in attachment.parameters():
            parameter.grad = None


def tested(network: Classifier, task: ClassTask, known: int) -> list[bool]:
    """Of each test picture of a task, whether it is recognised among the classes known so far."""
    pictures = LabelledPictures(task.test, first=task.first, size=network.size)
    return right(network, pictures.pixels(list(range(len(pictures)))), pictures.labels, known)


def keep(record: ClassRecord, task: ClassTask, trainable: int, answers: list[list[bool]]) -> None:
    """Writes a finished task down and removes what only its training needed."""
    place = record.place(len(record.learned))
    log = read_log(place)
    record.learned.append(
        LearnedClasses(
            classes=list(task.classes), contents=task.contents(), trainable=trainable,
            files={name: digest(place / f"{name}.safetensors") for name in FILES},
            change=log[-1].get("change"), penalty_ratio=penalty_ratio(log),
        )
    )  # fmt: skip
    record.answers.append(answers)
    record.write()
    shutil.rmtree(place / "checkpoints", ignore_errors=True)
    if len(record.learned) > 1:  # the newest files hold all tasks
        for name in FILES:
            (record.place(len(record.learned) - 2) / f"{name}.safetensors").unlink(missing_ok=True)


def figures(network: Classifier, record: ClassRecord) -> dict[str, Any]:
    """The figures for `metrics.json`."""
    last = record.place(len(record.learned) - 1)
    vit = sum(parameter.numel() for parameter in network.modules()["vit"].parameters() if not parameter.requires_grad)
    return {
        "classify": {
            "tasks": [each.classes for each in record.learned],
            "tested": [len(each) for each in record.answers[-1]],
            **summary(record.answers),
        },
        "transformer_parameters": vit,
        "trainable_parameters": record.learned[-1].trainable,
        "stored_bytes": sum((last / f"{name}.safetensors").stat().st_size for name in FILES),
    }
