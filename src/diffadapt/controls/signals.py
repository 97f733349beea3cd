"""All signals by the name used in files and on the command line."""

from ..config import unknown
from ..errors import Refused
from .canny import CANNY
from .depth_order import DEPTH_ORDER
from .landmarks import LANDMARKS
from .line_art import LINE_ART
from .segmentation import SEGMENTATION
from .signal import Signal

SIGNALS: dict[str, Signal] = {signal.name: signal for signal in (CANNY, SEGMENTATION, LANDMARKS, DEPTH_ORDER, LINE_ART)}


def find_signal(name: str) -> Signal:
    """Look up a signal by name.

    Raises:
        Refused: no such signal; suggests the nearest name and lists all.
    """
    if name not in SIGNALS:
        nearest = unknown(name, SIGNALS).rpartition("did you mean ")[2]
        raise Refused(f"unknown signal {name!r}; did you mean {nearest} There are {', '.join(SIGNALS)}")
    return SIGNALS[name]
