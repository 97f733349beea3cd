"""What steers a picture besides its prompt: signals computed from pixels, or known for scenes."""

from .signal import Signal
from .signals import SIGNALS, find_signal

__all__ = ["SIGNALS", "Signal", "find_signal"]
