"""Teaches a base one subject from a few pictures: DreamBooth (Ruiz et al. 2022, arXiv:2208.12242) with any method.

    loss = L(a <token> noun) + prior_weight * L(a noun)

The first term is the denoising loss on the concept's pictures; the second is the same on pictures of the class that
the untouched base made (the memory bank), so that the class is not lost to the subject. Interrupt at any time; the
same call resumes and ends with the same adapter, bit for bit on CPU.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..adapters import Attachment, Method, attach
from ..bases import Base
from ..config import check, dump_toml, option, with_overrides
from ..data.cache import TensorCache
from ..data.concept import Concept, photograph_notes
from ..data.prompt_check import caption_notes
from ..data.prompts import refuse_templates
from ..errors import Refused
from ..evaluation.evaluate import evaluate
from ..evaluation.judge import load_encoders
from ..objectives import Denoising, Masked, Objective, PriorPreservation
from ..progress import say
from ..run_layout import RunLayout
from ..sampling.adapter_files import start_from
from ..training.batches import Batches, Texts
from ..training.class_pictures import class_pictures
from ..training.finish import finish
from ..training.fit import fit
from ..training.learner import draws_as_it_trains, make_accelerator, refuse_the_impossible, release
from ..training.progress_samples import subject_samples
from ..training.retention_config import RetentionConfig
from ..training.run import Run, open_run, write_pictures
from ..training.select_step import select_step
from ..training.sources import BankPictures, ConceptPictures, Source
from .plan import count
from .retention import KEPT, premise_of, retained, say_unused


@dataclass(frozen=True, kw_only=True)
class SubjectConfig(RetentionConfig):
    """Settings of `train_subject`; the defaults suit LoRA on the embedded base."""

    batch_size: int = option(4, "concept pictures a step and process; as many class pictures come beside them", low=1)
    caption_dropout: float = option(0.0, "share of concept captions replaced by the empty prompt", low=0, high=1)
    token_learning_rate: float = option(5e-3, "peak learning rate of the new token's vectors", low=0)
    prior_weight: float = option(1.0, "weight of prior preservation; 0 switches it off", low=0)
    prior_pictures: int = option(48, "class pictures sampled once from the base", low=1)
    prior_prompts: tuple[str, ...] = option((), "prompts of the class pictures; empty means 'a NOUN'")
    memory_bank: str = option(
        "", "folder of the class pictures; empty means memory_banks beside the run's folder", path=True
    )
    train_token: bool = option(True, "learn the token's vector; false takes the token as a rare word of the tokenizer")
    masked: bool = option(False, "count the loss inside the concept's masks only")
    templates: tuple[str, ...] = option(
        (), "prompts of pictures without a caption, one drawn at random; {} is the concept; empty means 'a {}'"
    )
    select: int = option(
        0, "prompts that every checkpoint is scored on; the best becomes the adapter; 0 takes the last", low=0, high=25
    )
    evaluation_prompts: int = option(
        25, "prompts of the evaluation at the end, up to 25; 0 measures nothing", low=0, high=25
    )
    evaluation_pictures: int = option(4, "pictures of each of these prompts; 2 or more measure diversity too", low=1)


@draws_as_it_trains
def train_subject(
    base: Base,
    concept: Concept,
    *,
    method: Method,
    out: str | Path,
    seed: int = 0,
    config: SubjectConfig | None = None,
    watch: Callable[[int, float], None] | None = None,
    quiet: bool = False,
    **overrides: Any,
) -> Run:
    """Learns a concept and writes the run's folder.

    Args:
        base: a loaded base without attachments.
        concept: what `load_concept` returned, or `join_concepts` of several that are learned together.
        method: for example `LoRA(rank=4)`, `Token()` (textual inversion) or `Selective()` (full fine-tuning).
        out: the run's folder: new, empty, or that of the same run, which is then resumed.
        seed: of everything random.
        config: settings; `overrides` replace single ones, for example steps=200.
        watch: called with (step, loss) after every step.
        quiet: print nothing.

    Returns:
        the run: folder, adapter file, metrics, report

    Raises:
        Refused: settings that cannot be met; a folder in use by another run.
        Failed: the loss is not a number (the last good checkpoint stays), the disk is full.
    """
    started = time.time()
    config = with_overrides(config or SubjectConfig(), overrides)
    check(method)
    if method.replaces_noun:
        concept = concept.standing_alone()
    refuse_the_impossible(base, config)
    refuse_what_does_not_fit(base, concept, method, config)
    accelerator = make_accelerator(base, config)
    is_main = accelerator.is_main_process
    quiet = quiet or not is_main
    folder, resolution = Path(out), config.resolution or base.resolution
    settings = {"seed": seed, "method": {"name": method.name, **vars(method)}, "train": config}

    cut_captions = caption_notes(base, concept)

    # --- what trains: first, so that what does not fit is refused before anything is written ------------------------
    tokens = concept.tokens if config.train_token else None
    attachment = attach(base, method, list(config.roles) or None, tokens=tokens, seed=seed)
    attachment.enabled = False
    try:
        start_from({"adapter": attachment}, config.start_from)
        if is_main:
            _write_header(folder, base, concept, settings, resolution)
        for note in [*concept.notes, *cut_captions, *photograph_notes(concept, base)]:
            say(f"note: {note}", quiet=quiet)
        for line in count(base, attachment, concept, config).lines():
            say(line, quiet=quiet)

        # --- batches: latents of the concept and of its class, each encoded once --------------------------------------
        cache = TensorCache(folder / "cache" if is_main else None)
        target = ConceptPictures(
            base, concept, resolution=resolution, masked=config.masked, caption_dropout=config.caption_dropout,
            templates=config.templates, seed=seed, process=accelerator.process_index, cache=cache,
        )  # fmt: skip
        sources: dict[str, Source] = {"target": target}
        if config.prior_weight:
            bank = class_pictures(base, concept, config, folder, accelerator, quiet)
            sources["class"] = BankPictures(base, bank, cache=cache)

        # --- the objective, and the loop ------------------------------------------------------------------------------
        objective: Objective = (Masked if config.masked else Denoising)(base.noise_schedule, snr_gamma=config.snr_gamma)
        if config.prior_weight:
            objective = PriorPreservation(objective, weight=config.prior_weight)
            say_unused(config, quiet)
        else:
            objective = retained(
                base, objective, sources, config, folder, accelerator, resolution=resolution, quiet=quiet
            )
        premise = premise_of(base, sources, seed=seed, quiet=quiet)
        texts = Texts(base, [caption for source in sources.values() for caption in source.captions()])
        batches = Batches(
            base, objective, sources, texts,
            batch_size=config.batch_size, parts=config.gradient_accumulation, seed=seed,
            process=accelerator.process_index,
        )  # fmt: skip
        attachment.enabled = True
        facts = fit(
            base, {"adapter": attachment}, batches, objective,
            config=config, groups=_groups(attachment, config), folder=folder, accelerator=accelerator,
            settings=dump_toml(settings), seed=seed,
            samples=subject_samples(base, concept, folder, seed) if is_main and config.sample_every else None,
            log_as={"target": "loss_concept", "class": "loss_prior", **KEPT}, watch=watch, quiet=quiet,
        )  # fmt: skip
        facts |= premise
    finally:
        release(base, [attachment])
    accelerator.wait_for_everyone()
    if not is_main:
        return Run(folder)

    # --- what follows -------------------------------------------------------------------------------------------------
    if config.select:
        facts["selection"] = select_step(base, concept, folder, prompts=config.select, seed=seed, quiet=quiet)
    return finish(
        folder, subject_samples(base, concept, folder, seed),
        (lambda: _measure(base, concept, folder, config, seed, quiet)) if config.evaluation_prompts else None,
        facts=facts, started=started, quiet=quiet,
    )  # fmt: skip


# --- the parts, in the order of their use -----------------------------------------------------------------------------


def refuse_what_does_not_fit(base: Base, concept: Concept, method: Method, config: SubjectConfig) -> None:
    """All that can be known to be wrong before the first file is written."""
    if "subject" not in method.recipes:
        others = " or ".join(f"train_{name}" for name in method.recipes) or "the recipe that it stands beside"
        raise Refused(f"method {method.name!r} cannot learn a subject; use {others}")
    if method.needs_word and not config.train_token:
        raise Refused(f"{method.title} learns a new word for the concept; leave train_token on")
    if config.prior_weight and config.objective != "standard":
        raise Refused(
            f"prior preservation and train.objective={config.objective} both keep what the base knows; "
            "set train.prior_weight=0 to use the latter"
        )
    if config.masked and concept.masks(config.resolution or base.resolution) is None:
        raise Refused(f"masked = true, but no picture in {concept.folder} has a mask (alpha, or NAME-masklabel.png)")
    if config.masked and (empty := concept.empty_masks(config.resolution or base.resolution)):
        raise Refused(
            f"masked = true, and the mask of {', '.join(empty)} is empty inside the square crop, so that there is "
            "nothing to learn from; draw it anew, or remove it"
        )
    if config.select and (config.keep_checkpoints or not config.checkpoint_every):
        raise Refused(
            "select chooses among the checkpoints; set checkpoint_every, such as 25, and keep_checkpoints = 0"
        )
    refuse_templates(config.templates)
    if not config.train_token and concept.token.startswith("<"):
        raise Refused(
            f"train_token = false takes the token as a word of the tokenizer, and {concept.token!r} is none; "
            "name a rare word, such as token = 'sks'"
        )
    for noun in concept.tokens.values():
        base.check_noun(noun)
    if config.select:
        load_encoders(base)  # what chooses the step must be there before the steps are


def _write_header(folder: Path, base: Base, concept: Concept, settings: dict[str, Any], resolution: int) -> None:
    """Claims the run's folder and writes what a reader of it needs first."""
    table = {"folder": str(concept.folder), "noun": concept.noun, "token": concept.token}
    table |= {"also": [f"{part.folder}={part.noun}={part.token}" for part in concept.parts[1:]]}
    open_run(
        folder, base, "subject", settings, identity={"concept": concept.identity()}, tables={"concept": table}
    )  # fmt: skip
    write_pictures(folder, concept.pixels(resolution), concept.crop_table())


def _groups(attachment: Attachment, config: SubjectConfig) -> list[dict[str, Any]]:
    """Parameter groups: layers and tokens, each with its peak learning rate."""
    vectors = [each.vectors for each in attachment.words]
    layers = [each for each in attachment.parameters() if not any(each is vector for vector in vectors)]
    return [
        {"params": layers, "peak": config.learning_rate},
        {"params": vectors, "peak": config.token_learning_rate, "weight_decay": 0.0},
    ]


def _measure(
    base: Base, concept: Concept, folder: Path, config: SubjectConfig, seed: int, quiet: bool
) -> dict[str, Any]:
    """The figures of the first concept, and under "also" those of each further one."""
    untouched = TensorCache(RunLayout(folder).untouched)

    def of(part: Concept, out: Path | None) -> dict[str, Any]:
        return evaluate(
            base, part, adapters=[(folder, 1.0)], out=out, prompts=config.evaluation_prompts,
            per_prompt=config.evaluation_pictures, drift_count=min(25, 2 * config.evaluation_prompts), seed=seed,
            kept=untouched, quiet=quiet,
        )  # fmt: skip

    whole = of(concept.parts[0], folder)
    also = {part.token: of(part, None)["values"] for part in concept.parts[1:]}
    return whole | ({"also": also} if also else {})
