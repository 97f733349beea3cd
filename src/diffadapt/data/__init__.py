"""Training data: concepts, captioned folders, caches, memory banks, prompts, and the embedded base's world."""

from .cache import TensorCache, content_key
from .captioned import Captioned, load_captioned
from .concept import Concept, load_concept
from .folder import Example
from .memory_bank import BankSettings, MemoryBank
from .picture import Crop, open_picture
from .prompts import benchmark_prompts, drift_prompts, is_live

__all__ = [
    "BankSettings",
    "Captioned",
    "Concept",
    "Crop",
    "Example",
    "MemoryBank",
    "TensorCache",
    "benchmark_prompts",
    "content_key",
    "drift_prompts",
    "is_live",
    "load_captioned",
    "load_concept",
    "open_picture",
]
