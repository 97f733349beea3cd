"""Diff-Tuning on a world of six numbers, where what is kept and what is lost can be counted.

Two coarse numbers say which domain a point is from, four fine ones lie on a closed curve that all domains share. The
denoiser is factorised (coarse and fine each have a network), so that the base denoises the target near the data
without having seen it, which is the method's premise. All networks of a stack train side by side in one matrix product.
"""

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from diffadapt.objectives import PRESETS, Denoising, DiffTuning, MixedWithMemory, NoiseSchedule

T, CLUSTERS, TARGETS, HIDDEN = 1000, 12, 2, 64
NULL = CLUSTERS  # the last row of the label table
ALPHAS = (1 - torch.linspace(1e-4, 2e-2, T)).cumprod(0)
RATIO = ((1 - ALPHAS) / ALPHAS).sqrt()
SEEDS = 2
pytestmark = pytest.mark.slow
LOW = 300  # steps below this are near the data


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Stack(nn.Module):
    """K denoisers: rows (K, N, D), steps and labels (K, N) -> predicted noise (K, N, D), coarse and fine apart."""

    def __init__(self, count: int, coarse: int = 2, fine: int = 4) -> None:
        super().__init__()
        source, self.widths = generator(0), (coarse, fine) if fine else (coarse,)
        wide = HIDDEN
        self.labels = nn.Parameter(torch.randn(count, CLUSTERS + 1, 8, generator=source))
        self.weights = nn.ParameterList()
        for width in self.widths:
            for inside, outside in ((width + 24, wide), (wide, wide), (wide, width)):
                self.weights.append(torch.randn(count, inside, outside, generator=source) / math.sqrt(inside))
                self.weights.append(torch.zeros(count, 1, outside))

    def forward(self, noisy: Tensor, steps: Tensor, labels: Tensor) -> Tensor:
        angle = steps[..., None] / T * 2.0 ** torch.arange(8) * math.pi / 4
        label = self.labels.gather(1, labels[..., None].expand(-1, -1, 8))
        side = torch.cat([angle.sin(), angle.cos(), label], -1)
        found = []
        for i, part in enumerate(noisy.split(self.widths, -1)):
            x = torch.cat([part, side], -1)
            for layer in range(3):
                weight, bias = self.weights[6 * i + 2 * layer], self.weights[6 * i + 2 * layer + 1]
                x = torch.baddbmm(bias, x, weight)
                x = x if layer == 2 else torch.nn.functional.silu(x)
            found.append(x)
        return torch.cat(found, -1)


def points(centres: Tensor, labels: Tensor, source: torch.Generator) -> Tensor:
    """Rows (..., 6) of domains: a coarse blob around the label's centre, and a place on the common curve."""
    angle = torch.rand(labels.shape, generator=source) * 2 * math.pi
    curve = torch.stack([angle.cos(), angle.sin(), (2 * angle).cos(), (2 * angle).sin()], -1) * 0.35
    curve = curve + 0.01 * torch.randn(curve.shape, generator=source)
    return torch.cat([centres[labels] + 0.1 * torch.randn((*labels.shape, 2), generator=source), curve], -1)


def ring(count: int, radius: float) -> Tensor:
    angle = torch.arange(count) / count * 2 * math.pi
    return radius * torch.stack([angle.cos(), angle.sin()], -1)


SOURCE = ring(CLUSTERS, 1.0)
TARGET = torch.tensor([[1.6, 0.9], [-1.5, -1.1]])  # outside the ring


def losses(model: Stack, clean: Tensor, noise: Tensor, steps: Tensor, labels: Tensor) -> Tensor:
    alpha = ALPHAS[steps][..., None]
    noisy = alpha.sqrt() * clean + (1 - alpha).sqrt() * noise
    return (model(noisy, steps, labels) - noise).square().mean(-1)


def dropped(labels: Tensor, source: torch.Generator, share: float = 0.1) -> Tensor:
    return torch.where(torch.rand(labels.shape, generator=source) < share, NULL, labels)


def pretrain(make, count: int, steps: int = 2500, rows: int = 192, **shape: int) -> Stack:
    """`count` bases of their own seeds, learned on rows that `make(labels, source)` gives."""
    model, source = Stack(count, **shape), generator(1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.0, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        labels = torch.randint(CLUSTERS, (count, rows), generator=source)
        clean = make(labels, source)
        at = torch.randint(T, (count, rows), generator=source)
        noise = torch.randn(clean.shape, generator=source)
        optimizer.zero_grad()
        losses(model, clean, noise, at, dropped(labels, source)).mean(1).sum().backward()
        optimizer.step()
        schedule.step()
    return model


@torch.no_grad()
def sample(model: Stack, labels: Tensor, width: int, seed: int = 5, steps: int = 50) -> Tensor:
    """DDIM without guidance, (K, N, width)."""
    x = torch.randn((*labels.shape, width), generator=generator(seed))
    times = torch.linspace(T - 1, 0, steps).long()
    for i, t in enumerate(times):
        alpha = ALPHAS[t]
        after = ALPHAS[times[i + 1]] if i + 1 < steps else torch.tensor(1.0)
        noise = model(x, t.expand(labels.shape), labels)
        x = after.sqrt() * (x - (1 - alpha).sqrt() * noise) / alpha.sqrt() + (1 - after).sqrt() * noise
    return x


def energy_distance(a: Tensor, b: Tensor) -> Tensor:
    """(K,) between rows (K, N, D) and (K, M, D)."""
    within = torch.cdist(a, a).mean((1, 2)) + torch.cdist(b, b).mean((1, 2))
    return 2 * torch.cdist(a, b).mean((1, 2)) - within


@dataclass
class Outcome:
    """Figures of each of the K fine-tuned networks of one variant, (K,)."""

    forgotten: Tensor  # source loss near the data under the null label, over the base's
    moved: Tensor  # ||theta - theta_0||^2
    joint: Tensor
    coarse: Tensor
    fine: Tensor


def fine_tune(base: Stack, how: list[tuple[MixedWithMemory, bool]], target: Tensor, bank: Tensor, labels: Tensor):
    """Trains one copy of every base for each way (draws, whether labels are told): a stack of K = ways x bases.

    Args:
        target, bank: (S, P, D) and (S, M, D) for S bases; labels: (P,) of the target. Memory is under the null label.
    """
    seeds, width = len(target), target.shape[-1]
    count, rows = len(how) * seeds, 32
    model = Stack(count, *base.widths, *([0] if len(base.widths) == 1 else []))
    model.load_state_dict({key: value.repeat(len(how), 1, 1) for key, value in base.state_dict().items()})
    with torch.no_grad():  # fresh rows for the new labels; the trained null row stays
        model.labels[:, :TARGETS] = 0.02 * torch.randn((count, TARGETS, 8), generator=generator(3))
    unlabelled = torch.tensor([hidden for _, hidden in how]).repeat_interleave(seeds)[:, None]
    target, bank = target.repeat(len(how), 1, 1), bank.repeat(len(how), 1, 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.0, fused=True)
    source, numbers = generator(4), np.random.default_rng(4)
    for _ in range(2000):
        draw = [draws.draw(numbers, seeds * rows) for draws, _ in how]
        memory = torch.tensor([[name == "memory" for name in each.sources] for each in draw]).view(count, rows)
        at = torch.stack([each.timesteps for each in draw]).view(count, rows)
        chosen = torch.randint(target.shape[1], (count, rows), generator=source)
        others = torch.randint(bank.shape[1], (count, rows), generator=source)
        clean = torch.where(
            memory[..., None],
            bank.gather(1, others[..., None].expand(-1, -1, width)),
            target.gather(1, chosen[..., None].expand(-1, -1, width)),
        )
        given = torch.where(memory | unlabelled, NULL, dropped(labels[chosen], source))
        noise = torch.randn(clean.shape, generator=source)
        optimizer.zero_grad()
        losses(model, clean, noise, at, given).mean(1).sum().backward()  # none of these ways has weights
        optimizer.step()
    return model


@torch.no_grad()
def loss_near_data(model: Stack, clean: Tensor) -> Tensor:
    """(K,) loss below `LOW` under the null label, the same noise for every model."""
    source = generator(6)
    noise = torch.randn(clean.shape, generator=source)
    at = torch.randint(LOW, clean.shape[:2], generator=source)
    return losses(model, clean, noise, at, torch.full(clean.shape[:2], NULL)).mean(1)


def mixed(settings: DiffTuning) -> MixedWithMemory:
    return MixedWithMemory(Denoising(NoiseSchedule(alphas_cumprod=ALPHAS, prediction_type="epsilon")), settings, RATIO)


def inverted() -> MixedWithMemory:
    """Memory near pure noise and target near the data: the wrong way round."""
    draws = mixed(PRESETS["difftuning"])
    draws.psi, draws.xi = draws.xi, draws.psi
    return draws


VARIANTS = {  # draws, and whether the target's labels are hidden
    "plain": (mixed(PRESETS["standard"]), False),
    "diff-tuning": (mixed(PRESETS["difftuning"]), False),
    "inverted": (inverted(), False),
    "plain, no labels": (mixed(PRESETS["standard"]), True),
    "diff-tuning, no labels": (mixed(PRESETS["difftuning"]), True),
}


@pytest.fixture(scope="module")
def outcomes() -> dict[str, Outcome]:
    base = pretrain(lambda labels, source: points(SOURCE, labels, source), SEEDS)
    bank = sample(base, torch.randint(CLUSTERS, (SEEDS, 5000), generator=generator(7)), 6)
    labels = torch.arange(8) % TARGETS
    target = points(TARGET, labels.expand(SEEDS, -1), generator(8))
    model = fine_tune(base, list(VARIANTS.values()), target, bank, labels)
    ways = len(VARIANTS)
    held_out = points(SOURCE, torch.randint(CLUSTERS, (SEEDS, 2000), generator=generator(9)), generator(9))
    asked = (torch.arange(600) % TARGETS).expand(SEEDS, -1)
    truth = points(TARGET, asked, generator(10)).repeat(ways, 1, 1)
    hidden = torch.tensor([each for _, each in VARIANTS.values()]).repeat_interleave(SEEDS)[:, None]
    made = sample(model, torch.where(hidden, NULL, asked.repeat(ways, 1)), 6)
    found = {
        "forgotten": loss_near_data(model, held_out.repeat(ways, 1, 1)) / loss_near_data(base, held_out).repeat(ways),
        "moved": sum(
            (after - before.repeat(ways, 1, 1)).detach().square().sum((1, 2))
            for after, before in zip(model.weights, base.weights, strict=True)
        ),
        "joint": energy_distance(made, truth),
        "coarse": energy_distance(made[..., :2], truth[..., :2]),
        "fine": energy_distance(made[..., 2:], truth[..., 2:]),
    }
    split = {key: torch.as_tensor(value).reshape(ways, SEEDS) for key, value in found.items()}
    return {name: Outcome(**{key: value[i] for key, value in split.items()}) for i, name in enumerate(VARIANTS)}


def test_a_plain_fine_tuning_forgets_near_the_data_and_diff_tuning_does_not(outcomes):
    assert (outcomes["diff-tuning"].forgotten <= 1.15).all()
    assert (outcomes["plain"].forgotten >= 1.8).all()  # measured 1.97 to 2.16


def test_b_diff_tuning_moves_the_weights_less(outcomes):
    assert outcomes["diff-tuning"].moved.mean() <= 0.7 * outcomes["plain"].moved.mean()


def test_c_what_is_shared_is_sampled_better_with_diff_tuning(outcomes):
    assert outcomes["diff-tuning"].fine.mean() < outcomes["plain"].fine.mean()


def test_d_the_wrong_way_round_is_worse(outcomes):
    assert outcomes["inverted"].joint.mean() > outcomes["diff-tuning"].joint.mean()


def test_e_without_a_condition_that_tells_them_apart_the_source_leaks_into_the_target(outcomes):
    assert outcomes["diff-tuning, no labels"].coarse.mean() >= 5 * outcomes["plain, no labels"].coarse.mean()


def test_f_an_unlabelled_lattice_of_blobs_leaks_the_same_way():
    lattice = torch.cartesian_prod(torch.arange(4.0), torch.arange(3.0)) * 0.6 - torch.tensor([0.9, 0.6])

    def blobs(centres: Tensor, labels: Tensor, source: torch.Generator) -> Tensor:
        return centres[labels] + 0.05 * torch.randn((*labels.shape, 2), generator=source)

    base = pretrain(lambda labels, source: blobs(lattice, labels, source), SEEDS, coarse=2, fine=0)
    hidden = torch.full((SEEDS, 5000), NULL)
    bank, labels = sample(base, hidden, 2, seed=7), torch.arange(24) % TARGETS
    target = blobs(TARGET, labels.expand(SEEDS, -1), generator(8))
    model = fine_tune(base, [VARIANTS["plain, no labels"], VARIANTS["diff-tuning, no labels"]], target, bank, labels)
    truth = blobs(TARGET, (torch.arange(600) % TARGETS).expand(SEEDS, -1), generator(10)).repeat(2, 1, 1)
    plain, mixed_in = energy_distance(sample(model, hidden[:, :600].repeat(2, 1), 2), truth).split(SEEDS)
    # measured 3.9 to 4.6 with 2 to 4 seeds, where plain fine-tuning scatters by a factor of eight
    assert mixed_in.mean() >= 3 * plain.mean() and (mixed_in > 1.4 * plain).all()
