"""Files of kohya's oft_v2 and of OneTrainer, made up as they lay them out."""

import math

import pytest
import torch

from diffadapt import OFT, Refused, import_adapter, load_adapter
from diffadapt.adapters import read_adapter
from diffadapt.adapters.oft import skew
from diffadapt.files import save_tensors
from diffadapt.interchange.names import kohya_name
from diffadapt.interchange.series import series


def oft_v2(base, roles, *, side=8, size=0.02, scaled=False, shared=False):
    """A file's tensors; the weights of a copy of the UNet become what those tools compute."""
    generator = torch.Generator().manual_seed(4)
    tensors, weights = {}, {}
    for path in base.select(roles):
        weight = base.module(path).weight
        blocks = weight[0].numel() // side
        v = size * torch.randn(1 if shared else blocks, side * (side - 1) // 2, generator=generator)
        tensors[f"{kohya_name(path)}.oft_R.weight"] = v * (2 * math.sqrt(side - 1) if scaled else 1)
        if scaled:
            tensors[f"{kohya_name(path)}.oft_R.scaled_oft"] = torch.tensor(True)
        r = torch.block_diag(*series(skew(v, side), 5).expand(blocks, -1, -1))
        turned = weight.flatten(1) @ (r if weight.ndim == 4 else r.T)  # filters by R, the inputs of a linear layer too
        weights[path.removeprefix("unet.") + ".weight"] = turned.view_as(weight)
    return tensors, weights


@pytest.mark.parametrize("dotted", [False, True], ids=["underscores", "dots"])
@pytest.mark.parametrize(
    ("roles", "more"),
    [
        (["cross_attention.*"], {}),
        (["self_attention.*"], {"scaled": True}),
        (["self_attention.*"], {"shared": True}),
        (["residual.conv", "attention.project_in"], {}),
    ],
    ids=["linear", "scaled", "shared", "convolutions"],
)
def test_we_answer_as_those_tools_do(base, unet, draw, apart, tmp_path, roles, more, dotted):
    tensors, weights = oft_v2(base, roles, **more)
    if dotted:
        names = {kohya_name(path): path for path in base.select(roles)}
        tensors = {names[key.split(".")[0]] + "." + key.partition(".")[2]: value for key, value in tensors.items()}
    save_tensors(tmp_path / "theirs.safetensors", tensors, {"ss_network_module": "networks.oft_v2"})
    files, note = import_adapter(base, tmp_path / "theirs.safetensors", tmp_path / "ours.safetensors")
    assert read_adapter(files[0])[0] == OFT(block_size=8, share_blocks=bool(more.get("shared")))
    assert "series of 5 terms" in note
    plain = draw(unet)
    unet.load_state_dict(weights, strict=False)
    theirs = draw(unet)
    load_adapter(base, files[0])
    assert apart(draw(base.denoiser), theirs) < 1e-4 < 0.01 * apart(plain, theirs)


@pytest.mark.parametrize(
    ("key", "says"),
    [
        ("lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q.dora_scale", "DoRA"),
        ("lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q.bias", "no part of OFT"),
        (
            "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q.oft_R.weight",
            "a layer 'lora_unet_input_blocks_4",
        ),
    ],
)
def test_what_is_not_known_is_refused(base, tmp_path, key, says):
    tensors, _ = oft_v2(base, ["cross_attention.*"])
    save_tensors(tmp_path / "theirs.safetensors", {**tensors, key: torch.zeros(2, 28)})
    with pytest.raises(Refused, match=says):
        import_adapter(base, tmp_path / "theirs.safetensors", tmp_path / "ours.safetensors")


@pytest.mark.parametrize(
    ("key", "shape"),
    [
        ("lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q.oft_blocks", (4, 8, 8)),
        ("oft_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q.oft_blocks", (4, 8, 8)),
        ("lycoris_mid_block_attentions_0_transformer_blocks_0_attn1_to_q.oft_diag", (4, 8, 8)),
    ],
)
def test_output_side_rotations_are_refused_with_the_reason(base, tmp_path, key, shape):
    save_tensors(tmp_path / "theirs.safetensors", {key: torch.zeros(shape)})
    with pytest.raises(Refused, match=r"cannot be read: oft_blocks.*turn the outputs.*W' = R W"):
        import_adapter(base, tmp_path / "theirs.safetensors", tmp_path / "ours.safetensors")


def test_what_is_no_oft_is_refused(base, tmp_path):
    save_tensors(tmp_path / "lora.safetensors", {"lora_unet_x.weight": torch.zeros(2, 2)})
    with pytest.raises(Refused, match="holds no adapter that diffadapt knows: expected LoRA .* or a PEFT directory"):
        import_adapter(base, tmp_path / "lora.safetensors", tmp_path / "ours.safetensors")
    with pytest.raises(Refused, match="no file at"):
        import_adapter(base, tmp_path / "nothing.safetensors", tmp_path / "ours.safetensors")


def test_our_own_adapters_and_taken_names_are_refused(base, saved, tmp_path):
    file = saved(OFT(block_size=8))
    with pytest.raises(Refused, match="is an adapter of diffadapt already"):
        import_adapter(base, file, tmp_path / "ours.safetensors")
    with pytest.raises(Refused, match="exists already"):
        import_adapter(base, file, file)
    with pytest.raises(Refused, match=r"ends in \.safetensors"):
        import_adapter(base, file, tmp_path / "ours")
