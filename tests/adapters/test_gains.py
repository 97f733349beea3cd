"""A small gain in bfloat16: 1 + 0.003 is 1 there, so what is rounded must be the gain and not the factor."""

import pytest
import torch
from torch import nn

from diffadapt.adapters import IA3, OFT, DiffFit, DoRA, GainedLoRA, attach
from diffadapt.network import Network

GAIN = 0.003


def set_gain(adapter) -> None:
    name = next(name for name in ("magnitude", "gamma", "log_gain", "gain") if getattr(adapter, name, None) is not None)
    if name == "magnitude":
        adapter.magnitude.mul_(1 + GAIN)
    else:
        getattr(adapter, name).add_(GAIN)


BOTH = [IA3(), GainedLoRA(rank=2), DoRA(rank=2), OFT(block_size=4, rescale="joint")]


@pytest.mark.parametrize(("method", "conv"), [*((each, conv) for each in BOTH for conv in (0, 1)), (DiffFit(), 0)])
def test_a_gain_below_the_rounding_of_one_is_there_on_average(method, conv):
    torch.manual_seed(0)
    layer = nn.Conv2d(64, 64, 1) if conv else nn.Linear(64, 64)
    blocks = nn.ModuleDict({"transformer_blocks": nn.ModuleList([nn.ModuleDict({"out": layer})])})
    network = Network({"m": blocks}, [(r"m\..*out", "feed_forward.out")], name="m")
    [adapter] = attach(network, method, ["feed_forward.out"]).layers.values()
    x = torch.randn(16, 64, 8, 8) if conv else torch.randn(1024, 64)
    with torch.autocast("cpu", torch.bfloat16):
        with torch.no_grad():
            before = adapter.layer(x).float()
            set_gain(adapter)
        after = adapter(x).float()  # with gradient, as training computes it
    bias = layer.bias.detach()
    if not isinstance(method, IA3 | GainedLoRA | DiffFit):  # theirs scales the bias, too
        before, after = (y - (bias[:, None, None] if conv else bias) for y in (before, after))
    found = float((after.detach() * before).sum() / before.square().sum()) - 1
    assert found == pytest.approx(GAIN, rel=0.15)
