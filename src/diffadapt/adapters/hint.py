"""Hint: a control signal, encoded by a few convolutions and added once behind the denoiser's first layer.

    h = conv_in(x) + strength * E(signal)

The control path of OFT (Qiu et al. 2023, arXiv:2306.07280, section 4.2, as its code has it): E is the hint block of
ControlNet (Zhang et al. 2023, arXiv:2302.05543), 3x3 convolutions with SiLU between them. With the paper's channels on
Stable Diffusion, 3-16-16-32-32-96-96-256-320, three of the eight halve the sides, from pixels to latents, and the last
one starts at zero, so that training starts at the base. The others start so that the signal keeps its size through
them. In the papers' code they start as torch's convolutions do, which makes it ten times smaller: a training of 300
steps that uses the signal with our start does not use it at all with theirs (docs/methods/hint.md).

Nothing else is fed in anywhere, at no noise level: what follows the signal is learned by another attachment, such as
OFT or LoRA, beside this one.
"""

import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..config import option
from ..errors import Refused
from .adapter import Adapter, Method, SideInputs

CHANNELS = (16, 32, 96, 256)  # at each size, from the signal's own to the latents'
SILU_GAIN = 1.676  # 1 / sqrt(E silu(z)^2), z standard normal: keeps the signal's size from layer to layer
SIGNAL = "hint"  # the signal's name in `SideInputs.control`


@dataclass(frozen=True, kw_only=True)
class Hint(Method):
    """Feeds a control signal in; stands beside a method that learns to follow it. See `for_downsampling`."""

    name: ClassVar[str] = "hint"
    title: ClassVar[str] = "hint"
    recipes: ClassVar[tuple[str, ...]] = ()  # stands beside the method of train_control
    merges: ClassVar[bool] = False

    channels: tuple[int, ...] = option(
        CHANNELS, "channels at each size, from the signal's to the latents'; each size is half the one before", low=1
    )
    signal_channels: int = option(3, "channels of the signal; a picture has 3", low=1)

    def __post_init__(self) -> None:
        object.__setattr__(self, "channels", tuple(self.channels))  # files hold a list
        super().__post_init__()

    @classmethod
    def for_downsampling(cls, factor: int) -> "Hint":
        """The paper's channels, for a base whose latents are `factor` (1, 2, 4 or 8) times smaller than its pictures.

        Raises:
            Refused: another factor.
        """
        if factor not in (1, 2, 4, 8):
            raise Refused(f"the paper's hint is for latents 1, 2, 4 or 8 times smaller; this base's are {factor} times")
        return cls(channels=CHANNELS[: factor.bit_length()])

    def default_roles(self, known: Iterable[str]) -> list[str]:
        return ["input.conv"]

    def adapts(self, layer: nn.Module) -> bool:
        return isinstance(layer, nn.Conv2d)

    def build(self, layer: nn.Module, path: str, role: str, generator: torch.Generator) -> Adapter:
        return HintAdapter(layer, self, path, generator)


class HintAdapter(Adapter):
    """The signal's encoder beside the denoiser's first convolution: parameters `encoder.<i>.weight` and `.bias`.

    The signal, (N, channels, H, W) in [0, 1] of the picture's size, is encoded once in `receive`: once per training
    step, and once per generation.
    """

    needs = frozenset({"control"})

    def __init__(self, layer: nn.Module, method: Hint, path: str, generator: torch.Generator) -> None:
        super().__init__(layer)
        inner = self.innermost()
        if not isinstance(inner, nn.Conv2d):
            raise Refused(f"a hint is added to the output of a convolution; {path} is a {type(inner).__name__}")
        self.path, self.signal_channels = path, method.signal_channels
        self.factor = 2 ** (len(method.channels) - 1)
        self.encoder = _encoder(method, inner.out_channels, generator).to(inner.weight.device)
        self._size = (0, 0)  # height and width of the signal
        self._features: Tensor | None = None

    def receive(self, side: SideInputs) -> None:
        signal = (side.control or {}).get(SIGNAL)
        if signal is None:
            raise Refused(f"the control of {self.path} has no signal named {SIGNAL!r}; expected {{{SIGNAL!r}: signal}}")
        if signal.ndim != 4 or signal.shape[1] != self.signal_channels:
            shape = tuple(signal.shape)
            raise Refused(f"the control signal is {shape}; expected (N, {self.signal_channels}, height, width)")
        first = next(self.encoder.parameters())
        self._size = (signal.shape[2], signal.shape[3])
        self._features = self.encoder(signal.to(first.device, first.dtype))

    def adapted(self, x: Tensor) -> Tensor:
        y = self.layer(x)  # (N, C, h, w)
        if self._features is None:
            raise Refused(f"{self.path} has no control signal yet; begin(SideInputs(control=...)) comes first")
        if self._features.shape != y.shape:
            self._refuse_misfit(y)
        return y + (self.strength * self._features).to(y.dtype)

    def _refuse_misfit(self, y: Tensor) -> None:
        (height, width), (h, w) = self._size, y.shape[2:]
        assert self._features is not None
        if len(self._features) != len(y):
            raise Refused(f"got {len(self._features)} control signals for a batch of {len(y)} rows; pass one per row")
        raise Refused(
            f"the control signal is {width}x{height}, but pictures of {w * self.factor}x{h * self.factor} are made; "
            f"give it the picture's size (the hint makes it {self.factor} times smaller, as the latents must be)"
        )


def _encoder(method: Hint, out: int, generator: torch.Generator) -> nn.Sequential:
    """The convolutions with SiLU between them; the last one is zero."""
    first, last = method.channels[0], method.channels[-1]
    convolutions = [_convolution(method.signal_channels, first, 1, generator)]
    for narrow, wide in itertools.pairwise(method.channels):
        convolutions += [_convolution(narrow, narrow, 1, generator), _convolution(narrow, wide, 2, generator)]
    zero = _convolution(last, out, 1, generator)
    for parameter in zero.parameters():
        nn.init.zeros_(parameter)
    return nn.Sequential(*(layer for each in convolutions for layer in (each, nn.SiLU())), zero)


def _convolution(inputs: int, outputs: int, stride: int, generator: torch.Generator) -> nn.Conv2d:
    layer = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1)
    with torch.no_grad():
        layer.weight.normal_(std=SILU_GAIN / math.sqrt(9 * inputs), generator=generator)
        nn.init.zeros_(layer.bias)  # pyright: ignore[reportArgumentType]
    return layer
