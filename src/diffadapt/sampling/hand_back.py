"""Handing the last denoising steps back to the untouched base: the switch-model curve of Diff-Tuning (section 3.1).

Near the data a base denoises whatever it is shown, and what an adapter does there is mostly forgetting; the paper finds
the best pictures with a small share handed back.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from ..bases import Base
from ..errors import Refused


def check_share(share: float) -> None:
    """Raises Refused for a share that is none."""
    if not 0 <= share <= 1:
        raise Refused(f"hand_back is the share of the last steps that the base does, from 0 to 1; got {share:g}")


@contextmanager
def handed_back(base: Base, share: float) -> Iterator[None]:
    """Within the block, which is one generation, everything attached is off for the last steps.

    Args:
        base: with what is attached.
        share: of the calls of the denoiser, from the end: call i of N is the base's from round(N (1 - share)) on. N
            is the steps' number, or more with a scheduler that asks more than once a step (PNDM, Heun).
    """
    check_share(share)
    done = 0
    before = [(attachment, attachment.enabled) for attachment in base.attachments]

    def switch_off(denoiser: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        nonlocal done
        if done == round(len(base.pipeline.scheduler.timesteps) * (1 - share)):
            for attachment, _ in before:
                attachment.enabled = False
        done += 1

    hook = base.denoiser.register_forward_pre_hook(switch_off, with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()
        for attachment, enabled in before:
            attachment.enabled = enabled
