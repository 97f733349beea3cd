"""The settings that every training loop has."""

from dataclasses import dataclass

from ..config import Settings, option
from .optimizer import OPTIMIZERS
from .schedule import SCHEDULES


@dataclass(frozen=True, kw_only=True)
class LoopConfig(Settings):
    """Settings of every training; a recipe's own extend them."""

    steps: int = option(400, "optimizer steps", low=1)
    batch_size: int = option(4, "pictures a step and process", low=1)
    gradient_accumulation: int = option(1, "batches whose gradients are averaged before an optimizer step", low=1)
    learning_rate: float = option(2e-3, "peak learning rate of the layers' adapters", low=0)
    schedule: str = option("cosine", "learning rate over time: constant, linear or cosine", choices=SCHEDULES)
    warmup: int = option(20, "steps of linear warm-up", low=0)
    optimizer: str = option("adamw", "adamw, or adamw8bit with bitsandbytes on a GPU", choices=OPTIMIZERS)
    weight_decay: float = option(1e-2, "AdamW's decoupled weight decay of the layers; tokens have none", low=0)
    max_grad_norm: float = option(1.0, "gradients are scaled down to this norm; 0 leaves them", low=0)
    snr_gamma: float = option(5.0, "Min-SNR gamma of the loss weights; 0 weighs all noise levels alike", low=0)
    start_from: str = option(
        "", "adapter file or finished run of the same method to go on from; empty starts anew", path=True
    )
    roles: tuple[str, ...] = option((), "roles to adapt, such as cross_attention.*; empty means the method's default")
    ema_decay: float = option(0.0, "decay of the moving average that is saved; 0 saves the last values", low=0, high=1)
    caption_dropout: float = option(0.0, "share of captions replaced by the empty prompt", low=0, high=1)
    gradient_checkpointing: bool = option(False, "trade time for memory in the denoiser")
    mixed_precision: str = option("no", "no, bf16 or fp16 (GPU)", choices=("no", "bf16", "fp16"))
    tf32: bool = option(True, "on a GPU, round the factors of what is still multiplied in fp32 to TF32 while training")
    offload: bool = option(False, "on a GPU, text encoder and autoencoder wait on the CPU until they are used")
    compile: bool = option(False, "compile the denoiser while it trains: minutes at the start, less for each step")
    resolution: int = option(0, "side of the training pictures in pixels; 0 means the base's", low=0)
    checkpoint_every: int = option(100, "steps between checkpoints; 0 writes none", low=0)
    keep_checkpoints: int = option(2, "how many full checkpoints stay on disk; 0 keeps all", low=0)
    sample_every: int = option(100, "steps between sample pictures; 0 makes none", low=0)
