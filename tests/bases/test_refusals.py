"""Everything that is no base is refused in one sentence that says what to do."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

from diffadapt.bases import load_base
from diffadapt.errors import Failed, Refused

WEIGHT_FILES = (
    "unet/diffusion_pytorch_model.safetensors", "vae/diffusion_pytorch_model.safetensors",
    "text_encoder/model.safetensors",
)  # fmt: skip


@pytest.fixture
def folder(tiny_folder, tmp_path):
    return Path(shutil.copytree(tiny_folder, tmp_path / "base"))


def refused(*args, match: str, **kwargs) -> str:
    with pytest.raises(Refused, match=match) as caught:
        load_base(*args, device="cpu", **kwargs)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 600, message
    return message


def edit(path: Path, **changes) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_folder_without_model_index(tmp_path):
    refused(tmp_path, match=r"holds no model_index\.json")


@pytest.mark.parametrize("name", ["PixArtAlphaPipeline", "FluxPipeline"])
def test_an_unsupported_pipeline_names_the_supported(folder, name):
    edit(folder / "model_index.json", _class_name=name)
    refused(folder, match=rf"names the pipeline {name!r}; supported so far: StableDiffusionPipeline")


def test_a_model_index_that_is_not_json(folder):
    (folder / "model_index.json").write_text("{")
    refused(folder, match="is not JSON")


@pytest.mark.parametrize("name", ["unet", "vae", "text_encoder", "tokenizer", "scheduler"])
def test_a_missing_component(folder, name):
    shutil.rmtree(folder / name)
    refused(folder, match=f"has no {name}")


def test_a_component_without_weights(folder):
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    refused(folder, match="holds no weights")


def test_a_component_with_pickled_weights(folder):
    path = folder / "text_encoder" / "model.safetensors"
    path.rename(path.with_name("pytorch_model.bin"))
    refused(folder, match="pickled weights only.*convert them")


@pytest.mark.parametrize("length", [0, 5, 300, 30_000])
def test_a_truncated_weight_file(folder, length):
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:length])
    refused(folder, match="diffusion_pytorch_model.safetensors is not a whole safetensors file")


@pytest.mark.parametrize("file", ["unet/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"])
def test_weights_that_lack_a_tensor_are_not_filled_with_noise(folder, file):
    tensors = load_file(folder / file)
    tensors.pop(next(name for name in tensors if name.endswith("norm1.weight")))
    save_file(tensors, folder / file, {"format": "pt"})
    refused(folder, match=r"lacks 1 weights, the first: .*norm1\.weight|cannot be opened")


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("file", WEIGHT_FILES)
def test_a_weight_of_any_part_that_is_not_a_number_is_refused_by_its_name(folder, file, number):
    tensors = load_file(folder / file)
    name = next(name for name in tensors if name.endswith("norm1.bias") or name.endswith("norm1.weight"))
    tensors[name].view(-1)[-1] = number
    save_file(tensors, folder / file, {"format": "pt"})
    where = f"{Path(file).parent}.{name}"
    refused(folder, match=rf"{re.escape(where)} holds values that are not numbers.*copy or download the base")


@pytest.mark.parametrize(
    ("dtype", "kind"), [(torch.bool, "BOOL"), (torch.complex64, "C64"), (torch.int8, "I8"), (torch.int64, "I64")]
)
@pytest.mark.parametrize("file", WEIGHT_FILES)
def test_a_weight_of_any_part_that_holds_no_real_numbers_is_refused_by_its_name(folder, file, dtype, kind):
    tensors = load_file(folder / file)
    name = next(name for name in tensors if name.endswith("norm1.weight"))
    tensors[name] = tensors[name].to(dtype)
    save_file(tensors, folder / file, {"format": "pt"})
    refused(folder, match=rf"{re.escape(name)} holds {kind}, expected real numbers")


def test_components_that_share_no_variant(folder):
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    path.rename(path.with_name("diffusion_pytorch_model.fp16.safetensors"))
    refused(folder, match="share no variant")


def test_weights_of_another_shape(folder):
    edit(folder / "unet" / "config.json", block_out_channels=[8, 16])
    refused(folder, match="cannot be opened as a StableDiffusionPipeline")


def test_an_inpainting_model(folder):
    edit(folder / "unet" / "config.json", in_channels=9)
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    tensors["conv_in.weight"] = tensors["conv_in.weight"].repeat(1, 3, 1, 1)[:, :9].contiguous()
    save_file(tensors, path, {"format": "pt"})
    refused(folder, match="no text-to-image model.*9")


@pytest.mark.parametrize("kind", ["sample", "flow"])
def test_a_prediction_type_of_another_kind(folder, kind):
    edit(folder / "scheduler" / "scheduler_config.json", prediction_type=kind)
    refused(folder, match="epsilon (or|and) v_prediction")


@pytest.mark.parametrize(
    ("facts", "match"),
    [
        ({"format_version": 2}, "upgrade diffadapt"),
        ({"default_steps": 0}, "default_steps"),
        ({"default_guidance": "high"}, "default_guidance"),
        ({"world": {"nouns": "cat"}}, "world: nouns: expected a list"),
        ([], "expected a table"),
    ],
)
def test_a_base_json_with_a_wrong_value(folder, facts, match):
    (folder / "base.json").write_text(json.dumps(facts))
    refused(folder, match=match)


@pytest.mark.parametrize("name", ["model.ckpt", "model.pt", "pytorch_model.bin"])
def test_a_pickle_present_or_not(tmp_path, name):
    refused(tmp_path / name, match="a pickle")
    (tmp_path / name).write_bytes(b"\x80\x04.")
    refused(tmp_path / name, match="is a pickle, which can run code when read")


@pytest.mark.parametrize(
    "name", ["embeded", "./no/such/folder", "no.safetensors", "a/b/c", "", "~", "owner/x.safetensors"]
)
def test_a_name_that_is_nothing_is_refused_without_asking_the_network(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    refused(name, match='expected "embedded"|holds no model_index')


def test_a_hub_id_when_offline_is_one_clear_sentence(monkeypatch, capfd):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)  # which is read from the environment once
    with pytest.raises(Refused) as refusal:
        load_base("owner/name", device="cpu")
    assert "'owner/name' is neither a folder or file here nor in the local cache" in str(refusal.value)
    assert "HF_HUB_OFFLINE forbids downloading" in str(refusal.value)
    assert "\n" not in str(refusal.value) and capfd.readouterr() == ("", "")


# --- single files -----------------------------------------------------------------------------------------------------


def test_a_truncated_single_file(tiny_file, tiny_folder, tmp_path):
    (tmp_path / "cut.safetensors").write_bytes(tiny_file.read_bytes()[:10_000])
    refused(tmp_path / "cut.safetensors", config=tiny_folder, match="not a whole safetensors file")


def test_a_text_file(tmp_path):
    (tmp_path / "base.txt").write_text("hello")
    refused(tmp_path / "base.txt", match=r"expected a \.safetensors file or a folder")


@pytest.mark.parametrize(
    ("prefix", "match"),
    [
        ("lora_unet_down_blocks_0.lora_down", "an adapter"),
        ("model.diffusion_model.double_blocks.0", "FLUX"),
        ("conditioner.embedders.0.transformer", "holds no UNet .* second text encoder; expected all of .* XL"),
        ("down_blocks.0.resnets.0.conv1", "one part of a diffusers pipeline"),
        ("something", "holds no UNet and no autoencoder and no text encoder"),
    ],
)
def test_a_file_of_another_kind(tiny_file, tiny_folder, tmp_path, prefix, match):
    tensor = next(iter(load_file(tiny_file).values()))
    save_file({f"{prefix}.weight": tensor}, tmp_path / "x.safetensors")
    refused(tmp_path / "x.safetensors", config=tiny_folder, match=match)


@pytest.mark.parametrize("gone", ["first_stage_model.", "cond_stage_model."])
def test_a_single_file_without_a_part(tiny_file, tiny_folder, tmp_path, gone):
    tensors = {name: value for name, value in load_file(tiny_file).items() if not name.startswith(gone)}
    save_file(tensors, tmp_path / "x.safetensors")
    refused(tmp_path / "x.safetensors", config=tiny_folder, match="holds no (autoencoder|text encoder)")


@pytest.mark.parametrize("end", ["time_embed.0.weight", "out.2.bias", "final_layer_norm.weight", "quant_conv.bias"])
def test_a_single_file_without_a_tensor(tiny_file, tiny_folder, tmp_path, end):
    tensors = load_file(tiny_file)
    tensors.pop(next(name for name in tensors if name.endswith(end)))
    save_file(tensors, tmp_path / "x.safetensors")
    refused(tmp_path / "x.safetensors", config=tiny_folder, match="lacks 1 weights|does not fit")


@pytest.mark.parametrize("prefix", ["transformer.", "", "clip.transformer.text_model."])
def test_a_single_file_whose_text_encoder_has_keys_of_another_version(tiny_file, tiny_folder, tmp_path, prefix):
    tensors, old = load_file(tiny_file), "cond_stage_model.transformer.text_model."
    tensors = {name.replace(old, f"cond_stage_model.{prefix}"): value for name, value in tensors.items()}
    save_file(tensors, tmp_path / "x.safetensors")
    refused(tmp_path / "x.safetensors", config=tiny_folder, match=r"does not fit the configuration .*: \w+")


@pytest.mark.parametrize("end", ["time_embed.0.weight", "quant_conv.bias", "final_layer_norm.weight"])
@pytest.mark.parametrize("broken", [torch.tensor(float("nan")), torch.tensor(True), torch.tensor(1j)])
def test_a_single_file_with_a_weight_that_is_no_real_number(tiny_file, tiny_folder, tmp_path, end, broken):
    tensors = load_file(tiny_file)
    name = next(name for name in tensors if name.endswith(end))
    tensors[name] = broken.expand_as(tensors[name]).contiguous()
    save_file(tensors, tmp_path / "x.safetensors")
    refused(tmp_path / "x.safetensors", config=tiny_folder, match="holds (values that are not numbers|BOOL|C64)")


def test_a_configuration_that_does_not_fit(tiny_file, tiny_folder, tmp_path):
    shutil.copytree(tiny_folder, tmp_path / "config")
    edit(tmp_path / "config" / "unet" / "config.json", block_out_channels=[8, 16])
    refused(tiny_file, config=tmp_path / "config", match="does not fit the configuration")
    refused(tiny_file, config=tmp_path, match=r"holds no model_index\.json")


def test_a_single_file_without_configuration_when_offline(tiny_file, tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    refused(tiny_file, match="HF_HUB_OFFLINE.*pass config=FOLDER")


def test_a_configuration_for_what_brings_its_own(tiny_folder):
    refused(tiny_folder, config=tiny_folder, match="config goes with a single .safetensors file")


# --- places -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"device": "gpu"}, "unknown device"),
        ({"device": "cuda:99"}, "got device 'cuda:99', but torch sees"),
        ({"device": "cpu", "dtype": "float16"}, "computes in float32 only"),
        ({"device": "cpu", "dtype": "int8"}, "unknown dtype"),
    ],
)
def test_a_device_or_precision_that_is_not_there(tiny_folder, options, match):
    with pytest.raises(Refused, match=match):
        load_base(tiny_folder, **options)


def test_saving_over_something(tiny_base, tmp_path):
    (tmp_path / "note.txt").write_text("keep me")
    with pytest.raises(Refused, match="not empty"):
        tiny_base.save(tmp_path)
    with pytest.raises(Failed, match="cannot write"):
        tiny_base.save(tmp_path / "note.txt" / "below")
    assert [path.name for path in tmp_path.iterdir()] == ["note.txt"]


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_a_base_with_a_weight_that_is_not_a_number_is_not_saved(tiny_base, tmp_path, part):
    name, weight = list(getattr(tiny_base.pipeline, part).named_parameters())[-1]
    with torch.no_grad():
        weight.view(-1)[0] = float("nan")
    with pytest.raises(Failed, match=rf"{part}\.{re.escape(name)} holds values that are not numbers.* is not written"):
        tiny_base.save(tmp_path / "out")
    assert not any(tmp_path.iterdir())
