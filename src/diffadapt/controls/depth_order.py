"""Depth order: a grey level for each layer of a scene, from far to near."""

import torch
from torch import Tensor

from .signal import Kinds, Signal, check_masks, check_pictures

LAYERS = ("background", "back", "front")  # the only object of a scene is in the layer "back"
_LEVELS = (0.0, 0.5, 1.0)


def layers_of(masks: Tensor) -> Tensor:
    """The layer with the largest share of each pixel; of equal shares the one farther back.

    Args:
        masks: (N, 2, H, W) in [0, 1], the visible share of each object, back to front.

    Returns:
        (N, H, W) long: index into `LAYERS`.

    Raises:
        Refused: another shape, or values out of range.
    """
    check_masks(masks)
    objects = masks.float()
    return torch.cat([1 - objects.sum(1, keepdim=True), objects], 1).argmax(1)


def shade_layers(layers: Tensor) -> Tensor:
    """Layers (N, H, W) long -> signal (N, 3, H, W): background 0, back 0.5, front 1."""
    return torch.tensor(_LEVELS, device=layers.device)[layers][:, None].expand(-1, 3, -1, -1).clone()


def layers_in(signal: Tensor) -> Tensor:
    """Depth-order signal (N, 3, H, W) -> the layer of each pixel (N, H, W) long; inverts `shade_layers`."""
    check_pictures("depth_order signal", signal)
    return (signal.mean(1) * 2).round().long()


def depth_order(masks: Tensor, kinds: Kinds | None = None) -> Tensor:
    """The depth order of scenes, (N, 3, H, W). `kinds` is unused; every `from_scene` takes it."""
    return shade_layers(layers_of(masks))


DEPTH_ORDER = Signal(
    name="depth_order", doc="the nearer the brighter; from scenes", from_scene=depth_order, of_labels=True
)
