"""The size of a concept's file at the shapes of real bases. The denoisers are built on the meta device, weightless."""

import functools
import json
import sys
from pathlib import Path

import pytest
import torch
from perfusion_cases import concept, prepared

from diffadapt.adapters import Perfusion
from diffadapt.files import save_tensors

sys.path.insert(0, str(Path(__file__).parents[2] / "evidence"))

CONFIGS = {
    "Stable Diffusion 1.5": {
        "block_out_channels": (320, 640, 1280, 1280), "cross_attention_dim": 768, "attention_head_dim": 8,
        "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    },
    "Stable Diffusion XL": {
        "block_out_channels": (320, 640, 1280), "cross_attention_dim": 2048, "attention_head_dim": (5, 10, 20),
        "down_block_types": ("DownBlock2D",) + ("CrossAttnDownBlock2D",) * 2,
        "up_block_types": ("CrossAttnUpBlock2D",) * 2 + ("UpBlock2D",),
        "transformer_layers_per_block": (1, 2, 10), "use_linear_projection": True,
        "addition_embed_type": "text_time", "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
}  # fmt: skip
WORDS = {"Stable Diffusion 1.5": 768, "Stable Diffusion XL": 768 + 1280, "PixArt": 4096}


@functools.cache
def shapes(name: str) -> tuple[int, tuple[int, ...]]:
    """Width of the text that cross-attention sees, and the outputs of its value projections."""
    from diffusers import PixArtTransformer2DModel, UNet2DConditionModel

    with torch.device("meta"):
        model = UNet2DConditionModel(**CONFIGS[name]) if name in CONFIGS else PixArtTransformer2DModel(num_layers=28)
    values = [layer for path, layer in model.named_modules() if path.endswith("attn2.to_v")]
    assert len({layer.in_features for layer in values}) == 1
    return values[0].in_features, tuple(layer.out_features for layer in values)


@pytest.mark.parametrize("name", WORDS)
def test_16_the_shapes_of_pf_1_are_those_of_the_models(name):
    from pf_1 import SHAPES

    width, outputs = shapes(name)
    assert SHAPES[name][0] == width and sorted(SHAPES[name][1]) == sorted(outputs)
    assert SHAPES[name][2] == WORDS[name]


@pytest.mark.parametrize(
    ("name", "lock", "dtype", "most"),
    [
        ("Stable Diffusion 1.5", "local", torch.float32, 60_000),
        ("Stable Diffusion 1.5", "local", torch.float16, 34_000),
        ("Stable Diffusion 1.5", "trained", torch.float32, 112_000),
        ("Stable Diffusion 1.5", "trained", torch.float16, 60_000),
        ("Stable Diffusion XL", "local", torch.float32, 357_376),
        ("PixArt", "local", torch.float32, 154_624),
    ],
)
def test_16_a_concept_weighs_no_more_than_this(tiny_base, tmp_path, name, lock, dtype, most):
    """The header is a run's, with its settings; the tensors have the shapes of the real layers."""
    attachment = concept(prepared(tiny_base), Perfusion(key_lock=lock))
    written = attachment.save(tmp_path / "tiny.safetensors", {"settings": "s" * 1000}).read_bytes()
    header = json.loads(written[8 : 8 + int.from_bytes(written[:8], "little")])["__metadata__"]
    width, outputs = shapes(name)
    counts = {"targets": sum(outputs), "key_targets": sum(outputs), "anchor": width, "vectors": WORDS[name]}
    tensors = {key: torch.zeros(counts[key.rpartition(".")[2]], dtype=dtype) for key in attachment.state_dict()}
    file = save_tensors(tmp_path / "concept.safetensors", tensors, header)
    assert file.stat().st_size <= most
