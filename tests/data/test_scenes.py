"""Scenes are ground truth: captions, masks and boxes agree with the pixels, and what is held out stays out."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from diffadapt.data.scenes import (
    FOLDER_OF,
    KIND_OF,
    STEM_OF,
    World,
    caption,
    draw_backgrounds,
    grammar_words,
    load_sprites,
    place,
    render,
    sample_scene,
)
from diffadapt.data.world import BACKGROUNDS, HELD_OUT_NOUNS, HELD_OUT_STYLES, NOUNS, POSITIONS, SIZES, STYLES
from diffadapt.errors import Refused

WORLD = World(nouns=("cat", "apple", "car"), styles=("flat", "3d"), backgrounds=("red", "meadow", "black"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sprites drawn here: a filled ellipse in cyan (as no background is), the size differs by noun."""
    root = tmp_path_factory.mktemp("sprites")
    for inset, noun in enumerate(WORLD.nouns):
        for style in WORLD.styles:
            path = root / FOLDER_OF[style] / f"{STEM_OF[noun]}.png"
            path.parent.mkdir(exist_ok=True)
            sprite = Image.new("RGBA", (72, 72), (0, 0, 0, 0))
            box = (3 * inset, 3 * inset, 71 - 3 * inset, 71 - 3 * inset)
            ImageDraw.Draw(sprite).ellipse(box, fill=(0, 255, 255, 255))
            sprite.save(path)
    return root


@pytest.fixture(scope="module")
def sprites(folder: Path) -> dict[tuple[str, str], Tensor]:
    return load_sprites(folder, WORLD)


def scenes(count: int, world: World = WORLD, seed: int = 0, two_objects: float = 0.4) -> list:
    rng = np.random.default_rng(seed)
    return [sample_scene(rng, world, two_objects=two_objects) for _ in range(count)]


def test_a_full_caption_says_what_the_scene_holds() -> None:
    for scene in scenes(300):
        words = caption(scene).split()
        text = " ".join(words)
        assert BACKGROUNDS[scene.background][0] in text
        for thing in scene.objects:
            assert f"{thing.style} {thing.noun}" in text
        if scene.relation is None:
            (thing,) = scene.objects
            assert (thing.size in words) == (thing.size != "medium")
            assert (POSITIONS[thing.position][0] in text) == (thing.position != "center")
        else:
            first, second = scene.objects
            assert text.index(first.noun) < text.index(scene.relation) < text.index(second.noun)


def test_a_shortened_caption_says_nothing_that_is_not_there() -> None:
    rng = np.random.default_rng(1)
    others = {"noun": {n for n, *_ in NOUNS}, "style": {s for s, _ in STYLES}, "size": {"small", "large"}}
    for scene in scenes(500):
        words = set(caption(scene, rng).split())
        nouns = {thing.noun for thing in scene.objects}
        assert not words & (others["noun"] - nouns - {KIND_OF[noun] for noun in nouns})
        assert not words & (others["style"] - {thing.style for thing in scene.objects})
        assert not words & (others["size"] - {thing.size for thing in scene.objects})
        for thing in scene.objects:
            assert thing.noun in words or KIND_OF[thing.noun] in words


def test_articles_fit() -> None:
    rng = np.random.default_rng(2)
    texts = [caption(scene, rng) for scene in scenes(400, World())]
    assert not any(re.search(r"\ba [aeiou]|\ban [^aeiou]", text) for text in texts)


def test_every_word_of_a_caption_is_in_the_grammar() -> None:
    everything = World(
        nouns=tuple(noun for noun, *_ in NOUNS + HELD_OUT_NOUNS),
        styles=tuple(style for style, _ in STYLES + HELD_OUT_STYLES),
    )
    rng = np.random.default_rng(3)
    words = {word for scene in scenes(3000, everything) for word in caption(scene, rng).split()}
    words |= {word for scene in scenes(3000, everything) for word in caption(scene).split()}
    assert words <= set(grammar_words())
    assert set(everything.nouns) <= set(grammar_words())  # each noun is one word: one entry of the tokenizer


def test_what_is_held_out_never_appears_in_a_default_world() -> None:
    held_nouns, held_styles = {noun for noun, *_ in HELD_OUT_NOUNS}, {style for style, _ in HELD_OUT_STYLES}
    assert len(held_nouns) >= 40 and held_styles
    drawn = [thing for scene in scenes(5000, World()) for thing in scene.objects]
    assert not {thing.noun for thing in drawn} & held_nouns and not {thing.style for thing in drawn} & held_styles
    texts = " ".join(caption(scene) for scene in scenes(2000, World())).split()
    assert not set(texts) & (held_nouns | held_styles)


def test_nouns_and_stems_are_unique_over_both_lists() -> None:
    names, stems = zip(*((noun, stem) for noun, _, stem in NOUNS + HELD_OUT_NOUNS), strict=True)
    assert len(set(names)) == len(names) and len(set(stems)) == len(stems)
    assert {kind for _, kind, _ in HELD_OUT_NOUNS} <= {kind for _, kind, _ in NOUNS}


def test_masks_are_where_pixels_differ_from_the_background(sprites: dict[tuple[str, str], Tensor]) -> None:
    batch = scenes(64)
    pictures, masks = render(batch, sprites)
    assert pictures.shape == (64, 3, 64, 64) and masks.shape == (64, 2, 64, 64)
    changed = (pictures - draw_backgrounds(batch).clamp(0, 1)).abs().amax(1)
    covered = masks.sum(1)
    assert covered.max() <= 1 + 1e-5
    assert (changed[covered == 0] < 1e-6).all()
    assert (changed[covered > 0.2] > 0.02).all()
    for scene, its_masks in zip(batch, masks, strict=True):
        assert all((mask.sum() > 0) == (i < len(scene.objects)) for i, mask in enumerate(its_masks))


def test_boxes_hold_their_masks_and_no_more(sprites: dict[tuple[str, str], Tensor]) -> None:
    """The cat fills its sprite, so its mask reaches every side of its box to a pixel."""
    world = World(nouns=("cat",), styles=("flat",), backgrounds=("red",))
    for scene in (batch := scenes(40, world)):
        left, top, right, bottom = scene.objects[0].box
        assert 0 <= left < right <= 64 and 0 <= top < bottom <= 64
    _, masks = render(batch, sprites)
    for scene, mask in zip(batch, masks, strict=True):
        rows, columns = torch.where(mask[0] > 0.5)
        seen = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        assert np.allclose([float(value) for value in seen], scene.objects[0].box, atol=1.5)


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("size", ["small", "medium"])
def test_positions_and_sizes_are_what_the_words_say(position: str, size: str) -> None:
    rng = np.random.default_rng(0)
    _, right, down = POSITIONS[position]
    for _ in range(20):
        box = place(rng, "cat", "flat", size, position).box
        x, y = (box[0] + box[2]) / 2 - 32, (box[1] + box[3]) / 2 - 32
        for offset, sign in ((x, right), (y, down)):
            assert (np.sign(offset) == sign and abs(offset) > 7) if sign else abs(offset) <= 1.5
        assert SIZES[size][0] <= round(box[2] - box[0]) <= SIZES[size][1]


def test_the_relation_is_how_the_objects_lie() -> None:
    for scene in scenes(200, two_objects=1.0):
        first, second = scene.objects
        axis = 0 if scene.relation == "next to" else 1  # the first is left of, or above, the second
        assert first.box[axis] < second.box[axis] and first.noun != second.noun


def test_scenes_and_pictures_are_deterministic(sprites: dict[tuple[str, str], Tensor]) -> None:
    assert scenes(50, seed=7) == scenes(50, seed=7) != scenes(50, seed=8)
    first, second = (render(scenes(8, seed=7), sprites) for _ in range(2))
    assert torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])


def test_a_scene_renders_alike_alone_and_in_a_batch(sprites: dict[tuple[str, str], Tensor]) -> None:
    batch = scenes(8)
    together = render(batch, sprites)[0]
    alone = torch.cat([render([scene], sprites)[0] for scene in batch])
    assert torch.allclose(together, alone, atol=1e-6)


def test_a_missing_sprite_is_one_clear_error(folder: Path) -> None:
    world = World(nouns=("cat", "dog"), styles=("flat",))
    with pytest.raises((FileNotFoundError, Refused), match=r"dog\.png"):
        load_sprites(folder, world)


@pytest.mark.parametrize("change", [{"nouns": ("unicorns",)}, {"styles": ()}, {"backgrounds": ("mars",)}])
def test_a_world_of_unknown_words_is_refused(change: dict[str, tuple[str, ...]]) -> None:
    with pytest.raises(ValueError, match="unknown"):
        World(**change)
