"""OFT's refusals, each in one sentence: layers and settings that do not fit, and weights that cannot be turned."""

import pytest
import torch
from torch import Tensor, nn

from diffadapt.adapters import OFT, Hint, attach, effective_weight
from diffadapt.errors import Refused

HERE = "here"


class Quantised(nn.Linear):
    """A linear layer whose weight is kept in eight bits."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, bias=False)
        self.weight = nn.Parameter(torch.randint(256, (outputs, inputs), dtype=torch.uint8), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight.to(x.dtype) / 128 - 1)


def test_a_quantised_layer_is_adapted_but_its_merge_is_refused():
    adapter = OFT(block_size=4).build(Quantised(16, 8), HERE, "", torch.Generator())
    nn.init.normal_(adapter.q, std=0.3)
    x = torch.randn(3, 16)
    y = adapter(x)
    weight = adapter.layer.weight.float() / 128 - 1
    torch.testing.assert_close(y, x @ adapter.weight(weight).T, atol=1e-5, rtol=1e-5)
    y.square().mean().backward()
    assert adapter.q.grad.abs().max() > 0
    with pytest.raises(Refused, match=r"quantised \(torch.uint8\).*sample with the adapter attached, or load the base"):
        effective_weight(adapter)


def test_a_refused_merge_leaves_the_base_as_it_was(base):
    path = base.roles["self_attention.value"][-1]
    layer = base.module(path)
    base.replace_(path, Quantised(layer.in_features, layer.out_features))
    weights = {name: value.clone() for name, value in base.denoiser.state_dict().items()}
    modules = dict(base.denoiser.named_modules())
    attachment = attach(base, OFT(block_size=4), ["self_attention.*"])
    with torch.no_grad():
        for parameter in attachment.parameters():
            parameter.normal_(std=0.1)
    with pytest.raises(Refused, match="quantised"):
        attachment.merge_()
    assert not attachment.is_merged and all(base.module(path) is each for path, each in attachment.adapters.items())
    attachment.detach()
    assert all(torch.equal(value, weights[name]) for name, value in base.denoiser.state_dict().items())
    assert all(module is modules[name] for name, module in base.denoiser.named_modules())


@pytest.mark.parametrize(
    ("layer", "settings", "says"),
    [
        (nn.Linear(20, 8), {"block_size": 3}, "size 3 does not divide the 20 inputs of here; .* 2, 4, 5, 10, 20$"),
        (nn.Linear(20, 8), {"blocks": 3}, "3 blocks .* the 20 inputs of here; .* 2, 4, 5, 10, 20$"),
        (nn.Linear(20, 8), {"blocks": 20}, "20 blocks .* the 20 inputs of here; .* 2, 4, 5, 10, 20$"),
        (nn.Linear(131, 8), {"block_size": 2}, "size 2 does not divide the 131 inputs of here; .* 131$"),
        (nn.Conv2d(3, 8, 3), {"block_size": 16}, "size 16 does not divide the 27 inputs of here; .* 3, 9, 27$"),
        (nn.Conv2d(4, 4, 3, groups=2), {"block_size": 2}, "here: a convolution with 2 groups; leave its role out"),
        (nn.Embedding(8, 8), {}, "linear and convolution layers; here is a Embedding"),
    ],
)  # fmt: skip
def test_a_layer_that_does_not_fit_is_refused_in_one_sentence(layer, settings, says):
    with pytest.raises(Refused, match=says) as refused:
        OFT(**settings).build(layer, HERE, "", torch.Generator())
    assert "\n" not in str(refused.value)


def test_a_quantised_convolution_is_refused():
    layer = nn.Conv2d(4, 4, 3)
    layer.weight = nn.Parameter(torch.zeros(4, 4, 3, 3, dtype=torch.uint8), requires_grad=False)
    with pytest.raises(Refused, match=r"here: a convolution with quantised weights \(torch.uint8\)"):
        OFT(block_size=4).build(layer, HERE, "", torch.Generator())


@pytest.mark.parametrize("settings", [{"block_size": 1}, {"block_size": 0}, {"blocks": 0}, {"dropout": 1.5}], ids=str)
def test_settings_out_of_range_are_refused(base, settings):
    with pytest.raises(Refused, match=next(iter(settings))):
        attach(base, OFT(**settings))
    assert not base.attachments


def test_a_convolution_over_an_adapter_that_depends_on_the_input_is_refused():
    hint = Hint(channels=(4, 8, 8)).build(nn.Conv2d(4, 8, 3, padding=1), HERE, "", torch.Generator())
    with pytest.raises(Refused, match="filters of here, which the adapter beneath it makes depend on the input"):
        OFT(block_size=4).build(hint, HERE, "", torch.Generator())
