"""Diff-Tuning: re-learn near pure noise, keep what the base knows near the data.

    L_ada = E_t,x~target [ psi(t) l(x, t) ]     L_ret = E_t,x~memory [ xi(t) l(x, t) ]     xi = 1 - psi

(Zhong et al. 2024, arXiv:2406.00773, section 3.3). `l` is the loss of a row as the base has it, whatever it predicts;
memory are pictures that the untouched base made, and psi grows with noise (`psi.py`). Only which rows are noised, at
which levels, is decided here: a training costs what it costs without. The loss is `weights @ losses`.

Estimators of L_ada + L_ret, equal in expectation:

    bernoulli     draw t as the base was trained, then target with probability psi(t), else memory; plain mean
                  (the paper, appendix B.2)
    stratified    n target rows at t ~ p psi / E[psi] and m memory rows at t ~ p xi / E[xi];
                  E[psi] mean(target) + E[xi] mean(memory), for any n and m
    weighted      n target and m memory rows at t ~ p, each times psi or xi; the most variance

and `official_code`, which is another objective: a fifth of the rows are memory, at t with probabilities (i + 1)^tau
and (T - i)^tau, and mean(target) + 0.1 mean(memory) is minimised: a tenth of the paper's retention.
"""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ..config import check, option
from ..errors import Refused
from .denoising import Denoising
from .objective import Batch, Draw, Model, Objective, spread
from .psi import FAMILIES, noise_quantile, psi

Estimator = Literal["bernoulli", "stratified", "weighted", "official_code"]
ESTIMATORS: tuple[Estimator, ...] = ("bernoulli", "stratified", "weighted", "official_code")
MEMORY_CONDITIONS = ("null", "default_prompt", "generated")


@dataclass(frozen=True, kw_only=True)
class DiffTuning:
    """Settings of Diff-Tuning; the defaults are the paper's."""

    estimator: str = option("bernoulli", "how the two losses are estimated", choices=ESTIMATORS)
    psi: str = option("power", "share of a noise level that is re-learned: its family", choices=FAMILIES)
    tau: float = option(1.0, "exponent of power; 0 is plain training", low=0)
    step_at: float = option(0.3, "noise-level quantile at which step goes from kept to re-learned", low=0, high=1)
    psi_table: tuple[float, ...] = option((), "values of table at equally spaced quantiles", low=0, high=1)
    reconsolidate: bool = option(True, "weigh target pictures by psi; false: by 1 at every noise level")
    retain: bool = option(True, "train on memory, weighed by 1 - psi; false: on none")
    memory_weight: float = option(1.0, "factor of the memory's loss", low=0)
    memory_share: float = option(0.5, "share of memory rows where the estimator fixes it", low=0, high=1)
    memory_condition: str = option(
        "null", "what memory is conditioned on: nothing, one prompt of no content, or the prompt that made it",
        choices=MEMORY_CONDITIONS,
    )  # fmt: skip
    distill: bool = option(False, "keep by matching the untouched base on noised target pictures, without a memory")


PRESETS = {
    "difftuning": DiffTuning(),
    "official_code": DiffTuning(estimator="official_code", memory_weight=0.1, memory_share=0.2),
    "reconsolidation_only": DiffTuning(estimator="stratified", retain=False),
    "retention_only": DiffTuning(estimator="stratified", reconsolidate=False),
    "distillation": DiffTuning(distill=True, memory_weight=0.05),
    "standard": DiffTuning(reconsolidate=False, retain=False),
}


class MixedWithMemory(Objective):
    """Diff-Tuning's mixture of target and memory rows around the loss of a row.

    Args:
        objective: gives each row its loss, whatever the base predicts.
        settings: of Diff-Tuning.
        ratio: (T,) noise ratio sigma / alpha of every training step of the base, all of them equally likely.

    Attributes:
        psi, xi: (T,) float64 weights of target and memory at every step.

    Raises:
        Refused: settings that do not fit together, a psi that decreases.
    """

    def __init__(self, objective: Objective, settings: DiffTuning, ratio: Tensor) -> None:
        check(settings, "diff_tuning")
        self.settings, self.length, self.objective = settings, len(ratio), objective
        quantile = noise_quantile(ratio, ratio)
        share = psi(
            settings.psi, ratio, quantile,  # pyright: ignore[reportArgumentType]
            tau=settings.tau, step_at=settings.step_at, table=settings.psi_table,
        )  # fmt: skip
        kept = 1 - share
        if settings.estimator == "official_code":  # i + 1 and T - i, each to the power of tau, over T
            share, kept = quantile**settings.tau, (1 - quantile + 1 / self.length) ** settings.tau
        self.psi = share if settings.reconsolidate else torch.ones_like(share)
        self.xi = kept if settings.retain else torch.zeros_like(share)
        self.plain = bool((self.psi == 1).all() and (self.xi == 0).all())
        kept_by = "teacher" if settings.distill else "memory"
        self.sources = ("target", kept_by) if self.uses_memory else ("target",)  # pyright: ignore
        if settings.estimator == "bernoulli" and not self.plain and (self.psi + self.xi - 1).abs().max() > 1e-9:
            raise Refused(
                "bernoulli draws each row from target or memory, so their weights must sum to 1 at every noise level; "
                "with reconsolidate or retain off use stratified or weighted"
            )

    @property
    def uses_memory(self) -> bool:
        """Whether any row comes from memory or the teacher."""
        return bool((self.xi > 0).any())

    @property
    def expected_memory(self) -> float:
        """E[xi], the share of memory rows of `bernoulli`."""
        return float(self.xi.mean())

    def split(self, rows: int) -> tuple[int, int]:
        """(target, memory) rows of a batch where the estimator fixes them.

        Raises:
            Refused: a batch too small for both.
        """
        if not self.uses_memory:
            return rows, 0
        kept = int(rows * self.settings.memory_share)  # rounded down, as the official code does
        if not 0 < kept < rows:
            raise Refused(
                f"a batch of {rows} rows has {kept} memory rows at memory_share = {self.settings.memory_share:g}; "
                "expected at least one of target and of memory: raise batch_size, or use bernoulli"
            )
        return rows - kept, kept

    def draw(self, rng: np.random.Generator, batch_size: int) -> Draw:
        """The rows of one batch; the levels are spread over their law, one from each equal share of it."""
        settings, rows = self.settings, batch_size
        if self.plain:  # nothing else is drawn: bitwise what plain training draws
            return Draw(self._uniform(rng, rows), ("target",) * rows)
        if settings.estimator == "bernoulli":
            timesteps = self._uniform(rng, rows)
            memory = torch.from_numpy(rng.random(rows)) >= self.psi[timesteps]
            weights = torch.where(memory, settings.memory_weight, 1.0).double() / rows
            return Draw(timesteps, self._names(memory), None if settings.memory_weight == 1 else weights)
        target, kept = self.split(rows)
        memory = torch.arange(rows) >= target
        if settings.estimator == "weighted":
            timesteps = torch.cat([self._uniform(rng, target), self._uniform(rng, kept)])
            each = torch.where(memory, self.xi[timesteps] * settings.memory_weight, self.psi[timesteps])
        else:
            timesteps = torch.cat([self._by(self.psi, rng, target), self._by(self.xi, rng, kept)])
            one = torch.ones((), dtype=torch.float64)
            exact = settings.estimator == "stratified"
            psi_mean, xi_mean = (self.psi.mean(), self.xi.mean()) if exact else (one, one)
            each = torch.where(memory, xi_mean * settings.memory_weight, psi_mean)
        return Draw(timesteps, self._names(memory), each / torch.where(memory, kept, target))

    def losses(self, model: Model, batch: Batch) -> Tensor:
        return self.objective.losses(model, batch)

    def reduce(self, losses: Tensor, batch: Batch) -> Tensor:
        return losses.mean() if batch.weights is None else batch.weights.to(losses) @ losses

    def _names(self, memory: Tensor) -> tuple[str, ...]:
        return tuple(self.sources[each] for each in memory.tolist())

    def _uniform(self, rng: np.random.Generator, rows: int) -> Tensor:
        return torch.from_numpy(spread(rng, rows) * self.length).long().clamp(max=self.length - 1)

    def _by(self, weight: Tensor, rng: np.random.Generator, rows: int) -> Tensor:
        """Steps with probabilities proportional to a weight, by the inverse of their cumulative sum."""
        total = weight.cumsum(0)
        found = torch.searchsorted(total, torch.from_numpy(spread(rng, rows)) * total[-1], right=True)
        return found.clamp(max=self.length - 1)


class MatchingTheBase(Denoising):
    """Denoising, where rows of a "teacher" are to be denoised as the untouched base denoises them.

    (Zhong et al. 2024, appendix C, with student and teacher under the null condition: matching a conditional student
    to it would unlearn the target.) Those rows are target pictures whose condition is the null one.
    """

    def target(self, model: Model, noisy: Tensor, batch: Batch) -> Tensor:
        wanted, taught = super().target(model, noisy, batch), batch.of("teacher")
        if taught.any():
            answers = model.teacher(noisy[taught], batch.timesteps[taught], batch.condition.rows(taught))
            wanted = wanted.index_copy(0, taught.nonzero().flatten(), answers.to(wanted))
        return wanted


def preset(name: str, **changes: object) -> DiffTuning:
    """A preset with some settings changed; raises Refused for an unknown name."""
    if name not in PRESETS:
        raise Refused(f"objective {name!r}; expected {', '.join(PRESETS)}")
    return replace(PRESETS[name], **changes)  # pyright: ignore[reportArgumentType]
