"""Weight drift: lengths and neuron directions, against cases that can be worked out by hand."""

import math

import pytest
import torch

from diffadapt.errors import Refused
from diffadapt.metrics import neuron_angles, weight_drift, weight_drift_by_layer


def weight(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_an_unchanged_layer_did_not_drift():
    drift = weight_drift(weight(8, 4), weight(8, 4))
    assert (drift.relative_frobenius, drift.mean_angle, drift.max_angle) == (0, 0, 0)


def test_scaling_moves_the_length_and_no_angle():
    drift = weight_drift(weight(8, 4), weight(8, 4) * 1.5)
    assert drift.relative_frobenius == pytest.approx(0.5)
    assert drift.max_angle == pytest.approx(0, abs=1e-5)


def test_a_rotation_turns_each_neuron_by_its_angle():
    c, s = math.cos(math.radians(30)), math.sin(math.radians(30))
    before = weight(6, 2)
    drift = weight_drift(before, before @ torch.tensor([[c, s], [-s, c]]))
    assert drift.mean_angle == pytest.approx(30, abs=1e-4) and drift.max_angle == pytest.approx(30, abs=1e-4)


def test_a_convolutions_neuron_is_its_whole_filter():
    before, after = weight(5, 3, 3, 3), weight(5, 3, 3, 3, seed=1)
    torch.testing.assert_close(neuron_angles(before, after), neuron_angles(before.flatten(1), after.flatten(1)))
    assert len(neuron_angles(before, after)) == 5


def test_tiny_angles_are_not_lost_to_rounding():
    before = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    after = torch.tensor([[1.0, 1e-9]], dtype=torch.float64)
    assert neuron_angles(before, after).item() == pytest.approx(math.degrees(1e-9), rel=1e-6)


def test_a_bias_has_no_neurons_and_a_zero_layer_no_ratio():
    assert weight_drift(torch.ones(4), torch.ones(4) * 2).mean_angle is None
    zero = weight_drift(torch.zeros(4, 2), torch.ones(4, 2))
    assert zero.relative_frobenius is None and zero.mean_angle is None
    assert weight_drift(torch.zeros(2, 2), torch.zeros(2, 2)).relative_frobenius == 0


def test_layers_come_with_the_most_moved_first_and_as_rows_of_metrics_json():
    before = {"a": weight(4, 4), "b": weight(4, 4, seed=1), "untouched": weight(2, 2)}
    drifts = weight_drift_by_layer(before, {"a": before["a"] * 1.1, "b": before["b"] * 2})
    assert [drift.layer for drift in drifts] == ["b", "a"]
    assert set(drifts[0].as_row()) == {
        *("layer", "relative_frobenius", "angle_degrees", "max_angle_degrees"),
        *("energy", "energy_change", "cosine_change", "norm_change"),
    }


def test_drift_refuses_what_does_not_compare():
    with pytest.raises(Refused, match="do not compare"):
        weight_drift(weight(2, 3), weight(3, 2))
    with pytest.raises(Refused, match="not finite"):
        weight_drift(weight(2, 2), torch.full((2, 2), math.nan))
    with pytest.raises(Refused, match="new_layer"):
        weight_drift_by_layer({}, {"new_layer": weight(2, 2)})
