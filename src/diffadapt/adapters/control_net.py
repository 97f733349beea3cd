"""ControlNet (Zhang et al. 2023, arXiv:2302.05543): the baseline that hints and adapters are measured against.

The copy of the encoder is diffusers' own. It stands beside the denoiser instead of in the place of a layer, so `attach`
refuses it; what `attach_control_net` returns is used like any other attachment.
"""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..config import build, check, option
from ..errors import Refused
from ..files import load_tensors, parse_json
from ..shapes import hold
from .adapter import Adapter, Method, SideInputs
from .attach import Attachment
from .hint import SIGNAL, Hint
from .same_base import refuse_another_base

FORMAT = "diffadapt controlnet"


@dataclass(frozen=True, kw_only=True)
class ControlNet(Method):
    """A trainable copy of the denoiser's encoder behind zero convolutions; it encodes the signal itself."""

    name: ClassVar[str] = "controlnet"
    title: ClassVar[str] = "ControlNet"
    recipes: ClassVar[tuple[str, ...]] = ("control",)
    merges: ClassVar[bool] = False

    blocks: int = option(0, "down blocks that are copied, from the first; 0 copies all and the middle block", low=0)

    def build(self, layer: nn.Module, path: str, role: str, generator: torch.Generator) -> Adapter:
        raise Refused("a ControlNet stands beside the whole denoiser; train it with train_control")


class ControlNetAdapter(Adapter):
    """The copy, and the hook that adds its outputs to the denoiser's skips. Parameters `copy.network.*`."""

    needs = frozenset({"control"})

    def __init__(self, denoiser: nn.Module, copy: nn.Module) -> None:
        super().__init__(denoiser)
        self.copy = copy
        self._signal: Tensor | None = None

    def receive(self, side: SideInputs) -> None:
        self._signal = (side.control or {}).get(SIGNAL)

    def adapted(self, x: Tensor) -> Tensor:
        raise TypeError("a ControlNet stands beside the denoiser; its hook is called, not its forward")

    def add_residuals(self, denoiser: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        """A forward pre-hook of the denoiser, with keyword arguments."""
        if self.strength == 0:
            return None
        given = inspect.signature(denoiser.forward).bind(*args, **kwargs).arguments
        noisy = given["sample"]
        if self._signal is None or len(self._signal) != len(noisy):
            count = 0 if self._signal is None else len(self._signal)
            raise Refused(f"got {count} control signals for a batch of {len(noisy)} rows; pass one per row")
        skips, middle = self.copy(noisy, given["timestep"], given["encoder_hidden_states"], self._signal)
        added = {
            "down_block_additional_residuals": tuple(self.strength * skip for skip in skips),
            "mid_block_additional_residual": self.strength * middle,
        }
        return args, kwargs | added


class ControlNetAttachment(Attachment):
    """An attachment whose one adapter is a hook on the denoiser; detaching it restores the base bit for bit."""

    def attach_(self) -> None:
        if self._attached:
            raise Refused("this ControlNet is on its base already")
        (adapter,) = self.adapters.values()
        assert isinstance(adapter, ControlNetAdapter)
        self._hook = adapter.layer.register_forward_pre_hook(adapter.add_residuals, with_kwargs=True)
        self._attached = True
        self.base.attachments.append(self)

    def detach(self) -> None:
        if self._attached:
            self._hook.remove()
            self._attached = False
            self.base.attachments.remove(self)

    def save(self, path: str | Path, metadata: Mapping[str, str] | None = None) -> Path:
        return super().save(path, {**(metadata or {}), "format": FORMAT})


def hint_for(base: Any) -> Hint:
    """The paper's hint, as deep as the latents of a base ask for; the encoder of a ControlNet's signal is the same."""
    return Hint.for_downsampling(base.downsampling)


def attach_control_net(base: Any, method: ControlNet, *, seed: int = 0, copy_weights: bool = True) -> Attachment:
    """Puts a ControlNet beside the denoiser of a base; before training it changes nothing, bit for bit.

    Args:
        base: a loaded base; it is frozen.
        method: settings.
        seed: of the initial values of the signal's encoder.
        copy_weights: start from the base's weights; otherwise they come from a file.

    Raises:
        Refused: more blocks than the base has, or something that changes weights is attached before it.
    """
    check(method)
    base.freeze_()
    if any(isinstance(each, ControlNetAttachment) for each in base.attachments) or (copy_weights and base.attachments):
        raise Refused("a ControlNet copies the untouched base, and there is one at most; detach what is attached first")
    copy = base.copy_encoder(
        channels=hint_for(base).channels, blocks=method.blocks, copy_weights=copy_weights, seed=seed
    )
    adapter = ControlNetAdapter(base.denoiser, copy)
    adapter.eval()
    attachment = ControlNetAttachment(base, method, [], {}, {"unet": adapter})
    attachment.attach_()
    return attachment


def is_control_net(path: str | Path) -> bool:
    """Whether a file holds a ControlNet of ours.

    Raises:
        Refused: it is not a whole safetensors file.
    """
    return load_tensors(path)[1].get("format") == FORMAT


def load_control_net(base: Any, path: str | Path, *, any_base: bool = False) -> Attachment:
    """Loads a ControlNet that `train_control` wrote onto the base that it was trained on.

    Args:
        base: a loaded base.
        path: the file.
        any_base: also accept another base whose denoiser has the same shapes (a fine-tuned sibling).

    Raises:
        Refused: it was trained on another base, or does not fit.
    """
    tensors, method = _read(base, path, any_base=any_base)
    attachment = attach_control_net(base, method, copy_weights=False)
    try:
        _fill(attachment, tensors, path)
    except Refused:
        attachment.detach()
        raise
    return attachment


def copy_control_net(attachment: Attachment, path: str | Path) -> None:
    """Copies a file's values into a ControlNet on the same base, so that training goes on from them.

    Raises:
        Refused: the attachment is none, the file is of another base, or does not fit.
    """
    if not isinstance(attachment, ControlNetAttachment):
        raise Refused(f"{path} is a ControlNet; training with {attachment.method.name!r} cannot go on from it")
    _fill(attachment, _read(attachment.base, path)[0], path)


def _read(base: Any, path: str | Path, *, any_base: bool = False) -> tuple[dict[str, Tensor], ControlNet]:
    tensors, header = load_tensors(path)
    hold(header, {"base": str, "base_fingerprint": str, "config": str}, f"{path}: its header")
    if not any_base:
        refuse_another_base(base, path, header)
    return tensors, build(ControlNet, parse_json(header["config"], dict, f"{path}: config"), name="config")


def _fill(attachment: Attachment, tensors: dict[str, Tensor], path: str | Path) -> None:
    try:
        attachment.load_state_dict(tensors)
    except Refused as error:
        raise Refused(f"{path} is no whole ControlNet of {attachment.base.name!r}: {error}") from error
