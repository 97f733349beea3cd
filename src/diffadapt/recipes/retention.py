"""`train.objective` in recipes: Diff-Tuning's memory of the untouched base, and the check of its premise."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from ..adapters import Attachment
from ..bases import Base
from ..controls import Signal
from ..data.cache import TensorCache, content_key
from ..data.latent_bank import LatentBank, LatentBankSettings
from ..data.prompts import drift_prompts, world_captions
from ..data.wide_scenes import world_of
from ..errors import Refused
from ..evaluation.chain_of_forgetting import losses_at, near_data
from ..metrics.control_consistency import read_signal
from ..metrics.reader import load_reader
from ..objectives import Denoising, MatchingTheBase, MixedWithMemory, Objective
from ..progress import say
from ..run_layout import RunLayout
from ..sampling.sample import PromptLine, generate
from ..training.retention_config import MemoryConfig, RetentionConfig
from ..training.sources import BankLatents, Source, Unconditioned

DEFAULT_PROMPT = "a high-quality, detailed, and professional image"  # the paper's, for ControlNet (appendix B)
WARN_ABOVE = 1.3  # ratio of the base's losses near the data, target over memory
WORLD_PROMPTS, GENERAL_PROMPTS = 256, 25
CHECKED = 32  # rows of each that the premise looks at
KEPT = {"memory": "loss_memory", "teacher": "loss_teacher"}  # source -> the log's name of its rows' loss


def retained(
    base: Base,
    objective: Objective,
    sources: dict[str, Source],
    config: RetentionConfig,
    folder: Path,
    accelerator: Accelerator,
    *,
    resolution: int,
    signal: Signal | None = None,
    cache: TensorCache | None = None,
    quiet: bool,
) -> Objective:
    """The objective as `config.objective` has it; adds the source of what is kept to `sources`.

    Args:
        base: everything attached is off, so that the memory is the untouched base's.
        objective: of a row.
        sources: with "target".
        config: of the run.
        folder: of the run; the bank lies beside it unless the settings say where.
        accelerator: the first process samples, all read.
        resolution: side of the pictures, in pixels.
        signal: the control signal that goes with every picture; of memory it is computed from the picture.
        cache: keeps these signals.
        quiet: print nothing.

    Raises:
        Refused: an adapter is on, target and memory would be told apart by nothing, a bank of another base.
    """
    mixture = config.memory.mixture(config.objective)
    ratio = base.noise_schedule.noise_ratio().cpu()
    mixed = MixedWithMemory(objective, mixture, ratio)
    if mixed.plain:
        say_unused(config, quiet)
        return objective
    if mixture.estimator != "bernoulli":
        mixed.split(config.batch_size)  # refuses a batch too small for both
    if mixture.distill:
        if type(objective) is not Denoising:
            raise Refused("distillation matches the base on whole pictures; leave train.masked off, or use difftuning")
        sources["teacher"] = Unconditioned(sources["target"])
        matching = MatchingTheBase(
            objective.schedule, snr_gamma=config.snr_gamma, learned_variance=objective.learned_variance
        )
        return MixedWithMemory(matching, mixture, ratio)
    if not mixed.uses_memory:
        return mixed
    caption = {"null": "", "default_prompt": DEFAULT_PROMPT, "generated": None}[mixture.memory_condition]
    if signal is None:
        refuse_one_condition(sources["target"].captions(), caption)
    bank = memory_of(base, config, folder, accelerator, resolution=resolution, quiet=quiet)
    sources["memory"] = BankLatents(bank, caption, signal=_signals(base, bank, signal, cache) if signal else None)
    return mixed


def say_unused(config: RetentionConfig, quiet: bool) -> None:
    """Names settings of a memory that a training has no use for."""
    if config.objective == "standard" and config.memory != MemoryConfig():
        say("note: train.objective=standard keeps nothing, so what train.memory says is not used", quiet=quiet)


def memory_latents(base: Base, objective: str, memory: MemoryConfig) -> int:
    """How many latents of the untouched base a training samples as its memory; 0 where it needs none."""
    mixture = memory.mixture(objective)
    mixed = MixedWithMemory(Denoising(base.noise_schedule), mixture, base.noise_schedule.noise_ratio().cpu())
    return memory.latents if mixed.uses_memory and not mixed.plain and not mixture.distill else 0


def _signals(base: Base, bank: LatentBank, signal: Signal, cache: TensorCache | None) -> Callable[[int], Tensor]:
    """Row number -> the control signal (3, H, W) of the memory's picture: computed, or read off the embedded world.

    Raises:
        Refused: the signal cannot be told from a picture of this base.
    """
    if signal.extract is None and not base.world:
        raise Refused(
            f"Diff-Tuning pairs every memory picture with its signal, and {signal.name} cannot be computed from a "
            "picture; use train.objective=standard, distillation or reconsolidation_only"
        )
    reader = load_reader() if signal.extract is None else None
    kept = cache or TensorCache(None)

    def of(row: int) -> Tensor:
        key = content_key("signal of memory", bank.settings.fingerprint, signal.name, row)
        return kept.get(key, lambda: read_signal(signal.name, base.decode_latents(bank.latents([row])), reader)[0])

    return of


@contextmanager
def switched_off(attachments: Iterable[Attachment]) -> Iterator[None]:
    """Within the block the base is as it was before the attachments came."""
    before = [(attachment, attachment.enabled) for attachment in attachments]
    try:
        for attachment, _ in before:
            attachment.enabled = False
        yield
    finally:
        for attachment, enabled in before:
            attachment.enabled = enabled


def refuse_one_condition(captions: Sequence[str], caption: str | None) -> None:
    """Raises Refused where every target picture has the very condition of all memory."""
    if captions and caption is not None and set(captions) <= {caption}:
        raise Refused(
            f"target pictures and memory have the same condition ({caption!r}), so the base's own content would leak "
            "into what is learned; give the pictures captions, or set train.memory.condition=generated"
        )


def memory_of(
    base: Base, config: RetentionConfig, folder: Path, accelerator: Accelerator, *, resolution: int, quiet: bool
) -> LatentBank:
    """The bank of a base's own latents, sampled where it is not there yet.

    Raises:
        Refused: something attached is on, or the folder holds a bank of another base or sampling.
    """
    if any(attachment.enabled and attachment.strength for attachment in base.attachments):
        raise Refused("the memory is sampled from the untouched base, and an adapter is on; switch it off or detach it")
    memory, world = config.memory, world_of(base)
    general = world_captions(base, WORLD_PROMPTS) if world else drift_prompts(None, GENERAL_PROMPTS)
    prompts = tuple(memory.prompts or base.own_classes or general)
    side = resolution // base.downsampling
    vae = base.vae.config
    settings = LatentBankSettings(
        base_fingerprint=base.drawing_fingerprint,
        vae=f"{type(base.vae).__name__} {vae.scaling_factor:g} {vae.get('shift_factor') or 0:g}",
        shape=(int(vae.latent_channels), side, side),
        sampler=type(base.pipeline.scheduler).__name__,
        steps=memory.steps or base.default_steps,
        guidance=base.default_guidance if memory.guidance is None else memory.guidance,
        prompts=prompts,
    )
    place = Path(memory.folder) if memory.folder else RunLayout(folder).memory_banks / settings.fingerprint[:12]
    bank = LatentBank(place, settings)

    def make(rows: list[int]) -> tuple[Tensor, list[str]]:
        asked = [prompts[row % len(prompts)] for row in rows]
        lines = [
            PromptLine(prompt=prompt, seed=settings.seed + row, width=resolution, height=resolution,
                       guidance=settings.guidance, steps=settings.steps)
            for prompt, row in zip(asked, rows, strict=True)
        ]  # fmt: skip
        return base.encode_pictures(torch.stack(generate(base, lines, batch=len(lines)))), asked

    if accelerator.is_main_process:
        missing = memory.latents - min(memory.latents, bank.whole_rows)
        if missing:
            say(f"sampling {missing} latents of the untouched base into {place}", quiet=quiet)
        bank.ensure(memory.latents, make, quiet=quiet)
    accelerator.wait_for_everyone()
    if not accelerator.is_main_process:
        bank = LatentBank(place, settings)
        bank.ensure(memory.latents, make, quiet=True)
    return bank


@dataclass(frozen=True)
class Premise:
    """How well the untouched base denoises near the data, under the null condition.

    Args:
        target, memory: its mean losses on the pictures to learn and on its own.
    """

    target: float
    memory: float

    @property
    def ratio(self) -> float:
        return self.target / self.memory

    def tell(self, quiet: bool) -> None:
        """Says the ratio, with a warning where the method's premise is in doubt."""
        say(f"premise: near the data the base's loss on the target is {self.ratio:.2f} times that on its own pictures",
            quiet=quiet)  # fmt: skip
        if self.ratio > WARN_ABOVE:
            say(
                f"warning: above {WARN_ABOVE:g} the base is no denoiser of the target near the data, and keeping what "
                "it does there may hold the training back; compare with train.objective=reconsolidation_only, or lower "
                "train.memory.weight",
                quiet=quiet,
            )


def premise_of(base: Base, sources: Mapping[str, Source], *, seed: int, quiet: bool) -> dict[str, Any]:
    """Checks the premise, says it, and returns it as figures for `metrics.json`; nothing where there is no memory."""
    premise = check_premise(base, sources, seed)
    if premise is None:
        return {}
    premise.tell(quiet)
    figures = {"target": premise.target, "memory": premise.memory, "ratio": premise.ratio}
    return {"premise": {name: round(value, 5) for name, value in figures.items()}}


def check_premise(base: Base, sources: Mapping[str, Source], seed: int) -> Premise | None:
    """The base's losses near the data; None where there is no memory to compare with.

    Args:
        base: everything attached is off.
        sources: with "target" and "memory".
        seed: of rows, levels and noise; levels and noise are the same for both.
    """
    if "memory" not in sources:
        return None
    means = {}
    for name in ("target", "memory"):
        picked = sources[name].pick(np.random.default_rng([seed, 7]), CHECKED, 0)
        latents = torch.stack([sources[name].fetch(index).latents for index, _ in picked])
        steps = near_data(base.noise_schedule.noise_ratio().cpu(), CHECKED)
        means[name] = float(losses_at(base, latents, steps, seed=seed).mean())
    return Premise(means["target"], means["memory"])
