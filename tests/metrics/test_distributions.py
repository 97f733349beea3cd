"""FID, MMD and KID against closed forms, and the bootstrap against what intervals promise."""

import pytest
import torch

from diffadapt.errors import Refused
from diffadapt.metrics import (
    fid,
    frechet_distance,
    gaussian_of,
    interval_of_difference,
    interval_of_mean,
    interval_of_ratio,
    kid,
    mmd_squared,
)


def normal(n: int, d: int = 4, seed: int = 0, shift: float = 0.0) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + shift


def test_fid_of_a_set_with_itself_is_zero():
    assert fid(normal(50), normal(50)) == pytest.approx(0, abs=1e-9)


def test_frechet_matches_the_closed_form_of_commuting_gaussians():
    """Diagonal covariances: |m|^2 + sum (s_x - s_y)^2."""
    x, y = torch.tensor([1.0, 4.0, 9.0]), torch.tensor([4.0, 4.0, 1.0])
    distance = frechet_distance(torch.zeros(3), x.diag(), torch.ones(3), y.diag())
    assert distance == pytest.approx(3 + (1 - 2) ** 2 + 0 + (3 - 1) ** 2, abs=1e-9)


def test_frechet_agrees_with_scipys_root_of_the_product():
    linalg = pytest.importorskip("scipy.linalg")
    (m_x, c_x), (m_y, c_y) = gaussian_of(normal(40)), gaussian_of(normal(40, seed=1) @ normal(4, seed=2))
    root = torch.from_numpy(linalg.sqrtm((c_x @ c_y).numpy()).real)
    expected = (m_x - m_y).square().sum() + (c_x + c_y - 2 * root).trace()
    assert frechet_distance(m_x, c_x, m_y, c_y) == pytest.approx(float(expected), rel=1e-9)


def test_frechet_survives_fewer_pictures_than_dimensions():
    assert 0 <= fid(normal(5, 32), normal(5, 32, seed=1)) < 1e3


def test_fid_moves_with_the_mean_by_the_squared_distance():
    assert fid(normal(50), normal(50) + 2) == pytest.approx(4 * 4, rel=1e-9)


def test_fid_refuses_a_single_picture():
    with pytest.raises(Refused, match="N >= 2"):
        fid(normal(1), normal(5))


def test_mmd_is_unbiased_and_so_its_mean_over_equal_sets_is_zero():
    for kernel in ("polynomial", "gaussian"):
        pairs = ((normal(10, seed=i), normal(12, seed=1000 + i)) for i in range(300))
        values = torch.tensor([mmd_squared(x, y, kernel=kernel) for x, y in pairs])
        assert values.min() < 0, "a biased estimate never goes below zero"
        assert abs(values.mean()) < 4 * values.std() / 300**0.5


def test_mmd_matches_the_sum_written_out():
    x, y = normal(3, 2), normal(4, 2, seed=1)

    def k(a: torch.Tensor, b: torch.Tensor) -> float:
        return float((a @ b / 2 + 1) ** 3)

    within_x = sum(k(a, b) for i, a in enumerate(x) for j, b in enumerate(x) if i != j) / 6
    within_y = sum(k(a, b) for i, a in enumerate(y) for j, b in enumerate(y) if i != j) / 12
    across = sum(k(a, b) for a in x for b in y) / 12
    assert mmd_squared(x, y) == pytest.approx(within_x + within_y - 2 * across, abs=1e-12)


@pytest.mark.parametrize("kernel", ["polynomial", "gaussian"])
def test_mmd_sees_a_shift(kernel):
    assert mmd_squared(normal(60), normal(60, seed=1, shift=1), kernel=kernel) > 0.1


def test_kid_of_whole_sets_is_one_mmd_and_of_subsets_is_repeatable():
    x, y = normal(30), normal(30, seed=1, shift=0.5)
    assert kid(x, y).tolist() == [mmd_squared(x, y)]
    values = kid(x, y, subset=10, subsets=20, seed=3)
    assert values.shape == (20,) and torch.equal(values, kid(x, y, subset=10, subsets=20, seed=3))
    assert not torch.equal(values, kid(x, y, subset=10, subsets=20, seed=4))


def test_unknown_kernel_and_impossible_subsets_are_refused():
    with pytest.raises(Refused, match="cosine"):
        mmd_squared(normal(3), normal(3), kernel="cosine")  # pyright: ignore[reportArgumentType]
    with pytest.raises(Refused, match="subset"):
        kid(normal(3), normal(3), subset=1)


def test_interval_holds_the_truth_about_95_times_in_100():
    hits = 0
    for seed in range(200):
        interval = interval_of_mean(normal(40, 1, seed=seed)[:, 0], seed=seed, resamples=500)
        hits += not interval.clear_of(0.0)
    assert 178 <= hits <= 198


def test_interval_is_repeatable_and_holds_its_value():
    a = interval_of_mean(normal(20, 1)[:, 0], seed=1)
    assert a == interval_of_mean(normal(20, 1)[:, 0], seed=1) != interval_of_mean(normal(20, 1)[:, 0], seed=2)
    assert a.low < a.value < a.high and a.n == 20


def test_pairing_narrows_a_difference():
    b = normal(50, 1)[:, 0] * 5
    a = b + 0.3 + normal(50, 1, seed=1)[:, 0] * 0.1
    paired, unpaired = interval_of_difference(a, b, paired=True), interval_of_difference(a, b, paired=False)
    assert paired.value == pytest.approx(unpaired.value)
    assert paired.clear_of(0) and not unpaired.clear_of(0)


def test_pictures_of_one_prompt_count_as_one_unit():
    """Copying each value four times must not make an interval look four times as certain."""
    values = normal(10, 1)[:, 0]
    groups = torch.arange(10).repeat_interleave(4)
    copied = interval_of_mean(values.repeat_interleave(4), groups=groups)
    once = interval_of_mean(values)
    assert copied.n == 10
    assert (copied.low, copied.high) == (pytest.approx(once.low), pytest.approx(once.high))


def test_ratio_of_a_model_with_itself_is_exactly_one():
    values = torch.tensor([1.0, 0, 1, 1])
    ratio = interval_of_ratio(values, values)
    assert ratio.value == ratio.high == 1
    assert interval_of_ratio(torch.tensor([1.0, 1, 0, 0]), torch.ones(4)).value == 0.5
    with pytest.raises(Refused, match="must be > 0, got 0"):
        interval_of_ratio(values, torch.zeros(4))


@pytest.mark.parametrize(
    "call",
    [
        lambda: interval_of_mean(torch.zeros(0)),
        lambda: interval_of_mean(torch.tensor([float("nan")])),
        lambda: interval_of_mean(torch.ones(3), level=95),
        lambda: interval_of_mean(torch.ones(3), resamples=0),
        lambda: interval_of_mean(torch.ones(3), groups=torch.zeros(2)),
        lambda: interval_of_difference(torch.ones(3), torch.ones(2), paired=True),
        lambda: interval_of_difference(torch.ones(3), torch.ones(3), paired=False, groups=torch.zeros(3)),
        lambda: interval_of_ratio(torch.ones(3), torch.ones(2)),
    ],
)
def test_impossible_requests_of_the_bootstrap_are_refused(call):
    with pytest.raises(Refused):
        call()
