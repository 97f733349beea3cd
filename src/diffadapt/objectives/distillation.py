"""Distillation: the adapted base predicts what other models predict.

    L = E |p_T(x_t, t, c_T) - p_S(x_t, t, c_S)|^2

(StyleInject, Zhou et al. 2024, arXiv:2401.13942: community models into their base, whose own pictures nobody has. Which
loss and weights the paper takes is not known; this is the plain matching of predictions.) c_T and c_S are one caption
as teacher and student read it: with one text encoder or with two, in one language or in two.

A teacher may predict something else than the student, under another noise schedule. It is asked at its own step of the
nearest ratio sigma / alpha, with x_t brought to its scale, and its answer is written as what the student predicts:
exact where the schedules are the same.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..conditioning import Conditioning
from ..errors import Refused
from ..noise_schedule import NoiseSchedule
from .objective import Batch, Draw, Model, Objective, spread_timesteps


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """A frozen model as a student asks it.

    Args:
        denoise: (noisy (N, C, h, w), timesteps (N,), condition) -> its prediction (N, C, h, w).
        condition: the student's captions -> what the teacher is conditioned on.
        schedule: how it mixes data with noise, and what it predicts.
    """

    denoise: Callable[[Tensor, Tensor, Conditioning], Tensor]
    condition: Callable[[Sequence[str]], Conditioning]
    schedule: NoiseSchedule

    @torch.no_grad()
    def answer(self, noisy: Tensor, timesteps: Tensor, captions: Sequence[str], asking: NoiseSchedule) -> Tensor:
        """Its prediction (N, C, h, w) float32 for rows of a student of schedule `asking`, as that would predict it."""
        own = self.steps_of(asking).to(timesteps.device)[timesteps]
        alpha, sigma = asking.levels(timesteps, noisy)
        its_alpha, its_sigma = self.schedule.levels(own, noisy)
        its_noisy = noisy * (torch.hypot(its_alpha, its_sigma) / torch.hypot(alpha, sigma))
        prediction = self.denoise(its_noisy, own, self.condition(captions)).float()
        own_form, asked_form = self.schedule.parametrisation, asking.parametrisation
        if own_form.name == asked_form.name:  # the same thing at the same ratio, whatever the scale of x_t
            return prediction
        sample = own_form.sample(prediction, its_noisy, its_alpha, its_sigma)
        noise = own_form.noise(prediction, its_noisy, its_alpha, its_sigma)
        return asked_form.target(sample, noise, alpha, sigma)

    def steps_of(self, asking: NoiseSchedule) -> Tensor:
        """(T,) for each step of a student's schedule, the teacher's step of the nearest ratio sigma / alpha."""
        low, high = 1e-9, 1e9  # a first step without noise and a last one without data
        own, other = (each.noise_ratio().clamp(low, high).log() for each in (self.schedule, asking))
        above = torch.searchsorted(own, other).clamp(max=len(own) - 1)
        below = (above - 1).clamp(min=0)
        nearer = (other - own[below]).abs() < (own[above] - other).abs()
        return torch.where(nearer, below, above)


class Distillation(Objective):
    """Matches the predictions of one teacher or several; each row has one.

    Args:
        schedule: how the student mixes data with noise, and what it predicts.
        teachers: source of rows -> the teacher that they are asked of; a batch is shared out evenly over the sources.
        snr_gamma: Min-SNR gamma of the rows' weights, 0 for none.
    """

    def __init__(self, schedule: NoiseSchedule, teachers: Mapping[str, Teacher], *, snr_gamma: float = 0.0) -> None:
        if not teachers:
            raise Refused("distillation needs a teacher; none was given")
        self.schedule, self.teachers, self.snr_gamma = schedule, dict(teachers), snr_gamma
        self.sources = tuple(teachers)

    def draw(self, rng: np.random.Generator, batch_size: int) -> Draw:
        names = [self.sources[i % len(self.sources)] for i in rng.permutation(batch_size) + rng.integers(batch_size)]
        return Draw(spread_timesteps(rng, batch_size, self.schedule.length), tuple(names))

    def losses(self, model: Model, batch: Batch) -> Tensor:
        noisy = self.schedule.add_noise(batch.latents, batch.noise, batch.timesteps)
        prediction = model(noisy, batch.timesteps, batch.condition).float()
        target = torch.empty_like(prediction)
        for source, teacher in self.teachers.items():
            rows = batch.of(source).nonzero().squeeze(1)
            if len(rows):
                captions = [batch.captions[i] for i in rows.tolist()]
                target[rows] = teacher.answer(noisy[rows], batch.timesteps[rows], captions, self.schedule)
        error = (prediction - target).square().mean((1, 2, 3))
        return error * self.schedule.weight(batch.timesteps, self.snr_gamma)

    def reduce(self, losses: Tensor, batch: Batch) -> Tensor:
        return losses.mean()
