"""A finished task of a sequence, by its log: how strong the penalty was, and whether the task was learned at all."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..files import parse_json, read_text, text_lines
from ..run_layout import RunLayout
from ..shapes import LOG_LINE

BARELY = 0.01  # a change this small beside the first task's means that the task was not learned


def read_log(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's `log.jsonl`."""
    lines = text_lines(read_text(RunLayout(folder).log))
    return [parse_json(line, LOG_LINE, "a line of log.jsonl") for line in lines]


def penalty_ratio(log: Sequence[dict[str, Any]]) -> float | None:
    """The penalty's gradient over the whole gradient before clipping, mean over the last quarter of the steps.

    Steps that the loss scaler of fp16 passed over do not count: their gradients were no numbers, null in the log.
    """
    pairs = [(row["penalty_gradient"], row["grad_norm"]) for row in log if row.get("penalty_gradient") is not None]
    ratios = [penalty / max(whole, 1e-12) for penalty, whole in pairs if whole is not None]
    late = ratios[-max(1, len(ratios) // 4) :]
    return sum(late) / len(late) if late else None


def unlearned(task: str, first: float | None, last: float | None) -> str:
    """A warning where a task changed next to nothing beside the first one; "" where all is well.

    Args:
        task: how it is called.
        first, last: the size of the first task's change and of this one's, where the method tells it.
    """
    if not first or last is None or last >= BARELY * first:
        return ""
    return (
        f"warning: task {task} was hardly learned: its change is {last / first:.1e} of the first task's; lower "
        "method.penalty_weight, or take method.penalty_scale = normalised"
    )
