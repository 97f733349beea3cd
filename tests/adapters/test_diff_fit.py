"""DiffFit: which parameters train, how many of DiT's there are, what a scale factor does."""

import re

import pytest
import torch
from torch import nn

from diffadapt.adapters import DiffFit, attach
from diffadapt.adapters.diff_fit import DiffFitAdapter
from diffadapt.bases import Network
from diffadapt.bases.dit import RULES
from diffadapt.errors import Refused


def test_it_trains_biases_norms_and_one_factor_for_each_output_of_attention_and_feed_forward(tiny_base):
    names = {name for name, _ in attach(tiny_base, DiffFit()).named_parameters()}
    layer = "unet.down_blocks.0.attentions.0.transformer_blocks.0"
    assert {n.removeprefix(layer + ".") for n in names if n.startswith(layer)} == {
        *(f"attn{i}.to_{each}.gamma" for i in (1, 2) for each in "qkv"),
        *(f"attn{i}.to_out.0.{each}" for i in (1, 2) for each in ("gamma", "values.bias")),
        *(f"norm{i}.values.{each}" for i in (1, 2, 3) for each in ("weight", "bias")),
        "ff.net.0.proj.values.bias", "ff.net.2.values.bias", "ff.net.2.gamma",
    }  # fmt: skip
    assert not any(n.startswith("text_encoder") for n in names)


def test_on_dit_xl_it_trains_as_many_biases_as_the_published_code_and_its_factors():
    from diffusers import DiTTransformer2DModel

    with torch.device("meta"):
        model = DiTTransformer2DModel(num_embeds_ada_norm=1000)  # the defaults are those of DiT-XL/2
        shared = model.transformer_blocks[0].norm1.emb
    for block in model.transformer_blocks:
        block.norm1.emb = shared
    counts = {"bias": 0, "gamma": 0}
    for path, layer in model.named_modules():
        role = next((r for pattern, r in RULES if re.fullmatch(pattern, f"transformer.{path}")), "")
        if not role or not DiffFit().adapts(layer):
            continue
        with torch.device("meta"):
            adapter = DiffFit().build(layer, f"transformer.{path}", role, torch.Generator())
        for name, parameter in adapter.own_parameters():
            counts[name.removeprefix("values.")] += parameter.numel()
    assert round(counts["bias"] / 1e6, 3) == 0.490  # of 674.8 M
    assert counts["gamma"] == 14 * (3 + 1 + 1) * 1152  # its 6: twice at the output of attention


def test_a_factor_scales_what_the_layer_gives_bias_included():
    layer = nn.Linear(3, 2)
    adapter = DiffFitAdapter(layer, ["bias"], "layer", scaled=True)
    x = torch.randn(4, 3)
    assert torch.equal(adapter(x), layer(x))
    with torch.no_grad():
        adapter.gamma.copy_(torch.tensor([2.0, 0.5]))
        adapter.values["bias"].add_(1.0)
    expected = (x @ layer.weight.T + layer.bias + 1) * torch.tensor([2.0, 0.5])
    torch.testing.assert_close(adapter(x), expected)
    adapter.strength = 0.5
    torch.testing.assert_close(adapter(x), (x @ layer.weight.T + layer.bias + 0.5) * torch.tensor([1.5, 0.75]))


def test_blocks_out_of_reach_have_no_factor(tiny_dit):
    names = [name for name, _ in attach(tiny_dit, DiffFit(scaled_blocks=1), classes=["rose"]).named_parameters()]
    blocks = {name.split(".")[2] for name in names if name.endswith("gamma")}
    assert blocks == {"0"} and any(name.startswith("transformer.transformer_blocks.1.") for name in names)
    assert any(name.endswith("embedding_table.rows") for name in names)


def test_it_is_the_first_on_its_layers():
    network = Network({"net": nn.Sequential(nn.Linear(2, 2))}, [(r"net\.0", "feed_forward.out")], name="net")
    attach(network, DiffFit(), ["feed_forward.out"])
    with pytest.raises(Refused, match="must be the first attachment on it"):
        attach(network, DiffFit(), ["feed_forward.out"])
