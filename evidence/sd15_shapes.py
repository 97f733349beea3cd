"""The layers of Stable Diffusion 1.5's UNet as diffusers builds it: their shapes, read off a model without weights."""

from functools import cache
from typing import NamedTuple

import torch
from torch import nn

ARCHITECTURE = {"cross_attention_dim": 768, "attention_head_dim": 8}  # else diffusers' defaults; 859,520,964 parameters


class Shape(NamedTuple):
    """A layer's neurons and what each sees; a convolution's kernel is 3 or 1, a linear layer's 0."""

    neurons: int
    inputs: int  # channels times kernel area
    kernel: int

    @property
    def name(self) -> str:
        return f"{self.neurons} x {self.inputs}" + (f" ({self.kernel} x {self.kernel})" if self.kernel > 1 else "")


@cache
def layers(within: str = "") -> dict[Shape, int]:
    """Distinct shapes of the transformer and residual blocks -> how many layers have them.

    A 1 x 1 convolution is a linear layer; the first and the last convolution, with 4 channels outside, are left out.

    Args:
        within: part of the path of the layers that are meant, such as "transformer_blocks"; empty means all.
    """
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        unet = UNet2DConditionModel(**ARCHITECTURE)
    found: dict[Shape, int] = {}
    for name, module in unet.named_modules():
        if not isinstance(module, nn.Linear | nn.Conv2d) or name in ("conv_in", "conv_out"):
            continue
        if within not in name:
            continue
        kernel = module.kernel_size[0] if isinstance(module, nn.Conv2d) and module.kernel_size[0] > 1 else 0
        shape = Shape(module.weight.shape[0], module.weight[0].numel(), kernel)
        found[shape] = found.get(shape, 0) + 1
    return dict(sorted(found.items(), key=lambda item: (item[0].kernel, item[0].neurons * item[0].inputs, item[0])))


def build(shape: Shape, seed: int) -> nn.Linear | nn.Conv2d:
    """A frozen layer of a shape, without a bias; its weights are normal with variance 1 / inputs."""
    if shape.kernel:
        channels = shape.inputs // shape.kernel**2
        layer = nn.Conv2d(channels, shape.neurons, shape.kernel, padding=shape.kernel // 2, bias=False)
    else:
        layer = nn.Linear(shape.inputs, shape.neurons, bias=False)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(layer.weight.shape, generator=generator) / shape.inputs**0.5)
    return layer.requires_grad_(False)
