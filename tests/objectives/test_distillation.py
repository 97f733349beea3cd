"""Distillation: predictions of teachers, whatever they predict and whatever schedule they were trained on."""

import numpy as np
import pytest
import torch

from diffadapt.adapters import StyleInject, attach
from diffadapt.conditioning import Conditioning
from diffadapt.errors import Refused
from diffadapt.objectives import Batch, Distillation, NoiseSchedule, Teacher
from diffadapt.objectives.objective import spread_timesteps
from diffadapt.training.fit import AttachedBase

T = 1000
COSINE = torch.cos(torch.linspace(0.01, 1.56, T)).square()
LINEAR = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, T).square(), 0)
TYPES = ("epsilon", "v_prediction", "sample", "flow")


def schedule(prediction_type: str, alphas: torch.Tensor = COSINE) -> NoiseSchedule:
    return NoiseSchedule(alphas_cumprod=alphas, prediction_type=prediction_type)


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def batch(latents, noise, timesteps, *, sources=None, captions=None) -> Batch:
    rows = len(latents)
    return Batch(
        latents, noise, timesteps, Conditioning(text=torch.zeros(rows, 1, 1)), sources or ("teacher",) * rows,
        captions=captions or ("a cat",) * rows,
    )  # fmt: skip


def knowing(its: NoiseSchedule, latents, noise) -> Teacher:
    """A teacher that knows the picture and the noise, and answers in its own way."""

    def denoise(noisy, timesteps, condition):
        alpha, sigma = its.levels(timesteps, noisy)
        torch.testing.assert_close(noisy, alpha * latents + sigma * noise, atol=0.01, rtol=0.01)  # x_t as it knows it
        return its.target(latents, noise, timesteps)

    return Teacher(denoise=denoise, condition=lambda captions: Conditioning(text=torch.zeros(1)), schedule=its)


@pytest.mark.parametrize("its_type", TYPES)
@pytest.mark.parametrize("own_type", TYPES)
def test_a_teacher_of_any_prediction_type_and_schedule_is_asked_at_the_same_noise_and_answers_as_the_student_would(
    its_type, own_type
):
    latents, noise = normal(5, 2, 3, 3, seed=1), normal(5, 2, 3, 3, seed=2)
    timesteps = torch.tensor([100, 200, 400, 600, 750])
    for alphas in (COSINE, LINEAR):
        its, own = schedule(its_type, alphas), schedule(own_type)
        answer = knowing(its, latents, noise).answer(
            own.add_noise(latents, noise, timesteps), timesteps, ["a cat"] * 5, own
        )
        same = torch.equal(its.noise_ratio(), own.noise_ratio())
        tolerance = 1e-4 if same else 0.03  # other steps are a little apart
        torch.testing.assert_close(answer, own.target(latents, noise, timesteps), atol=tolerance, rtol=tolerance)


def test_the_same_schedule_is_asked_at_the_same_steps():
    assert torch.equal(knowing(schedule("epsilon"), 0, 0).steps_of(schedule("v_prediction")), torch.arange(T))


def test_steps_of_another_schedule_have_the_nearest_noise():
    its, own = schedule("epsilon", LINEAR), schedule("v_prediction")
    steps = knowing(its, 0, 0).steps_of(own)
    inside = (own.noise_ratio() > its.noise_ratio()[0]) & (own.noise_ratio() < its.noise_ratio()[-1])
    apart = (its.noise_ratio().log()[None] - own.noise_ratio().log()[:, None]).abs()  # (T, T)
    assert inside.sum() > 700
    torch.testing.assert_close(apart.gather(1, steps[:, None])[:, 0], apart.min(1).values)


def test_the_loss_is_the_mean_square_difference_times_the_rows_weight():
    own = schedule("epsilon")
    teacher = Teacher(
        denoise=lambda noisy, *_: torch.full_like(noisy, 2.0),
        condition=lambda captions: Conditioning(text=torch.zeros(1)), schedule=own,
    )  # fmt: skip
    timesteps = torch.tensor([10, 500])
    objective = Distillation(own, {"teacher": teacher}, snr_gamma=5)
    losses = objective.losses(
        lambda noisy, *_: torch.full_like(noisy, 5.0), batch(normal(2, 1, 2, 2), normal(2, 1, 2, 2), timesteps)
    )
    torch.testing.assert_close(losses, 9 * own.weight(timesteps, 5.0))
    assert objective.reduce(losses, None) == losses.mean()


def test_each_row_is_asked_of_its_own_teacher_with_its_own_caption():
    own, heard = schedule("epsilon"), {}

    def teacher(name: str, value: float) -> Teacher:
        def condition(captions):
            heard[name] = list(captions)
            return Conditioning(text=torch.zeros(1))

        return Teacher(denoise=lambda noisy, *_: torch.full_like(noisy, value), condition=condition, schedule=own)

    objective = Distillation(own, {"ink": teacher("ink", 1.0), "oil": teacher("oil", 2.0)})
    rows = batch(
        normal(3, 1, 2, 2),
        normal(3, 1, 2, 2),
        torch.tensor([1, 2, 3]),
        sources=("oil", "ink", "oil"),
        captions=("a", "b", ""),
    )
    losses = objective.losses(lambda noisy, *_: torch.zeros_like(noisy), rows)
    assert losses.tolist() == [4, 1, 4] and heard == {"ink": ["b"], "oil": ["a", ""]}


def test_rows_are_shared_out_evenly_over_the_sources():
    own = schedule("epsilon")
    teacher = knowing(own, 0, 0)
    objective = Distillation(own, dict.fromkeys(("a", "b", "c"), teacher))
    draws = [objective.draw(np.random.default_rng(seed), 7) for seed in range(60)]
    for draw in draws:
        counts = [draw.sources.count(name) for name in "abc"]
        assert sum(counts) == 7 and max(counts) - min(counts) <= 1
    assert {draw.sources for draw in draws if draw.sources != draws[0].sources}
    assert all(sum(draw.sources.count(name) for draw in draws) in range(120, 161) for name in "abc")


def test_noise_levels_are_spread_over_all_and_drawn_behind_the_sources():
    own = schedule("epsilon")
    objective = Distillation(own, dict.fromkeys(("a", "b", "c"), knowing(own, 0, 0)))
    rng = np.random.default_rng(4)
    order = rng.permutation(5) + rng.integers(5)
    found = objective.draw(np.random.default_rng(4), 5)
    assert found.sources == tuple("abc"[i % 3] for i in order)
    assert torch.equal(found.timesteps, spread_timesteps(rng, 5, own.length)) and found.weights is None


def test_no_teacher_is_refused():
    with pytest.raises(Refused, match="needs a teacher"):
        Distillation(schedule("epsilon"), {})


# --- on bases ---------------------------------------------------------------------------------------------------------


def of_base(base) -> Teacher:
    return Teacher(denoise=base.denoise, condition=base.condition, schedule=base.noise_schedule)


def rows_of(base, captions) -> Batch:
    count = len(captions)
    latents = normal(count, 4, 8, 8, seed=1)
    return Batch(
        latents, normal(count, 4, 8, 8, seed=2), torch.tensor([5, 300, 900])[:count], base.condition(captions),
        ("teacher",) * count, captions=tuple(captions),
    )  # fmt: skip


def test_the_base_as_its_own_teacher_has_no_loss_and_no_gradient_at_the_start(tiny_v_base, tiny_v_folder):
    from diffadapt.bases import load_base

    other = load_base(tiny_v_folder, device="cpu")
    attachment = attach(tiny_v_base, StyleInject(rank=2))
    objective = Distillation(tiny_v_base.noise_schedule, {"teacher": of_base(other)}, snr_gamma=5)
    rows = rows_of(tiny_v_base, ["a cat", "a dog", ""])
    losses = objective.losses(AttachedBase(tiny_v_base, {"adapter": attachment}), rows)
    assert torch.equal(losses, torch.zeros(3))
    objective.reduce(losses, rows).backward()
    assert all(parameter.grad is None or not parameter.grad.any() for parameter in attachment.parameters())
    attachment.detach()


def test_with_two_text_encoders_the_gradient_reaches_the_students_adapters_alone(tiny_v_base, tiny_base):
    """Student v with one text encoder, teacher epsilon with another (and another UNet and schedule)."""
    with torch.no_grad():
        for parameter in tiny_base.text_encoder.parameters():
            parameter += 0.05 * normal(*parameter.shape)
    attachment = attach(tiny_v_base, StyleInject(rank=2))
    objective = Distillation(tiny_v_base.noise_schedule, {"teacher": of_base(tiny_base)})
    rows = rows_of(tiny_v_base, ["a cat", "a dog"])
    loss = objective.reduce(objective.losses(AttachedBase(tiny_v_base, {"adapter": attachment}), rows), rows)
    loss.backward()
    own = {id(parameter) for parameter in attachment.parameters()}
    assert any(parameter.grad is not None and parameter.grad.any() for parameter in attachment.parameters())
    for base in (tiny_v_base, tiny_base):
        for part in (base.denoiser, base.text_encoder, base.vae):
            assert all(parameter.grad is None for parameter in part.parameters() if id(parameter) not in own)
    attachment.detach()
