"""Diff-Tuning's weights and draws against the paper's formulas, exactly where possible and else within stated error."""

import math

import numpy as np
import pytest
import torch

from diffadapt.conditioning import Conditioning
from diffadapt.errors import Refused
from diffadapt.objectives import (
    PRESETS,
    Batch,
    Denoising,
    DiffTuning,
    Draw,
    MatchingTheBase,
    MixedWithMemory,
    NoiseSchedule,
    preset,
)
from diffadapt.objectives.psi import noise_quantile, psi

T = 1000
ALPHAS = (1 - torch.linspace(1e-4, 2e-2, T, dtype=torch.float64)).cumprod(0)  # DiT's linear schedule
RATIO = ((1 - ALPHAS) / ALPHAS).sqrt()
SCHEDULE = NoiseSchedule(alphas_cumprod=ALPHAS.float(), prediction_type="epsilon")
DRAWS = 200_000


def mixed(settings: DiffTuning, ratio: torch.Tensor = RATIO) -> MixedWithMemory:
    return MixedWithMemory(Denoising(SCHEDULE), settings, ratio)


def memory(draw: Draw) -> torch.Tensor:
    """(N,) which rows are of memory."""
    return torch.tensor([source == "memory" for source in draw.sources])


def minimised(objective: MixedWithMemory, draw: Draw, losses: torch.Tensor) -> torch.Tensor:
    """The scalar of the rows' losses."""
    nothing = torch.zeros(len(losses), 1, 1, 1)
    batch = Batch(nothing, nothing, draw.timesteps, Conditioning(), draw.sources, weights=draw.weights)
    return objective.reduce(losses, batch)


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
    draws = mixed(DiffTuning(**settings))
    assert (draws.psi + draws.xi - 1).abs().max() < 1e-12
    assert (draws.psi.diff() >= 0).all() and draws.psi.min() >= 0 and draws.psi.max() <= 1
    if settings.get("psi") != "snr":
        assert draws.psi[-1] == 1


def test_power_on_equally_likely_steps_is_the_step_over_their_number():
    expected = (torch.arange(T, dtype=torch.float64) + 1) / T
    assert (mixed(DiffTuning(tau=0.7)).psi - expected**0.7).abs().max() < 1e-12


def test_a_step_is_where_the_settings_put_it():
    found = mixed(DiffTuning(psi="step", step_at=0.6)).psi
    assert found[:600].sum() == 0 and found[600:].sum() == 400  # the quantile of step i is (i + 1) / 1000


def test_psi_of_snr_is_one_less_the_share_of_signal():
    draws = mixed(DiffTuning(psi="snr"))
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
    forward = mixed(DiffTuning()).psi
    assert torch.equal(mixed(DiffTuning(), RATIO.flip(0)).psi, forward.flip(0))


# --- which rows, at which levels --------------------------------------------------------------------------------------


def test_bernoulli_draws_target_with_probability_psi_in_every_bin_of_noise():
    draws, n = mixed(DiffTuning()), 200_000
    batch = draws.draw(rng(), n)
    for part in range(20):
        inside = batch.timesteps // (T // 20) == part
        share, count = draws.psi[batch.timesteps[inside]].mean(), int(inside.sum())
        target = (~memory(batch)[inside]).double().mean()
        assert abs(target - share) <= 4 * math.sqrt(share * (1 - share) / count)
    assert memory(batch).double().mean() == pytest.approx(0.4995, abs=0.005)


def test_bernoulli_leaves_the_law_of_noise_levels_as_the_base_was_trained():
    batch = mixed(DiffTuning(tau=0.3)).draw(rng(), 50 * T)
    assert (batch.timesteps.bincount(minlength=T) - 50).abs().max() <= 1  # spread: one from each equal share


@pytest.mark.parametrize("tau", [0.3, 1.0, 2.0])
@pytest.mark.parametrize("kind", ["psi", "xi"])
def test_stratified_draws_levels_in_proportion_to_psi_and_xi(tau: float, kind: str):
    draws = mixed(DiffTuning(estimator="stratified", tau=tau))
    batch = draws.draw(rng(), 2 * 100 * T)
    weight = getattr(draws, kind)
    drawn = batch.timesteps[memory(batch) if kind == "xi" else ~memory(batch)].bincount(minlength=T)
    assert (drawn - 100 * T * weight / weight.sum()).abs().max() <= 2


def test_levels_of_target_and_memory_are_two_thirds_and_one_third_at_tau_one():
    batch = mixed(DiffTuning(estimator="stratified")).draw(rng(), DRAWS)
    u = (batch.timesteps + 1) / T
    assert u[~memory(batch)].mean() == pytest.approx(2 / 3, abs=2e-3)
    assert u[memory(batch)].mean() == pytest.approx(1 / 3, abs=2e-3)


@pytest.mark.parametrize("kept", range(1, 8))
def test_stratified_is_exact_for_any_split(kept: int):
    """All its outcomes summed with their probabilities give L_ada + L_ret, on 10 levels and 4 pictures."""
    ratio = RATIO[99::100]
    draws = mixed(DiffTuning(estimator="stratified", tau=0.7, memory_share=kept / 8 + 1e-9), ratio)
    losses = torch.from_numpy(rng().random((2, 2, 10)))  # of 2 target pictures, then of 2 of memory, at 10 levels
    objective = (draws.psi * losses[0].mean(0)).mean() + (draws.xi * losses[1].mean(0)).mean()
    batch = draws.draw(rng(), 8)
    assert memory(batch).sum() == kept and batch.weights is not None
    at = torch.stack([draws.psi / draws.psi.sum(), draws.xi / draws.xi.sum()])
    of_row = (at * losses.mean(1)).sum(1)  # expected loss of a target row and of a memory row
    assert batch.weights @ of_row[memory(batch).long()] == pytest.approx(float(objective), abs=1e-10)


def toy_gradients(settings: DiffTuning, batches: int) -> torch.Tensor:
    """(batches, 3) gradients of the batch loss of a linear model on fixed target and memory pictures."""
    draws, source = mixed(settings), rng(1)
    clean = torch.tensor([[1.0, -0.5], [0.3, 2.0]], dtype=torch.float64)  # target and memory, two numbers each
    a, b, c = 0.2, -0.1, 0.3
    found = []
    for _ in range(batches):
        batch = draws.draw(source, 32)
        alpha = ALPHAS[batch.timesteps, None]
        noise = torch.from_numpy(source.standard_normal((32, 2)))
        noisy = alpha.sqrt() * clean[memory(batch).long()] + (1 - alpha).sqrt() * noise
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
    draws = mixed(PRESETS["official_code"])
    batch, losses = draws.draw(rng(), rows), torch.from_numpy(rng(1).random(rows))
    assert draws.split(rows) == (target, kept)
    expected = losses[:target].mean() + 0.1 * losses[target:].mean()
    assert minimised(draws, batch, losses) == pytest.approx(float(expected), abs=1e-6)
    assert (draws.psi * T - torch.arange(1, T + 1)).abs().max() < 1e-9
    assert (draws.xi * T - torch.arange(T, 0, -1)).abs().max() < 1e-9


def test_reconsolidation_only_uses_no_memory_and_retention_only_leaves_the_target_alone():
    without = mixed(PRESETS["reconsolidation_only"])
    batch = without.draw(rng(), 32)
    assert not memory(batch).any() and not without.uses_memory
    assert minimised(without, batch, torch.ones(32)) == pytest.approx(0.5005, abs=1e-6)  # E[psi]
    only = mixed(PRESETS["retention_only"])
    assert (only.psi == 1).all() and only.expected_memory == pytest.approx(0.4995, abs=1e-6)
    assert minimised(only, only.draw(rng(), 32), torch.ones(32)) == pytest.approx(1.4995, abs=1e-6)


@pytest.mark.parametrize("settings", [PRESETS["standard"], DiffTuning(tau=0)])
def test_standard_and_tau_zero_are_plain_training_bit_for_bit(settings: DiffTuning):
    objective, mine, plain = mixed(settings), rng(3), rng(3)
    batch, expected = objective.draw(mine, 32), Denoising(SCHEDULE).draw(plain, 32)
    losses = torch.rand(32, generator=torch.Generator().manual_seed(0))
    assert torch.equal(batch.timesteps, expected.timesteps) and batch.sources == expected.sources
    assert torch.equal(minimised(objective, batch, losses), losses.mean()) and objective.sources == ("target",)
    assert mine.bit_generator.state == plain.bit_generator.state  # nothing more was drawn


def test_bernoulli_draws_the_levels_that_plain_training_draws():
    batch, plain = mixed(DiffTuning()).draw(rng(3), 32), Denoising(SCHEDULE).draw(rng(3), 32)
    assert torch.equal(batch.timesteps, plain.timesteps) and memory(batch).any() and not memory(batch).all()


def test_memory_weight_scales_the_memory_rows_alone():
    draws = mixed(DiffTuning(memory_weight=0.1))
    batch, losses = draws.draw(rng(), 16), torch.from_numpy(rng(1).random(16))
    expected = (losses * torch.where(memory(batch), 0.1, 1.0)).sum() / 16
    assert minimised(draws, batch, losses) == pytest.approx(float(expected), abs=1e-12)


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
        mixed(DiffTuning(**settings))


@pytest.mark.parametrize("rows", [1, 4])
def test_a_batch_too_small_for_both_is_refused(rows: int):
    draws = mixed(PRESETS["official_code"])
    with pytest.raises(Refused, match=f"a batch of {rows} rows has 0 memory rows"):
        draws.draw(rng(), rows)


def test_an_unknown_preset_is_refused_and_a_known_one_can_be_changed():
    assert preset("difftuning", tau=0.5) == DiffTuning(tau=0.5)
    with pytest.raises(Refused, match="official_code"):
        preset("offical_code")


# --- distillation -----------------------------------------------------------------------------------------------------


class Model:
    """Predicts a constant, which the untouched base has another of; counts the rows that the teacher is asked about."""

    def __init__(self) -> None:
        self.asked = 0

    def __call__(self, noisy, timesteps, condition):
        return torch.full_like(noisy, 2.0)

    def teacher(self, noisy, timesteps, condition):
        self.asked += len(noisy)
        assert (condition.class_labels == 7).all()  # those rows alone
        return torch.full_like(noisy, 5.0, dtype=torch.float64) + (timesteps - 3)[:, None, None, None]


def test_rows_of_the_teacher_are_to_match_the_untouched_base_and_the_others_the_noise():
    objective, model = MixedWithMemory(MatchingTheBase(SCHEDULE), PRESETS["distillation"], RATIO), Model()
    assert objective.sources == ("target", "teacher") and objective.settings.memory_weight == 0.05
    sources = ("target", "teacher", "target", "teacher")
    condition = Conditioning(class_labels=torch.tensor([1, 7, 1, 7]))
    batch = Batch(torch.zeros(4, 1, 2, 2), torch.ones(4, 1, 2, 2), torch.tensor([1, 2, 3, 4]), condition, sources)
    assert objective.losses(model, batch).tolist() == [1.0, 4.0, 1.0, 16.0] and model.asked == 2  # at t = 2 and 4


def test_without_rows_of_the_teacher_the_untouched_base_is_not_asked():
    model = Model()
    batch = Batch(torch.zeros(1, 1, 2, 2), torch.ones(1, 1, 2, 2), torch.tensor([1]), Conditioning(), ("target",))
    assert MatchingTheBase(SCHEDULE).losses(model, batch).tolist() == [1.0] and model.asked == 0
