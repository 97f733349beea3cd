"""ControlNet as the baseline: an encoder copy beside the denoiser that is used like any attachment."""

import pytest
import torch

from diffadapt.adapters import LoRA, SideInputs, attach
from diffadapt.adapters.control_net import ControlNet, attach_control_net, is_control_net, load_control_net
from diffadapt.conditioning import Conditioning
from diffadapt.errors import Refused
from diffadapt.files import load_tensors, save_tensors
from diffadapt.sampling.adapter_files import load_file


def output(base, flipped: bool = False):
    noisy = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    signal = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    for attachment in base.attachments:
        attachment.begin(SideInputs(control={"hint": signal.flip(3) if flipped else signal}))
    with torch.no_grad():
        return base.denoise(noisy, torch.tensor([10, 700]), base.condition(["a cat", "a dog"]))


def moved(attachment):
    torch.manual_seed(0)
    for parameter in attachment.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    return attachment


@pytest.mark.parametrize("blocks", [0, 1])
def test_before_training_the_output_is_the_bases_bit_for_bit(base, blocks):
    before = output(base)
    attachment = attach_control_net(base, ControlNet(blocks=blocks))
    assert torch.equal(output(base), before)
    moved(attachment)
    assert not torch.equal(output(base), before) and not torch.equal(output(base), output(base, flipped=True))
    attachment.strength = 0
    assert torch.equal(output(base), before)
    attachment.strength = 1
    attachment.detach()
    assert torch.equal(output(base), before) and not base.attachments
    assert not base.denoiser._forward_pre_hooks


def test_nothing_but_the_copy_trains(base):
    attachment = moved(attach_control_net(base, ControlNet()))
    base.pipeline.unet.zero_grad()
    attachment.begin(SideInputs(control={"hint": torch.rand(1, 3, 32, 32)}))
    text = base.condition(["a cat"]).text
    base.denoise(torch.randn(1, 4, 8, 8), torch.tensor([5]), Conditioning(text=text)).square().mean().backward()
    assert all(parameter.grad is None for parameter in base.denoiser.parameters())
    assert all(parameter.grad is not None for parameter in attachment.parameters())


def reached(base, attachment) -> set[str]:
    """One step of gradient descent; the parameters whose gradient is not zero."""
    for parameter in attachment.parameters():
        parameter.grad = None
    generator = torch.Generator().manual_seed(4)
    attachment.begin(SideInputs(control={"hint": torch.rand(2, 3, 32, 32, generator=generator)}))
    noisy = torch.randn(2, 4, 8, 8, generator=generator)
    base.denoise(noisy, torch.tensor([5, 700]), base.condition(["a cat", "a dog"])).square().mean().backward()
    found = {name for name, p in attachment.named_parameters() if p.grad is not None and p.grad.any()}
    with torch.no_grad():
        for parameter in attachment.parameters():
            parameter -= 0.0 if parameter.grad is None else parameter.grad
    return found


def test_it_opens_in_three_stages_the_zero_convolutions_then_the_copy_then_the_signals_encoder(base):
    attachment = attach_control_net(base, ControlNet())
    every = {name for name, _ in attachment.named_parameters()}
    zero = {name for name in every if "controlnet_down_blocks" in name or "controlnet_mid_block" in name}
    encoder = {name for name in every if "controlnet_cond_embedding" in name}
    last = {name for name in encoder if "conv_out" in name}  # it starts at zero, too
    copied = every - zero - encoder
    assert zero and last and copied
    assert reached(base, attachment) == zero
    second = reached(base, attachment)
    assert zero | last <= second and not second & (encoder - last) and len(second & copied) > 0.9 * len(copied)
    assert encoder - last <= reached(base, attachment)


def test_strength_scales_what_is_added_to_the_skips(base):
    attachment = moved(attach_control_net(base, ControlNet()))
    attachment.begin(SideInputs(control={"hint": torch.rand(1, 3, 32, 32)}))
    adapter = attachment.adapters["unet"]
    given, named = (torch.randn(1, 4, 8, 8), torch.tensor([5])), {"encoder_hidden_states": torch.randn(1, 16, 32)}
    _, whole = adapter.add_residuals(base.denoiser, given, named)
    attachment.strength = 0.5
    _, half = adapter.add_residuals(base.denoiser, given, named)
    torch.testing.assert_close(half["mid_block_additional_residual"], whole["mid_block_additional_residual"] / 2)
    assert len(half["down_block_additional_residuals"]) == 4


@pytest.mark.parametrize("method", [ControlNet(), ControlNet(blocks=1)], ids=["natural", "one block"])
def test_a_file_brings_back_the_same_bits_even_beside_another_adapter(base, tmp_path, method):
    attachment = moved(attach_control_net(base, method))
    expected = output(base)
    path = attachment.save(tmp_path / "c.safetensors", {"settings": "x = 1"})
    attachment.detach()
    assert is_control_net(path) and load_tensors(path)[1]["settings"] == "x = 1"
    beside = attach(base, LoRA(rank=1))
    loaded = load_file(base, path)
    assert loaded.method == method and torch.equal(output(base), expected)
    loaded.detach()
    beside.detach()


def test_another_base_or_a_file_that_does_not_fit_is_refused(base, tmp_path):
    attachment = attach_control_net(base, ControlNet())
    path = attachment.save(tmp_path / "c.safetensors")
    attachment.detach()
    tensors, header = load_tensors(path)
    save_tensors(path, tensors, {**header, "base_fingerprint": "sha256:0"})
    with pytest.raises(Refused, match=r"was trained on base .* \(sha256:0\), this is"):
        load_control_net(base, path)
    save_tensors(path, dict(list(tensors.items())[1:]), header)
    with pytest.raises(Refused, match="is no whole ControlNet of .* lacks 1 tensor"):
        load_control_net(base, path)
    assert not base.attachments


def test_it_copies_the_untouched_base_and_there_is_one_at_most(base):
    lora = attach(base, LoRA(rank=1))
    with pytest.raises(Refused, match="copies the untouched base"):
        attach_control_net(base, ControlNet())
    lora.detach()
    attach_control_net(base, ControlNet())
    with pytest.raises(Refused, match="one at most"):
        attach_control_net(base, ControlNet(), copy_weights=False)


def test_it_is_no_method_of_layers(base):
    with pytest.raises(Refused, match="train it with train_control"):
        attach(base, ControlNet())


def test_a_signal_for_each_row_is_asked_for(base):
    attachment = attach_control_net(base, ControlNet())
    attachment.begin(SideInputs(control={"hint": torch.rand(1, 3, 32, 32)}))
    with pytest.raises(Refused, match="got 1 control signals for a batch of 2 rows"):
        base.denoise(torch.randn(2, 4, 8, 8), torch.tensor([5, 5]), base.condition(["a", "b"]))
