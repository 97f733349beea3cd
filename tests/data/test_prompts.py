"""The benchmark's prompts are the benchmark's; the embedded base is asked in its own grammar; drift never names it."""

import re
from collections import Counter
from types import SimpleNamespace

import pytest

from diffadapt.data.asked import asked_of
from diffadapt.data.prompts import (
    GENERAL_PROMPTS,
    LIVE_PROMPTS,
    OBJECT_PROMPTS,
    benchmark_prompts,
    drift_prompts,
    is_live,
    spread,
    world_captions,
)
from diffadapt.data.scenes import World, grammar_words
from diffadapt.data.wide_scenes import WideWorld, world_of
from diffadapt.data.world import HELD_OUT_NOUNS, HELD_OUT_STYLES
from diffadapt.errors import Refused

SMALL = World(nouns=("cat", "apple", "car"), styles=("flat", "3d"), backgrounds=("red", "blue", "meadow"))


def test_the_benchmark_has_25_prompts_for_objects_and_25_for_live_subjects() -> None:
    assert len(set(OBJECT_PROMPTS)) == len(set(LIVE_PROMPTS)) == 25
    assert len(set(OBJECT_PROMPTS) & set(LIVE_PROMPTS)) == 15
    assert benchmark_prompts("vase", "sks", None)[12] == "a sks vase with the Eiffel Tower in the background"
    assert benchmark_prompts("dog", "sks", None)[19] == "a sks dog in a purple wizard outfit"
    assert benchmark_prompts("dog", "sks", None)[24] == "a cube shaped sks dog"


@pytest.mark.parametrize("noun", ["cat", "dog", "animal", "Owl", "fox", "old man", "person"])
def test_living_nouns_are_live(noun: str) -> None:
    assert is_live(noun)


@pytest.mark.parametrize(
    "noun", ["backpack", "stuffed animal", "toy", "glasses", "cartoon", "teapot", "toy dog", "robot", "dog house", ""]
)
def test_things_and_likenesses_are_objects(noun: str) -> None:
    assert not is_live(noun)


def test_the_untouched_base_is_asked_the_same_without_the_token() -> None:
    with_token = benchmark_prompts("cat", "<b>", SMALL)
    assert benchmark_prompts("cat", "", SMALL) == [prompt.replace("<b> ", "") for prompt in with_token]
    assert benchmark_prompts("owl", "", None)[0] == "an owl in the jungle"


@pytest.mark.parametrize("world", [World(), SMALL], ids=["full", "small"])
@pytest.mark.parametrize("noun", ["cat", "animal", "fox"])
def test_a_world_has_25_prompts_within_its_grammar(world: World, noun: str) -> None:
    prompts = benchmark_prompts(noun, "<b>", world)
    assert len(set(prompts)) == len(prompts) == 25 and prompts == benchmark_prompts(noun, "<b>", world)
    assert all(prompt.count(f"<b> {noun}") == 1 for prompt in prompts)
    assert {word for prompt in prompts for word in prompt.split()} <= set(grammar_words()) | {"<b>"}
    everything = " ".join(prompts)
    for word in ("on the left", "at the top", "small", "large", "next to", "above"):
        assert word in everything
    assert all(re.search(rf"\b{style}\b", everything) for style in world.styles)


def test_a_tiny_world_gives_fewer_but_different_prompts() -> None:
    prompts = benchmark_prompts("cat", "<b>", World(nouns=("cat",), styles=("flat",), backgrounds=("red",)))
    assert 10 <= len(prompts) == len(set(prompts)) <= 25


@pytest.mark.parametrize("world", [None, World(), SMALL], ids=["open", "full", "small"])
@pytest.mark.parametrize("noun", ["cat", "dog", "old book"])
def test_drift_prompts_never_name_the_concept(world: World | None, noun: str) -> None:
    for seed in range(5):
        prompts = drift_prompts(world, 25, seed, without=noun)
        assert len(set(prompts)) == 25 and prompts == drift_prompts(world, 25, seed, without=[noun])
        assert not any(re.search(rf"\b({'|'.join(noun.split())})s?\b", prompt) for prompt in prompts)
    assert drift_prompts(world, 25, 0) != drift_prompts(world, 25, 1)


def test_drift_prompts_of_a_world_stay_in_it() -> None:
    words = {word for prompt in drift_prompts(World(), 100) for word in prompt.split()}
    assert words <= set(grammar_words())
    assert not words & {noun for noun, *_ in HELD_OUT_NOUNS + HELD_OUT_STYLES}


def test_our_own_list_says_nothing_twice() -> None:
    assert len(set(GENERAL_PROMPTS)) == len(GENERAL_PROMPTS) == 40


def test_more_drift_prompts_than_there_are_is_refused() -> None:
    with pytest.raises(Refused, match="there are 40"):
        drift_prompts(None, 41)
    with pytest.raises(Refused, match="without cat, cats; there are 0"):
        drift_prompts(World(nouns=("cat",)), 5, without="cat")


def test_prompts_of_the_wide_world_ask_for_each_attribute_on_its_own():
    prompts = benchmark_prompts("fox", "<x>", WideWorld())
    asked = [asked_of(prompt, WideWorld()) for prompt in prompts]
    assert len(set(prompts)) == 25 and all("<x> fox" in prompt for prompt in prompts)
    counts = Counter(name for each in asked for name in each)
    assert counts["colour"] == 3 and counts["wearing"] == 3 and counts["second"] == counts["relation"] == 4
    assert counts["position"] == 4 and counts["size"] == 2 and counts["pattern"] == 1
    for few in range(5, 25):  # an evaluation of fewer prompts asks for them, too
        assert {"colour", "wearing", "relation", "position"} <= {name for each in spread(asked, few) for name in each}


def test_drift_prompts_of_the_wide_world_are_whole_scenes_of_its_core():
    world = WideWorld(tail=(("abacus", "thing", "abacus"),))
    prompts = drift_prompts(world, 200, without="cat")
    assert not any({"cat", "cats", "abacus"} & set(prompt.split()) for prompt in prompts)
    assert any(" wearing " in prompt for prompt in prompts) and any("two " in prompt for prompt in prompts)


def test_a_base_whose_card_lists_colours_knows_the_wide_world():
    words = {"nouns": ("cat", "dog"), "styles": ("flat",), "backgrounds": ("red",)}
    assert world_of(SimpleNamespace(world=None)) is None
    assert world_of(SimpleNamespace(world=words)) == World(nouns=("cat", "dog"), styles=("flat",), backgrounds=("red",))
    wide = world_of(SimpleNamespace(world={**words, "colours": ("red",), "tail": ("abacus",), "drawn": ("pencil",)}))
    assert isinstance(wide, WideWorld) and wide.nouns == ("cat", "dog") and wide.styles == ("flat",)
    assert wide.drawn == ("pencil",) and wide.tail[0][0] == "abacus" and len(wide.backgrounds) == 14
    captions = world_captions(SimpleNamespace(world={**words, "colours": ("red",), "tail": ("abacus",)}), 100)
    assert any("abacus" in caption for caption in captions)
