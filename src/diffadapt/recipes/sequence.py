"""Teaches a base one concept after another: C-LoRA's setting (Smith et al. 2023, arXiv:2304.06027), with any method.

Each task is a training of its own on one concept's pictures, with a new token, a new optimizer, and the prior's
pictures that the untouched base made once. It begins at the adapter of the task before. After each task the pictures of
every concept so far are sampled and scored: R[i, j]. No picture of a past task is kept: only features of its pictures.

Interrupt at any time, inside a task or between two; the same call goes on. New folders among the tasks are learned
after those that are finished: adding a task to a sequence is the same command once more.
"""

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from ..adapters import RANDOM_START, Attachment, Method, Selective, SideInputs, attach, load_adapter
from ..adapters.custom_diffusion import merge_custom_diffusion
from ..bases import Base
from ..config import check, dump_toml, option, with_overrides
from ..data.cache import TensorCache
from ..data.concept import Concept
from ..data.prompt_check import caption_notes
from ..data.prompts import refuse_templates
from ..data.sequence import Task, load_sequence
from ..data.sequence_record import Learned, SequenceRecord, digest
from ..errors import Refused
from ..evaluation.agreement import SECOND
from ..evaluation.judge import PHOTO_ENCODERS
from ..evaluation.sequence import figures, losses_after, sample_all, sample_pairs, score_row
from ..files import save_tensors, write_atomic, write_json
from ..metrics import load_features
from ..metrics.inception import inception_features, load_inception
from ..objectives import Denoising, Objective, PriorPreservation
from ..progress import say
from ..report.sequence_report import write_sequence_report
from ..training import seeds
from ..training.batches import Batches, Texts
from ..training.class_pictures import class_pictures
from ..training.fit import AttachedBase, fit
from ..training.learner import draws_as_it_trains, make_accelerator, refuse_the_impossible, release
from ..training.loop_config import LoopConfig
from ..training.replay import Mixed, ReplayedPictures
from ..training.run import Run, open_run, open_task
from ..training.sources import BankPictures, ConceptPictures, Source
from ..training.task_log import penalty_ratio, read_log, unlearned

OBSERVED_BATCHES = 8  # that a method which keeps statistics of a task is shown at its end


@dataclass(frozen=True, kw_only=True)
class SequenceConfig(LoopConfig):
    """Settings of `train_sequence`; each task has `steps` steps."""

    token_learning_rate: float = option(5e-3, "peak learning rate of each task's new token", low=0)
    random_token: bool = option(True, "tokens start at random; false starts them from the class noun")
    class_noun: bool = option(False, "prompts name the class behind the token; the paper's do not")
    templates: tuple[str, ...] = option(
        (), "prompts of pictures without a caption, one drawn at random; {} is the concept; empty means 'a {}'"
    )
    prior_weight: float = option(1.0, "weight of prior preservation; 0 switches it off", low=0)
    prior_pictures: int = option(48, "class pictures sampled once from the untouched base, for all tasks", low=1)
    prior_prompts: tuple[str, ...] = option((), "prompts of the class pictures; empty means 'a NOUN'")
    memory_bank: str = option(
        "", "folder of the class pictures; empty means memory_banks beside the run's folder", path=True
    )
    replay_pictures: int = option(
        0, "pictures of each past concept that the model so far draws before a task, as class pictures; 0 is no replay",
        low=0,
    )  # fmt: skip
    merge_apart: bool = option(
        False, "concepts are trained apart from the untouched base, and Custom Diffusion's closed form merges them"
    )
    start_from: str = option("", "not used: a sequence goes on from its own tasks", choices=("",))
    sample_every: int = option(0, "not used: a sequence samples after each task", low=0, high=0)
    evaluation_pictures: int = option(8, "pictures of every concept after every task", low=2)
    evaluation_features: str = option("", "encoder of the scores; empty means the probe, or DINO for photographs")
    evaluation_inception: str = option(
        "",
        "safetensors file of FID's Inception v3, for KID of every concept at the end; empty leaves it out",
        path=True,
    )
    pairs: int = option(2, "pictures with the first and the last concept in one prompt, at the end", low=0)


@draws_as_it_trains
def train_sequence(
    base: Base,
    tasks: Sequence[Task],
    *,
    method: Method,
    out: str | Path,
    seed: int = 0,
    config: SequenceConfig | None = None,
    watch: Callable[[int, float], None] | None = None,
    quiet: bool = False,
    **overrides: Any,
) -> Run:
    """Learns concepts one after another and writes the sequence's folder.

    Args:
        base: a loaded base without attachments.
        tasks: what `load_sequence` returned, in order.
        method: `CLoRA()`; with others training goes on from task to task in the same parameters: `LoRA()`,
            `Selective()` (DreamBooth, or Custom Diffusion with roles of keys and values), `Token()` (textual
            inversion). `CLoRA(penalty_weight=0)` merges and starts anew; `CLoRA(importance="fisher")` is EWC.
        out: the folder: new, empty, or that of the same sequence, which then goes on, with further tasks if there are.
        seed: of everything random.
        config: settings; `overrides` replace single ones, for example steps=200.
        watch: called with (step of the task, loss) after every step.
        quiet: print nothing.

    Returns:
        the run; its adapter is the one after the last task and knows all tokens

    Raises:
        Refused: settings that cannot be met, a folder of another run, a sequence whose files were changed.
        Failed: the loss is not a number (finished tasks stay), the disk is full.
    """
    started = time.time()
    config = with_overrides(config or SequenceConfig(), overrides)
    check(method)
    refuse_the_impossible(base, config)
    if "sequence" not in method.recipes:
        raise Refused(f"method {method.name!r} cannot learn a sequence; use c_lora, lora, oft, selective or token")
    refuse_templates(config.templates)
    if not tasks:
        raise Refused("a sequence needs at least one task; load_sequence finds them in a folder of folders")
    if config.replay_pictures and not config.prior_weight:
        raise Refused("replayed pictures are learned as class pictures are; set train.prior_weight above 0")
    if config.merge_apart and (config.random_token or not isinstance(method, Selective) or config.replay_pictures):
        raise Refused(
            "Custom Diffusion's merge takes concepts trained with method.name=selective "
            "train.roles=cross_attention.key,cross_attention.value train.random_token=false, without replay"
        )
    folder, accelerator = Path(out), make_accelerator(base, config)
    if accelerator.num_processes > 1:
        raise Refused("a sequence trains in one process; start it without a launcher")
    record = SequenceRecord.read(folder)
    waiting = record.in_order(tasks)
    concepts = [read(base, task, config) for task in waiting]  # all of them first: what cannot be used is said now
    notes = [[*concept.notes, *caption_notes(base, concept)] for concept in concepts]
    settings = {"seed": seed, "method": {"name": method.name, **asdict(method)}, "train": config}
    table = {"folder": str(tasks[0].folder.parent), "noun": tasks[0].noun, "order": chosen_order(tasks)}
    open_run(folder, base, "sequence", settings, identity={}, tables={"sequence": table})
    name = config.evaluation_features or base.encoder or PHOTO_ENCODERS[1]
    encoder = load_features(name, device=base.device)
    second = load_features(SECOND, device=base.device) if base.encoder == name == "probe" else None
    inception = load_inception(config.evaluation_inception) if config.evaluation_inception else None

    for task, concept, remarks in zip(waiting, concepts, notes, strict=True):
        number = len(record.learned)
        place = record.place(number, task.name)
        say(f"task {number + 1}: {task.name}", quiet=quiet)
        for note in remarks:
            say(f"note: {note}", quiet=quiet)
        open_task(place, base, "sequence", settings, concept.identity())
        attachment = begin(base, method, config, record, concept, seeds.number(seed, number))
        try:
            past = replayed(base, record, config, seed)
            facts = learn(
                base, attachment, concept, past, config, folder, place, accelerator, settings, seed, watch, quiet
            )
        finally:
            release(base, [attachment])
        adapter = place / "adapter.safetensors"
        if config.merge_apart:
            merge(base, record, adapter)
        references = {"features": encoder.subjects(concept.pixels(base.resolution))}
        if second:
            references[SECOND] = second.subjects(concept.pixels(base.resolution))
        if inception:
            references["inception"] = inception_features(inception, concept.pixels(base.resolution))
        save_tensors(place / "reference.safetensors", references, {"encoder": encoder.name})
        log = read_log(place)
        record.learned.append(
            Learned(
                name=task.name, token=concept.token, phrase=concept.phrase, contents=list(concept.contents),
                captions=[example.caption for example in concept.examples], adapter=digest(adapter),
                trainable=facts["trainable_parameters"], change=log[-1].get("change"),
                penalty_ratio=penalty_ratio(log),
            )
        )  # fmt: skip
        if warning := unlearned(repr(record.learned[-1].name), record.learned[0].change, record.learned[-1].change):
            say(warning, quiet=quiet)
        sample_all(base, adapter, record, config.evaluation_pictures, seed, quiet=quiet)
        record.scores.append(score_row(record, encoder, number))
        found = losses_after(base, adapter, record, concept, config.evaluation_pictures, seed)
        record.learned[-1] = replace(record.learned[-1], losses=found)
        record.write()
        shutil.rmtree(place / "checkpoints", ignore_errors=True)
        if number:  # the newest adapter holds all tasks
            (record.place(number - 1, record.learned[-2].name) / "adapter.safetensors").unlink(missing_ok=True)
    last = record.adapter()
    assert last is not None
    write_atomic(folder / "adapter.safetensors", last.read_bytes())
    if config.pairs:
        sample_pairs(base, record, config.pairs, seed)
    metrics = figures(base, record, encoder, inception, second) | {"seconds_total": round(time.time() - started, 1)}
    write_json(folder / "metrics.json", metrics)
    write_sequence_report(folder)
    say(f"report: {folder / 'report.html'}", quiet=quiet)
    return Run(folder, metrics)


def chosen_order(tasks: Sequence[Task]) -> list[str]:
    """The names of the tasks, where that is not the order in which their folder lists them."""
    names = [task.name for task in tasks]
    return [] if names == [task.name for task in load_sequence(tasks[0].folder.parent, tasks[0].noun)] else names


# --- one task ---------------------------------------------------------------------------------------------------------


def read(base: Base, task: Task, config: SequenceConfig) -> Concept:
    """A task's pictures; raises Refused when they, or its noun, cannot be used."""
    base.check_noun(task.noun)
    concept = task.load()
    return concept if config.class_noun else concept.standing_alone()


def begin(
    base: Base, method: Method, config: SequenceConfig, record: SequenceRecord, concept: Concept, seed: int
) -> Attachment:
    """The attachment at the start of a task: new, or that of the task before with its past folded in."""
    tokens = {concept.token: RANDOM_START if config.random_token else concept.noun}
    before = record.adapter()
    if before is None or config.merge_apart:
        return attach(base, method, list(config.roles) or None, tokens=tokens, seed=seed)
    attachment = load_adapter(base, before)
    try:
        attachment.fold_(tokens, seed=seed)
    except Refused:
        attachment.detach()
        raise
    return attachment


def replayed(base: Base, record: SequenceRecord, config: SequenceConfig, seed: int) -> Source | None:
    """Pictures of the past concepts by the model at the start of a task, the same when the task is resumed."""
    if not config.replay_pictures or not record.learned:
        return None
    return ReplayedPictures(
        base, [each.phrase for each in record.learned], count=config.replay_pictures,
        side=config.resolution or base.resolution, seed=seeds.number(seed, len(record.learned), 7) % 2**31,
    )  # fmt: skip


def merge(base: Base, record: SequenceRecord, adapter: Path) -> None:
    """Keeps the present task's own adapter beside it, and puts in its place the merge of all tasks' own."""
    own = adapter.with_name("own.safetensors")
    if not own.is_file():  # of a task that was stopped after its merge, which is what `adapter` is then
        write_atomic(own, adapter.read_bytes())
    earlier = [record.place(i, each.name) / own.name for i, each in enumerate(record.learned)]
    if earlier:
        merge_custom_diffusion(base, [*earlier, own], adapter)


def learn(
    base: Base,
    attachment: Attachment,
    concept: Concept,
    past: Source | None,
    config: SequenceConfig,
    folder: Path,
    place: Path,
    accelerator: Accelerator,
    settings: dict[str, Any],
    seed: int,
    watch: Callable[[int, float], None] | None,
    quiet: bool,
) -> dict[str, Any]:
    """Trains one task, or what is left of it, and writes its adapter; returns figures of the training."""
    resolution = config.resolution or base.resolution
    attachment.enabled = False
    cache = TensorCache(None)  # in memory alone: nothing of the pictures stays
    target = ConceptPictures(
        base, concept, resolution=resolution, caption_dropout=config.caption_dropout, templates=config.templates,
        seed=seed, process=0, cache=cache,
    )  # fmt: skip
    sources: dict[str, Source] = {"target": target}
    objective: Objective = Denoising(base.noise_schedule, snr_gamma=config.snr_gamma)
    if config.prior_weight:
        bank = class_pictures(base, concept, config, folder, accelerator, quiet)
        of_class = BankPictures(base, bank, cache=cache)
        sources["class"] = of_class if past is None else Mixed([of_class, past])
        objective = PriorPreservation(objective, weight=config.prior_weight)
    texts = Texts(base, [caption for source in sources.values() for caption in source.captions()])
    batches = Batches(
        base, objective, sources, texts,
        batch_size=config.batch_size, parts=config.gradient_accumulation, seed=seed, process=0,
    )  # fmt: skip
    attachment.enabled = True
    facts = fit(
        base, {"adapter": attachment}, batches, objective,
        config=config, groups=groups(attachment, config), folder=place, accelerator=accelerator,
        settings=dump_toml(settings), seed=seed, log_as={"target": "loss_concept", "class": "loss_prior"},
        averaged_after=True, watch=watch, quiet=quiet,
    )  # fmt: skip
    if attachment.method.observes():
        show(base, attachment, batches, objective, texts)
        attachment.save(place / "adapter.safetensors", {"settings": dump_toml(settings)})
    return facts


def show(base: Base, attachment: Attachment, batches: Batches, objective: Objective, texts: Texts) -> None:
    """Shows a method that keeps statistics of a task some of its batches, and the empty prompt."""
    model = AttachedBase(base, {"adapter": attachment})
    with attachment.observing():
        for step in range(OBSERVED_BATCHES):
            batch = batches.batch(step, 0)
            attachment.begin(SideInputs.of(batch.condition, timesteps=batch.timesteps))
            if attachment.method.observes() == "gradients":
                objective.losses(model, batch).sum().backward()
                continue
            with torch.no_grad():
                base.denoise(batch.latents, batch.timesteps, batch.condition)
                if step == 0:
                    base.denoise(batch.latents[:1], batch.timesteps[:1], texts.of([""]))
    for parameter in attachment.parameters():
        parameter.grad = None


def groups(attachment: Attachment, config: SequenceConfig) -> list[dict[str, Any]]:
    """Parameter groups: layers and the new token, each with its peak learning rate."""
    vectors = [each.vectors for each in attachment.words]
    layers = [each for each in attachment.parameters() if not any(each is vector for vector in vectors)]
    return [
        {"params": layers, "peak": config.learning_rate},
        {"params": vectors, "peak": config.token_learning_rate, "weight_decay": 0.0},
    ]
