"""Optimizers by name."""

from typing import Any

import torch

from ..errors import Refused

OPTIMIZERS = ("adamw", "adamw8bit")


def build_optimizer(name: str, groups: list[dict[str, Any]], *, weight_decay: float) -> torch.optim.Optimizer:
    """An optimizer over parameter groups that each carry their own "lr".

    Raises:
        Refused: bitsandbytes is asked for and missing.
    """
    if name == "adamw8bit":
        try:
            import bitsandbytes as bnb  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise Refused(
                'optimizer = "adamw8bit" needs bitsandbytes; pip install "diffadapt[optim]", or use adamw'
            ) from error
        return bnb.optim.AdamW8bit(groups, weight_decay=weight_decay)
    on_cpu = all(parameter.device.type == "cpu" for group in groups for parameter in group["params"])
    # A step over hundreds of small parameters is one pass on the CPU then; elsewhere torch chooses, and there may be a
    # scaler of gradients, which a fused step would treat otherwise.
    return torch.optim.AdamW(groups, weight_decay=weight_decay, fused=True if on_cpu else None)
