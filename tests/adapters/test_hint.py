"""The hint: the paper's encoder of a control signal, added once behind the denoiser's first convolution."""

import pytest
import torch
from torch import nn

from diffadapt.adapters import Hint, LoRA, SideInputs, attach, load_adapter
from diffadapt.adapters.hint import CHANNELS, HintAdapter
from diffadapt.errors import Refused

TINY = Hint(channels=(4, 8, 8))  # the tiny base's latents are a quarter as large as its pictures


def adapter_on(channels: int, method: Hint) -> HintAdapter:
    return HintAdapter(nn.Conv2d(4, channels, 3, padding=1), method, "unet.conv_in", torch.Generator().manual_seed(0))


def signal(rows: int = 2, side: int = 32) -> dict[str, torch.Tensor]:
    return {"hint": torch.rand(rows, 3, side, side, generator=torch.Generator().manual_seed(3))}


def output(base, control=None, rows: int = 2):
    side = base.denoiser.config.sample_size
    noisy = torch.randn(rows, base.denoiser.config.in_channels, side, side, generator=torch.Generator().manual_seed(1))
    for attachment in base.attachments:
        attachment.begin(SideInputs(control=control))
    with torch.no_grad():
        return base.denoise(noisy, torch.tensor([10, 700])[:rows], base.condition(["a cat", "a dog"][:rows]))


def moved(attachment):
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in attachment.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return attachment


def test_on_stable_diffusion_it_has_the_papers_layout_and_count():
    adapter = adapter_on(320, Hint())
    convolutions = [layer for layer in adapter.encoder if isinstance(layer, nn.Conv2d)]
    layout = [(c.in_channels, c.out_channels, c.stride[0]) for c in convolutions]
    assert layout == [
        (3, 16, 1), (16, 16, 1), (16, 32, 2), (32, 32, 1), (32, 96, 2), (96, 96, 1), (96, 256, 2), (256, 320, 1)
    ]  # fmt: skip
    assert sum(parameter.numel() for _, parameter in adapter.own_parameters()) == 1_086_480
    assert [type(layer) for layer in adapter.encoder][1::2] == [nn.SiLU] * 7
    assert not any(parameter.any() for parameter in convolutions[-1].parameters())


@pytest.mark.parametrize("factor", [1, 2, 4, 8])
def test_it_halves_as_often_as_the_latents_ask_for(factor):
    method = Hint.for_downsampling(factor)
    assert method.channels == CHANNELS[: len(method.channels)]
    adapter = adapter_on(8, method)
    adapter.receive(SideInputs(control=signal(1, 8 * factor)))
    assert adapter(torch.randn(1, 4, 8, 8)).shape == (1, 8, 8, 8)


def test_a_factor_that_the_paper_has_no_layout_for_is_refused():
    with pytest.raises(Refused, match="16 times"):
        Hint.for_downsampling(16)


def test_before_training_the_output_is_the_bases_bit_for_bit(base):
    before = output(base)
    attachment = attach(base, TINY)
    assert list(attachment.adapters) == ["unet.conv_in"]
    assert torch.equal(output(base, signal()), before)
    attachment.detach()
    assert torch.equal(output(base), before)


def test_strength_scales_what_is_added():
    adapter = adapter_on(8, TINY)
    with torch.no_grad():
        for parameter in adapter.encoder[-1].parameters():
            parameter.normal_(generator=torch.Generator().manual_seed(1))
    adapter.receive(SideInputs(control=signal(1)))
    x = torch.randn(1, 4, 8, 8)
    plain, whole = adapter.layer(x), adapter(x)
    for strength in (0.5, 2.0, -1.0):
        adapter.strength = strength
        torch.testing.assert_close(adapter(x), plain + strength * (whole - plain), atol=1e-5, rtol=1e-5)
    adapter.strength = 0.0
    assert torch.equal(adapter(x), plain)


def test_it_stacks_with_any_method_and_comes_off_again(base):
    before = output(base)
    method = moved(attach(base, LoRA(rank=2), ["input.conv", "cross_attention.*"]))
    alone = output(base)
    hint = moved(attach(base, TINY))
    assert not torch.equal(output(base, signal()), alone)
    hint.strength = 0
    assert torch.equal(output(base, signal()), alone)
    method.detach()
    hint.detach()
    assert torch.equal(output(base), before) and not base.attachments


def test_what_follows_depends_on_the_signal_and_each_parameter_gets_a_gradient(base):
    attachment = moved(attach(base, TINY))
    assert not torch.equal(output(base, signal()), output(base, {"hint": signal()["hint"].flip(3)}))
    attachment.begin(SideInputs(control=signal()))
    base.denoise(torch.randn(2, 4, 8, 8), torch.tensor([5, 9]), base.condition(["a", "b"])).sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in attachment.parameters())


def test_it_opens_in_two_stages_the_zero_convolution_then_the_encoder(base):
    attachment, stages = attach(base, TINY), []
    for _ in range(2):
        attachment.begin(SideInputs(control=signal()))
        noisy = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
        base.denoise(noisy, torch.tensor([5, 9]), base.condition(["a", "b"])).square().mean().backward()
        stages.append(
            {name.split(".")[-2] for name, p in attachment.named_parameters() if p.grad is not None and p.grad.any()}
        )
        with torch.no_grad():
            for parameter in attachment.parameters():
                parameter -= 0.0 if parameter.grad is None else parameter.grad
                parameter.grad = None
    assert len(stages[0]) == 1 and stages[0] < stages[1]
    assert stages[1] == {name.split(".")[-2] for name, _ in attachment.named_parameters()}


def test_the_signal_is_encoded_once_for_all_denoising_steps(base, monkeypatch):
    calls = []
    adapter = attach(base, TINY).adapters["unet.conv_in"]
    adapter.encoder[0].register_forward_hook(lambda *_: calls.append(1))
    adapter.receive(SideInputs(control=signal(1)))
    for _ in range(3):
        base.denoise(torch.randn(1, 4, 8, 8), torch.tensor([5]), base.condition(["a"]))
    assert len(calls) == 1


def test_a_file_brings_back_the_same_bits_and_the_same_settings(base, tmp_path):
    attachment = moved(attach(base, TINY))
    expected = output(base, signal())
    attachment.save(tmp_path / "hint.safetensors")
    attachment.detach()
    loaded = load_adapter(base, tmp_path / "hint.safetensors")
    assert loaded.method == TINY and torch.equal(output(base, signal()), expected)


def test_the_start_depends_on_nothing_but_the_seed(base):
    torch.manual_seed(1)
    first = {key: value.clone() for key, value in attach(base, TINY, seed=5).state_dict().items()}
    torch.manual_seed(2)
    second = attach(base, TINY, seed=5).state_dict()
    assert all(torch.equal(first[key], value) for key, value in second.items())


def test_a_signal_of_another_size_is_refused_in_one_sentence(base):
    attach(base, TINY)
    with pytest.raises(Refused, match=r"signal is 64x64, but pictures of 32x32 are made; give it the picture's size"):
        output(base, signal(side=64))


@pytest.mark.parametrize(
    ("control", "says"),
    [
        (None, "needs control"),
        ({"edges": torch.rand(2, 3, 32, 32)}, "no signal named 'hint'"),
        ({"hint": torch.rand(2, 1, 32, 32)}, r"\(2, 1, 32, 32\); expected \(N, 3, height, width\)"),
        ({"hint": torch.rand(1, 3, 32, 32)}, "got 1 control signals for a batch of 2 rows"),
    ],
)
def test_a_signal_that_does_not_fit_is_refused(base, control, says):
    attach(base, TINY)
    with pytest.raises(Refused, match=says):
        output(base, control)


def test_without_a_begin_there_is_no_signal_to_follow(base):
    attach(base, TINY)
    with pytest.raises(Refused, match="no control signal yet"):
        base.denoise(torch.randn(1, 4, 8, 8), torch.tensor([5]), base.condition(["a"]))


def test_it_depends_on_its_input_and_cannot_be_merged(base):
    with pytest.raises(Refused, match="cannot be merged"):
        attach(base, TINY).merge_()


def test_a_layer_that_is_no_convolution_is_refused(base):
    with pytest.raises(Refused, match="can adapt none"):
        attach(base, TINY, ["cross_attention.key"])


def test_the_signal_keeps_its_size_through_the_encoder():
    encoder = HintAdapter(nn.Conv2d(4, 64, 3, padding=1), Hint(), "here", torch.Generator().manual_seed(0)).encoder
    signal = (torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(1)) > 0.9).float()
    with torch.no_grad():
        inside = encoder[:-1](signal)  # what the last convolution, which starts at zero, is given
    assert 0.3 < inside.std() / signal.std() < 3
