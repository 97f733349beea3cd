"""The wide world: what is held out stays out, captions are true, and the picture shows what the scene says."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from diffadapt.data.drawn_styles import HELD_OUT, SEEN
from diffadapt.data.wide_pictures import draw_wide_scenes, dress, load_wide_sprites, paint_ground, recolour
from diffadapt.data.wide_scenes import Ground, Thing, WideScene, WideWorld, sample_wide_scene, wide_caption
from diffadapt.data.wide_world import (
    ACCESSORIES,
    CLASSES,
    COLOURS,
    CORE,
    PATTERNS,
    PLACES,
    SYNONYMS,
    plural,
    tail_nouns,
    wide_grammar_words,
    words_of,
)
from diffadapt.data.world import BACKGROUNDS, HELD_OUT_NOUNS, NOUNS, STYLES
from diffadapt.errors import Refused

CORE_NOUNS = (("cat", "animal", "cat"), ("car", "vehicle", "automobile"), ("apple", "food", "red-apple"))
TAIL = (("top arrow", "symbol", "top-arrow"),)
LISTED = {
    "cat": "cat", "automobile": "automobile", "red-apple": "red apple", "top-arrow": "TOP arrow", "fox": "fox",
    "soft-ice-cream": "soft ice cream", "top-hat": "top hat", "crown": "crown", "scarf": "scarf", "glasses": "glasses",
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A sprite folder per style: a grey disc with a bright centre, in each artist's own colour."""
    root = tmp_path_factory.mktemp("emoji")
    for (_, name), colour in zip(STYLES, ("navy", "teal", "olive", "maroon"), strict=True):
        (root / name).mkdir()
        rows = [
            {"file_name": f"{stem}.png", "name": said, "group": "symbols", "subgroup": "arrow"}
            for stem, said in LISTED.items()
        ]
        (root / name / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
        for stem in LISTED:
            picture = Image.new("RGBA", (72, 72))
            pen = ImageDraw.Draw(picture)
            pen.ellipse((4, 4, 67, 67), fill=colour)
            pen.ellipse((40, 12, 56, 28), fill="white")  # not in the middle, so that a mirrored sprite differs
            picture.save(root / name / f"{stem}.png")
    return root


@pytest.fixture(scope="module")
def world():
    return WideWorld(core=CORE_NOUNS, tail=TAIL)


@pytest.fixture(scope="module")
def sprites(folder, world):
    return load_wide_sprites(folder, world)


@pytest.fixture(scope="module")
def scenes(world):
    rng = np.random.default_rng(0)
    return [sample_wide_scene(rng, world) for _ in range(600)]


def thing(**changes) -> Thing:
    known = {"noun": "cat", "kind": "animal", "stem": "cat", "style": "flat", "boxes": ((16.0, 16.0, 48.0, 48.0),)}
    return Thing(**(known | changes))


def scene_of(*things: Thing, **changes) -> WideScene:
    return WideScene(things=things, **({"ground": Ground(word="white")} | changes))


# --- words ------------------------------------------------------------------------------------------------------------


def test_what_is_held_out_is_in_no_list_of_the_world(folder):
    words = {noun for noun, _, _ in HELD_OUT_NOUNS}
    tail = tail_nouns(folder)
    assert [noun for noun, _, _ in tail] == ["glasses", "top arrow"]  # the rest of LISTED is core or held out
    assert not words & {*SYNONYMS, *(w for others in SYNONYMS.values() for w in others), *CLASSES, *ACCESSORIES}
    assert not words & {word for noun, _, _ in tail for word in noun.split()}
    assert not set(HELD_OUT) & set(WideWorld().drawn) and set(WideWorld().drawn) == set(SEEN)


def test_another_word_stands_for_one_noun_and_a_class_for_no_noun():
    nouns = {noun for noun, _, _ in NOUNS}
    others = [word for words in SYNONYMS.values() for word in words]
    assert len(others) == len(set(others)) and not set(others) & (nouns | set(CLASSES))
    assert not set(CLASSES) & nouns
    assert {noun for members in CLASSES.values() for noun in members} <= {noun for noun, _, _ in NOUNS[:CORE]}
    members = [noun for nouns in CLASSES.values() for noun in nouns]
    assert len(members) == len(set(members))


def test_names_become_plain_words():
    assert words_of("Japanese \u201cfree of charge\u201d button") == "japanese free of charge button"
    assert words_of("man\u2019s shoe") == "mans shoe" and words_of("T-Rex") == "t rex"


@pytest.mark.parametrize(
    ("noun", "many"),
    [("cat", "cats"), ("butterfly", "butterflies"), ("mouse", "mice"), ("fish", "fish"), ("monkey", "monkeys"),
     ("church", "churches"), ("tomato", "tomatoes"), ("milk", None)],
)  # fmt: skip
def test_plurals(noun, many):
    assert plural(noun) == many


def test_every_word_of_a_caption_is_known_to_the_tokenizer(scenes):
    rng = np.random.default_rng(1)
    words = {word for scene in scenes for word in wide_caption(scene, rng).split()}
    assert words <= set(wide_grammar_words(TAIL))


def test_a_folder_without_its_list_of_names_is_refused(tmp_path):
    with pytest.raises(Refused, match="metadata.jsonl"):
        tail_nouns(tmp_path)


# --- captions ---------------------------------------------------------------------------------------------------------


def test_a_full_caption_says_everything():
    dressed = thing(size="small", position="left", colour="purple", wearing="hat", wearing_colour="red")
    assert (
        wide_caption(scene_of(dressed, ground=Ground(word="blue", pattern="striped")))
        == "a small purple flat cat wearing a red hat on the left on a striped blue background"
    )
    three = thing(noun="car", boxes=((0.0, 0.0, 20.0, 20.0),) * 3, colour="orange")
    assert wide_caption(scene_of(three, ground=Ground(word="snow"))) == "three orange flat cars in the snow"
    pair = (thing(), thing(noun="apple", style="3d"))
    assert wide_caption(scene_of(*pair, relation="behind")) == "a flat cat behind a 3d apple on a white background"
    assert wide_caption(scene_of(*pair, relation="in front of")).startswith("a 3d apple in front of a flat cat")
    assert wide_caption(scene_of(thing(wearing="glasses"), drawn="pencil")).startswith(
        "a pencil picture of a flat cat wearing glasses"
    )


def test_a_caption_never_says_what_is_not_there(scenes):
    """Colours, accessories, numbers, places, patterns and drawn styles that are said are in the scene."""
    rng = np.random.default_rng(2)
    for scene in scenes:
        words = set(wide_caption(scene, rng).split())
        here = {each.colour for each in scene.things} | {each.wearing_colour for each in scene.things}
        here |= {scene.ground.word} | {noun for each in scene.things for noun in each.noun.split()}
        here |= {each.wearing for each in scene.things} | {scene.ground.pattern, scene.drawn}
        assert words & set(COLOURS) <= here and words & set(ACCESSORIES) <= here
        assert words & set(PATTERNS) <= here and words & set(SEEN) <= here
        assert ("two" in words) <= (len(scene.things[0].boxes) == 2)
        assert ("three" in words) <= (len(scene.things[0].boxes) == 3)
        assert not words & {noun for noun, _, _ in HELD_OUT_NOUNS}


def test_class_words_alone_are_captions_often_enough(world):
    rng = np.random.default_rng(3)
    captions = [wide_caption(sample_wide_scene(rng, world), rng) for _ in range(4000)]
    assert 20 <= sum(text in ("an animal", "a pet", "a vehicle", "a food") for text in captions) <= 200


def test_every_part_of_the_world_comes_up(scenes):
    assert {scene.relation for scene in scenes} == {None, "next to", "above", "under", "on", "behind", "in front of"}
    assert {len(scene.things[0].boxes) for scene in scenes} == {1, 2, 3}
    assert {each.wearing for scene in scenes for each in scene.things} == {None, *ACCESSORIES}
    assert {scene.ground.word for scene in scenes} == {*BACKGROUNDS, *PLACES}
    assert {scene.drawn for scene in scenes} == {None, *SEEN}
    assert any(scene.clutter for scene in scenes)


# --- pictures ---------------------------------------------------------------------------------------------------------


def test_the_same_scene_is_drawn_the_same_and_alone_as_in_a_batch(scenes, sprites):
    pictures, masks = draw_wide_scenes(scenes[:24], sprites)
    again, _ = draw_wide_scenes(scenes[:24], sprites)
    assert torch.equal(pictures, again) and pictures.shape == (24, 3, 64, 64) and masks.shape == (24, 2, 64, 64)
    assert pictures.min() >= 0 and pictures.max() <= 1 and masks.min() >= 0 and masks.max() <= 1
    for i in range(0, 24, 5):
        alone, _ = draw_wide_scenes([scenes[i]], sprites)
        assert torch.allclose(alone[0], pictures[i], atol=1e-5)


def test_outside_the_masks_a_picture_is_its_ground(scenes, sprites):
    plain = [scene for scene in scenes if not scene.drawn and not scene.clutter][:60]
    pictures, masks = draw_wide_scenes(plain, sprites)
    for scene, picture, mask in zip(plain, pictures, masks, strict=True):
        outside = mask.sum(0) == 0
        ground = torch.from_numpy(paint_ground(scene.ground))
        assert outside.any() and torch.allclose(picture[:, outside], ground[:, outside], atol=1e-6)


def test_copies_are_as_many_as_the_caption_counts(sprites):
    boxes = ((4.0, 22.0, 22.0, 40.0), (24.0, 22.0, 42.0, 40.0), (44.0, 22.0, 62.0, 40.0))
    areas = [float(draw_wide_scenes([scene_of(thing(boxes=boxes[:n]))], sprites)[1].sum()) for n in (1, 2, 3)]
    assert areas[1] == pytest.approx(2 * areas[0], rel=0.02) and areas[2] == pytest.approx(3 * areas[0], rel=0.02)


def middle(mask: torch.Tensor) -> tuple[float, float]:
    v, u = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    return float((mask * u).sum() / mask.sum()), float((mask * v).sum() / mask.sum())


def test_relations_are_as_said(scenes, sprites):
    pairs = [scene for scene in scenes if scene.relation]
    _, masks = draw_wide_scenes(pairs, sprites)
    for scene, (first, second) in zip(pairs, masks, strict=True):
        (u1, v1), (u2, v2) = middle(first), middle(second)
        if scene.relation == "next to":
            assert u2 - u1 > 20 and abs(v1 - v2) < 8
        elif scene.relation in ("above", "on"):
            assert v2 - v1 > 20 and abs(u1 - u2) < 8
        elif scene.relation == "under":
            assert v1 - v2 > 20
        if scene.relation == "on":  # it touches: the lower one begins where the upper one ends
            ends, begins = (first > 0.5).any(1).nonzero().max(), (second > 0.5).any(1).nonzero().min()
            assert -3 <= int(begins) - int(ends) <= 3
        if scene.relation in ("behind", "in front of"):  # a corner of the first is covered by the second
            alone = draw_wide_scenes([dataclasses.replace(scene, things=scene.things[:1])], sprites)[1][0, 0]
            assert float(first.sum()) < 0.97 * float(alone.sum())


@pytest.mark.parametrize("word", COLOURS)
def test_a_recoloured_sprite_has_its_colour_and_its_shape(sprites, word):
    sprite = sprites["cat", "flat"].float() / 255
    painted = recolour(sprite, word)
    assert torch.equal(painted[3], sprite[3])
    inside = painted[:3, painted[3] > 0.99]
    table = torch.tensor(list(COLOURS.values())) / 255
    tones = torch.stack([table * 0.45, table, table + (1 - table) * 0.55], dim=1)  # dark, middle, light of each
    distance = (inside.T[:, None, None, :] - tones[None]).square().sum(-1).amin(-1).mean(0)
    assert list(COLOURS)[int(distance.argmin())] == word


def test_a_hat_is_on_top_and_what_is_below_stays(sprites):
    bare, dressed = dress(thing(), sprites), dress(thing(wearing="hat", wearing_colour="red"), sprites)
    body = dress(thing(wearing="glasses"), sprites)
    red = (dressed[0] - dressed[1] > 0.2) & (dressed[3] > 0.5)
    rows = red.any(1).nonzero().flatten()
    assert len(rows) > 5 and int(rows.max()) < 40  # the hat ends above the middle
    assert not torch.equal(bare, dressed) and torch.equal(dressed[:, 60:], body[:, 60:])


def test_mirror_tilt_and_hue_change_the_look_and_no_caption(sprites):
    plain = scene_of(thing())
    looks = [scene_of(thing(mirrored=True)), scene_of(thing(tilt=12.0)), scene_of(thing(hue=20.0))]
    pictures, _ = draw_wide_scenes([plain, *looks], sprites)
    for look, picture in zip(looks, pictures[1:], strict=True):
        assert wide_caption(look) == wide_caption(plain) and (picture - pictures[0]).abs().max() > 0.05


@pytest.mark.parametrize("word", [*PLACES, "striped", "dotted", "checkered"])
def test_a_ground_is_painted_the_same_way_every_time_and_differs_from_the_others(word):
    ground = Ground(word="red", pattern=word) if word in PATTERNS else Ground(word=word)
    painted = paint_ground(ground)
    assert painted.shape == (3, 64, 64) and painted.dtype == np.float32 and 0 <= painted.min() <= painted.max() <= 1
    assert np.array_equal(painted, paint_ground(ground)) and painted.std() > 0.02
    assert not np.allclose(painted, paint_ground(dataclasses.replace(ground, seed=1)))


def test_the_share_of_single_things_is_what_the_world_says_and_the_rest_keeps_its_proportions():
    def shares(world: WideWorld) -> tuple[float, float]:
        scenes = [sample_wide_scene(np.random.default_rng(seed), world) for seed in range(4000)]
        pairs = sum(len(scene.things) == 2 for scene in scenes)
        counted = sum(len(scene.things[0].boxes) > 1 for scene in scenes)
        dressed = sum(scene.things[0].wearing is not None for scene in scenes)
        assert pairs / (pairs + counted + dressed) == pytest.approx(0.24 / 0.45, abs=0.04)
        return 1 - (pairs + counted + dressed) / len(scenes), pairs / len(scenes)

    assert shares(WideWorld()) == pytest.approx((0.55, 0.24), abs=0.02)
    assert shares(WideWorld(single_share=0.8)) == pytest.approx((0.8, 0.107), abs=0.02)


@pytest.mark.parametrize(("mirrored", "looks"), [(0.5, 1.0), (0.0, 0.3), (0.2, 0.0)])
def test_things_are_mirrored_tilted_and_turned_in_hue_as_often_as_the_world_says(mirrored: float, looks: float):
    world = WideWorld(mirrored=mirrored, looks=looks)
    things = [sample_wide_scene(np.random.default_rng(seed), world).things[0] for seed in range(3000)]
    for name, share in (("mirrored", mirrored), ("tilt", 0.5 * looks), ("hue", 0.5 * looks)):
        found = sum(bool(getattr(thing, name)) for thing in things) / len(things)
        assert found == pytest.approx(share, abs=0.03), name
