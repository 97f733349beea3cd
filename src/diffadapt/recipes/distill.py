"""Distils frozen teachers into an adapter on a base: what they predict, from captions alone.

    loss = E |p_T(x_t, t, c_T) - p_S(x_t, t, c_S)|^2

For fine-tuned models whose own pictures nobody has (StyleInject, arXiv:2401.13942, distillation): the rows are pictures
that each teacher made from generic captions, and pictures of a folder, if there is one. Teacher and student may have
different text encoders, even languages: each caption then has its counterpart. Several teachers go into one adapter.
Interrupt at any time; the same call resumes and ends with the same adapter, bit for bit on CPU.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator

from ..adapters import Method, attach
from ..bases import Base
from ..config import check, dump_toml, option, with_overrides
from ..data.cache import TensorCache, content_key
from ..data.captioned import Captioned
from ..data.memory_bank import BankSettings, MemoryBank
from ..data.picture import to_picture
from ..data.prompts import spread
from ..errors import Refused
from ..evaluation.evaluate_distillation import evaluate_distillation
from ..fingerprint import fingerprint
from ..objectives import Distillation, Teacher
from ..progress import say
from ..sampling.adapter_files import start_from
from ..sampling.sample import default_line, generate
from ..training.batches import Batches, Texts
from ..training.finish import finish
from ..training.fit import fit
from ..training.learner import draws_as_it_trains, make_accelerator, refuse_the_impossible, release
from ..training.loop_config import LoopConfig
from ..training.progress_samples import COUNT, ProgressSamples
from ..training.run import Run, open_run
from ..training.sources import BankPictures, Source
from ..training.style_pictures import CaptionedPictures


@dataclass(frozen=True, kw_only=True)
class DistillConfig(LoopConfig):
    """Settings of `train_distill`; the defaults suit the embedded base."""

    caption_dropout: float = option(
        0.1, "share of captions that teacher and student both get as the empty prompt", low=0, high=1
    )
    resolution: int = option(0, "not used: pictures have the size that base and teachers work at", low=0, high=0)
    teacher_pictures: int = option(64, "pictures sampled once from each teacher, its captions in turn", low=1)
    evaluation_pictures: int = option(
        16, "pictures of base, student and each teacher that are compared at the end, 2 or more; 0 compares none", low=0
    )


@draws_as_it_trains
def train_distill(
    base: Base,
    teachers: Mapping[str, Base],
    captions: Sequence[str],
    *,
    method: Method,
    out: str | Path,
    teacher_captions: Sequence[str] | None = None,
    pictures: Captioned | None = None,
    source: Mapping[str, Any] | None = None,
    seed: int = 0,
    config: DistillConfig | None = None,
    watch: Callable[[int, float], None] | None = None,
    quiet: bool = False,
    **overrides: Any,
) -> Run:
    """Learns what the teachers predict and writes the run's folder.

    Args:
        base: the student's base, without attachments.
        teachers: name -> frozen base with the same VAE; it may predict something else, under another schedule.
        captions: generic ones, in the student's language.
        method: for example `StyleInject()` or `LoRA(rank=12)`.
        out: the run's folder: new, empty, or that of the same run, which is then resumed.
        teacher_captions: the same captions as the teachers read them, one for each; None gives them the student's.
        pictures: captioned pictures that the teachers are asked about as well; half of the rows.
        source: the table [distill] that teachers and captions came from, for run.toml.
        seed: of everything random.
        config: settings; `overrides` replace single ones, for example steps=200.
        watch: called with (step, loss) after every step.
        quiet: print nothing.

    Returns:
        the run: folder, adapter file, metrics, report

    Raises:
        Refused: a teacher of another VAE or resolution, captions that do not pair up, settings that cannot be met.
        Failed: the loss is not a number (the last good checkpoint stays), the disk is full.
    """
    started = time.time()
    config = with_overrides(config or DistillConfig(), overrides)
    check(method)
    refuse_the_impossible(base, config)
    if "style" not in method.recipes:
        raise Refused(f"method {method.name!r} cannot be distilled into; use style_inject, lora or oft")
    for name, teacher in teachers.items():
        refuse_another_space(base, name, teacher)
    as_taught = pair_up(captions, teacher_captions)
    accelerator = make_accelerator(base, config)
    is_main = accelerator.is_main_process
    quiet = quiet or not is_main
    folder = Path(out)
    settings = {"seed": seed, "method": {"name": method.name, **asdict(method)}, "train": config}

    # --- what trains: first, so that what does not fit is refused before anything is written ------------------------
    attachment = attach(base, method, list(config.roles) or None, seed=seed)
    try:
        start_from({"adapter": attachment}, config.start_from)
        if is_main:
            taught = {name: teacher.fingerprint for name, teacher in teachers.items()}
            pairs = content_key(*[f"{own}\n{for_teacher}" for own, for_teacher in as_taught.items()])
            identity = {"teachers": taught, "captions": pairs, "pictures": pictures.identity() if pictures else ""}
            identity["teachers_predict"] = ", ".join(teacher.prediction_type for teacher in teachers.values())
            tables = {"distill": source} if source else {}
            open_run(folder, base, "distill", settings, identity={"distill": identity}, tables=tables)

        # --- rows: pictures of each teacher, and given ones, each asked of its teacher --------------------------------
        cache = TensorCache(folder / "cache" if is_main else None)
        sources: dict[str, Source] = {}
        asked: dict[str, Teacher] = {}
        for name, teacher in teachers.items():
            bank = _bank(teacher, folder / "teachers" / name, list(as_taught.values()), config, accelerator, quiet)
            sources[name] = TaughtPictures(base, bank, list(as_taught), dropout=config.caption_dropout, cache=cache)
            asked[name] = teacher_of(teacher, as_taught)
            if pictures is not None:
                _refuse_unpaired(pictures, as_taught)
                sources[f"{name}, given pictures"] = CaptionedPictures(
                    base, {"": pictures}, resolution=base.resolution, caption_dropout=config.caption_dropout,
                    seed=seed, process=accelerator.process_index, cache=cache,
                )  # fmt: skip
                asked[f"{name}, given pictures"] = asked[name]
        objective = Distillation(base.noise_schedule, asked, snr_gamma=config.snr_gamma)
        texts = Texts(base, [caption for source in sources.values() for caption in source.captions()])
        batches = Batches(
            base, objective, sources, texts,
            batch_size=config.batch_size, parts=config.gradient_accumulation, seed=seed,
            process=accelerator.process_index,
        )  # fmt: skip

        # --- the loop -------------------------------------------------------------------------------------------------
        shown = spread(list(as_taught), COUNT)
        samples = ProgressSamples(base, folder, shown, shown, seed) if is_main and config.sample_every else None
        facts = fit(
            base, {"adapter": attachment}, batches, objective,
            config=config, groups=[{"params": list(attachment.parameters()), "peak": config.learning_rate}],
            folder=folder, accelerator=accelerator, settings=dump_toml(settings), seed=seed, samples=samples,
            log_as={name: f"loss_{name}" for name in teachers} if len(teachers) > 1 else None,
            watch=watch, quiet=quiet,
        )  # fmt: skip
    finally:
        release(base, [attachment])
    accelerator.wait_for_everyone()
    if not is_main:
        return Run(folder)

    # --- what follows ---------------------------------------------------------------------------------------------
    adapter = folder / "adapter.safetensors"

    def measure() -> dict[str, Any]:
        return evaluate_distillation(
            base, teachers, as_taught, adapters=[(adapter, 1.0)], most=config.evaluation_pictures, seed=seed,
            out=folder / "compared", quiet=quiet,
        )  # fmt: skip

    measured = measure if config.evaluation_pictures else None
    return finish(folder, samples, measured, facts=facts, started=started, quiet=quiet)


def pair_up(captions: Sequence[str], teacher_captions: Sequence[str] | None) -> dict[str, str]:
    """The student's caption -> the teacher's.

    Raises:
        Refused: none, not as many of the one as of the other, or one caption with two counterparts.
    """
    for_teachers = list(captions if teacher_captions is None else teacher_captions)
    if not captions or len(captions) != len(for_teachers):
        raise Refused(
            f"got {len(captions)} captions for the student and {len(for_teachers)} for the teacher; pass one for each"
        )
    pairs: dict[str, str] = {}
    for own, other in zip(captions, for_teachers, strict=True):
        if pairs.setdefault(own, other) != other:
            raise Refused(f"caption {own!r} has two counterparts, {pairs[own]!r} and {other!r}; keep one")
    return pairs


def refuse_another_space(base: Base, name: str, teacher: Base) -> None:
    """Rejects a teacher whose latents are not the student's."""
    if teacher.resolution != base.resolution:
        raise Refused(
            f"teacher {name!r} works at {teacher.resolution} pixels, the student at {base.resolution}; choose a "
            "teacher of the same resolution"
        )
    scales = [each.vae.config.scaling_factor for each in (base, teacher)]
    if scales[0] != scales[1] or fingerprint(base.vae.state_dict().items()) != fingerprint(
        teacher.vae.state_dict().items()
    ):
        raise Refused(
            f"teacher {name!r} has another VAE than {base.name!r}, so that their latents do not compare; choose a "
            "teacher of the same family with the same VAE"
        )


def teacher_of(teacher: Base, as_taught: Mapping[str, str]) -> Teacher:
    """A base as the objective asks it: the student's captions are put into the teacher's words."""

    def condition(captions: Sequence[str]) -> Any:
        return teacher.condition([as_taught[caption] if caption else "" for caption in captions])

    return Teacher(denoise=teacher.denoise, condition=condition, schedule=teacher.noise_schedule)


class TaughtPictures(BankPictures):
    """Pictures that a teacher made, under the student's captions.

    Args:
        base: the student's, encodes them.
        bank: picture i was made from caption i of the teacher's, in turn.
        captions: the student's.
        dropout: share of captions replaced by the empty prompt.
        cache: keeps latents.
    """

    def __init__(
        self, base: Base, bank: MemoryBank, captions: Sequence[str], *, dropout: float, cache: TensorCache
    ) -> None:
        super().__init__(base, bank, cache=cache)
        self.own, self.dropout = list(captions), dropout

    def captions(self) -> list[str]:
        return [*self.own, ""]

    def pick(self, rng: np.random.Generator, size: int, place: int) -> list[tuple[int, str]]:
        rows = super().pick(rng, size, place)
        return [(i, "" if rng.random() < self.dropout else self.own[i % len(self.own)]) for i, _ in rows]


def _bank(
    teacher: Base, folder: Path, prompts: list[str], config: DistillConfig, accelerator: Accelerator, quiet: bool
) -> MemoryBank:
    """The pictures of a teacher, sampled once by the first process and read by all; what is there is kept."""
    settings = BankSettings(
        base_fingerprint=teacher.drawing_fingerprint, resolution=teacher.resolution,
        guidance=teacher.default_guidance, steps=teacher.default_steps,
    )  # fmt: skip

    def make(asked: list[str], seeds: list[int]) -> list[Any]:
        lines = [default_line(teacher, prompt, seed) for prompt, seed in zip(asked, seeds, strict=True)]
        return [to_picture(pixels) for pixels in generate(teacher, lines, batch=len(lines))]

    bank = MemoryBank(folder, settings)
    if missing := bank.missing(config.teacher_pictures):
        say(f"sampling {len(missing)} pictures of the teacher into {folder}", quiet=quiet)
    if accelerator.is_main_process:
        bank.ensure(config.teacher_pictures, prompts, make)
    accelerator.wait_for_everyone()
    if not accelerator.is_main_process:
        bank = MemoryBank(folder, settings)
        bank.ensure(config.teacher_pictures, prompts, make)
    return bank


def _refuse_unpaired(pictures: Captioned, as_taught: Mapping[str, str]) -> None:
    for example in pictures.examples:
        if (example.caption or "") not in as_taught:
            raise Refused(
                f"the caption of {example.path.name}, {example.caption!r}, is not among the captions, so the teacher's "
                "words for it are not known; add the pair"
            )
