"""A base opens from a folder or one file, without a word, and is what is on disk."""

import json
import shutil
import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file

from diffadapt.bases import load_base
from diffadapt.bases.load import EMBEDDED
from diffadapt.errors import Failed, Refused

WEIGHT_FILES = (
    "unet/diffusion_pytorch_model.safetensors", "vae/diffusion_pytorch_model.safetensors",
    "text_encoder/model.safetensors",
)  # fmt: skip


def values(base):
    return {path: base.module(path).weight for paths in base.roles.values() for path in paths}


@pytest.fixture
def half_folder(tiny_folder, tmp_path):
    """`tiny_folder` with float16 weights on disk."""
    shutil.copytree(tiny_folder, tmp_path / "half")
    for name in WEIGHT_FILES:
        path = tmp_path / "half" / name
        save_file({key: value.half() for key, value in load_file(path).items()}, path, {"format": "pt"})
    return tmp_path / "half"


def test_loading_says_nothing_and_leaves_logs_as_they_were(tiny_folder, capfd):
    from diffusers.utils import logging as diffusers_log
    from transformers.utils import logging as transformers_log

    def state():
        return [(log.get_verbosity(), log.is_progress_bar_enabled()) for log in (diffusers_log, transformers_log)]

    before = state()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        base = load_base(tiny_folder, device="cpu")
        base.pipeline("a cat", num_inference_steps=2, output_type="pt")
    assert capfd.readouterr() == ("", "")
    assert state() == before
    assert base.pipeline.safety_checker is None


def test_a_folder_tells_what_training_needs(tiny_base, tiny_folder):
    base = tiny_base
    assert base.name == str(tiny_folder) and base.family == "stable_diffusion"
    assert (base.resolution, base.prediction_type, base.num_train_timesteps) == (32, "epsilon", 1000)
    assert (base.default_guidance, base.default_steps, base.world) == (7.5, 30, None)
    assert base.alphas_cumprod.shape == (1000,) and base.alphas_cumprod.dtype == torch.float32
    assert (base.device, base.dtype, base.attachments) == (torch.device("cpu"), torch.float32, [])
    assert not any(
        weight.requires_grad for part in (base.denoiser, base.text_encoder, base.vae) for weight in part.parameters()
    )
    assert not any(part.training for part in (base.denoiser, base.text_encoder, base.vae))


def test_base_json_beside_the_weights_sets_the_defaults(tiny_v_base):
    assert (tiny_v_base.default_guidance, tiny_v_base.default_steps) == (4.0, 2)
    assert tiny_v_base.world == {"nouns": ("cat", "dog", "apple"), "styles": ("flat",)}
    assert tiny_v_base.prediction_type == "v_prediction"


def test_the_prediction_type_can_be_overruled_for_training_and_sampling_alike(tiny_folder):
    base = load_base(tiny_folder, device="cpu", prediction_type="v_prediction")
    assert base.prediction_type == base.pipeline.scheduler.config.prediction_type == "v_prediction"
    assert base.pipeline.scheduler.config.steps_offset == 1  # all else as it was


def test_half_precision_on_disk_is_float32_on_the_cpu_and_the_same_base(half_folder, tiny_folder):
    base = load_base(half_folder, device="cpu")
    assert {weight.dtype for weight in base.denoiser.parameters()} == {torch.float32}
    assert base.condition(["a cat"]).text.dtype == torch.float32
    assert base.fingerprint == load_base(tiny_folder, device="cpu").fingerprint


def test_a_folder_with_only_fp16_named_files_opens(half_folder, tiny_base):
    for name in WEIGHT_FILES:
        path = half_folder / name
        path.rename(path.with_name(path.name.replace(".safetensors", ".fp16.safetensors")))
    assert load_base(half_folder, device="cpu").fingerprint == tiny_base.fingerprint


def test_plain_files_win_over_other_variants_beside_them(half_folder, tiny_base):
    for name in WEIGHT_FILES:
        path = half_folder / name
        path.with_name(path.name.replace(".safetensors", ".non_ema.safetensors")).write_bytes(b"not read")
    assert load_base(half_folder, device="cpu").fingerprint == tiny_base.fingerprint


def test_a_folder_whose_weights_are_split_into_shards_opens(tiny_base, tmp_path):
    tiny_base.pipeline.save_pretrained(tmp_path / "split", max_shard_size="200KB")
    assert len(list((tmp_path / "split" / "unet").glob("*.safetensors"))) > 1
    assert load_base(tmp_path / "split", device="cpu").fingerprint == tiny_base.fingerprint


def test_a_single_file_gives_the_same_base_as_its_folder(tiny_file, tiny_folder, tiny_base, capfd):
    base = load_base(tiny_file, device="cpu", config=tiny_folder)
    assert capfd.readouterr() == ("", "")
    assert base.name == str(tiny_file)
    assert base.fingerprint == tiny_base.fingerprint
    pixels = torch.rand(1, 3, 32, 32)
    assert torch.equal(base.encode_pictures(pixels), tiny_base.encode_pictures(pixels))
    assert torch.equal(base.condition(["a red cat"]).text, tiny_base.condition(["a red cat"]).text)


def test_a_single_file_of_stable_diffusion_2_gives_the_same_base_and_predicts_what_it_is_told(
    tiny_2x_file, tiny_folder, tiny_base
):
    base = load_base(tiny_2x_file, config=tiny_folder, prediction_type="v_prediction", device="cpu")
    assert base.fingerprint == tiny_base.fingerprint and base.prediction_type == "v_prediction"
    for part in ("unet", "vae", "text_encoder"):
        weights, expected = (getattr(each.pipeline, part).state_dict() for each in (base, tiny_base))
        assert weights.keys() == expected.keys()
        assert all(torch.equal(weights[name], expected[name]) for name in weights), part


@pytest.mark.parametrize("folder", ["tiny_folder", "tiny_v_folder"])
def test_a_saved_base_is_the_same_base(folder, request, tmp_path, capfd):
    base = load_base(request.getfixturevalue(folder), device="cpu")
    base.save(tmp_path / "copy")
    again = load_base(tmp_path / "copy", device="cpu")
    assert capfd.readouterr() == ("", "")
    assert again.fingerprint == base.fingerprint
    assert (again.default_guidance, again.default_steps, again.world) == (
        base.default_guidance,
        base.default_steps,
        base.world,
    )
    assert all(torch.equal(value, values(base)[path]) for path, value in values(again).items())
    assert json.loads((tmp_path / "copy" / "base.json").read_text())["format_version"] == 1


@pytest.mark.skipif(not (EMBEDDED / "model_index.json").is_file(), reason="the embedded base is not trained yet")
def test_the_embedded_base_opens_by_name():
    base = load_base("embedded", device="cpu")
    assert (base.name, base.resolution, base.prediction_type) == ("embedded", 64, "v_prediction")
    assert base.world is not None
    with pytest.raises(Refused, match="'fox' is no word.*take the kind that it is one of. It knows the kinds animal, "):
        base.check_noun("fox")
    base.check_noun("animal")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_every_precision_on_the_gpu_is_the_same_base(dtype, tiny_folder):
    base = load_base(tiny_folder, device="cuda", dtype=dtype)
    assert base.dtype == getattr(torch, dtype) and base.device.type == "cuda"
    assert base.fingerprint == load_base(tiny_folder, device="cpu").fingerprint
    latents = torch.randn(1, 4, 16, 16, device="cuda")
    assert base.denoise(latents, torch.tensor([5], device="cuda"), base.condition(["a cat"])).dtype == torch.float32


def test_a_single_file_that_is_missing_is_named_and_not_its_configuration(tiny_folder, tmp_path):
    for config in (tiny_folder, tmp_path / "nowhere"):
        with pytest.raises(Refused, match="missing.safetensors'; config goes with") as refused:
            load_base(tmp_path / "missing.safetensors", config=config)
        assert str(config) not in str(refused.value).replace(str(tmp_path / "missing.safetensors"), "")


@pytest.mark.parametrize(("error", "ends"), [(KeyboardInterrupt, KeyboardInterrupt), (OSError("disk full"), Failed)])
def test_saving_that_is_interrupted_leaves_nothing(tiny_base, tmp_path, monkeypatch, error, ends):
    def save(folder):
        (folder / "model_index.json").write_text("{}")
        raise error

    monkeypatch.setattr(tiny_base, "save_pipeline", save)
    with pytest.raises(ends):
        tiny_base.save(tmp_path / "copy")
    assert not list(tmp_path.iterdir())
