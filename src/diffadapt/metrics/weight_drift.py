"""Drift in weight space: the change of each layer's weight in length, in neuron directions and in their geometry."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields

import torch
from torch import Tensor

from ..errors import Refused
from .energy import GeometryChange, as_float64, geometry_change


@dataclass(frozen=True, kw_only=True)
class WeightDrift:
    """Change of one layer's weight.

    Args:
        layer: its name, "" when none was given.
        relative_frobenius: |after - before| / |before|, 0 is unchanged. None when `before` is zero and `after` is not.
        mean_angle: mean angle between a neuron before and after, in degrees, [0, 180]. None without neurons: a
            bias, a norm, or all rows zero.
        max_angle: the largest such angle, in degrees, or None.
        geometry: change of the neurons relative to each other, None for a bias or a norm.
    """

    layer: str
    relative_frobenius: float | None
    mean_angle: float | None
    max_angle: float | None
    geometry: GeometryChange | None

    def as_row(self) -> dict[str, str | float | None]:
        """A row of `metrics.json`: layer, relative_frobenius, angle_degrees (mean), max_angle_degrees, the geometry."""
        nothing = dict.fromkeys(field.name for field in fields(GeometryChange))
        return {
            "layer": self.layer,
            "relative_frobenius": self.relative_frobenius,
            "angle_degrees": self.mean_angle,
            "max_angle_degrees": self.max_angle,
        } | (asdict(self.geometry) if self.geometry else nothing)


def weight_drift(before: Tensor, after: Tensor, *, layer: str = "") -> WeightDrift:
    """Compares a weight before and after adaptation.

    A neuron is a row of the weight flattened to (out, in * ...), as in Qiu et al., OFT (2023), section 3.1, whose
    hyperspherical energy depends on neuron directions only. A rotation shared by all neurons moves the angles here
    and leaves the geometry alone. Rows that are zero before or after have no direction and are left out.

    Args:
        before: weight of any shape, or a bias (D,).
        after: the same shape.
        layer: name carried into the result.

    Raises:
        Refused: the shapes differ, the weight is empty, or a value is not finite.
    """
    if before.shape != after.shape or before.numel() == 0:
        raise Refused(f"weight_drift {layer}: shapes {tuple(before.shape)} and {tuple(after.shape)} do not compare")
    old, new = as_float64(before), as_float64(after)
    if not (old.isfinite().all() and new.isfinite().all()):
        raise Refused(f"weight_drift {layer}: a value is not finite; the training went wrong before this")
    moved, length = float((new - old).norm()), float(old.norm())
    relative = moved / length if length > 0 else (0.0 if moved == 0 else None)
    if before.ndim < 2:
        return WeightDrift(layer=layer, relative_frobenius=relative, mean_angle=None, max_angle=None, geometry=None)
    angles = neuron_angles(old, new)
    mean, largest = (float(angles.mean()), float(angles.max())) if len(angles) else (None, None)
    return WeightDrift(
        layer=layer,
        relative_frobenius=relative,
        mean_angle=mean,
        max_angle=largest,
        geometry=geometry_change(old, new),
    )


def neuron_angles(before: Tensor, after: Tensor) -> Tensor:
    """Angle of each neuron (row) before and after -> (K,) degrees in [0, 180], K rows that are zero in neither."""
    old, new = before.flatten(1).double(), after.flatten(1).double()  # (out, in * kh * kw)
    lengths = old.norm(dim=1), new.norm(dim=1)
    rows = (lengths[0] > 0) & (lengths[1] > 0)
    u, v = (x[rows] / n[rows, None] for x, n in zip((old, new), lengths, strict=True))  # (K, in * kh * kw)
    # Kahan's formula: exact for tiny angles, where the arc cosine loses half of the digits.
    return 2 * torch.atan2((u - v).norm(dim=1), (u + v).norm(dim=1)) * (180 / math.pi)


def weight_drift_by_layer(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> list[WeightDrift]:
    """`weight_drift` of every layer in `after`, sorted by relative change, largest first.

    Args:
        before: layer name -> weight; may hold more layers than `after`.
        after: layer name -> weight.

    Raises:
        Refused: a layer of `after` is not in `before`, or as `weight_drift`.
    """
    missing = sorted(set(after) - set(before))
    if missing:
        raise Refused(f"weight_drift: no weight before the adaptation for {', '.join(missing[:5])}")
    drifts = [weight_drift(before[layer], weight, layer=layer) for layer, weight in after.items()]
    return sorted(drifts, key=lambda d: -math.inf if d.relative_frobenius is None else -d.relative_frobenius)
