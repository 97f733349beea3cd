"""The plots of a run: loss and geometry over its steps, the loss by noise level, and what a transfer forgot."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from .plots import Look, Series, binned_plot, line_plot, smoothed, spans_decades, thinned
from .run_folder import RunFolder, finite

NOISE_BINS = 10
CHANGES: tuple[tuple[str, str, Look], ...] = (
    ("cosine_change", "cosines", "first"),
    ("norm_change", "norms", "second"),
    ("energy_change", "energy", "third"),
)


def _logged(run: RunFolder, key: str) -> list[tuple[float, float]]:
    found = [(float(record["step"]), finite(record.get(key))) for record in run.log]
    return [(step, value) for step, value in found if value is not None]


def loss_plot(run: RunFolder) -> tuple[str, str, Markup] | None:
    """(title, caption, plot) of the loss over steps; with prior preservation its two terms apart."""
    raw = _logged(run, "loss")
    if len(raw) < 2:
        return None
    prior, concept = _logged(run, "loss_prior"), _logged(run, "loss_concept")
    if prior and concept:
        raw = concept
    window = max(len(raw) // 25, 5)
    lines = [("concept" if prior else "loss", raw), ("prior", prior)]
    smooth = [(name, smoothed(points, window)) for name, points in lines if points]
    series = [
        Series(name=name, points=thinned(points, 300), look="second" if place else "first")
        for place, (name, points) in enumerate(smooth)
    ]
    series.append(Series(name=f"{lines[0][0]} at each step", points=thinned(raw), look="faint"))
    losses = sorted(loss for _, loss in raw)
    log_y = spans_decades(losses)
    # a few spikes must not press the curves flat
    top = max(losses[int(0.98 * (len(losses) - 1))], 1.1 * max(loss for _, points in smooth for _, loss in points))
    first, last = smooth[0][1][0][1], smooth[0][1][-1][1]
    plot = line_plot(
        series,
        x_label="step",
        y_label="loss",
        log_y=log_y,
        top=None if log_y else top,
        description=f"Loss over {len(raw)} steps; its moving mean goes from {first:.3g} to {last:.3g}",
    )
    cut = " Spikes beyond the top are cut off." if not log_y and losses[-1] > top else ""
    return "Loss", f"Lines are means over {window} steps.{cut}", plot


def geometry_plot(run: RunFolder) -> tuple[str, str, Markup] | None:
    """(title, caption, plot) of the largest changes of cosines, norms and energy over steps, where they were logged."""
    series = [
        Series(name=name, points=[(step, abs(change)) for step, change in _logged(run, key)], look=look)
        for key, name, look in CHANGES
    ]
    last = ", ".join(f"{each.name} {each.points[-1][1]:.2g}" for each in series if each.points)
    plot = line_plot(
        series,
        x_label="step",
        y_label="largest change",
        log_y=True,
        description=f"Largest change of the neurons' cosines, norms and hyperspherical energy; at the end {last}",
    )
    caption = (
        "The largest of any layer: of the cosine between two neurons, and as shares of a neuron's norm and of the "
        "hyperspherical energy. A rotation of all neurons moves none of them beyond rounding, some 1e-7."
    )
    return ("Geometry of the neurons", caption, plot) if plot else None


def noise_plot(run: RunFolder) -> tuple[str, str, Markup] | None:
    """(title, caption, plot) of the loss by noise level, in the first and in the last third of the steps."""
    samples = [(record["step"], record.get("loss_by_timestep")) for record in run.log]
    thirds: dict[str, list[tuple[float, float]]] = defaultdict(list)
    third = max((run.log[-1]["step"] - run.log[0]["step"] + 1) / 3, 1) if run.log else 1
    for step, pairs in samples:
        place = (step - run.log[0]["step"]) / third
        name = "first third" if place < 1 else "last third" if place >= 2 else ""
        for pair in pairs if name and isinstance(pairs, list) else ():
            if isinstance(pair, list) and len(pair) == 2 and None not in (found := [finite(each) for each in pair]):
                thirds[name].append((float(found[0] or 0), float(found[1] or 0)))
    points = [point for group in thirds.values() for point in group]
    if len(points) < 2 * NOISE_BINS:
        return None
    top = max(t for t, _ in points)
    top = 1.0 if top <= 1.0 else 100.0 * math.ceil(top / 100)
    series = [
        Series(name="first third", points=thirds["first third"], look="second"),
        Series(name="last third", points=thirds["last third"], look="first"),
    ]
    plot = binned_plot(
        series,
        edges=[top * edge / NOISE_BINS for edge in range(NOISE_BINS + 1)],
        x_label="noise level (timestep)",
        y_label="loss",
        log_y=spans_decades([loss for _, loss in points], ratio=50),
        description="Mean loss by noise level in the first and in the last third of training",
    )
    caption = "Left: little noise, right: almost only noise. Whiskers: 95 % interval of the mean."
    return "Loss by noise level", caption, plot


def times_the_base(columns: Sequence[Any]) -> list[tuple[float, float]]:
    """(level, loss over the base's) of three lists in `metrics.json`: levels, the base's losses, the adapted ones."""
    if not all(isinstance(column, list) for column in columns):
        return []
    rows = (map(finite, row) for row in zip(*columns, strict=False))
    return [(x, after / before) for x, before, after in rows if x is not None and after is not None and before]


def curve_points(found: Any) -> list[tuple[float, float]]:
    """The points of a list of pairs in `metrics.json`, without those that are no two numbers."""
    pairs = [pair for pair in found if isinstance(pair, list) and len(pair) == 2] if isinstance(found, list) else []
    return [(x, y) for x, y in (map(finite, pair) for pair in pairs) if x is not None and y is not None]


def forgetting_plot(run: RunFolder) -> tuple[str, str, Markup] | None:
    """(title, caption, plot) of the loss by noise level after a transfer over that of the untouched base."""
    found = run.metrics.get("chain_of_forgetting")
    titles = {"source": "the base's own pictures", "target": "held-out pictures of the target"}
    series = []
    for (name, title), look in zip(titles.items(), ("second", "first"), strict=True):
        losses = found.get(name) if isinstance(found, dict) else None
        rows = [losses.get(key) for key in ("base", "adapted")] if isinstance(losses, dict) else []
        levels = found.get("levels") if isinstance(found, dict) else None
        columns = [column for column in (levels, *rows) if isinstance(column, list)]
        if len(columns) < 3:
            return None
        series.append(Series(name=title, points=times_the_base(columns), look=look))
    plot = line_plot(
        series, x_label="noise level (quantile)", y_label="times the base's loss",
        description="Loss by noise level after the transfer, as a multiple of the untouched base's",
    )  # fmt: skip
    caption = "Left: little noise, right: almost only noise. Above 1 on the base's own pictures: forgotten there."
    return ("What was forgotten and learned, by noise level", caption, plot) if plot else None


LOOKS: tuple[Look, ...] = ("first", "second", "third")
SETS = {  # the sets of `held_out_loss`
    "concept": "the subject's pictures", "class": "the base's own pictures of the class",
    "world": "the base's own pictures", "style": "held-out pictures of the style",
    "pairs": "held-out pairs", "swapped": "with another's signal",
    "teacher": "the teachers' pictures", "own": "the base's own pictures",
}  # fmt: skip


def held_out_plot(run: RunFolder) -> tuple[str, str, Markup] | None:
    """(title, caption, plot) of the loss by noise level on pictures not trained on, over that of the untouched base."""
    found = run.metrics.get("held_out_loss")
    series = []
    sets: Mapping[str, Any] = found if isinstance(found, dict) else {}
    for (name, losses), look in zip(sets.items(), LOOKS, strict=False):
        columns = [losses.get(key) for key in ("levels", "base", "adapted")] if isinstance(losses, dict) else [None]
        series.append(Series(name=SETS.get(name, name), points=times_the_base(columns), look=look))
    plot = line_plot(
        series, x_label="noise level (share of the steps)", y_label="times the base's loss",
        description="Held-out denoising loss by noise level, as a multiple of the untouched base's",
    )  # fmt: skip
    caption = "Same pictures and noise before and after. Below 1: learned there; above 1: forgotten there."
    return ("Loss on held-out pictures, by noise level", caption, plot) if plot else None


def switch_plot(run: RunFolder) -> tuple[str, str, Markup] | None:
    """(title, caption, plot) of the switch-model curve, where it was measured."""
    found = run.metrics.get("chain_of_forgetting")
    curve = found.get("switch_curve") if isinstance(found, dict) else None
    points = curve_points(curve)
    plot = line_plot(
        [Series(name="Frechet distance", points=points, look="first")],
        x_label="share of the last steps done by the untouched base", y_label="Frechet distance",
        description="Frechet distance to held-out pictures by the share of steps handed back to the base",
    )  # fmt: skip
    caption = "0 is the adapter alone. Lower is better; few pictures, so compare runs of equal counts only."
    return ("Handing the last steps back", caption, plot) if plot else None


def following_plot(run: RunFolder) -> tuple[str, str, Markup] | None:
    """(title, caption, plot) of how well the signals were followed over the steps, where they could be read again."""
    found = run.metrics.get("convergence")
    curve = found.get("curve") if isinstance(found, dict) else None
    points = curve_points(curve)
    if not isinstance(found, dict) or len(points) < 2:
        return None
    figure, better, step = found.get("figure"), found.get("better"), finite(found.get("step"))
    plot = line_plot(
        [Series(name=str(figure), points=points, look="first")],
        x_label="step", y_label=str(figure),
        description=f"Agreement with the signals asked for ({figure}) over the steps",
    )  # fmt: skip
    leap = f"It converges suddenly at step {step:.0f}" if step is not None else "No step stands out as the one"
    caption = f"Of the {found.get('pairs')} signals of the samples; {better} is better. {leap}, as far as these tell."
    return "Following the signal", caption, plot
