"""DoRA, LoRA with gains and IA3, held against their equations and PEFT."""

import pytest
import torch
from torch import nn

from diffadapt.adapters import IA3, DoRA, GainedLoRA, LoRA, attach
from diffadapt.adapters.dora import DoRAAdapter
from diffadapt.adapters.gained_lora import GainedLoRAAdapter
from diffadapt.adapters.ia3 import IA3Adapter
from diffadapt.adapters.lora import LoRAAdapter
from diffadapt.errors import Refused

LAYERS = {
    "linear": lambda: nn.Linear(12, 8),
    "linear without bias": lambda: nn.Linear(12, 8, bias=False),
    "convolution": lambda: nn.Conv2d(6, 8, 3, stride=2, padding=1),
}
every_layer = pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)


def drawn(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def moved(adapter):
    with torch.no_grad():
        for _, parameter in adapter.own_parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=drawn(1))
    return adapter


def given(layer: nn.Module) -> torch.Tensor:
    return torch.randn((2, 6, 10, 10) if isinstance(layer, nn.Conv2d) else (2, 5, 12), generator=drawn(2))


def norms(weight: torch.Tensor) -> torch.Tensor:
    return weight.flatten(1).norm(dim=1)


# --- DoRA -------------------------------------------------------------------------------------------------------------


@every_layer
def test_dora_is_the_magnitude_times_the_direction_of_the_updated_weight(make):
    layer = make()
    adapter = moved(DoRAAdapter(layer, DoRA(rank=2, alpha=3), "here", drawn()))
    v = layer.weight + 1.5 * (adapter.up @ adapter.down.flatten(1)).view_as(layer.weight)
    expected = adapter.magnitude.view(-1, *[1] * (v.ndim - 1)) * v / norms(v).view(-1, *[1] * (v.ndim - 1))
    torch.testing.assert_close(adapter.weight(layer.weight), expected)
    answer = torch.func.functional_call(layer, {"weight": expected}, (given(layer),))
    torch.testing.assert_close(adapter(given(layer)), answer, atol=1e-5, rtol=1e-4)


@every_layer
def test_dora_starts_as_the_layer_bit_for_bit_with_the_norms_of_its_neurons(make):
    layer = make()
    adapter = DoRAAdapter(layer, DoRA(rank=2), "here", drawn())
    assert torch.equal(adapter(given(layer)), layer(given(layer)))
    torch.testing.assert_close(adapter.magnitude.detach(), norms(layer.weight).detach())


@every_layer
@pytest.mark.parametrize("strength", [0.5, 1.0, 1.5, -0.5])
def test_the_norms_of_doras_neurons_lie_on_the_line_to_its_magnitudes_at_every_strength(make, strength):
    layer = make()
    adapter = moved(DoRAAdapter(layer, DoRA(rank=2), "here", drawn()))
    adapter.strength = strength
    expected = norms(layer.weight) + strength * (adapter.magnitude - norms(layer.weight))
    torch.testing.assert_close(norms(adapter.weight(layer.weight)), expected.abs())


def test_the_norm_is_a_constant_to_doras_gradient():
    layer = nn.Linear(12, 8)
    adapter = moved(DoRAAdapter(layer, DoRA(rank=2), "here", drawn()))
    x, into = given(layer), torch.randn(2, 5, 8, generator=drawn(4))
    adapter(x).backward(into)
    fixed = norms(adapter.updated_weight(layer.weight)).detach()
    down, up, magnitude = (p.detach().clone().requires_grad_() for p in (adapter.down, adapter.up, adapter.magnitude))
    weight = (magnitude / fixed)[:, None] * (layer.weight.detach() + up @ down)
    nn.functional.linear(x, weight, layer.bias).backward(into)
    for own, expected in ((adapter.down, down), (adapter.up, up), (adapter.magnitude, magnitude)):
        torch.testing.assert_close(own.grad, expected.grad, atol=1e-5, rtol=1e-4)


def test_doras_norms_are_in_full_precision_under_autocast():
    layer = nn.Linear(12, 8)
    adapter = moved(DoRAAdapter(layer, DoRA(rank=2), "here", drawn()))
    expected = adapter._gain(layer.weight)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(adapter._gain(layer.weight), expected)
        assert adapter(given(layer)).dtype == torch.bfloat16


def test_a_neuron_without_weights_stays_without_them_until_it_is_trained():
    layer = nn.Linear(12, 8)
    with torch.no_grad():
        layer.weight[3] = 0
    adapter = DoRAAdapter(layer, DoRA(rank=2), "here", drawn())
    assert torch.equal(adapter(given(layer)), layer(given(layer)))
    assert moved(adapter)(given(layer)).isfinite().all()


def test_dora_stands_on_another_adapter(tiny_base):
    first = attach(tiny_base, LoRA(rank=2), ["cross_attention.key"])
    path = next(iter(first.adapters))
    moved(first.adapters[path])
    below = tiny_base.module(path)
    x = torch.randn(2, 3, below.innermost().in_features, generator=drawn())
    before = below(x)
    second = attach(tiny_base, DoRA(rank=2), ["cross_attention.key"])
    torch.testing.assert_close(tiny_base.module(path)(x), before)
    second.detach()
    first.detach()


def test_dora_answers_as_pefts():
    peft = pytest.importorskip("peft")

    layer = nn.Linear(12, 8)
    adapter = moved(DoRAAdapter(layer, DoRA(rank=2, alpha=3), "here", drawn()))
    theirs = peft.get_peft_model(
        nn.Sequential(nn.Linear(12, 8)), peft.LoraConfig(r=2, lora_alpha=3, use_dora=True, target_modules=["0"])
    )
    module = theirs.base_model.model[0]
    with torch.no_grad():
        module.base_layer.load_state_dict(layer.state_dict())
        module.lora_A.default.weight.copy_(adapter.down)
        module.lora_B.default.weight.copy_(adapter.up)
        module.lora_magnitude_vector.default.weight.copy_(adapter.magnitude)
    torch.testing.assert_close(adapter(given(layer)), module(given(layer)), atol=1e-5, rtol=1e-4)


# --- gains ------------------------------------------------------------------------------------------------------------


@every_layer
def test_ia3_scales_the_layers_output_bias_included(make):
    layer = make()
    adapter = moved(IA3Adapter(layer, "here"))
    factors = 1 + 0.5 * adapter.gain
    adapter.strength = 0.5
    x, y = given(layer), layer(given(layer))
    torch.testing.assert_close(adapter(x), y * (factors[:, None, None] if y.ndim == 4 else factors))
    assert sum(p.numel() for _, p in adapter.own_parameters()) == 8


@every_layer
def test_lora_with_gains_is_lora_with_its_output_scaled(make):
    layer = make()
    adapter = moved(GainedLoRAAdapter(layer, GainedLoRA(rank=2, alpha=3), "here", drawn()))
    lora = LoRAAdapter(layer, LoRA(rank=2, alpha=3), "here", drawn())
    lora.load_state_dict({name: value for name, value in adapter.state_dict().items() if name != "gain"})
    x, y = given(layer), lora(given(layer))
    torch.testing.assert_close(adapter(x), y * (1 + (adapter.gain[:, None, None] if y.ndim == 4 else adapter.gain)))


@pytest.mark.parametrize("adapt", [DoRA(), GainedLoRA(), IA3()], ids=lambda method: method.name)
def test_what_is_no_linear_layer_and_no_convolution_is_refused_by_its_path(adapt):
    with pytest.raises(Refused, match=f"{adapt.title} adapts linear and convolution layers; here is a LayerNorm"):
        adapt.build(nn.LayerNorm(4), "here", "norm", drawn())


def test_the_same_budget_at_stable_diffusions_attention():
    """StyleInject's 2,388,992 parameters (n = 4, r = 4) are LoRA's of rank 12 and, with a gain, of rank 11."""
    inputs, outputs = 99_456, 99_840  # summed over the 128 layers
    assert 12 * (inputs + outputs) == 2_391_552
    assert 11 * (inputs + outputs) + outputs == 2_292_096  # DoRA and LoRA with gains
    style_inject = 4 * 4 * inputs + 4 * outputs + 4 * (inputs + 128)
    assert style_inject == 2_388_992
