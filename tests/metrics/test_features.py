"""Encoders by name: tiny random models of transformers, and a tiny probe, saved and loaded for real."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from diffadapt.errors import Refused
from diffadapt.metrics import load_features
from diffadapt.metrics.features import crop_square


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import ViTConfig, ViTModel

    folder = tmp_path_factory.mktemp("vit")
    torch.manual_seed(0)
    small: dict[str, Any] = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    ViTModel(ViTConfig(**small, image_size=32, patch_size=16), add_pooling_layer=False).save_pretrained(folder)
    return folder


def pictures(n: int = 3, height: int = 40, width: int = 56) -> torch.Tensor:
    return torch.rand(n, 3, height, width, generator=torch.Generator().manual_seed(0))


def is_unit(rows: torch.Tensor) -> bool:
    return torch.allclose(rows.norm(dim=1), torch.ones(len(rows)), atol=1e-5)


def test_clip_puts_pictures_and_texts_into_one_space(clip: Path):
    features = load_features(f"clip:{clip}")
    seen, read = features.pictures(pictures()), features.texts(["a cat", "a dog on a red background"])
    assert seen.shape == (3, 8) and read.shape == (2, 8) and is_unit(seen) and is_unit(read)
    assert torch.equal(features.subjects(pictures()), seen)


def test_clip_features_are_those_of_transformers_own_preparation(clip: Path):
    """A square picture of the model's size needs no resizing, so only normalisation lies between."""
    from transformers import CLIPModel

    pixels = pictures(2, 32, 32)
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)
    model = CLIPModel.from_pretrained(clip).eval()
    with torch.no_grad():
        hidden = model.vision_model(pixel_values=(pixels - mean) / std).pooler_output
        expected = torch.nn.functional.normalize(model.visual_projection(hidden), dim=1)
    torch.testing.assert_close(load_features(f"clip:{clip}").pictures(pixels), expected)


def test_a_text_does_not_change_with_its_neighbours_or_its_length(clip: Path):
    features = load_features(f"clip:{clip}")
    alone, together = features.texts(["a cat"]), features.texts(["a cat", "a dog at night " * 20])
    torch.testing.assert_close(alone[0], together[0])


def test_dino_reads_pictures_and_refuses_texts(vit: Path):
    features = load_features(f"dino:{vit}")
    assert features.pictures(pictures()).shape == (3, 16) and is_unit(features.pictures(pictures()))
    with pytest.raises(Refused, match="pictures only"):
        features.texts(["a cat"])


def test_the_result_does_not_depend_on_the_batch(vit: Path, monkeypatch: pytest.MonkeyPatch):
    features = load_features(f"dino:{vit}")
    whole = features.pictures(pictures(5))
    monkeypatch.setattr("diffadapt.metrics.features.BATCH", 2)
    torch.testing.assert_close(features.pictures(pictures(5)), whole)


def test_preparation_follows_the_models_own_settings(vit: Path, tmp_path: Path):
    from shutil import copytree

    other = copytree(vit, tmp_path / "vit")
    settings = {"size": 48, "crop_size": 32, "image_mean": [0, 0, 0], "image_std": [1, 1, 1]}
    (other / "preprocessor_config.json").write_text(json.dumps(settings))
    features = load_features(f"dino:{other}")
    prepared = features.prepare(pictures())  # pyright: ignore[reportAttributeAccessIssue]
    torch.testing.assert_close(prepared, crop_square(pictures(), 48, 32))


def test_crop_keeps_the_middle_and_resizes_the_shorter_side():
    wide = torch.zeros(1, 3, 10, 30)
    wide[..., 10:20] = 1
    assert torch.equal(crop_square(wide, 10, 10), torch.ones(1, 3, 10, 10))
    assert crop_square(torch.rand(1, 3, 100, 37), 32, 28).shape == (1, 3, 28, 28)
    assert crop_square(torch.rand(1, 3, 100, 37), 32, 28).aminmax().max <= 1


@pytest.mark.parametrize("name", ["prob", "clip:", "clip", "dino:", "inception:x"])
def test_an_unknown_name_is_refused_with_the_known_ones(name: str):
    with pytest.raises(Refused, match="expected 'probe', 'second', 'clip:<hub id or folder>'"):
        load_features(name)


def test_a_model_that_cannot_be_had_is_refused_in_one_sentence(tmp_path: Path):
    with pytest.raises(Refused, match="cannot load clip:.*use the features 'probe'"):
        load_features(f"clip:{tmp_path / 'nothing'}")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(Refused, match="cannot load dino:"):
        load_features(f"dino:{tmp_path}")


def test_a_model_of_another_kind_or_in_pickle_is_refused(clip: Path, vit: Path, tmp_path: Path):
    with pytest.raises(Refused, match="is a 'vit' model; expected one of clip"):
        load_features(f"clip:{vit}")
    with pytest.raises(Refused, match="is a 'clip' model"):
        load_features(f"dino:{clip}")
    (tmp_path / "config.json").write_bytes((vit / "config.json").read_bytes())
    (tmp_path / "pytorch_model.bin").write_bytes(b"a pickle")
    with pytest.raises(Refused, match="safetensors"):
        load_features(f"dino:{tmp_path}")


@pytest.mark.parametrize(
    ("pixels", "said"),
    [
        (torch.zeros(3, 8, 8), "expected float"),
        (torch.zeros(1, 4, 8, 8), "expected float"),
        (torch.zeros(0, 3, 8, 8), "expected float"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), "expected float"),
        (torch.full((1, 3, 8, 8), 255.0), "rescale"),
        (torch.full((1, 3, 8, 8), -1.0), "rescale"),
        (torch.full((1, 3, 8, 8), float("nan")), "rescale"),
    ],
)
def test_pixels_of_another_shape_or_range_are_refused(vit: Path, pixels: torch.Tensor, said: str):
    with pytest.raises(Refused, match=said):
        load_features(f"dino:{vit}").pictures(pixels)


def test_no_texts_or_a_bare_string_is_refused(clip: Path):
    for bad in ([], "a cat"):
        with pytest.raises(Refused, match="list of one or more texts"):
            load_features(f"clip:{clip}").texts(bad)


def test_the_probe_loads_neither_diffusers_nor_transformers():
    code = (
        "import sys, torch; from diffadapt.metrics import load_features; "
        "load_features('probe').texts(['a cat']); "
        "assert not {'diffusers', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
