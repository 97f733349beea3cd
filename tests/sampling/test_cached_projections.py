"""Keys and values once per generation."""

import pytest
import torch

from diffadapt.adapters import LoRA, attach
from diffadapt.sampling import sample as sampling
from diffadapt.sampling.cached_projections import ROLES, cached_projections


def calls_of(base, run) -> int:
    """How often the text projections compute in `run`."""
    count = 0

    def counting(*_):
        nonlocal count
        count += 1

    hooks = [base.module(p).register_forward_hook(counting) for role in ROLES for p in base.roles[role]]
    run()
    for hook in hooks:
        hook.remove()
    return count


@pytest.fixture
def base(tiny_v_base):
    return tiny_v_base


def test_18_pictures_are_the_same_and_each_projection_computes_once(base, monkeypatch):
    attachment = attach(base, LoRA(rank=2), ["cross_attention.*"])
    with torch.no_grad():
        for parameter in attachment.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
    line = sampling.default_line(base, "a cat", 0, steps=3)
    pictures = []
    layers = sum(len(base.roles[role]) for role in ROLES)
    assert calls_of(base, lambda: pictures.append(sampling.generate(base, [line])[0])) == layers
    import contextlib

    monkeypatch.setattr(sampling, "cached_projections", lambda _: contextlib.nullcontext())
    assert calls_of(base, lambda: pictures.append(sampling.generate(base, [line])[0])) == 3 * layers
    assert torch.equal(pictures[0], pictures[1])


def test_18_another_text_is_computed_anew_and_nothing_stays_behind(base):
    path = base.roles[ROLES[0]][0]
    layer, one, other = base.module(path), torch.randn(1, 16, 32), torch.randn(1, 16, 32)
    with cached_projections(base):
        inside = base.module(path)
        assert torch.equal(inside(one), layer(one)) and inside(one) is inside(one)
        assert torch.equal(inside(other), layer(other))
    assert base.module(path) is layer


def test_an_adapter_that_looks_at_the_noise_level_is_asked_at_every_step(base):
    attachment = attach(base, LoRA(rank=2), ["cross_attention.key"])
    for adapter in attachment.adapters.values():
        adapter.needs = frozenset({"timesteps"})
    line = sampling.default_line(base, "a cat", 0, steps=3)
    layers = len(base.roles[ROLES[0]])
    assert calls_of(base, lambda: sampling.generate(base, [line])) == 3 * layers + layers
