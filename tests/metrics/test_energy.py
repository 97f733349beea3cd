"""Hyperspherical energy and neuron geometry: against a double loop, under rotations, and under what is no rotation."""

import math

import pytest
import torch
from torch import Tensor

from diffadapt.errors import Refused
from diffadapt.metrics import energy, geometry_change, hyperspherical_energy, weight_drift

NOTHING = {"energy_change": 0.0, "cosine_change": 0.0, "norm_change": 0.0}
SHAPES = [(48, 64), (96, 32), (40, 8, 3, 3)]  # the rows fewer than the inputs, more, and filters
COSINES, NORMS, ENERGY = 1e-6, 2e-6, 1e-6  # what an exact rotation may do in float32


def weight(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def rotation(size: int, seed: int = 1, angle: float = 0.3) -> Tensor:
    """A rotation (size, size) in float64 by up to about `angle` radians."""
    q = weight(size, size, seed=seed).double()
    q = (q - q.T) * (angle / 2 / torch.linalg.matrix_norm(q - q.T, 2))
    identity = torch.eye(size, dtype=torch.float64)
    return (identity + q) @ torch.linalg.inv(identity - q)


def turned(w: Tensor, angle: float = 0.3) -> Tensor:
    """The neurons rotated on the input side, in the weight's own precision."""
    flat = w.flatten(1)
    return (flat @ rotation(flat.shape[1], angle=angle).to(w.dtype).T).view(w.shape)


def mixed(w: Tensor) -> Tensor:
    """The same kind of rotation on the output side, which mixes the neurons."""
    return (rotation(len(w)).to(w.dtype) @ w.flatten(1)).view(w.shape)


def noisy(w: Tensor) -> Tensor:
    """Noise as long as the way that `turned` goes."""
    noise = weight(*w.shape, seed=2).to(w.dtype)
    return w + noise * ((turned(w) - w).norm() / noise.norm())


def by_double_loop(w: Tensor) -> tuple[float, Tensor]:
    """HE and the cosines, pair by pair as the paper writes them."""
    units = [row / row.norm() for row in w.double().flatten(1)]
    pairs = [(i, j) for i in range(len(units)) for j in range(len(units)) if i != j]
    cosines = [[float(u @ v) for v in units] for u in units]
    return sum(1 / float((units[i] - units[j]).norm()) for i, j in pairs), torch.tensor(cosines, dtype=torch.float64)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_energy_and_changes_are_those_of_a_double_loop(shape, monkeypatch):
    monkeypatch.setattr(energy, "ROWS", 7)  # neurons come in several parts, the last one smaller
    before, after = weight(*shape), weight(*shape, seed=3)
    (old, cosines), (new, others) = by_double_loop(before), by_double_loop(after)
    change = geometry_change(before, after)
    assert change.energy == pytest.approx(old, rel=1e-12) == hyperspherical_energy(before)
    assert change.energy_change == pytest.approx(new / old - 1, rel=1e-9)
    assert change.cosine_change == pytest.approx(float((others - cosines).abs().max()), rel=1e-9)
    norms = [w.double().flatten(1).norm(dim=1) for w in (before, after)]
    assert change.norm_change == pytest.approx(float((norms[1] / norms[0] - 1).abs().max()), rel=1e-9)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_an_unchanged_weight_has_changes_of_exactly_zero(shape):
    change = vars(geometry_change(weight(*shape), weight(*shape).clone()))
    assert change.pop("energy") > 0 and change == NOTHING


@pytest.mark.parametrize("angle", [0.01, 0.3, 2.5])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_rotation_on_the_input_side_moves_the_weight_and_none_of_the_three(shape, angle):
    before, after = weight(*shape), turned(weight(*shape), angle)
    change = geometry_change(before, after)
    assert change.cosine_change <= COSINES and change.norm_change <= NORMS and abs(change.energy_change) <= ENERGY
    drift = weight_drift(before, after)
    assert drift.geometry == change and drift.relative_frobenius and drift.relative_frobenius > angle / 10


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_in_float64_the_energy_stays_to_ten_digits(shape):
    change = geometry_change(weight(*shape).double(), turned(weight(*shape).double()))
    assert abs(change.energy_change) <= 1e-10 and change.cosine_change <= 1e-14 and change.norm_change <= 1e-14


@pytest.mark.parametrize("other", [mixed, noisy], ids=["output side", "noise"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_what_is_no_rotation_of_the_inputs_fails_a_hundredfold(shape, other):
    change = geometry_change(weight(*shape), other(weight(*shape)))
    assert change.cosine_change >= 100 * COSINES and change.norm_change >= 100 * NORMS
    assert abs(change.energy_change) >= 100 * ENERGY


def test_a_gain_per_neuron_changes_norms_alone():
    gain = torch.linspace(0.5, 1.25, 48)
    change = geometry_change(weight(48, 64), gain[:, None] * weight(48, 64))
    assert change.norm_change == pytest.approx(0.5)
    assert change.cosine_change <= COSINES and abs(change.energy_change) <= ENERGY


def test_a_turned_sign_changes_cosines_and_no_norm():
    after = weight(4, 8)
    after[0] *= -1
    change = geometry_change(weight(4, 8), after)
    assert change.cosine_change > 0.1 and change.norm_change == 0


def test_neurons_of_one_direction_have_the_energy_of_the_shortest_distance():
    parallel = torch.tensor([[1.0, 0.0], [3.0, 0.0], [0.0, 2.0]])
    assert hyperspherical_energy(parallel) == pytest.approx(2 / energy.SHORTEST + 4 / math.sqrt(2), rel=1e-9)
    assert abs(geometry_change(parallel, turned(parallel)).energy_change) <= ENERGY
    apart = torch.tensor([[1.0, 0.0], [0.0, 3.0], [0.0, 2.0]])
    assert geometry_change(parallel, apart).cosine_change == pytest.approx(1)


def test_a_neuron_without_a_direction_is_in_no_pair():
    before = weight(6, 8)
    with_zero = torch.cat([before, torch.zeros(1, 8)])
    assert hyperspherical_energy(with_zero) == hyperspherical_energy(before)
    grown = torch.cat([before, torch.ones(1, 8)])
    assert {**vars(geometry_change(with_zero, grown)), "energy": 0} == {**NOTHING, "energy": 0}
    assert geometry_change(grown, with_zero).norm_change == 1


@pytest.mark.parametrize("shape", [(1, 8), (3, 0)], ids=str)
def test_a_layer_without_pairs_has_no_energy(shape):
    assert hyperspherical_energy(weight(*shape)) == 0
    assert geometry_change(weight(*shape), weight(*shape, seed=1)).energy_change == 0


def test_half_precision_is_compared_exactly():
    before = weight(48, 64).bfloat16()
    change = vars(geometry_change(before, before.float()))
    assert {**change, "energy": 0} == {**NOTHING, "energy": 0}


def test_what_has_no_neurons_or_does_not_compare_is_refused():
    for before, after in ((torch.ones(3), torch.ones(3)), (weight(2, 3), weight(3, 2))):
        with pytest.raises(Refused, match="no neurons to compare"):
            geometry_change(before, after)
    with pytest.raises(Refused, match="not finite"):
        geometry_change(weight(2, 2), torch.full((2, 2), math.inf))


def test_the_row_of_a_layer_holds_its_geometry_and_that_of_a_norm_holds_none():
    row = weight_drift(weight(4, 8), weight(4, 8), layer="a").as_row()
    assert row.items() >= {"layer": "a", "energy": hyperspherical_energy(weight(4, 8)), **NOTHING}.items()
    of_a_norm = weight_drift(torch.ones(4), torch.ones(4) * 2).as_row()
    assert of_a_norm.keys() == row.keys() and of_a_norm["energy"] is of_a_norm["norm_change"] is None
