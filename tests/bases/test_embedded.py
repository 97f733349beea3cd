"""The model that ships: an ordinary diffusers folder, small, and able to draw what it is asked for."""

import json

import numpy as np
import torch

from diffadapt.bases import load_base
from diffadapt.bases.load import EMBEDDED
from diffadapt.data.world import HELD_OUT_NOUNS, HELD_OUT_STYLES, NOUNS, STYLES
from diffadapt.metrics import load_features
from diffadapt.sampling.sample import sample


def test_plain_diffusers_opens_it_and_samples():
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(EMBEDDED, safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    picture = pipeline("a flat cat on a red background", num_inference_steps=2).images[0]
    assert picture.size == (64, 64)


def test_all_its_files_are_at_most_40_mb_and_none_is_a_pickle():
    files = [path for path in EMBEDDED.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 40_000_000
    assert {path.suffix for path in files} <= {".safetensors", ".json", ".md", ".txt"}


def test_it_knows_none_of_the_held_out_words():
    world = json.loads((EMBEDDED / "base.json").read_text())["world"]
    assert len(world["nouns"]) >= 48 and len(world["styles"]) >= 2 and len(world["backgrounds"]) >= 10
    assert set(world["nouns"]) <= {noun for noun, *_ in NOUNS} and set(world["styles"]) <= {
        style for style, _ in STYLES
    }
    held_out = {noun for noun, *_ in HELD_OUT_NOUNS} | {style for style, _ in HELD_OUT_STYLES}
    assert len(HELD_OUT_NOUNS) >= 40 and not held_out & {*world["nouns"], *world["styles"]}


def test_every_word_of_its_world_is_a_word_of_its_tokenizer():
    base = load_base("embedded", device="cpu")
    assert base.world is not None
    for word in (*base.world["nouns"], *base.world["kinds"], *base.world["backgrounds"], "flat"):
        assert len(base.tokenizer(word, add_special_tokens=False).input_ids) == 1, word


ASKED = (
    "cat red", "apple blue", "penguin yellow", "rocket purple", "house green",
    "mushroom white", "robot orange", "elephant pink", "snowman black", "boat gray",
)  # fmt: skip


def test_what_it_draws_is_what_was_asked_for():
    """Eight of ten large objects and all backgrounds, as the probe reads them; chance is 1 in 185 and 1 in 14."""
    asked = [words.split() for words in ASKED]
    base = load_base("embedded", device="cpu")
    prompts = [
        f"a large 3d {noun} on {'an' if ground == 'orange' else 'a'} {ground} background" for noun, ground in asked
    ]
    pictures = sample(base, prompts, seed=0)
    pixels = torch.stack([torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1) for picture in pictures])
    told = load_features("probe").describe(pixels.float() / 255)
    right = sum(read == noun for read, (noun, _) in zip(told["object"], asked, strict=True))
    assert told["background"] == [ground for _, ground in asked]
    assert right >= 8, list(zip(told["object"], asked, strict=True))
