"""The control signal of a picture to be made: read, and checked against the picture and what is attached."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from types import NoneType
from typing import Any

from PIL import Image
from torch import Tensor

from ..bases import Base
from ..data.control_pairs import open_signal
from ..data.picture import to_tensor
from ..errors import Refused

Control = str | Path | Image.Image | Tensor
"""A picture's file, a PIL picture, or a tensor (3, H, W) in [0, 1]."""
_ONE = (str, Path, Image.Image, NoneType)


def each_control(control: Control | Sequence[Control] | None, count: int) -> list[Control | None]:
    """One control for each of `count` pictures.

    Raises:
        Refused: another number of them.
    """
    if isinstance(control, _ONE) or (isinstance(control, Tensor) and control.ndim == 3):
        each: list[Any] = [control] * count
    else:
        each = list(control)
    if len(each) != count:
        raise Refused(f"got {len(each)} control signals for {count} prompts; pass one for all, or one per prompt")
    return each


def read_signal(control: Control | None, size: tuple[int | None, int | None]) -> Tensor:
    """The signal as a float tensor (3, H, W) in [0, 1].

    Args:
        control: where it is.
        size: width and height of the picture that will follow it, in pixels.

    Raises:
        Refused: it cannot be read, is no RGB picture, or has another size than the picture.
    """
    assert control is not None
    name = str(control) if isinstance(control, str | Path) else "given"
    if isinstance(control, Tensor):
        signal = control.float()
        if signal.ndim != 3 or signal.shape[0] != 3 or not 0 <= float(signal.min()) <= float(signal.max()) <= 1:
            found = f"{tuple(signal.shape)} in [{float(signal.min()):.3g}, {float(signal.max()):.3g}]"
            raise Refused(f"the control signal is {found}; expected (3, height, width) in [0, 1]")
    else:
        picture = control if isinstance(control, Image.Image) else open_signal(control)
        signal = to_tensor(picture.convert("RGB")).float() / 255
    height, width = signal.shape[1:]
    if (width, height) != size:
        raise Refused(
            f"the control signal {name} is {width}x{height}, the picture {size[0]}x{size[1]}; resize the one, or ask "
            "for the other's width and height"
        )
    return signal


def check_control(base: Base, lines: Iterable[tuple[str, bool]]) -> None:
    """Raises Refused when a signal is missing or of no use.

    Args:
        base: with what is attached.
        lines: of each picture its prompt, and whether it has a control signal.
    """
    switched_on = [each for each in base.attachments if each.enabled]
    follows = any("control" in adapter.needs for each in switched_on for adapter in each.adapters.values())
    for prompt, given in lines:
        if follows and not given:
            raise Refused(
                f"what is attached follows a control signal, and {prompt!r} has none; give one: control=..., --control "
                "FILE, or --cn FILE behind the prompt"
            )
        if given and not follows:
            raise Refused(
                f"{prompt!r} has a control signal, and nothing attached follows one; add the adapter that was trained "
                "with it, or leave the signal out"
            )
