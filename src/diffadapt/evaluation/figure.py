"""One figure of `metrics.json`: its value with an interval, and what it stands beside."""

from typing import Any

from torch import Tensor

from ..metrics.bootstrap import interval_of_difference, interval_of_mean


def figure(
    values: Tensor,
    base: Tensor | None,
    better: str,
    meaning: str,
    *,
    seed: int,
    groups: Tensor | None = None,
    floor: Tensor | None = None,
    perfect: float | None = None,
    share: float | None = None,
    kind: str | None = None,
) -> dict[str, Any]:
    """{"value", "low", "high", "n", "base", "better", "unit", "meaning"}, and "floor", "perfect", "kind" where given.

    With a base there are "change_low" and "change_high" as well, see `against_base`.

    Args:
        values: (N,) one a picture, or a prompt.
        base: the same of the untouched base, from the same prompts and seeds; None where that is 0 by construction.
        better: "higher", "lower" or "near base".
        meaning: what it is, in words.
        seed: of the bootstrap.
        groups: (N,) which values go together, as in `interval_of_mean`.
        floor: what the untouched base, drawn again from other seeds, comes to.
        perfect: what perfect renderings of the same prompts come to.
        share: of `perfect`, where that is of some of the prompts only; None means of all.
        kind: what the figure is about, for the report; None lets the report tell from its name.
    """
    row: dict[str, Any] = interval_of_mean(values, groups=groups, seed=seed).as_row()
    row |= against_base(values, base, groups=groups, seed=seed) | {"better": better, "unit": ""}
    if floor is not None:
        row["floor"] = float(floor.mean())
        meaning += f"; the base drawn again from other seeds: {row['floor']:.3f}"
    if perfect is not None:
        row["perfect"] = perfect
        of_them = "the same prompts" if share is None else "those of the prompts that can be drawn"
        share = row["value"] / perfect if share is None and perfect > 0 else share
        meaning += f"; perfect renderings of {of_them}: {perfect:.3f}"
        meaning += "" if share is None else f", this is {share:.0%} of it"
    return row | {"meaning": meaning} | ({"kind": kind} if kind else {})


def against_base(values: Tensor, base: Tensor | None, *, groups: Tensor | None, seed: int) -> dict[str, Any]:
    """{"base"}, the untouched base's mean, and the interval of what changed, "change_low" and "change_high".

    Values and the base's are paired by prompt and seed, so that the change has an interval of its own: that of the
    value, held against the base's mean, would take that mean for exact.
    """
    if base is None:
        return {"base": None}
    row: dict[str, Any] = {"base": float(base.mean())}
    if base.shape == values.shape:
        change = interval_of_difference(values, base, paired=True, groups=groups, seed=seed).as_row()
        row |= {"change_low": change["low"], "change_high": change["high"]}
    return row
