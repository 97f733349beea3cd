"""The labels that the probe is taught: a picture has one set of labels, whichever of its captions was drawn."""

import dataclasses
import sys
from pathlib import Path

import numpy as np
import pytest

from diffadapt.data.wide_scenes import WideWorld, sample_wide_scene

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))
from probe_batches import LABELS, labels_of


def pair(relation: str):
    return next(
        scene
        for seed in range(2000)
        if (scene := sample_wide_scene(np.random.default_rng(seed), WideWorld(drawn=()))).relation == relation
    )


def said(scene) -> dict[str, str | None]:
    numbers = dict(zip(LABELS, labels_of(scene), strict=True))
    return {head: LABELS[head][number] if number >= 0 else None for head, number in numbers.items()}


@pytest.mark.parametrize(("one", "other", "turned"), [("above", "under", True), ("behind", "in front of", False)])
def test_one_picture_has_one_set_of_labels_under_both_of_its_captions(one, other, turned):
    scene = pair(one)
    things = scene.things[::-1] if turned else scene.things  # `things` are back to front where one is in front
    told = said(dataclasses.replace(scene, relation=other, things=things))
    assert told == said(scene) and told["relation"] == one


def test_of_two_things_the_upper_left_or_hind_one_is_named_first():
    for relation, at in (("next to", 0), ("above", 1), ("under", 1), ("on", 1)):
        scene = pair(relation)
        first = min(scene.things, key=lambda thing, at=at: thing.boxes[0][at])
        assert said(scene)["object"] == first.noun
