"""The optimizer that trains is AdamW, whichever way torch computes it."""

import pytest
import torch

from diffadapt.training.optimizer import build_optimizer


def test_adamw_takes_the_steps_of_its_paper():
    """Loshchilov and Hutter 2019, algorithm 2, three steps by hand, for groups of their own rate and decay."""
    generator = torch.Generator().manual_seed(0)
    start = [torch.randn(3, 2, generator=generator, dtype=torch.float64) for _ in range(2)]
    parameters = [torch.nn.Parameter(each.clone()) for each in start]
    rates, decays = (1e-2, 3e-2), (0.1, 0.0)
    groups = [
        {"params": [p], "lr": rate, "weight_decay": decay}
        for p, rate, decay in zip(parameters, rates, decays, strict=True)
    ]
    optimizer = build_optimizer("adamw", groups, weight_decay=0.5)
    expected, m, v = [each.clone() for each in start], [0.0, 0.0], [0.0, 0.0]
    for step in range(1, 4):
        for i, parameter in enumerate(parameters):
            gradient = torch.randn(3, 2, generator=generator, dtype=torch.float64)
            parameter.grad = gradient.clone()
            m[i], v[i] = 0.9 * m[i] + 0.1 * gradient, 0.999 * v[i] + 0.001 * gradient.square()
            whole = (m[i] / (1 - 0.9**step)) / ((v[i] / (1 - 0.999**step)).sqrt() + 1e-8)
            expected[i] = expected[i] - rates[i] * (decays[i] * expected[i] + whole)
        optimizer.step()
    for parameter, each in zip(parameters, expected, strict=True):
        torch.testing.assert_close(parameter.detach(), each, atol=1e-9, rtol=1e-9)


def test_its_state_goes_on_where_it_was_saved():
    def run(optimizer: torch.optim.Optimizer, parameter: torch.nn.Parameter, steps: range) -> None:
        for step in steps:
            parameter.grad = torch.full_like(parameter, 0.1 * step - 0.2)
            optimizer.step()

    whole = torch.nn.Parameter(torch.ones(4))
    first = build_optimizer("adamw", [{"params": [whole], "lr": 0.1}], weight_decay=0.01)
    run(first, whole, range(6))
    half = torch.nn.Parameter(torch.ones(4))
    before = build_optimizer("adamw", [{"params": [half], "lr": 0.1}], weight_decay=0.01)
    run(before, half, range(3))
    again = build_optimizer("adamw", [{"params": [half], "lr": 0.1}], weight_decay=0.01)
    again.load_state_dict(before.state_dict())
    run(again, half, range(3, 6))
    assert torch.equal(whole, half) and half[0].item() != pytest.approx(1.0)
