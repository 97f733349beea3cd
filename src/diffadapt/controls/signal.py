"""A signal: one kind of control picture and how to compute it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from ..errors import Refused

Kinds = Sequence[Sequence[str]]  # for each scene the kind of each object, back to front


@dataclass(frozen=True, kw_only=True)
class Signal:
    """One kind of control picture, (N, 3, H, W) float in [0, 1], of the size of the pictures it belongs to.

    Args:
        name: its key in `SIGNALS` and in options.
        doc: one line of description.
        extract: pictures (N, 3, H, W) in [0, 1] -> signal, or None if pixels alone do not determine it.
        from_scene: masks (N, 2, H, W) in [0, 1], the visible share of each object back to front, as
            `diffadapt.data.scenes.render` returns them, and the kinds of the objects -> signal; or None if pixels
            determine the signal.
        of_labels: its colours are labels, so that one between two of them is another one: it is never blended.
    """

    name: str
    doc: str
    extract: Callable[[Tensor], Tensor] | None = None
    from_scene: Callable[[Tensor, Kinds], Tensor] | None = None
    of_labels: bool = False


def check_pictures(name: str, pictures: Tensor) -> None:
    """Refuses a tensor that is not pictures or a signal: (N, 3, H, W) floating point in [0, 1].

    Raises:
        Refused: names the argument, what was expected and what it got.
    """
    if pictures.ndim != 4 or pictures.shape[1] != 3 or not pictures.is_floating_point():
        kind = str(pictures.dtype).removeprefix("torch.")
        raise Refused(f"{name}: expected (N, 3, H, W) floating point in [0, 1], got {tuple(pictures.shape)} {kind}")
    if not len(pictures):
        raise Refused(f"{name}: expected at least one picture, got none")
    low, high = pictures.aminmax()
    if not (low >= 0 and high <= 1):  # also false for what is not a number
        raise Refused(
            f"{name}: expected values in [0, 1], got {float(low):.3g} to {float(high):.3g}; "
            "pictures in [-1, 1] become (x + 1) / 2"
        )


def check_masks(masks: Tensor) -> None:
    """Refuses a tensor that is not masks of scenes: (N, 2, H, W), bool or floating point in [0, 1]."""
    if masks.ndim != 4 or masks.shape[1] != 2:
        raise Refused(f"masks: expected (N, 2, H, W), one for each object back to front, got {tuple(masks.shape)}")
    if not len(masks) or not (masks.min() >= 0 and masks.max() <= 1):
        raise Refused("masks: expected at least one scene, with values in [0, 1]: the visible share of each object")
