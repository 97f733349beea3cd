from types import SimpleNamespace

import pytest
import torch

from diffadapt.interchange.names import from_original, known_names, kohya_name

UNET = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_out.0"
TEXT = "text_encoder.encoder.layers.0.self_attn.q_proj"


def test_kohya_names_are_as_its_scripts_write_them():
    assert kohya_name(UNET) == "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_out_0"
    assert kohya_name(TEXT) == "lora_te_text_model_encoder_layers_0_self_attn_q_proj"
    assert kohya_name(TEXT.replace(".encoder.", ".text_model.encoder.", 1)) == kohya_name(TEXT)


@pytest.mark.parametrize("path", [UNET, TEXT])
def test_every_spelling_of_a_layer_leads_to_it(path):
    bare = path.partition(".")[2]
    base = SimpleNamespace(
        modules=lambda: {"unet": None, "text_encoder": None}, roles={"any": (UNET, TEXT)}, original_names=dict
    )
    names = known_names(base)
    assert {names[bare], names[path], names[kohya_name(path)]} == {path}
    if path == TEXT:
        assert names[f"text_model.{bare}"] == names[f"clip_l.text_model.{bare}"] == path


def test_original_names_lead_where_diffusers_puts_their_weights():
    """Every transformer block of Stable Diffusion, by diffusers' own conversion of single files."""
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    blocks = [f"input_blocks.{i}.1" for i in (1, 2, 4, 5, 7, 8)] + ["middle_block.1"]
    blocks += [f"output_blocks.{i}.1" for i in range(3, 12)]
    names = [f"{block}.transformer_blocks.0.{end}" for block in blocks for end in ("attn1.to_q", "ff.net.0.proj")]
    others = [f"{side}.{i}.0.in_layers.0" for side in ("input_blocks", "output_blocks") for i in range(1, 12)]
    others += [
        "input_blocks.0.0",
        "output_blocks.0.0.in_layers.0",
        "middle_block.0.in_layers.0",
        "middle_block.2.in_layers.0",
    ]
    marks = {name: torch.tensor([float(i)]) for i, name in enumerate([*names, *others])}
    checkpoint = {f"model.diffusion_model.{name}.weight": mark for name, mark in marks.items()}
    converted = convert_ldm_unet_checkpoint(checkpoint, {"layers_per_block": 2})
    for name in names:
        assert torch.equal(converted[from_original(name, 2).removeprefix("unet.") + ".weight"], marks[name]), name
    assert len(names) == 32 and not any(from_original(name, 2) for name in others)
