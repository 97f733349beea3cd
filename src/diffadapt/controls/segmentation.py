"""Segmentation: a label map in which each class has one colour, exact for scenes of the embedded base's world."""

import torch
from torch import Tensor

from ..errors import Refused
from .depth_order import layers_of
from .signal import Kinds, Signal, check_pictures

# Class -> colour in 8 bits. The order numbers the classes. Any two differ by at least half the range in some
# channel, so that a signal survives 8 bits, JPEG and blur.
PALETTE: dict[str, tuple[int, int, int]] = {
    "background": (0, 0, 0),
    "animal": (255, 0, 0),
    "building": (0, 0, 255),
    "character": (255, 0, 255),
    "clothing": (0, 255, 255),
    "food": (255, 255, 0),
    "instrument": (128, 0, 255),
    "plant": (0, 255, 0),
    "sky": (0, 128, 255),
    "thing": (255, 255, 255),
    "tool": (128, 128, 128),
    "vehicle": (255, 128, 0),
}
CLASSES = tuple(PALETTE)


def labels_of(masks: Tensor, kinds: Kinds) -> Tensor:
    """The class of the layer with the largest share of each pixel.

    Args:
        masks: (N, 2, H, W) in [0, 1], the visible share of each object, back to front.
        kinds: for each scene the kinds of its one or two objects, back to front, from `CLASSES`.

    Returns:
        (N, H, W) long: index into `CLASSES`.

    Raises:
        Refused: an unknown kind, or counts that do not fit the masks.
    """
    layers = layers_of(masks)
    if len(kinds) != len(masks):
        raise Refused(f"kinds: expected one entry for each of {len(masks)} scenes, got {len(kinds)}")
    table = torch.zeros(len(kinds), 3, dtype=torch.long)  # (N, layers), the class of each layer
    for row, names in zip(table, kinds, strict=True):
        if isinstance(names, str) or not 1 <= len(names) <= 2:
            raise Refused(f"kinds: expected the kinds of one or two objects a scene, got {names!r}")
        for layer, name in enumerate(names, start=1):
            if name not in CLASSES[1:]:
                raise Refused(f"kinds: unknown kind {name!r}; known: {', '.join(CLASSES[1:])}")
            row[layer] = CLASSES.index(name)
    return table.to(layers.device).gather(1, layers.flatten(1)).view_as(layers)


def colour_labels(labels: Tensor) -> Tensor:
    """Labels (N, H, W) long -> signal (N, 3, H, W) in the colours of `PALETTE`."""
    return _colours(labels.device)[labels].permute(0, 3, 1, 2).contiguous()


def labels_in(signal: Tensor) -> Tensor:
    """Signal (N, 3, H, W) -> the class of the nearest colour (N, H, W) long; inverts `colour_labels`.

    Raises:
        Refused: not a signal.
    """
    check_pictures("segmentation signal", signal)
    pixels = signal.permute(0, 2, 3, 1).float()  # (N, H, W, 3)
    colours = _colours(signal.device)  # (classes, 3)
    # |p - c|^2 without |p|^2, which is the same for every class
    return (colours.square().sum(1) - 2 * pixels @ colours.T).argmin(3)


def segmentation(masks: Tensor, kinds: Kinds) -> Tensor:
    """The label map of scenes, (N, 3, H, W); arguments and refusals as `labels_of`."""
    return colour_labels(labels_of(masks, kinds))


def _colours(device: torch.device) -> Tensor:
    return torch.tensor(list(PALETTE.values()), device=device) / 255


SEGMENTATION = Signal(
    name="segmentation",
    doc="one colour for the kind of thing seen at each pixel; from scenes",
    from_scene=segmentation,
    of_labels=True,
)
