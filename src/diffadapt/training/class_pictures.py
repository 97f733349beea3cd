"""The pictures of a class that the untouched base makes once, for prior preservation."""

from pathlib import Path
from typing import Any, Protocol

from accelerate import Accelerator

from ..bases import Base
from ..data.concept import Concept
from ..data.memory_bank import BankSettings, MemoryBank
from ..data.picture import to_picture
from ..progress import Steps, say
from ..run_layout import RunLayout
from ..sampling.sample import PromptLine, generate


class PriorConfig(Protocol):
    """The settings of a recipe that this reads."""

    @property
    def resolution(self) -> int: ...
    @property
    def prior_pictures(self) -> int: ...
    @property
    def prior_prompts(self) -> tuple[str, ...]: ...
    @property
    def memory_bank(self) -> str: ...


def class_pictures(
    base: Base, concept: Concept, config: PriorConfig, folder: Path, accelerator: Accelerator, quiet: bool
) -> MemoryBank:
    """The memory bank of the concept's class: sampled by the first process, read by all."""
    side = config.resolution or base.resolution
    settings = BankSettings(
        base_fingerprint=base.drawing_fingerprint,
        resolution=side,
        guidance=base.default_guidance,
        steps=base.default_steps,
    )
    prompts = list(config.prior_prompts) or concept.class_prompts
    nouns = "-".join(dict.fromkeys(concept.tokens.values())).replace(" ", "-")
    name = f"{nouns}-{base.drawing_fingerprint.split(':')[-1][:8]}-{side}"
    if config.prior_prompts:
        name += f"-{len(prompts)}-prompts"
    place = Path(config.memory_bank) if config.memory_bank else RunLayout(folder).memory_banks / name

    def make(asked: list[str], its_seeds: list[int]) -> list[Any]:
        lines = [
            PromptLine(
                prompt=prompt, seed=seed, width=side, height=side, guidance=settings.guidance, steps=settings.steps
            )
            for prompt, seed in zip(asked, its_seeds, strict=True)
        ]
        made = [to_picture(pixels) for pixels in generate(base, lines, batch=len(lines))]
        bar.advance(by=len(made))
        return made

    bank = MemoryBank(place, settings)
    missing = bank.missing(config.prior_pictures)
    if missing:
        say(f"sampling {len(missing)} pictures of the class ({prompts[0]!r}) into {place}", quiet=quiet)
    bar = Steps("class pictures", max(1, len(missing)), quiet=quiet or not missing)
    if accelerator.is_main_process:
        with bar:
            bank.ensure(config.prior_pictures, prompts, make)
    accelerator.wait_for_everyone()
    if not accelerator.is_main_process:
        bank = MemoryBank(place, settings)
        bank.ensure(config.prior_pictures, prompts, make)
    return bank
