"""A trainable copy of a UNet's encoder whose outputs are added to the skips: ControlNet, as diffusers has it."""

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import Refused


class EncoderCopy(nn.Module):
    """ControlNet's network (Zhang et al. 2023, arXiv:2302.05543) for a UNet, with all or only the first down blocks.

    Args:
        unet: the UNet; nothing but its configuration is read when `copy_weights` is False.
        channels: of the signal's encoder, at each size from the signal's own to the latents'.
        blocks: how many down blocks are copied, from the first; 0 copies all of them and the middle block.
        copy_weights: start from the UNet's weights; otherwise they come from a file.
        seed: of the signal's encoder, which has no weights to copy.

    Raises:
        Refused: more blocks than the UNet has.
    """

    def __init__(self, unet: Any, *, channels: Sequence[int], blocks: int, copy_weights: bool, seed: int) -> None:
        super().__init__()
        from diffusers.models.controlnets.controlnet import ControlNetModel

        if blocks > len(unet.down_blocks):
            raise Refused(f"the base's encoder has {len(unet.down_blocks)} down blocks; {blocks} cannot be copied")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network: Any = ControlNetModel.from_unet(
                unet, conditioning_embedding_out_channels=tuple(channels), load_weights_from_unet=copy_weights
            )
        self.skips = _skips(unet.down_blocks)
        self.whole = blocks in (0, len(unet.down_blocks))
        if not self.whole:
            network.down_blocks = network.down_blocks[:blocks]
            network.controlnet_down_blocks = network.controlnet_down_blocks[: _skips(network.down_blocks)]
            network.mid_block, network.controlnet_mid_block = None, nn.Identity()
        self.network = network.float().to(unet.device).requires_grad_(True)

    def forward(self, noisy: Tensor, timesteps: Tensor, text: Tensor, signal: Tensor) -> tuple[list[Tensor], Tensor]:
        """Residuals for each UNet skip, first to last, and for the middle block's output.

        Args:
            noisy: latents (N, C, h, w); timesteps: (N,) or a scalar; text: (N, L, D); signal: (N, 3, H, W) in [0, 1].
        """
        own = self.network.dtype
        skips, middle = self.network(
            noisy.to(own), timesteps, encoder_hidden_states=text.to(own), controlnet_cond=signal.to(noisy.device, own),
            return_dict=False,
        )  # fmt: skip
        nothing = noisy.new_zeros(1)  # for what is not copied
        skips = [skip.to(noisy.dtype) for skip in skips]
        skips += itertools.repeat(nothing, self.skips - len(skips))
        return skips, middle.to(noisy.dtype) if self.whole else nothing


def _skips(down_blocks: Any) -> int:
    """How many tensors a UNet hands to its decoder: the first convolution's and each layer's of these blocks."""
    return 1 + sum(len(block.resnets) + (block.downsamplers is not None) for block in down_blocks)
