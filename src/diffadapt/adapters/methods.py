"""Every method by the name it has in files and on the command line."""

from .adapter import Method
from .lora import LoRA
from .selective import Selective
from .token import Token

METHODS: dict[str, type[Method]] = {LoRA.name: LoRA, Selective.name: Selective, Token.name: Token}
