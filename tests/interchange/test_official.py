"""The paper's own checkpoints, made up as its code lays them out, against its forward pass, written densely."""

import shlex
import subprocess
import sys

import pytest
import torch

from diffadapt import OFT, Hint, Refused, import_adapter, load_adapter
from diffadapt.adapters import SideInputs, read_adapter
from diffadapt.files import load_tensors, save_tensors

# original name of each transformer block of the tiny base -> its path there
BLOCKS = {
    "input_blocks.1.1": "down_blocks.0.attentions.0",
    "input_blocks.3.1": "down_blocks.1.attentions.0",
    "middle_block.1": "mid_block.attentions.0",
    "output_blocks.0.1": "up_blocks.0.attentions.0",
    "output_blocks.1.1": "up_blocks.0.attentions.1",
    "output_blocks.2.1": "up_blocks.1.attentions.0",
    "output_blocks.3.1": "up_blocks.1.attentions.1",
}
ATTENTION = [f"transformer_blocks.0.{attn}.{layer}" for attn in ("attn1", "attn2")
             for layer in ("to_q", "to_k", "to_v", "to_out.0")]  # fmt: skip
HINT = [(3, 16), (16, 16), (16, 32), (32, 32), (32, 96), (96, 96), (96, 256), (256, 16)]


def oft_db(layer):
    block, _, end = layer.rpartition(".transformer_blocks.0.")
    attention, _, projection = end.partition(".")
    return f"{block}.transformer_blocks.0.{attention}.processor.{projection.removesuffix('.0')}_oft"


def oft_control(layer):
    original = next(name for name, path in BLOCKS.items() if layer.startswith(path + "."))
    return f"model.diffusion_model.{original}{layer.removeprefix(BLOCKS[original])}"


def layers(ends):
    return [f"{path}.{end}" for path in BLOCKS.values() for end in ends]


def checkpoint(unet, name_of, ends, *, shared=False, sign=-1, gains=False):
    """A checkpoint of 4 blocks, random and not skew; the UNet's weights become what the official code computes."""
    generator = torch.Generator().manual_seed(7)
    tensors = {}
    for layer in layers(ends):
        weight = unet.get_submodule(layer).weight.data
        side = weight.shape[1] // 4
        a = 0.5 * torch.randn(*(() if shared else (4,)), side, side, generator=generator)
        skew, identity = sign * (a - a.mT) / 2, torch.eye(side)
        r = (identity + skew) @ torch.linalg.inv(identity - skew)
        turned = (torch.block_diag(*(4 * [r] if shared else r)) @ weight.T).T
        if gains:
            gain = 0.8 + 0.4 * torch.rand(len(weight), 1, generator=generator)
            tensors[f"{name_of(layer)}.scaling_factors"] = gain
            turned = turned * gain
        tensors[f"{name_of(layer)}.R"] = a
        tensors[f"{name_of(layer)}.OFT.weight"] = (
            weight.clone()
        )  # oft-control keeps them there; elsewhere of no account
        weight.copy_(turned)
    return tensors


@pytest.mark.parametrize(
    ("name_of", "more", "shared", "sign", "gains"),
    [
        (oft_db, [], False, -1, False),
        (oft_db, [], True, -1, False),
        (oft_control, ["transformer_blocks.0.ff.net.0.proj"], False, -1, False),
        (oft_control, ["transformer_blocks.0.ff.net.0.proj"], True, 1, False),
        (oft_control, [], False, -1, True),
    ],
    ids=["db", "db, shared", "control", "control, shared", "control, rescaled"],
)
def test_we_answer_as_the_paper_s_code_does(base, unet, draw, apart, tmp_path, name_of, more, shared, sign, gains):
    plain = draw(unet)
    tensors = checkpoint(unet, name_of, [*ATTENTION, *more], shared=shared, sign=sign, gains=gains)
    tensors["model.diffusion_model.time_embed.0.weight"] = torch.zeros(3)
    save_tensors(tmp_path / "paper.safetensors", tensors)
    files, note = import_adapter(base, tmp_path / "paper.safetensors", tmp_path / "ours.safetensors")
    method, roles, *_ = read_adapter(files[0])
    assert method == OFT(blocks=4, share_blocks=shared, rescale="joint" if gains else "none")
    assert len(roles) == 8 + len(more) and f"{7 * (8 + len(more))} layers" in note
    assert ("strength -1" in note) != gains and "earlier one" in note
    attachment = load_adapter(base, files[0])
    theirs = draw(unet)
    assert apart(draw(base.denoiser), theirs) < 1e-5 < apart(plain, theirs)
    attachment.strength = -1
    assert apart(draw(base.denoiser), theirs) > 1e-2


def test_coft_of_oft_t2i_keeps_its_radius(base, unet, draw, apart, tmp_path):
    tensors = checkpoint(unet, oft_db, ATTENTION)
    for name in [name for name in tensors if name.endswith(".R")]:
        tensors[name.removesuffix("R") + "oft_eps"] = torch.tensor(0.5)
        tensors[name.removesuffix("R") + "oft_is_coft"] = torch.tensor(True)
    save_tensors(tmp_path / "paper.safetensors", tensors)
    import_adapter(base, tmp_path / "paper.safetensors", tmp_path / "ours.safetensors")
    assert read_adapter(tmp_path / "ours.safetensors")[0] == OFT(blocks=4, constraint="official", radius=0.5)


def test_the_hint_of_oft_control_becomes_a_second_adapter(base, unet, tmp_path):
    tensors = checkpoint(unet, oft_control, ATTENTION)
    generator = torch.Generator().manual_seed(2)
    encoder = torch.nn.Sequential()
    for i, (narrow, wide) in enumerate(HINT):
        conv = torch.nn.Conv2d(narrow, wide, 3, padding=1, stride=2 if narrow < wide and i in (2, 4, 6) else 1)
        for name, parameter in conv.named_parameters():
            parameter.data.normal_(std=0.1, generator=generator)
            tensors[f"control_model.input_hint_block.{2 * i}.{name}"] = parameter.data
        encoder.extend([conv, torch.nn.SiLU()])
    save_tensors(tmp_path / "paper.safetensors", tensors)
    files, _ = import_adapter(base, tmp_path / "paper.safetensors", tmp_path / "ours.safetensors")
    assert files[1] == tmp_path / "ours-hint.safetensors" and read_adapter(files[1])[0] == Hint()
    attachment = load_adapter(base, files[1])
    signal, latents = torch.rand(1, 3, 32, 32, generator=generator), torch.randn(1, 4, 4, 4, generator=generator)
    with torch.no_grad():
        attachment.begin(SideInputs(control={"hint": signal}))
        (adapter,) = attachment.adapters.values()
        expected = adapter.layer(latents) + encoder[:-1](signal)
        torch.testing.assert_close(adapter(latents), expected)
    attachment.detach()
    files[0].unlink()
    before = files[1].read_bytes()
    with pytest.raises(Refused, match=r"ours-hint\.safetensors, where the encoder of signals would go, exists already"):
        import_adapter(base, tmp_path / "paper.safetensors", files[0])
    assert files[1].read_bytes() == before and not files[0].exists() and not base.attachments


QUERY = "attentions.0.transformer_blocks.0.attn1.processor.to_q_oft"


@pytest.mark.parametrize(
    ("key", "tensor", "says"),
    [
        ("model.diffusion_model.input_blocks.1.0.in_layers.2.R", torch.zeros(4, 9, 9), "the convolution.*mixes up"),
        ("input_blocks.8.1.transformer_blocks.0.attn1.to_q.R", torch.zeros(4, 8, 8), "a layer 'input_blocks.8"),
        (f"down_blocks.9.{QUERY}.R", torch.zeros(4, 8, 8), "which base .* does not have"),
        (f"mid_block.{QUERY}.R", torch.zeros(4, 8), "expected square"),
        (f"mid_block.{QUERY}.R", torch.zeros(3, 8, 8), "does not fit"),
        (f"mid_block.{QUERY}.scaling_factors", -torch.ones(32, 1), "gain that is not positive"),
    ],
)
def test_checkpoints_that_cannot_be_honoured_are_refused(base, unet, tmp_path, key, tensor, says):
    tensors = checkpoint(unet, oft_db, ATTENTION)
    save_tensors(tmp_path / "paper.safetensors", {**tensors, key: tensor})
    with pytest.raises(Refused, match=says):
        import_adapter(base, tmp_path / "paper.safetensors", tmp_path / "ours.safetensors")
    assert not (tmp_path / "ours.safetensors").exists() and not base.attachments


@pytest.mark.parametrize("name", ["model.ckpt", "pytorch_lora_weights.bin", "a.pt"])
def test_a_pickle_is_refused_with_the_line_that_converts_it(base, tmp_path, name):
    (tmp_path / name).write_bytes(b"\x80\x04")
    with pytest.raises(Refused, match=r"is a pickle.*weights_only=True.*\.safetensors'?$"):
        import_adapter(base, tmp_path / name, tmp_path / "ours.safetensors")


def test_the_line_that_converts_a_pickle_works(base, tmp_path):
    torch.save({"state_dict": {"a.R": torch.ones(2, 3).T}, "epoch": 3}, tmp_path / "a b.ckpt")
    with pytest.raises(Refused) as refused:
        import_adapter(base, tmp_path / "a b.ckpt", tmp_path / "ours.safetensors")
    python, *words = shlex.split(str(refused.value).rpartition("convert it: ")[2])
    assert python == "python"
    subprocess.run([sys.executable, *words], check=True)
    assert torch.equal(load_tensors(tmp_path / "a b.safetensors")[0]["a.R"], torch.ones(3, 2))
