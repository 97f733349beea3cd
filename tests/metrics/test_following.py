"""A prompt's requests are read off it, and seen in renderings of it."""

import numpy as np
import pytest
import torch

from diffadapt.data.asked import SEEN_AS, asked_of
from diffadapt.data.scenes import World
from diffadapt.data.wide_scenes import WideWorld, sample_wide_scene, wide_caption
from diffadapt.errors import Refused
from diffadapt.metrics.features import ProbeFeatures
from diffadapt.metrics.following import followed, look, share_of_perfect
from diffadapt.metrics.reader import load_reader

WORLD = World()


@pytest.mark.parametrize(
    ("prompt", "asked"),
    [
        ("a <x> animal at night", {"background": "night"}),
        ("a small <x> animal on the left in a meadow", {"background": "meadow", "size": "small", "position": "left"}),
        ("a 3d <x> animal on a red background", {"background": "red", "style": "3d"}),
        ("a <x> animal next to a flat cat at the sea", {"background": "sea", "relation": "next to", "second": "cat"}),
        ("a flat cat above a <x> animal in the desert", {"background": "desert", "relation": "above", "second": "cat"}),
        ("a photo of a mountain lake", {}),
    ],
)
def test_a_prompt_says_what_it_asks_for(prompt: str, asked: dict[str, str]):
    assert asked_of(prompt, WORLD) == asked


TAIL = (("hammer and wrench", "tool", "x"), ("two hearts", "symbol", "y"), ("purple heart", "symbol", "z"))
WIDE = WideWorld(tail=TAIL)


@pytest.mark.parametrize(
    ("prompt", "asked"),
    [
        ("a small purple 3d <x> animal on the left on a striped blue background",
         {"size": "small", "colour": "purple", "style": "3d", "position": "left", "pattern": "striped",
          "background": "blue"}),
        ("a <x> animal wearing a red hat in front of a brick wall", {"wearing": "hat", "background": "bricks"}),
        ("a <x> animal wearing glasses", {"wearing": "glasses"}),
        ("three orange oranges in the snow", {"count": "3", "colour": "orange", "background": "snow"}),
        ("an orange on a beach", {"background": "beach"}),
        ("a <x> animal under a noto kitty under water", {"relation": "above", "second": "cat", "background": "water"}),
        ("a green lorry on a <x> animal", {"relation": "on", "second": "truck"}),
        ("a <x> animal in front of a donut in a forest",
         {"relation": "behind", "second": "doughnut", "background": "forest"}),
        ("a <x> animal and a dog at sunset", {"second": "dog", "background": "sunset"}),
        ("a halftone picture of a large <x> animal in space",
         {"drawn": "halftone", "size": "large", "background": "space"}),
        ("a photo of a hammer and wrench on a street", {"background": "street"}),
        ("a small two hearts at the top", {"size": "small", "position": "top"}),
        ("a purple heart", {}),
    ],
)  # fmt: skip
def test_a_prompt_of_the_wide_world_says_what_it_asks_for(prompt: str, asked: dict[str, str]):
    assert asked_of(prompt, WIDE) == asked


def test_captions_of_the_wide_world_are_read_as_they_were_written():
    for seed in range(1500):
        rng = np.random.default_rng(seed)
        scene = sample_wide_scene(rng, WIDE)
        asked, thing = asked_of(wide_caption(scene), WIDE), scene.things[0]
        assert asked["background"] == scene.ground.word and asked.get("pattern") == scene.ground.pattern
        assert asked.get("drawn") == scene.drawn
        if scene.relation:
            assert asked["relation"] == SEEN_AS.get(scene.relation, scene.relation)
            assert asked["second"] == scene.things[0 if scene.relation == "in front of" else 1].noun
            continue
        own = {"style": thing.style, "colour": thing.colour, "wearing": thing.wearing}
        if len(thing.boxes) > 1:
            own["count"] = str(len(thing.boxes))
        else:
            own |= {"size": thing.size if thing.size != "medium" else None}
            own |= {"position": thing.position if thing.position != "center" else None}
        expected = {name: label for name, label in own.items() if label}
        assert {name: asked[name] for name in asked if name not in ("background", "pattern", "drawn")} == expected


def picture(left: int, top: int, side: int) -> torch.Tensor:
    """A green disc on red."""
    y, x = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    disc = ((x - left - side / 2) ** 2 + (y - top - side / 2) ** 2) < (side / 2) ** 2
    drawn = torch.tensor([214.0, 62.0, 56.0]).view(3, 1, 1).expand(3, 64, 64).clone() / 255
    drawn[:, disc] = torch.tensor([0.2, 0.7, 0.3]).view(3, 1)
    return drawn


def test_place_size_and_background_are_seen_where_they_are():
    drawn = torch.stack([picture(2, 20, 24), picture(38, 20, 24), picture(20, 2, 24), picture(8, 8, 50)])
    seen = look(drawn, ProbeFeatures("probe", torch.device("cpu")), load_reader())
    assert [each["position"] for each in seen] == ["left", "right", "top", "center"]
    assert [each["size"] for each in seen] == ["small", "small", "small", "large"]
    assert [each["background"] for each in seen] == ["red"] * 4 and seen[0]["relation"] == "none"


def test_each_attribute_is_counted_where_it_was_asked_for():
    seen = [
        {"object": "cat", "second": "none", "style": "flat", "background": "red", "position": "left", "size": "small"},
        {"object": "dog", "second": "cat", "style": "3d", "background": "blue", "position": "left", "size": "large"},
    ]
    found = followed([{"background": "red", "position": "top"}, {"background": "red", "second": "cat"}], seen)
    assert found == {"background": [1.0, 0.0], "position": [0.0], "second": [1.0]}
    shares = share_of_perfect(found, {"background": [1.0, 1.0], "position": [0.0], "second": [1.0, 0.0]})
    assert shares == {"background": 0.5, "second": 2.0, "all": 1.25}  # what perfect renderings never show is left out
    with pytest.raises(Refused, match="one prompt|prompt of each picture"):
        followed([{}], seen)
    with pytest.raises(Refused, match="nothing was asked"):
        share_of_perfect({}, {"background": [0.0]})
