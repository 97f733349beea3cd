"""The methods: what may change in a base, and how."""

from .adapter import Adapter, Mergeable, Method, SideInputs, effective_bias, effective_weight
from .adapter_file import load_adapter, read_adapter
from .attach import Attachment, attach
from .lora import LoRA
from .methods import METHODS
from .selective import Selective
from .token import Token

__all__ = [
    "METHODS",
    "Adapter",
    "Attachment",
    "LoRA",
    "Mergeable",
    "Method",
    "Selective",
    "SideInputs",
    "Token",
    "attach",
    "effective_bias",
    "effective_weight",
    "load_adapter",
    "read_adapter",
]
