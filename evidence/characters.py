"""Shared by CL-1 and CL-2: ten similar characters learned one after another, and how a sequence is scored."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from unit_cost import WHOLE, Cost, cost

from diffadapt.adapters import Method
from diffadapt.data.demo_characters import draw_demo_characters
from diffadapt.data.sequence import load_sequence
from diffadapt.evidence import Context, Finished, Table
from diffadapt.metrics import interval_of_nested_mean
from diffadapt.recipes.sequence import train_sequence

NOUN, TASKS, SHORT, TUNING_SEED = "animal", 10, 3, 100
KEYS_AND_VALUES = ("cross_attention.key", "cross_attention.value")
# The paper trains keys and values alone. On the embedded base those learn a character's colours and no shape: its
# convolutions have to change, too (docs/evidence/ten_characters.md).
WHOLE_DENOISER = ("self_attention.*", "cross_attention.*", "feed_forward.*", "residual.conv")


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
    return by_probe | {"second": by_second, "losses": found["losses"], "bytes": run.metrics["adapter_bytes"]}


def cost_of(count: int) -> Cost:
    """Of a sequence: 150 steps a task, and 8 pictures of every concept so far after each."""
    return cost("sequence, C-LoRA", 150 * count, 8 * count * (count + 1) / 2, sampling=WHOLE)


def column(runs: list[Finished], name: str) -> Tensor:
    """(seeds, 1) of one figure of whole sequences, for intervals."""
    return torch.tensor([[float(each.scores[name])] for each in runs])


LOSSES = {  # of `sequence.losses`: rises of the denoising loss, same pictures and noise
    "concept": "on a concept's pictures, once learned", "since_learned": "since, on those drawn of it then",
    "world": "on the base's own of other things",
}  # fmt: skip


def loss_table(runs: Mapping[str, list[Finished]]) -> Table:
    """Title of a contender -> its sequences; means over concepts, the world's after the last task."""
    rows = []
    for title, sequences in runs.items():
        losses = [each.scores["losses"] for each in sequences]
        own, since = (torch.tensor([each[name] for each in losses]).T for name in ("concept", "since_learned"))
        world = sum(each["world"][-1] for each in losses) / len(losses)
        rows.append([title, interval_of_nested_mean(own), interval_of_nested_mean(since[:-1]), world])
    return Table(title="Rise of the denoising loss", columns=["", *LOSSES.values()], rows=rows)


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

    losses = {"concept": [-0.01] * TASKS, "since_learned": [since] * TASKS, "world": [0.005] * TASKS}
    return seen() | {"second": seen(), "losses": losses, "bytes": 100_000}
