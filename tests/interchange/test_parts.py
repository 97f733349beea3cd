"""Bases of other parts than a UNet and one text encoder: every part's layers come back as they were."""

import json

import pytest
import torch

from diffadapt import Refused, export_adapter, import_adapter, load_adapter
from diffadapt.adapters import IA3, OFT, LoRA, attach
from diffadapt.bases import load_base
from diffadapt.files import save_tensors

from ..bases.test_stable_diffusion_xl import make_sdxl
from ..conftest import make_dit

ROLES = ["cross_attention.key", "text.self_attention.query", "text_2.self_attention.query"]


@pytest.fixture(scope="module")
def xl(tmp_path_factory):
    return load_base(make_sdxl(tmp_path_factory.mktemp("xl")), device="cpu")


def saved(base, method, roles, place, **more):
    attachment = attach(base, method, roles, **more)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in attachment.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    attachment.detach()
    return attachment.save(place / "adapter.safetensors")


def values(base, file):
    attachment = load_adapter(base, file)
    attachment.detach()
    return attachment.state_dict()


@pytest.mark.parametrize("method", [LoRA(rank=2, alpha=1), OFT(block_size=4)])
def test_a_peft_directory_of_three_parts_comes_back_whole(xl, tmp_path, method):
    file = saved(xl, method, ROLES, tmp_path)
    export_adapter(xl, file, tmp_path / "peft", to="peft")
    assert (tmp_path / "peft" / "text_encoder_2" / "adapter_config.json").is_file()
    (back,), _ = import_adapter(xl, tmp_path / "peft", tmp_path / "back.safetensors")
    before, after = values(xl, file), values(xl, back)
    assert before.keys() == after.keys() and any(name.startswith("text_encoder_2.") for name in after)
    for name, value in before.items():
        torch.testing.assert_close(after[name], value, atol=0, rtol=0)


def test_a_peft_directory_of_a_transformer_comes_back(tmp_path):
    base = load_base(make_dit(tmp_path / "dit"), device="cpu")
    file = saved(base, LoRA(rank=2), ["self_attention.*"], tmp_path)
    export_adapter(base, file, tmp_path / "peft", to="peft")
    (back,), _ = import_adapter(base, tmp_path / "peft", tmp_path / "back.safetensors")
    before, after = values(base, file), values(base, back)
    assert before.keys() == after.keys() and all(torch.equal(after[name], value) for name, value in before.items())


def test_a_part_that_the_base_lacks_is_named(xl, base, tmp_path):
    export_adapter(xl, saved(xl, IA3(), ROLES, tmp_path), tmp_path / "peft", to="peft")
    with pytest.raises(Refused, match=r"text_encoder_2 is about a part that base .* does not have"):
        import_adapter(base, tmp_path / "peft", tmp_path / "back.safetensors")


def one_layer(folder, layer, width, out, **config):
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(0)
    pair = {"A": torch.randn(4, width, generator=generator), "B": torch.randn(out, 4, generator=generator)}
    save_tensors(
        folder / "adapter_model.safetensors",
        {f"base_model.model.{layer}.lora_{name}.weight": value for name, value in pair.items()},
    )
    settings = {"peft_type": "LORA", "r": 4, "lora_alpha": 4, "rank_pattern": {}, **config}
    (folder / "adapter_config.json").write_text(json.dumps(settings))


@pytest.mark.parametrize("layer", ["text_model.encoder.layers.0.self_attn.q_proj", "encoder.layers.0.self_attn.q_proj"])
def test_a_pattern_of_alphas_means_its_layer_by_old_and_new_names(base, tmp_path, layer):
    one_layer(tmp_path / "their" / "text_encoder", layer, 32, 32, alpha_pattern={layer: 16})
    (file,), _ = import_adapter(base, tmp_path / "their", tmp_path / "ours.safetensors")
    adapter = load_adapter(base, file).layers["text_encoder.encoder.layers.0.self_attn.q_proj"]
    assert adapter.alpha == 16 and adapter.scale == 4


@pytest.mark.parametrize("start", ["pissa_niter_16", "olora", "PiSSA"])
def test_a_lora_that_began_with_the_base_s_weights_is_refused(base, tmp_path, start):
    one_layer(tmp_path / "their", "mid_block.attentions.0.transformer_blocks.0.attn1.to_q", 32, 32,
              init_lora_weights=start)  # fmt: skip
    with pytest.raises(Refused, match="path_initial_model_for_weight_conversion"):
        import_adapter(base, tmp_path / "their", tmp_path / "ours.safetensors")


@pytest.mark.parametrize("name", ["lora_te2_text_projection", "lora_te2_text_model_text_projection"])
def test_the_projection_of_the_second_encoder_is_read_by_both_names(xl, tmp_path, name):
    weight = xl.module("text_encoder_2.text_projection").weight
    pair = {"lora_down.weight": torch.randn(2, weight.shape[1]), "lora_up.weight": torch.randn(len(weight), 2)}
    save_tensors(tmp_path / "their.safetensors", {f"{name}.{part}": value for part, value in pair.items()})
    (file,), _ = import_adapter(xl, tmp_path / "their.safetensors", tmp_path / "ours.safetensors")
    assert values(xl, file).keys() == {f"text_encoder_2.text_projection.{part}" for part in ("down", "up")}


def test_the_projection_is_written_by_the_name_that_others_read(xl, tmp_path):
    from safetensors.torch import load_file

    (file,), _ = export_adapter(
        xl, saved(xl, LoRA(rank=1), ["text_2.projection"], tmp_path), tmp_path / "a.safetensors", to="lora"
    )
    assert {name.split(".")[0] for name in load_file(file)} == {"lora_te2_text_projection"}


def test_a_name_that_is_nothing_s_is_not_said_to_be_of_xl_there(xl, tmp_path):
    pair = {"lora_te2_nothing.lora_down.weight": torch.ones(1, 2), "lora_te2_nothing.lora_up.weight": torch.ones(2, 1)}
    save_tensors(tmp_path / "their.safetensors", pair)
    with pytest.raises(Refused, match="does not have$"):
        import_adapter(xl, tmp_path / "their.safetensors", tmp_path / "ours.safetensors")
