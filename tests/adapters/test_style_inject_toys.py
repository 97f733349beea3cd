"""Tasks that StyleInject can learn and LoRA of equal size cannot: two toy tasks with four styles, and one as control.

Each sample is a set of tokens of one style, which their mean gives away. The thresholds stand in each test's name.
Measured with 500 steps and seeds 0 to 2, as a share of the untouched layer's error: branches .0002 against .66 to .70
of LoRA, gains .067 to .073 against .32 to .36; the router names the style in both (1.999 of 2 bits).
"""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffadapt.adapters import Adapter, LoRA, Method, StyleInject
from diffadapt.adapters.style_inject import StyleInjectAdapter

INPUTS, OUTPUTS, TOKENS, STYLES = 24, 16, 16, 4


class Task:
    """Draws (inputs, targets, style) for a frozen linear layer and a change that depends on the style."""

    def __init__(self, kind: str, seed: int, styles: int = STYLES) -> None:
        self.kind, self.styles = kind, styles
        self.generator = torch.Generator().manual_seed(seed)
        self.layer = nn.Linear(INPUTS, OUTPUTS).requires_grad_(False)
        self.layer.weight.copy_(self.normal(OUTPUTS, INPUTS) / math.sqrt(INPUTS))
        self.layer.bias.copy_(0.1 * self.normal(OUTPUTS))
        self.means = 1.5 * F.normalize(self.normal(styles, INPUTS), dim=1) * math.sqrt(2)
        self.up = self.normal(OUTPUTS, 4) / 2  # U
        self.down = self.normal(styles, 4, INPUTS) / math.sqrt(INPUTS)  # V_k
        self.gains = 1 + torch.rand(styles, OUTPUTS, generator=self.generator)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator)

    def batch(self, size: int) -> tuple[Tensor, Tensor, Tensor]:
        style = torch.randint(self.styles, (size,), generator=self.generator)
        x = self.means[style][:, None] + self.normal(size, TOKENS, INPUTS)
        h = self.layer(x)
        if self.kind == "branches":  # y = W0 x + U V_k x
            return x, h + x @ self.down[style].mT @ self.up.T, style
        mean = h.mean(1, keepdim=True)  # y = gain_k (h - mean) + mean
        return x, self.gains[style][:, None] * (h - mean) + mean, style


def train(task: Task, method: Method, steps: int = 300) -> tuple[Adapter, float]:
    """The adapter, and its squared error on new samples as a share of the untouched layer's."""
    adapter = method.build(task.layer, "here", "self_attention.query", torch.Generator().manual_seed(0))
    parameters = [parameter for _, parameter in adapter.own_parameters()]
    optimizer = torch.optim.Adam(parameters, lr=0.02)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        x, y, _ = task.batch(32)
        optimizer.zero_grad()
        F.mse_loss(adapter(x), y).backward()
        optimizer.step()
        schedule.step()
    x, y, _ = task.batch(512)
    with torch.no_grad():
        return adapter, (F.mse_loss(adapter(x), y) / F.mse_loss(task.layer(x), y)).item()


def size(adapter: Adapter) -> int:
    return sum(parameter.numel() for _, parameter in adapter.own_parameters())


def information(adapter: Adapter, task: Task) -> float:
    """Mutual information in bits of the router's first choice and the style."""
    assert isinstance(adapter, StyleInjectAdapter)
    x, _, style = task.batch(2048)
    with torch.no_grad():
        chosen = adapter.route(x).argmax(-1)
    joint = torch.zeros(adapter.down.shape[0], task.styles)
    joint.index_put_((chosen, style), torch.tensor(1 / len(style)), accumulate=True)
    independent = joint.sum(1, keepdim=True) * joint.sum(0, keepdim=True)
    return (joint * (joint / independent).clamp(min=1e-12).log2()).sum().item()


def compare(kind: str, variance: str, seed: int, styles: int = STYLES) -> tuple[Adapter, float, float]:
    """StyleInject's adapter, its error, and that of a LoRA of at least its size."""
    injected, error = train(Task(kind, seed, styles), StyleInject(branches=4, rank=4, variance=variance))
    rank = math.ceil(size(injected) / (INPUTS + OUTPUTS))
    lora, reference = train(Task(kind, seed, styles), LoRA(rank=rank))
    assert size(lora) >= size(injected)
    return injected, error, reference


@pytest.mark.parametrize("seed", [0, 1])
def test_branches_of_their_own_are_learned_with_at_most_0_3_of_a_loras_error(seed):
    adapter, error, reference = compare("branches", "none", seed)
    assert error <= 0.3 * reference
    assert information(adapter, Task("branches", seed)) >= 1


@pytest.mark.parametrize("seed", [0, 1])
def test_gains_of_all_channels_are_learned_with_at_most_half_of_a_loras_error(seed):
    adapter, error, reference = compare("gains", "std_of_sum", seed)
    assert error <= 0.5 * reference
    assert information(adapter, Task("gains", seed)) >= 1
    _, added = train(Task("gains", seed), StyleInject(variance="none"))
    assert error <= 0.5 * added  # branches that add do not learn them either


def test_with_one_style_branches_gain_nothing_over_a_lora():
    """The control: four ranks are enough for one style, and both end at less than a thousandth of the error."""
    _, error, reference = compare("branches", "none", 0, styles=1)
    assert max(error, reference) <= 1e-3
