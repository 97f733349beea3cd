"""Every method by the name it has in files and on the command line."""

from .adapter import Method
from .c_lora import CLoRA
from .control_net import ControlNet
from .diff_fit import DiffFit
from .dora import DoRA
from .gained_lora import GainedLoRA
from .hint import Hint
from .ia3 import IA3
from .lora import LoRA
from .oft import OFT
from .perfusion import Perfusion
from .prompt_pool import PromptPool
from .selective import Selective
from .style_inject import StyleInject
from .token import Token

METHODS: dict[str, type[Method]] = {
    method.name: method
    for method in (
        LoRA,
        DoRA,
        GainedLoRA,
        IA3,
        OFT,
        Perfusion,
        CLoRA,
        StyleInject,
        Selective,
        DiffFit,
        Token,
        Hint,
        PromptPool,
    )
}  # fmt: skip
# What recipes train: all of these, and the one that stands beside the denoiser instead of on its layers.
TRAINED: dict[str, type[Method]] = {**METHODS, ControlNet.name: ControlNet}
