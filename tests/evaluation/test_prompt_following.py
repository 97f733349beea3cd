"""The scores of perfect renderings: the subject cut out of its own pictures, drawn as each prompt asks, and read."""

import numpy as np
import pytest
import torch

from diffadapt.data.asked import asked_of
from diffadapt.data.rendered import cut_out, rendered
from diffadapt.data.scenes import World
from diffadapt.data.wide_scenes import WideWorld
from diffadapt.errors import Refused
from diffadapt.evaluation.prompt_following import drawable, following, reachable
from diffadapt.metrics.features import ProbeFeatures
from diffadapt.metrics.following import followed, look
from diffadapt.metrics.reader import load_reader

PROBE = ProbeFeatures("probe", torch.device("cpu"))
PROMPTS = ("a <x> animal on the left in a meadow", "a large <x> animal at night", "a small <x> animal on the right",
           "a <x> animal next to a flat cat at the sea")  # fmt: skip


@pytest.fixture(scope="module")
def sprite():
    """A green disc with a white stripe, cut out of a picture of it on red."""
    y, x = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    disc = (x - 20) ** 2 + (y - 40) ** 2 < 15**2
    picture = torch.tensor([214.0, 62.0, 56.0]).view(3, 1, 1).expand(3, 64, 64).clone() / 255
    picture[:, disc] = torch.tensor([0.2, 0.7, 0.3]).view(3, 1)
    picture[:, disc & ((y - 40).abs() < 4)] = 1.0
    return cut_out(picture, disc.float())


def draw(prompt: str, sprite, world=WideWorld()):  # noqa: B008  (frozen)
    return rendered(asked_of(prompt, world), sprite, np.random.default_rng(0))


def test_the_subject_is_cut_out_whole_and_fills_its_sprite(sprite):
    alpha = sprite[3].float() / 255
    assert sprite.shape == (4, 72, 72) and sprite.dtype == torch.uint8
    assert float(alpha.mean()) == pytest.approx(697 / 29**2, abs=0.01)  # the disc's pixels in the square around them
    assert alpha[:, 36].min() > 0.3


def test_a_rendering_shows_what_the_prompt_asks_for(sprite):
    asked = [asked_of(prompt, World()) for prompt in PROMPTS]
    drawn = torch.stack([draw(prompt, sprite, World()) for prompt in PROMPTS])
    right = followed(asked, look(drawn, PROBE, load_reader()))
    del right["second"], right["relation"]  # they would need the cat's sprite
    assert {name: sum(bits) / len(bits) for name, bits in right.items()} == dict.fromkeys(right, 1.0)
    assert set(right) == {"background", "position", "size"}


def test_colours_counts_grounds_and_drawn_styles_of_the_wide_world_are_drawn(sprite):
    plain = draw("a <x> animal on a white background", sprite)
    for prompt in ("a purple <x> animal", "three oranges", "a sepia picture of a <x> animal", "a <x> animal in space",
                   "a <x> animal on a striped blue background", "a <x> animal on a dog"):  # fmt: skip
        assert (draw(prompt, sprite) - plain).abs().max() > 0.2, prompt


def test_an_empty_mask_is_refused():
    with pytest.raises(Refused, match="shows no subject"):
        cut_out(torch.zeros(3, 64, 64), torch.zeros(64, 64))


def test_the_share_of_perfect_stands_beside_what_was_followed(sprite):
    drawn = torch.stack([draw(prompt, sprite, World()) for prompt in PROMPTS])
    wrong = drawn[[1, 2, 3, 0]]
    rows = following(PROBE, wrong, drawn, list(PROMPTS), World(), seed=0, perfect=drawn)
    assert rows["followed_background"]["perfect"] == 1.0 and rows["followed_background"]["value"] < 1
    assert "perfect renderings of the same prompts: 1.000" in rows["followed_background"]["meaning"]
    assert rows["followed_second"]["perfect"] == PROBE.probe.accuracy["second"]  # from the card: no sprite of a cat
    counts = {"background": 3, "position": 2, "size": 2, "second": 1, "relation": 1}
    best = sum(rows[f"followed_{name}"]["perfect"] * count for name, count in counts.items()) / sum(counts.values())
    assert rows["followed"]["perfect"] == pytest.approx(best)


def test_pictures_of_one_prompt_stand_as_one_behind_what_was_followed(sprite):
    prompts = [prompt for prompt in PROMPTS for _ in range(2)]
    drawn = torch.stack([draw(prompt, sprite, World()) for prompt in prompts])
    groups = torch.arange(len(PROMPTS)).repeat_interleave(2)
    rows = following(PROBE, drawn, drawn, prompts, World(), seed=0, groups=groups)
    asked = [asked_of(prompt, World()) for prompt in PROMPTS]
    assert rows["followed"]["n"] == sum(bool(each) for each in asked) == 4
    assert rows["followed_background"]["n"] == sum("background" in each for each in asked) == 3
    assert rows["followed_second"]["n"] == 1 and rows["followed_second"]["low"] is None  # one prompt has no interval


def test_nothing_is_said_to_be_perfect_where_no_rendering_and_no_card_says_it():
    card = PROBE.probe.accuracy
    assert reachable(PROBE, {"background": [1.0, 0.0], "relation": [0.0], "weather": [1.0]}) == {
        "background": 0.5, "relation": card["relation_where_there_is_one"],
    }  # fmt: skip
    rows = following(PROBE, *[torch.rand(1, 3, 64, 64)] * 2, ["a <x> animal at night"], World(), seed=0)
    assert "perfect" not in rows["followed"]


def test_only_renderings_that_lack_nothing_are_compared_with_prompt_and_subject():
    assert drawable({"background": "red", "size": "small"}) and drawable({})
    assert not drawable({"second": "cat"}) and not drawable({"style": "3d"}) and not drawable({"relation": "above"})
