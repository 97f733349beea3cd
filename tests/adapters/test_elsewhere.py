"""Every method on a base that stands on another device than the CPU, without one: shapes and places, no values.

torch's fake tensors refuse to compute with tensors of two places, as a GPU does. The other place is "meta", which they
keep apart from the CPU and which needs no driver. It has no float64 here, as Apple's GPUs have none. New words are left
out: which rows they take is seen in the values.
"""

import contextlib

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from diffadapt.adapters import (
    IA3,
    OFT,
    CLoRA,
    DiffFit,
    DoRA,
    GainedLoRA,
    Hint,
    LoRA,
    Method,
    Selective,
    SideInputs,
    StyleInject,
    attach,
    oft,
    style_inject,
)
from diffadapt.adapters.control_net import ControlNet, attach_control_net
from diffadapt.adapters.hint import SIGNAL
from diffadapt.bases.base import Base
from diffadapt.conditioning import Conditioning
from diffadapt.objectives import Batch, Denoising

METHODS: list[Method] = [
    LoRA(rank=2), DoRA(rank=2), GainedLoRA(rank=2), IA3(), OFT(block_size=4), CLoRA(rank=2), StyleInject(rank=2),
    DiffFit(), Selective(), Selective(train="bias"), Hint.for_downsampling(4), ControlNet(),
]  # fmt: skip
PLACE = "meta"


class NoFloat64(TorchDispatchMode):
    """Refuses what a device without float64 refuses."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        def look(tensor: torch.Tensor) -> None:
            assert tensor.device.type != PLACE or tensor.dtype != torch.float64, f"{func} makes float64"

        out = func(*args, **(kwargs or {}))
        tree_map_only(torch.Tensor, look, out)
        return out


class Autocast(torch.autocast):
    """For a place that autocast has never heard of."""

    def __init__(self, device_type, *more, **named):
        super().__init__("cpu" if device_type == PLACE else device_type, *more, **named)


def put(module: nn.Module, *_) -> nn.Module:
    for each in module.modules():
        for tensors in (each._parameters, each._buffers):
            for name, tensor in tensors.items():
                if isinstance(tensor, nn.Parameter):
                    tensors[name] = nn.Parameter(tensor.detach().to(PLACE), requires_grad=tensor.requires_grad)
                elif tensor is not None:
                    tensors[name] = tensor.to(PLACE)
    return module


@pytest.fixture
def elsewhere(base, monkeypatch):
    """A base whose weights are in the other place, within the mode that keeps places apart."""
    monkeypatch.setattr(torch, "autocast", Autocast)
    monkeypatch.setattr(nn.Module, "to", put)
    monkeypatch.setattr(nn.Module, "float", lambda module: module)  # all are
    monkeypatch.setattr(style_inject, "_full_precision", lambda _: contextlib.nullcontext())
    with FakeTensorMode(allow_non_fake_inputs=True):
        for part in base.all_parts():
            put(part)
        base._own = [parameter for part in base.all_parts() for parameter in part.parameters()]
        yield base


def train(base: Base, method: Method) -> None:
    """What a step does: batch, side inputs, objective, penalty, backward."""
    attachment = attach_control_net(base, method) if isinstance(method, ControlNet) else attach(base, method)
    attachment.train()
    latents, steps = torch.randn(2, 4, 8, 8).to(PLACE), torch.tensor([3, 700]).to(PLACE)
    text = base.condition(["a cat", "a dog"]).detach()
    signal = torch.rand(2, 3, base.resolution, base.resolution).to(PLACE)
    batch = Batch(
        latents=latents, noise=torch.randn(2, 4, 8, 8).to(PLACE), timesteps=steps, sources=("target",) * 2,
        condition=Conditioning(token_ids=text.token_ids, text=text.text, control={SIGNAL: signal}),
    )  # fmt: skip
    attachment.begin(SideInputs.of(batch.condition, timesteps=steps))
    objective = Denoising(base.noise_schedule, snr_gamma=5.0)
    losses = objective.losses(base.denoise, batch)
    penalty = attachment.penalty()
    loss = objective.reduce(losses, batch) + (0 if penalty is None else penalty)
    loss.backward()
    assert all(parameter.device.type == PLACE for parameter in attachment.parameters())
    assert any(parameter.grad is not None for parameter in attachment.parameters())


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_what_an_adapter_makes_stands_where_its_base_does(elsewhere, method):
    train(elsewhere, method)


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_no_method_needs_float64_where_there_is_none(elsewhere, method, monkeypatch):
    """COFT's projection is left out: which blocks have left their ball is seen in the values, which are not here."""
    monkeypatch.setattr(oft, "WITHOUT_FLOAT64", ("mps", PLACE))
    with NoFloat64():
        train(elsewhere, method)


def test_the_place_is_told_apart_from_the_cpu(elsewhere):
    """The instrument itself: a parameter that was left behind is noticed."""
    attachment = attach(elsewhere, LoRA(rank=1))
    adapter = next(iter(attachment.adapters.values()))
    adapter.up = nn.Parameter(torch.zeros(adapter.up.shape))
    with pytest.raises(RuntimeError, match="same device"):
        elsewhere.denoise(
            torch.randn(1, 4, 8, 8).to(PLACE), torch.tensor([3]).to(PLACE), elsewhere.condition(["a cat"])
        )
