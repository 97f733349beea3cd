"""How far the weights moved, as a run's `metrics.json` says: by layer and by role."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .run_folder import finite

MOST_LAYERS = 14


@dataclass(frozen=True, kw_only=True)
class Moved:
    """A layer, or a role: the means of its layers' `change` and `angle`, the largest of the rest. None: not known."""

    name: str
    layers: int
    change: float
    angle: float | None
    cosines: float | None
    norms: float | None
    energy: float | None


@dataclass(frozen=True, kw_only=True)
class Movement:
    """The layers that changed most and all roles, largest first; `whole` is all `in_all` layers that were measured."""

    whole: Moved | None
    roles: Sequence[Moved]
    layers: Sequence[Moved]
    in_all: int
    not_measured: Sequence[tuple[str, int, str]]  # first layer, how many more have the same reason, reason


def read_movement(metrics: Mapping[str, Any]) -> Movement | None:
    """The rows in `metrics.json`, malformed ones left out; None when there is no such table. It may be empty."""
    rows = [row for row in _rows(metrics, "weight_drift") if finite(row.get("relative_frobenius")) is not None]
    of_reason: dict[str, list[str]] = {}
    for row in _rows(metrics, "not_measured"):
        of_reason.setdefault(str(row.get("reason") or ""), []).append(str(row.get("layer") or ""))
    skipped = [(layers[0], len(layers) - 1, reason) for reason, layers in of_reason.items()]
    if not rows and not skipped and metrics.get("weight_drift") != []:
        return None
    layers = sorted((_moved(str(row.get("layer") or ""), [row]) for row in rows), key=lambda moved: -moved.change)
    names = dict.fromkeys(str(row.get("role") or "") for row in rows)
    roles = [_moved(name, [row for row in rows if str(row.get("role") or "") == name]) for name in names if name]
    return Movement(
        whole=_moved("all", rows) if rows else None,
        roles=sorted(roles, key=lambda moved: -moved.change),
        layers=layers[:MOST_LAYERS],
        in_all=len(layers),
        not_measured=skipped,
    )


def _rows(metrics: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
    found = metrics.get(key)
    return [row for row in found if isinstance(row, dict)] if isinstance(found, list) else []


def _moved(name: str, rows: Sequence[Mapping[str, Any]]) -> Moved:
    def known(key: str) -> list[float]:
        return [value for row in rows if (value := finite(row.get(key))) is not None]

    def largest(key: str) -> float | None:
        return max(known(key), key=abs, default=None)

    return Moved(
        name=name,
        layers=len(rows),
        change=statistics.fmean(known("relative_frobenius")),
        angle=statistics.fmean(known("angle_degrees")) if known("angle_degrees") else None,
        cosines=largest("cosine_change"),
        norms=largest("norm_change"),
        energy=largest("energy_change"),
    )
