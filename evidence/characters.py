"""Shared by CL-1 and CL-2: ten similar characters learned one after another, and how a sequence is scored."""

from typing import Any

import torch
from torch import Tensor
from unit_cost import WHOLE, Cost, cost

from diffadapt.adapters import Method
from diffadapt.data.demo_characters import draw_demo_characters
from diffadapt.data.sequence import load_sequence
from diffadapt.evidence import Context, Finished
from diffadapt.recipes.sequence import train_sequence

NOUN, TASKS, SHORT, TUNING_SEED = "animal", 10, 3, 100
KEYS_AND_VALUES = ("cross_attention.key", "cross_attention.value")


def learn(context: Context, method: Method, *, rate: float, count: int, seed: int, **settings: Any) -> dict[str, Any]:
    """Learns the first characters in sequence; the figures of the sequence."""
    tasks = load_sequence(draw_demo_characters(context.shared / "demo"), NOUN)[:count]
    run = train_sequence(
        context.base, tasks, method=method, out=context.folder, seed=seed, learning_rate=rate, steps=150,
        batch_size=2, prior_pictures=24, pairs=0, memory_bank=str(context.shared / f"bank-{NOUN}"), quiet=True,
        **settings,
    )  # fmt: skip
    found = run.metrics["sequence"]
    names = ("scores", "average", "forgetting", "forgetting_from_best", "mmd_at_end", "mmd_since_learned")
    by_probe, by_second = ({name: seen[name] for name in names} for seen in (found, found["second"]))
    return by_probe | {"second": by_second, "bytes": run.metrics["adapter_bytes"]}


def cost_of(count: int) -> Cost:
    """Of a sequence: 150 steps a task, and 8 pictures of every concept so far after each."""
    return cost("sequence, C-LoRA", 150 * count, 8 * count * (count + 1) / 2, sampling=WHOLE)


def column(runs: list[Finished], name: str) -> Tensor:
    """(seeds, 1) of one figure of whole sequences, for intervals."""
    return torch.tensor([[float(each.scores[name])] for each in runs])


def by_concept(runs: list[Finished], name: str, *, second: bool = False) -> Tensor:
    """(concepts, seeds) of 1000 times an MMD: "mmd_at_end" (A_mmd is its mean) or "mmd_since_learned" (F_mmd)."""
    return 1000 * torch.tensor([(each.scores["second"] if second else each.scores)[name] for each in runs]).T


def fabricated(average: float, at_end: float, since: float, generator: torch.Generator | None = None) -> dict[str, Any]:
    """Scores of a sequence that nobody ran; with a generator every concept's MMD scatters by 5 %."""

    def scattered(value: float, count: int) -> list[float]:
        noise = torch.zeros(count) if generator is None else 0.05 * torch.randn(count, generator=generator)
        return (value * (1 + noise)).tolist()

    def seen() -> dict[str, Any]:
        return {
            "scores": [], "average": average, "forgetting": since, "forgetting_from_best": since,
            "mmd_at_end": scattered(at_end, TASKS), "mmd_since_learned": scattered(since, TASKS - 1),
        }  # fmt: skip

    return seen() | {"second": seen(), "bytes": 100_000}
