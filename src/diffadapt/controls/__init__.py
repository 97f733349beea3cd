"""Control signals: pictures that steer generation besides the prompt, computed from pixels or from scenes."""

from .signal import Signal
from .signals import SIGNALS, find_signal

__all__ = ["SIGNALS", "Signal", "find_signal"]
