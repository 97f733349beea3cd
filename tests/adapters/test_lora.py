import pytest
import torch
from torch import nn

from diffadapt.adapters import LoRA, attach
from diffadapt.adapters.lora import LoRAAdapter
from diffadapt.errors import Refused


def linear(rank=3, alpha=None, out=8, inputs=6):
    layer = nn.Linear(inputs, out)
    adapter = LoRAAdapter(layer, LoRA(rank=rank, alpha=alpha), "here", torch.Generator().manual_seed(0))
    with torch.no_grad():
        adapter.up.normal_(generator=torch.Generator().manual_seed(1))
    return layer, adapter


def test_the_update_has_at_most_rank_r():
    layer, adapter = linear(rank=3)
    update = adapter.weight(layer.weight) - layer.weight
    assert torch.linalg.matrix_rank(update, atol=1e-5) == 3


def test_alpha_over_rank_scales_the_update_linearly():
    layer, plain = linear(rank=4)
    _, double = linear(rank=4, alpha=8)
    torch.testing.assert_close(
        double.weight(layer.weight) - layer.weight,
        2 * (plain.weight(layer.weight) - layer.weight),
        atol=1e-6,
        rtol=1e-5,
    )


@pytest.mark.parametrize("strength", [0.5, 2.0, -1.0])
def test_strength_multiplies_the_update(strength):
    layer, adapter = linear()
    full = adapter.weight(layer.weight) - layer.weight
    adapter.strength = strength
    torch.testing.assert_close(adapter.weight(layer.weight) - layer.weight, strength * full, atol=1e-6, rtol=1e-5)


def test_a_convolution_is_adapted_as_its_flattened_kernel():
    layer = nn.Conv2d(4, 6, 3, stride=2, padding=1)
    adapter = LoRAAdapter(layer, LoRA(rank=5), "here", torch.Generator().manual_seed(0))
    nn.init.normal_(adapter.up)
    x = torch.randn(2, 4, 9, 9)
    expected = torch.nn.functional.conv2d(x, adapter.weight(layer.weight), layer.bias, stride=2, padding=1)
    torch.testing.assert_close(adapter(x), expected, atol=1e-5, rtol=1e-4)


def test_outputs_equal_pefts():
    peft = pytest.importorskip("peft")
    layer, adapter = linear(rank=3, alpha=6)
    model = peft.get_peft_model(
        nn.ModuleDict({"only": layer}),
        peft.LoraConfig(r=3, lora_alpha=6, target_modules=["only"], init_lora_weights=False),
    )
    theirs = model.base_model.model["only"]
    with torch.no_grad():
        theirs.lora_A["default"].weight.copy_(adapter.down)
        theirs.lora_B["default"].weight.copy_(adapter.up)
    x = torch.randn(5, 6)
    torch.testing.assert_close(adapter(x), theirs(x), atol=1e-6, rtol=1e-5)


def test_dropout_works_in_training_only():
    layer = nn.Linear(6, 8)
    adapter = LoRAAdapter(layer, LoRA(rank=2, dropout=0.5), "here", torch.Generator().manual_seed(0))
    nn.init.normal_(adapter.up)
    x = torch.randn(64, 6)
    adapter.training = False
    assert torch.equal(adapter(x), adapter(x))
    adapter.training = True
    assert not torch.equal(adapter(x), adapter(x))


def test_a_rank_larger_than_the_layer_is_refused_with_the_layers_name(base):
    with pytest.raises(Refused, match=r"rank 1000 is larger than layer unet\..*at most"):
        attach(base, LoRA(rank=1000))
    assert not base.attachments


def test_a_grouped_convolution_is_refused():
    with pytest.raises(Refused, match="2 groups"):
        LoRAAdapter(nn.Conv2d(4, 4, 3, groups=2), LoRA(), "here", torch.Generator())


@pytest.mark.parametrize("settings", [{"rank": 0}, {"dropout": 1.5}, {"alpha": -1.0}])
def test_settings_out_of_range_are_refused(base, settings):
    with pytest.raises(Refused, match=next(iter(settings))):
        attach(base, LoRA(**settings))
