"""The methods: what may change in a base, and how."""

from .adapter import Adapter, GatedConcept, Mergeable, Method, SideInputs, effective_bias, effective_weight
from .adapter_file import copy_values, load_adapter, read_adapter
from .attach import Attachment, attach
from .c_lora import CLoRA
from .diff_fit import DiffFit
from .dora import DoRA
from .gained_lora import GainedLoRA
from .hint import Hint
from .ia3 import IA3
from .lora import LoRA
from .methods import METHODS, TRAINED
from .oft import OFT
from .perfusion import Perfusion
from .prompt_pool import PromptPool
from .selective import Selective
from .style_inject import StyleInject
from .token import Token
from .tokenizer import RANDOM_START

__all__ = [
    "METHODS",
    "TRAINED",
    "RANDOM_START",
    "Adapter",
    "Attachment",
    "CLoRA",
    "DoRA",
    "GainedLoRA",
    "DiffFit",
    "GatedConcept",
    "Hint",
    "IA3",
    "OFT",
    "LoRA",
    "Mergeable",
    "Method",
    "Perfusion",
    "PromptPool",
    "Selective",
    "SideInputs",
    "StyleInject",
    "Token",
    "attach",
    "copy_values",
    "effective_bias",
    "effective_weight",
    "load_adapter",
    "read_adapter",
]
