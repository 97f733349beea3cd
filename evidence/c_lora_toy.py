"""Sequences of small linear tasks, learned by gradient descent through the library's adapter: seconds a sequence.

Task t has 24 inputs around a token's direction, and wants one more offset of the output at each of them. `overlap` is
the cosine of every token with one common direction, as of prompts that share a class noun.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from diffadapt.adapters import CLoRA
from diffadapt.adapters.c_lora import CLoRAAdapter

OUT, IN, RANK, PER_TASK, NOISE, STEPS, RATE = 64, 48, 4, 24, 0.15, 400, 1e-2


@dataclass(frozen=True)
class Learned:
    """A sequence that was run.

    Args:
        after: of each task the mean squared error (1 before anything is learned) right after it was learned.
        end: of each task the same after the last one.
        stored: numbers that a file holds, after each task.
    """

    after: list[float]
    end: list[float]
    stored: list[int]

    @property
    def forgetting(self) -> float:
        """How much the error of a task grew, over all but the last."""
        grown = [b - a for a, b in zip(self.after[:-1], self.end[:-1], strict=True)]
        return sum(grown) / len(grown)


def tasks(count: int, overlap: float, seed: int) -> list[tuple[Tensor, Tensor]]:
    """(inputs (24, 48), offsets (64,)) of each task."""
    draw = torch.Generator().manual_seed(seed)
    common = unit(torch.randn(IN, generator=draw))
    found = []
    for _ in range(count):
        own = torch.randn(IN, generator=draw)
        own = unit(own - (own @ common) * common)
        token = overlap * common + math.sqrt(1 - overlap**2) * own
        inputs = token + NOISE / math.sqrt(IN) * torch.randn(PER_TASK, IN, generator=draw)
        found.append((inputs, unit(torch.randn(OUT, generator=draw))))
    return found


def unit(x: Tensor) -> Tensor:
    return x / x.norm()


def learn(method: CLoRA, *, overlap: float, seed: int, count: int = 6, steps: int = STEPS) -> Learned:
    """Runs a sequence: Adam, the loss and the method's penalty, fold_() after every task."""
    draw = torch.Generator().manual_seed(seed + 1000)
    base = nn.Linear(IN, OUT, bias=False)
    with torch.no_grad():
        base.weight.copy_(torch.randn(OUT, IN, generator=draw) / math.sqrt(IN))
    base.requires_grad_(False)
    adapter = CLoRAAdapter(base, method, "layer", draw)
    wanted = [(x, base(x) + offset) for x, offset in tasks(count, overlap, seed)]
    after, stored = [], []
    for x, target in wanted:
        optimizer = torch.optim.Adam([adapter.up, adapter.down], lr=RATE)
        for _ in range(steps):
            optimizer.zero_grad()
            loss, penalty = (adapter(x) - target).square().sum(1).mean(), adapter.penalty()
            (loss if penalty is None else loss + penalty).backward()
            optimizer.step()
        after.append(error(adapter, x, target))
        adapter.observe_(x)
        adapter.fold_(draw)
        stored.append(sum(value.numel() for value in adapter.own_state().values()))
    return Learned(after, [error(adapter, x, target) for x, target in wanted], stored)


@torch.no_grad()
def error(adapter: CLoRAAdapter, x: Tensor, target: Tensor) -> float:
    return (adapter(x) - target).square().sum(1).mean().item()
