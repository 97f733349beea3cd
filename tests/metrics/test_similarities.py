"""Fidelity, alignment, diversity and drift: the algebra of cosines between feature rows."""

import math

import pytest
import torch

from diffadapt.errors import Refused
from diffadapt.metrics import (
    attribute_accuracy,
    diversity,
    drift_features,
    drift_pixels,
    harmonic_mean,
    hypervolume,
    subject_fidelity,
    text_alignment,
)


def rows(n: int, d: int = 16, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def test_fidelity_of_a_picture_with_itself_is_one():
    assert subject_fidelity(rows(1), rows(1)).item() == pytest.approx(1, abs=1e-6)


def test_fidelity_is_the_mean_of_all_pairwise_cosines():
    a, b = rows(5), rows(3, seed=1)
    pairs = torch.nn.functional.cosine_similarity(a[:, None], b[None], dim=-1)
    torch.testing.assert_close(subject_fidelity(a, b), pairs.mean(1))


def test_fidelity_does_not_see_the_length_of_features():
    reference = rows(3, seed=1)
    torch.testing.assert_close(subject_fidelity(rows(4) * 7, reference), subject_fidelity(rows(4), reference))


def test_alignment_compares_each_picture_with_its_own_prompt_only():
    pictures = torch.eye(3)
    texts = torch.tensor([[1.0, 0, 0], [1, 0, 0], [0, 0, -1]])
    assert text_alignment(pictures, texts).tolist() == [1, 0, -1]


def test_diversity_of_equal_pictures_is_zero_and_of_orthogonal_ones_is_one():
    assert diversity(torch.ones(4, 8)).item() == pytest.approx(0, abs=1e-6)
    assert diversity(torch.eye(4)).item() == pytest.approx(1)


def test_diversity_never_compares_pictures_of_different_prompts():
    features = torch.tensor([[1.0, 0], [1, 0], [0, 1], [0, 1]])
    assert diversity(features, torch.tensor([0, 0, 1, 1])).tolist() == [0, 0]
    assert diversity(features, torch.tensor([0, 1, 0, 1])).tolist() == [1, 1]


def test_diversity_needs_two_pictures_of_a_prompt():
    with pytest.raises(Refused, match="two pictures"):
        diversity(rows(2), torch.tensor([0, 1]))


def test_drift_of_unchanged_pictures_is_exactly_zero():
    features, pixels = rows(4), torch.rand(4, 3, 8, 8)
    assert drift_features(features, features).tolist() == [0, 0, 0, 0]
    assert drift_pixels(pixels, pixels).tolist() == [0, 0, 0, 0]


def test_feature_drift_is_one_minus_the_cosine():
    a, b = rows(6), rows(6, seed=1)
    torch.testing.assert_close(drift_features(a, b), 1 - torch.nn.functional.cosine_similarity(a, b))


def test_pixel_drift_of_black_against_white_is_one():
    assert drift_pixels(torch.zeros(2, 3, 4, 4), torch.ones(2, 3, 4, 4)).tolist() == [1, 1]


def test_drift_pairs_pictures_and_refuses_unequal_counts():
    with pytest.raises(Refused, match="adapted has 3, base has 4"):
        drift_features(rows(3), rows(4))
    with pytest.raises(Refused, match="equal shapes"):
        drift_pixels(torch.zeros(2, 3, 4, 4), torch.zeros(1, 3, 4, 4))


def test_features_of_different_encoders_are_refused():
    with pytest.raises(Refused, match="different encoders"):
        subject_fidelity(rows(3, 16), rows(3, 8))


@pytest.mark.parametrize("bad", [torch.zeros(0, 4), torch.zeros(4), torch.full((2, 4), math.nan)])
def test_empty_flat_or_nan_features_are_refused(bad: torch.Tensor):
    with pytest.raises(Refused):
        subject_fidelity(bad, torch.ones(1, 4))


def test_half_precision_features_are_compared_in_single_precision():
    assert text_alignment(rows(3).half(), rows(3).half()).dtype == torch.float32


def test_attribute_accuracy_leaves_out_what_the_prompt_does_not_say():
    right = attribute_accuracy(
        {"object": ["cat", "dog", "pig"], "size": ["small", "small", "large"], "style": ["3d"] * 3},
        {"object": ["cat", "cat", "pig"], "size": [None, "large", "large"]},
    )
    assert {key: value.tolist() for key, value in right.items()} == {"object": [1, 0, 1], "size": [0, 1]}


def test_attribute_accuracy_refuses_an_attribute_that_nobody_predicted():
    with pytest.raises(Refused, match="'mood'"):
        attribute_accuracy({"object": ["cat"]}, {"mood": ["happy"]})
    with pytest.raises(Refused, match="1 predictions for 2"):
        attribute_accuracy({"object": ["cat"]}, {"object": ["cat", "dog"]})


def test_harmonic_mean_is_zero_when_one_quality_is_missing():
    assert harmonic_mean([0.9, 0.0]) == 0
    assert harmonic_mean([0.5, 0.5]) == 0.5
    assert harmonic_mean([1, 0.5]) == pytest.approx(2 / 3)
    for bad in ([], [-1.0], [math.nan]):
        with pytest.raises(Refused):
            harmonic_mean(bad)


def test_hypervolume_is_the_area_under_the_front():
    assert hypervolume([(0.5, 0.4)]) == pytest.approx(0.2)
    front = [(0.2, 0.9), (0.6, 0.5), (0.9, 0.1)]
    area = 0.9 * 0.1 + 0.6 * 0.4 + 0.2 * 0.4
    assert hypervolume(front) == pytest.approx(area)
    assert hypervolume([*front, (0.5, 0.5), (0.6, 0.2), (-1.0, 2.0), (0.3, -0.1)]) == pytest.approx(area)
    assert hypervolume(front, (0.3, 0.3)) == pytest.approx(0.3 * 0.2)
    with pytest.raises(Refused, match="one or more points"):
        hypervolume([])
