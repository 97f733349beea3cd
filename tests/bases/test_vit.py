"""The small transformer that ships for classification: its size, its card, and what it was never shown."""

import json

import pytest
import torch

from diffadapt.bases import load_classifier
from diffadapt.bases.vit import EMBEDDED_VIT
from diffadapt.data.wide_world import CORE
from diffadapt.data.world import HELD_OUT_NOUNS, NOUNS


@pytest.fixture(scope="module")
def card():
    return json.loads((EMBEDDED_VIT / "card.json").read_text(encoding="utf-8"))


def test_it_is_small_and_its_card_says_what_it_saw_and_what_it_gets_right(card):
    assert sum(file.stat().st_size for file in EMBEDDED_VIT.iterdir()) < 6e6
    assert card["pictures"] > 0 and card["cpu_minutes"] > 0 and 0 < card["accuracy"]["top1"] <= card["accuracy"]["top5"]


def test_its_nouns_are_the_core_and_none_of_the_classes_that_it_is_to_learn(card):
    labels = json.loads((EMBEDDED_VIT / "config.json").read_text(encoding="utf-8"))["id2label"]
    assert [labels[str(i)] for i in range(len(labels))] == [noun for noun, *_ in NOUNS[:CORE]]
    assert len(card["never_shown"]) == 100 and {stem for *_, stem in HELD_OUT_NOUNS} <= {*card["never_shown"]}
    assert not {stem for *_, stem in NOUNS[:CORE]} & {*card["never_shown"]}


def test_pictures_become_features_and_logits_of_a_head_that_starts_at_zero():
    network = load_classifier("embedded", 7, device="cpu")
    pictures = torch.rand(2, 3, network.size, network.size, generator=torch.Generator().manual_seed(0))
    assert network.size == 64 and network.features(pictures).shape == (2, 128)
    assert network(pictures).shape == (2, 7) and not network(pictures).any()
    assert len(network.select(["self_attention.*"])) == 4 * 4
