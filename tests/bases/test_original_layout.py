"""One file out, held against diffusers' own reading of such files and against names written down by hand."""

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from diffadapt.adapters import LoRA, attach, load_adapter
from diffadapt.bases import load_base
from diffadapt.bases.original_layout import save_single_file, unet_name, vae_name
from diffadapt.cli.main import main
from diffadapt.errors import Refused

# of Stable Diffusion 1.5: diffusers' name -> that of v1-5-pruned-emaonly.safetensors
UNET = {
    "conv_in.weight": "input_blocks.0.0.weight",
    "time_embedding.linear_2.bias": "time_embed.2.bias",
    "down_blocks.0.resnets.1.conv1.weight": "input_blocks.2.0.in_layers.2.weight",
    "down_blocks.0.downsamplers.0.conv.weight": "input_blocks.3.0.op.weight",
    "down_blocks.1.resnets.0.conv_shortcut.weight": "input_blocks.4.0.skip_connection.weight",
    "down_blocks.2.attentions.1.proj_out.weight": "input_blocks.8.1.proj_out.weight",
    "down_blocks.3.resnets.1.time_emb_proj.bias": "input_blocks.11.0.emb_layers.1.bias",
    "mid_block.resnets.1.norm2.weight": "middle_block.2.out_layers.0.weight",
    "mid_block.attentions.0.proj_in.weight": "middle_block.1.proj_in.weight",
    "up_blocks.0.resnets.0.norm1.weight": "output_blocks.0.0.in_layers.0.weight",
    "up_blocks.0.upsamplers.0.conv.weight": "output_blocks.2.1.conv.weight",
    "up_blocks.1.upsamplers.0.conv.weight": "output_blocks.5.2.conv.weight",
    "up_blocks.3.attentions.2.proj_in.bias": "output_blocks.11.1.proj_in.bias",
    "up_blocks.3.resnets.2.conv2.bias": "output_blocks.11.0.out_layers.3.bias",
    "conv_norm_out.weight": "out.0.weight",
    "conv_out.bias": "out.2.bias",
}  # fmt: skip
VAE = {
    "encoder.down_blocks.1.resnets.0.conv_shortcut.weight": "encoder.down.1.block.0.nin_shortcut.weight",
    "encoder.down_blocks.2.downsamplers.0.conv.bias": "encoder.down.2.downsample.conv.bias",
    "encoder.mid_block.resnets.1.norm1.weight": "encoder.mid.block_2.norm1.weight",
    "decoder.mid_block.attentions.0.group_norm.weight": "decoder.mid.attn_1.norm.weight",
    "decoder.mid_block.attentions.0.to_out.0.weight": "decoder.mid.attn_1.proj_out.weight",
    "decoder.up_blocks.0.resnets.2.conv1.weight": "decoder.up.3.block.2.conv1.weight",
    "decoder.up_blocks.2.upsamplers.0.conv.weight": "decoder.up.1.upsample.conv.weight",
    "decoder.conv_norm_out.bias": "decoder.norm_out.bias",
    "post_quant_conv.weight": "post_quant_conv.weight",
}


def test_names_are_those_of_the_stable_diffusion_1_5_checkpoint():
    assert {name: unet_name(name, 3, (False, True, True, True)) for name in UNET} == UNET
    assert {name: vae_name(name, 4) for name in VAE} == VAE


def test_diffusers_opens_the_merged_file_as_the_same_base_bit_for_bit(tiny_base, tiny_folder, tiny_file, tmp_path):
    attachment = attach(tiny_base, LoRA(rank=2), tokens={"<biscuit>": "cat"})
    with torch.no_grad():
        for parameter in attachment.parameters():
            parameter += 0.1
    attachment.merge_()
    path = save_single_file(tiny_base, tmp_path / "merged.safetensors")
    with safe_open(path, "pt") as ours, safe_open(tiny_file, "pt") as known:
        shapes = {key: ours.get_slice(key).get_shape() for key in ours.keys()}  # noqa: SIM118
        assert shapes == {key: known.get_slice(key).get_shape() for key in known.keys()}  # noqa: SIM118
    again = load_base(path, config=tiny_folder, device="cpu")
    for part in ("unet", "vae"):
        theirs = getattr(again.pipeline, part).state_dict()
        for name, value in getattr(tiny_base.pipeline, part).state_dict().items():
            assert torch.equal(value, theirs[name]), name
    assert torch.equal(again.condition(["a cat"]).text, tiny_base.condition(["a cat"]).text)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda base: attach(base, LoRA(rank=2)), "attached and not merged"),
        (lambda base: base.denoiser.register_to_config(cross_attention_dim=1024), "text encoder of .* 2.x"),
        (lambda base: base.pipeline.scheduler.alphas_cumprod.mul_(0.9), "another noise schedule"),
    ],
)
def test_a_base_that_the_layout_cannot_hold_is_refused(tiny_base, tmp_path, change, says):
    change(tiny_base)
    with pytest.raises(Refused, match=says):
        save_single_file(tiny_base, tmp_path / "out.safetensors")
    assert not list(tmp_path.iterdir())


def test_a_small_autoencoder_and_an_existing_file_are_refused(tiny_v_base, tiny_base, tmp_path):
    with pytest.raises(Refused, match="autoencoder of .* AutoencoderTiny; .* give a folder"):
        save_single_file(tiny_v_base, tmp_path / "out.safetensors")
    (tmp_path / "mine.safetensors").write_text("mine")
    with pytest.raises(Refused, match="exists already"):
        save_single_file(tiny_base, tmp_path / "mine.safetensors")


def test_merging_into_one_file_writes_the_words_beside_it_and_overwrites_nothing(
    tiny_base, tiny_folder, tmp_path, capsys
):
    file = moved(tiny_base, tmp_path)
    command = ["merge", "--adapter", str(file), "--base", str(tiny_folder), "--device", "cpu", "--out"]
    merged, word = tmp_path / "merged.safetensors", tmp_path / "merged-biscuit.safetensors"
    assert main([*command, str(merged)]) == 0
    assert capsys.readouterr().out.split() == [str(merged), str(word)]
    attachment = load_adapter(tiny_base, file)
    (vectors,) = (words.rows() for words in attachment.words)
    assert torch.equal(load_file(word)["<biscuit>"], vectors)
    attachment.merge_()
    again = load_base(merged, config=tiny_folder, device="cpu")
    expected = tiny_base.denoiser.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in again.denoiser.state_dict().items())

    for taken in (merged, word):
        before = taken.read_bytes()
        assert main([*command, str(merged)]) == 2
        assert f"{taken}" in (error := capsys.readouterr().err) and "exists already" in error
        assert taken.read_bytes() == before
        merged.unlink(missing_ok=True)
    assert not merged.exists()


def test_merging_a_base_that_has_no_such_layout_into_one_file_is_refused(tiny_v_base, tiny_v_folder, tmp_path, capsys):
    file = moved(tiny_v_base, tmp_path)
    command = ["merge", "--adapter", str(file), "--base", str(tiny_v_folder), "--device", "cpu"]
    assert main([*command, "--out", str(tmp_path / "merged.safetensors")]) == 2
    error = capsys.readouterr().err
    assert "is AutoencoderTiny; a single file is written of Stable Diffusion 1.x; give a folder for --out" in error
    assert list(tmp_path.iterdir()) == [file]


def moved(base, folder):
    """A file of LoRA and a word that change the base."""
    attachment = attach(base, LoRA(rank=2), tokens={"<biscuit>": "cat"})
    with torch.no_grad():
        for parameter in attachment.parameters():
            parameter += 0.1
    path = attachment.save(folder / "adapter.safetensors")
    attachment.detach()
    return path
