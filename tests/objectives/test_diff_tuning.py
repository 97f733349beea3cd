"""Diff-Tuning's weights and draws against the paper's formulas, exactly where possible and else within stated error."""

import math

import numpy as np
import pytest
import torch

from diffadapt.config import with_overrides
from diffadapt.errors import Refused
from diffadapt.objectives.diff_tuning import PRESETS, DiffTuning, DiffTuningDraws, Draw, preset
from diffadapt.objectives.psi import noise_quantile, psi

T = 1000
ALPHAS = (1 - torch.linspace(1e-4, 2e-2, T, dtype=torch.float64)).cumprod(0)  # DiT's linear schedule
RATIO = ((1 - ALPHAS) / ALPHAS).sqrt()
DRAWS = 200_000


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def normal(count: int = DRAWS) -> torch.Tensor:
    return torch.randn(count, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


# --- psi --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [{"tau": tau} for tau in (0.0, 0.3, 0.5, 0.7, 1.0, 1.5)]
    + [{"psi": "snr"}, {"psi": "step"}, {"psi": "table", "psi_table": (0.0, 0.2, 0.9, 1.0)}],
)
def test_psi_and_xi_sum_to_one_and_psi_does_not_decrease(settings: dict):
    draws = DiffTuningDraws(DiffTuning(**settings), RATIO)
    assert (draws.psi + draws.xi - 1).abs().max() < 1e-12
    assert (draws.psi.diff() >= 0).all() and draws.psi.min() >= 0 and draws.psi.max() <= 1
    if settings.get("psi") != "snr":
        assert draws.psi[-1] == 1


def test_power_on_equally_likely_steps_is_the_step_over_their_number():
    expected = (torch.arange(T, dtype=torch.float64) + 1) / T
    assert (DiffTuningDraws(DiffTuning(tau=0.7), RATIO).psi - expected**0.7).abs().max() < 1e-12


def test_psi_of_snr_is_one_less_the_share_of_signal():
    draws = DiffTuningDraws(DiffTuning(psi="snr"), RATIO)
    assert (draws.psi - (1 - ALPHAS)).abs().max() < 1e-6


def test_psi_of_snr_on_a_straight_path_is_noise_power_over_total_power():
    s = torch.linspace(0, 1, 11, dtype=torch.float64)
    ratio = s / (1 - s)
    assert (psi("snr", ratio, s) - s**2 / (s**2 + (1 - s) ** 2)).abs().max() < 1e-12


@pytest.mark.parametrize("tau", [0.3, 1.0, 1.5])
@pytest.mark.parametrize(
    "law",
    {
        "uniform": lambda: RATIO[torch.from_numpy(rng().integers(T, size=DRAWS))],
        "logit-normal": lambda: normal().exp(),  # s / (1 - s) of s = sigmoid(normal)
        "logit-normal, shifted by 3": lambda: 3 * normal().exp(),
        "lognormal (EDM)": lambda: (-1.2 + 1.2 * normal()).exp(),
    }.items(),
    ids=lambda law: law[0],
)
def test_the_mean_of_psi_is_one_over_tau_plus_one_for_every_law_of_training(tau: float, law: tuple):
    ratio = law[1]()
    mean = psi("power", ratio, noise_quantile(ratio, ratio), tau=tau).mean()
    assert mean == pytest.approx(1 / (tau + 1), abs=1e-3)


def test_under_the_law_of_edm_the_quantile_is_its_cdf_of_sigma():
    sigma = torch.tensor([0.02, 0.1, 0.3, 1.0, 5.0], dtype=torch.float64)
    expected = 0.5 * (1 + torch.erf((sigma.log() + 1.2) / 1.2 / math.sqrt(2)))
    assert (noise_quantile(sigma, torch.exp(-1.2 + 1.2 * normal())) - expected).abs().max() < 4e-3


def test_a_schedule_that_counts_towards_the_data_gets_the_same_psi_at_the_same_noise():
    forward = DiffTuningDraws(DiffTuning(), RATIO).psi
    assert torch.equal(DiffTuningDraws(DiffTuning(), RATIO.flip(0)).psi, forward.flip(0))


# --- which rows, at which levels --------------------------------------------------------------------------------------


def test_bernoulli_draws_target_with_probability_psi_in_every_bin_of_noise():
    draws, n = DiffTuningDraws(DiffTuning(), RATIO), 200_000
    batch = draws.draw(rng(), n)
    for part in range(20):
        inside = batch.timesteps // (T // 20) == part
        share, count = draws.psi[batch.timesteps[inside]].mean(), int(inside.sum())
        target = (~batch.memory[inside]).double().mean()
        assert abs(target - share) <= 4 * math.sqrt(share * (1 - share) / count)
    assert batch.memory.double().mean() == pytest.approx(0.4995, abs=0.005)


def test_bernoulli_leaves_the_law_of_noise_levels_as_the_base_was_trained():
    batch = DiffTuningDraws(DiffTuning(tau=0.3), RATIO).draw(rng(), 50 * T)
    assert (batch.timesteps.bincount(minlength=T) - 50).abs().max() <= 1  # spread: one from each equal share


@pytest.mark.parametrize("tau", [0.3, 1.0, 2.0])
@pytest.mark.parametrize("kind", ["psi", "xi"])
def test_stratified_draws_levels_in_proportion_to_psi_and_xi(tau: float, kind: str):
    draws = DiffTuningDraws(DiffTuning(estimator="stratified", tau=tau), RATIO)
    batch = draws.draw(rng(), 2 * 100 * T)
    weight = getattr(draws, kind)
    drawn = batch.timesteps[batch.memory if kind == "xi" else ~batch.memory].bincount(minlength=T)
    assert (drawn - 100 * T * weight / weight.sum()).abs().max() <= 2


def test_levels_of_target_and_memory_are_two_thirds_and_one_third_at_tau_one():
    batch = DiffTuningDraws(DiffTuning(estimator="stratified"), RATIO).draw(rng(), DRAWS)
    u = (batch.timesteps + 1) / T
    assert u[~batch.memory].mean() == pytest.approx(2 / 3, abs=2e-3)
    assert u[batch.memory].mean() == pytest.approx(1 / 3, abs=2e-3)


@pytest.mark.parametrize("kept", range(1, 8))
def test_stratified_is_exact_for_any_split(kept: int):
    """All its outcomes summed with their probabilities give L_ada + L_ret, on 10 levels and 4 pictures."""
    ratio = RATIO[99::100]
    draws = DiffTuningDraws(DiffTuning(estimator="stratified", tau=0.7, memory_share=kept / 8 + 1e-9), ratio)
    losses = torch.from_numpy(rng().random((2, 2, 10)))  # of 2 target pictures, then of 2 of memory, at 10 levels
    objective = (draws.psi * losses[0].mean(0)).mean() + (draws.xi * losses[1].mean(0)).mean()
    batch = draws.draw(rng(), 8)
    assert batch.memory.sum() == kept and batch.weights is not None
    at = torch.stack([draws.psi / draws.psi.sum(), draws.xi / draws.xi.sum()])
    of_row = (at * losses.mean(1)).sum(1)  # expected loss of a target row and of a memory row
    assert batch.weights @ of_row[batch.memory.long()] == pytest.approx(float(objective), abs=1e-10)


def toy_gradients(settings: DiffTuning, batches: int) -> torch.Tensor:
    """(batches, 3) gradients of the batch loss of a linear model on fixed target and memory pictures."""
    draws, source = DiffTuningDraws(settings, RATIO), rng(1)
    clean = torch.tensor([[1.0, -0.5], [0.3, 2.0]], dtype=torch.float64)  # target and memory, two numbers each
    a, b, c = 0.2, -0.1, 0.3
    found = []
    for _ in range(batches):
        batch = draws.draw(source, 32)
        alpha = ALPHAS[batch.timesteps, None]
        noise = torch.from_numpy(source.standard_normal((32, 2)))
        noisy = alpha.sqrt() * clean[batch.memory.long()] + (1 - alpha).sqrt() * noise
        u = batch.timesteps[:, None] / T
        error = a * noisy + b * u + c - noise
        rows = torch.stack([(2 * error * part).mean(1) for part in (noisy, u, torch.ones_like(u))], 1)
        weights = torch.full((32,), 1 / 32).double() if batch.weights is None else batch.weights
        found.append(weights @ rows)
    return torch.stack(found)


def test_the_three_estimators_have_the_same_mean_gradient_and_weights_the_most_variance():
    kinds = {
        "bernoulli": DiffTuning(),
        "weighted": DiffTuning(estimator="weighted"),
        "stratified": DiffTuning(estimator="stratified"),
        "stratified, a fifth": DiffTuning(estimator="stratified", memory_share=0.2),
    }
    found = {name: toy_gradients(settings, 800) for name, settings in kinds.items()}
    mean = {name: rows.mean(0) for name, rows in found.items()}
    error = {name: rows.std(0) / math.sqrt(len(rows)) for name, rows in found.items()}
    for name in kinds:
        apart = (mean[name] - mean["bernoulli"]).abs()
        assert (apart <= 4 * (error[name].square() + error["bernoulli"].square()).sqrt()).all(), name
    assert found["weighted"].var(0).sum() / found["stratified"].var(0).sum() > 1.1


# --- presets ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rows", "target", "kept"), [(32, 26, 6), (64, 52, 12)])
def test_official_code_splits_four_to_one_and_weighs_memory_by_a_tenth(rows: int, target: int, kept: int):
    draws = DiffTuningDraws(PRESETS["official_code"], RATIO)
    batch, losses = draws.draw(rng(), rows), torch.from_numpy(rng(1).random(rows))
    assert draws.rows_of(rows) == (target, kept)
    expected = losses[:target].mean() + 0.1 * losses[target:].mean()
    assert batch.loss(losses) == pytest.approx(float(expected), abs=1e-6)
    assert (draws.psi * T - torch.arange(1, T + 1)).abs().max() < 1e-9
    assert (draws.xi * T - torch.arange(T, 0, -1)).abs().max() < 1e-9


def test_reconsolidation_only_uses_no_memory_and_retention_only_leaves_the_target_alone():
    without = DiffTuningDraws(PRESETS["reconsolidation_only"], RATIO)
    batch = without.draw(rng(), 32)
    assert not batch.memory.any() and not without.uses_memory
    assert batch.loss(torch.ones(32)) == pytest.approx(0.5005, abs=1e-6)  # E[psi]
    only = DiffTuningDraws(PRESETS["retention_only"], RATIO)
    assert (only.psi == 1).all() and only.expected_memory == pytest.approx(0.4995, abs=1e-6)
    assert only.draw(rng(), 32).loss(torch.ones(32)) == pytest.approx(1.4995, abs=1e-6)


@pytest.mark.parametrize("settings", [PRESETS["standard"], DiffTuning(tau=0)])
def test_standard_and_tau_zero_are_plain_training_bit_for_bit(settings: DiffTuning):
    coin = rng(7)
    batch = DiffTuningDraws(settings, RATIO).draw(rng(3), 32, coin)
    plain = rng(3)
    expected = torch.from_numpy((plain.permutation(32) + plain.random(32)) / 32 * T).long()
    losses = torch.rand(32, generator=torch.Generator().manual_seed(0))
    assert torch.equal(batch.timesteps, expected) and not batch.memory.any()
    assert torch.equal(batch.loss(losses), losses.mean())
    assert coin.bit_generator.state == rng(7).bit_generator.state  # nothing was drawn to choose


def test_a_coin_of_its_own_leaves_the_levels_as_plain_training_draws_them():
    plain = DiffTuningDraws(PRESETS["standard"], RATIO).draw(rng(3), 32)
    mixed = DiffTuningDraws(DiffTuning(), RATIO).draw(rng(3), 32, rng(4))
    assert torch.equal(plain.timesteps, mixed.timesteps) and mixed.memory.any()


def test_memory_weight_scales_the_memory_rows_alone():
    draws = DiffTuningDraws(DiffTuning(memory_weight=0.1), RATIO)
    batch, losses = draws.draw(rng(), 16), torch.from_numpy(rng(1).random(16))
    expected = (losses * torch.where(batch.memory, 0.1, 1.0)).sum() / 16
    assert batch.loss(losses) == pytest.approx(float(expected), abs=1e-12)


# --- bad settings -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"psi": "table", "psi_table": (0.0, 0.6, 0.5)}, "do not decrease"),
        ({"psi": "table"}, "2 or more values"),
        ({"psi": "cubic"}, "psi"),
        ({"tau": -1.0}, "tau"),
        ({"retain": False}, "must sum to 1"),
        ({"reconsolidate": False}, "must sum to 1"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: dict, sentence: str):
    with pytest.raises(Refused, match=sentence):
        DiffTuningDraws(DiffTuning(**settings), RATIO)


@pytest.mark.parametrize("rows", [1, 4])
def test_a_batch_too_small_for_both_is_refused(rows: int):
    draws = DiffTuningDraws(with_overrides(PRESETS["official_code"], {}), RATIO)
    with pytest.raises(Refused, match=f"a batch of {rows} rows has 0 memory rows"):
        draws.draw(rng(), rows)


def test_an_unknown_preset_is_refused_and_a_known_one_can_be_changed():
    assert preset("difftuning", tau=0.5) == DiffTuning(tau=0.5)
    with pytest.raises(Refused, match="official_code"):
        preset("offical_code")


def test_a_plain_mean_is_taken_where_there_are_no_weights():
    draw = Draw(torch.zeros(2).long(), torch.zeros(2).bool(), None)
    assert draw.loss(torch.tensor([1.0, 3.0])) == 2
