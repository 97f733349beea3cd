"""Small plots as inline SVG, drawn without matplotlib. Colours come from the page's style sheet and follow its theme.

A series has a look: "first", "second", "third" (the accent colours) or "faint" (raw data behind a smoothed line).
Every plot carries a description for people who do not see it.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from markupsafe import Markup, escape

Look = Literal["first", "second", "third", "faint", "first dashed", "second dashed", "third dashed"]
Points = Sequence[tuple[float, float]]

WIDTH, HEIGHT = 460, 290
LEFT, RIGHT, TOP, BOTTOM = 58, 12, 30, 42


@dataclass(frozen=True, kw_only=True)
class Series:
    """Named points (x, y) in data units; points that are not finite are not drawn."""

    name: str
    points: Points
    look: Look = "first"


@dataclass(frozen=True)
class Axis:
    """Maps data in [low, high] to pixels [start, end], linearly or by logarithm."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """Data to pixels; what lies outside the axis (zero on a logarithmic one) is put on its end."""
        low, high = (math.log(self.low), math.log(self.high)) if self.log else (self.low, self.high)
        if self.log:
            value = math.log(max(value, self.low))
        share = (value - low) / (high - low)
        return self.start + min(max(share, 0.0), 1.0) * (self.end - self.start)

    def ticks(self, count: int = 5) -> list[float]:
        """Round numbers within the axis, about `count` of them."""
        if not self.log:
            return linear_ticks(self.low, self.high, count)
        decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        for steps in ((1,), (1, 3), (1, 2, 5)):
            ticks = [step * 10.0**power for power in decades for step in steps]
            ticks = [tick for tick in ticks if self.low * 0.999 <= tick <= self.high * 1.001]
            if len(ticks) >= 3:
                return ticks
        return linear_ticks(self.low, self.high, count)


def linear_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten inside [low, high]."""
    rough = (high - low) / max(count, 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [index * step for index in range(first, math.floor(high / step + 1e-9) + 1)]


def smoothed(points: Points, window: int) -> list[tuple[float, float]]:
    """Centred moving mean over `window` points; near the ends over those that exist."""
    sums, half = [0.0], max(window, 1) // 2
    for _, y in points:
        sums.append(sums[-1] + y)
    spans = [(max(index - half, 0), min(index + half + 1, len(points))) for index in range(len(points))]
    return [
        (point[0], (sums[end] - sums[start]) / (end - start)) for point, (start, end) in zip(points, spans, strict=True)
    ]


def thinned(points: Points, limit: int = 500) -> list[tuple[float, float]]:
    """At most about `limit` points: of each stretch its smallest and largest, so that no spike is lost."""
    if len(points) <= limit:
        return list(points)
    stretch = math.ceil(2 * len(points) / limit)
    kept: list[tuple[float, float]] = []
    for start in range(0, len(points), stretch):
        part = points[start : start + stretch]
        ends = {min(part, key=lambda point: point[1]), max(part, key=lambda point: point[1])}
        kept.extend(sorted(ends))
    return kept


def spans_decades(values: Sequence[float], ratio: float = 20.0) -> bool:
    """Whether positive values reach far enough for a logarithmic axis to show more than a linear one."""
    ordered = sorted(value for value in values if math.isfinite(value))
    if len(ordered) < 2 or ordered[0] <= 0:
        return False
    # the outermost hundredth must not decide the axis alone
    edge = len(ordered) // 100
    return ordered[-1 - edge] / ordered[edge] > ratio


def line_plot(
    series: Sequence[Series],
    *,
    x_label: str,
    y_label: str,
    description: str,
    log_y: bool = False,
    top: float | None = None,
) -> Markup:
    """Lines over a common x axis, the faint ones behind; what lies above `top` is drawn at the upper edge.

    No drawable point at all gives an empty Markup.
    """
    series = [_drawable(each, log_y) for each in series]
    series = [each for each in series if each.points]
    if not series:
        return Markup("")
    x, y = _axes([(x, min(y, top or y)) for each in series for x, y in each.points], log_y)
    behind_first = sorted(series, key=lambda each: each.look != "faint")
    body = [_line(each, x, y) for each in behind_first]
    return _figure([*_grid(x, y, x_label, y_label), *body], series, description)


def binned_plot(
    series: Sequence[Series], *, edges: Sequence[float], x_label: str, y_label: str, description: str, log_y: bool
) -> Markup:
    """Mean of y in each bin of x (edges: bins + 1 rising values), with the 95 % interval of the mean as a whisker."""
    binned = [(each, _bins(_drawable(each, log_y).points, edges)) for each in series]
    binned = [(each, bins) for each, bins in binned if bins]
    if not binned:
        return Markup("")
    reach = [(edges[0], mean) for _, bins in binned for _, mean, _ in bins]
    reach += [(edges[-1], mean + error) for _, bins in binned for _, mean, error in bins]
    if not log_y:
        reach += [(edges[0], max(mean - error, 0.0)) for _, bins in binned for _, mean, error in bins]
    x, y = _axes(reach, log_y)
    body: list[Markup] = []
    for index, (each, bins) in enumerate(binned):
        aside = (index - (len(binned) - 1) / 2) * 5  # whiskers of two series must not cover each other
        places = [(x(centre) + aside, mean, error) for centre, mean, error in bins]
        body.append(_path([(place, y(mean)) for place, mean, _ in places], each.look))
        for place, mean, error in places:
            body.append(
                Markup('<line class="whisker {0}" x1="{1:.1f}" x2="{1:.1f}" y1="{2:.1f}" y2="{3:.1f}"/>').format(
                    each.look, place, y(mean - error), y(mean + error)
                )
            )
            body.append(Markup('<circle class="{}" cx="{:.1f}" cy="{:.1f}" r="3"/>').format(each.look, place, y(mean)))
    return _figure([*_grid(x, y, x_label, y_label), *body], [each for each, _ in binned], description)


def interval_plot(
    curves: Sequence[tuple[str, Sequence[tuple[float, float, float, float]]]],
    *,
    x_label: str,
    y_label: str,
    description: str,
    log_y: bool = False,
) -> Markup:
    """Up to six named curves of (x, value, low, high), the interval as a whisker; the fourth and later ones dashed."""
    looks: list[Look] = ["first", "second", "third", "first dashed", "second dashed", "third dashed"]
    series = [
        Series(name=name, points=[(x, value) for x, value, _, _ in points], look=look)
        for (name, points), look in zip(curves, looks, strict=False)
    ]
    reach = [(x, y) for _, points in curves for x, *values in points for y in values if y > 0 or not log_y]
    if not reach:
        return Markup("")
    x, y = _axes(reach, log_y)
    whiskers = any(low < high for _, points in curves for _, _, low, high in points)  # must not cover each other
    body: list[Markup] = []
    for index, ((_, points), each) in enumerate(zip(curves, series, strict=False)):
        aside = (index - (len(series) - 1) / 2) * 4 * whiskers
        body.append(_path([(x(place) + aside, y(value)) for place, value, _, _ in points], each.look))
        for place, value, low, high in points:
            if low < high:
                whisker = '<line class="whisker {0}" x1="{1:.1f}" x2="{1:.1f}" y1="{2:.1f}" y2="{3:.1f}"/>'
                body.append(Markup(whisker).format(each.look, x(place) + aside, y(low), y(high)))
            dot = '<circle class="{}" cx="{:.1f}" cy="{:.1f}" r="3"/>'
            body.append(Markup(dot).format(each.look, x(place) + aside, y(value)))
    return _figure([*_grid(x, y, x_label, y_label), *body], series, description)


def forest_plot(
    rows: Sequence[tuple[str, str, float, float, float]], *, label: str, mark: float | None, description: str
) -> Markup:
    """Intervals below each other on one axis: (name, figures as text, value, low, high); `mark` is an upright line."""
    if not rows:
        return Markup("")
    known = [each for _, _, *values in rows for each in values] + ([] if mark is None else [mark])
    margin = (max(known) - min(known)) * 0.05 or abs(known[0]) or 1.0
    axis = Axis(min(known) - margin, max(known) + margin, RIGHT, WIDTH - RIGHT)
    height = 40 * len(rows)
    parts: list[Markup] = []
    for tick in axis.ticks():
        line = '<line class="grid" x1="{0:.1f}" x2="{0:.1f}" y1="0" y2="{1}"/>'
        line += '<text class="tick" x="{0:.1f}" y="{2}" text-anchor="middle">{3}</text>'
        parts.append(Markup(line).format(axis(tick), height, height + 17, short_number(tick)))
    if mark is not None:
        parts.append(
            Markup('<line class="base" x1="{0:.1f}" x2="{0:.1f}" y1="0" y2="{1}"/>').format(axis(mark), height)
        )
    for index, (name, figures, value, low, high) in enumerate(rows):
        top = 40 * index
        text = '<text class="legend" x="{0}" y="{1}">{2}</text>'
        text += '<text class="legend" x="{3}" y="{1}" text-anchor="end">{4}</text>'
        parts.append(Markup(text).format(RIGHT, top + 14, name, WIDTH - RIGHT, figures))
        span = '<line class="span" x1="{0:.1f}" x2="{1:.1f}" y1="{3}" y2="{3}"/>'
        span += '<circle class="first" cx="{2:.1f}" cy="{3}" r="4"/>'
        parts.append(Markup(span).format(axis(low), axis(high), axis(value), top + 27))
    text = '<text class="label" x="{}" y="{}" text-anchor="middle">{}</text>'
    parts.append(Markup(text).format(WIDTH / 2, height + 36, label))
    head = '<svg class="plot" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>'
    return Markup(head).format(WIDTH, height + 42, escape(description), Markup("").join(parts))


def interval_mark(value: float, low: float | None, high: float | None, base: float | None) -> Markup:
    """A row-high sketch for tables: the value as a dot on its interval, the base's figure as a tick.

    Every sketch has its own scale, as wide as its figures: it shows how the interval lies to the base.
    """
    known = [each for each in (value, low, high, base) if each is not None]
    margin = (max(known) - min(known)) * 0.1 or 1.0
    axis = Axis(min(known) - margin, max(known) + margin, 4, 116)
    parts = [Markup('<line class="rule" x1="4" x2="116" y1="10" y2="10"/>')]
    if low is not None and high is not None:
        box = '<line class="span" x1="{:.1f}" x2="{:.1f}" y1="10" y2="10"/>'
        parts.append(Markup(box).format(axis(low), axis(high)))
    if base is not None:
        tick = '<line class="base" x1="{0:.1f}" x2="{0:.1f}" y1="2" y2="18"/>'
        parts.append(Markup(tick).format(axis(base)))
    parts.append(Markup('<circle class="first" cx="{:.1f}" cy="10" r="4"/>').format(axis(value)))
    head = '<svg class="mark" viewBox="0 0 120 20" width="120" height="20" aria-hidden="true">{}</svg>'
    return Markup(head).format(Markup("").join(parts))


def crop_mark(original: tuple[int, int], box: tuple[int, int, int, int]) -> Markup:
    """A drawing of a crop: the whole picture (width, height in pixels) and in it the box (left, top, right, bottom)."""
    scale = 30 / max(original)
    width, height = (max(side * scale, 1.0) for side in original)
    left, top, right, bottom = (side * scale for side in box)
    shape = (
        '<svg class="crop" viewBox="-1 -1 32 32" width="22" height="22" aria-hidden="true">'
        '<rect class="whole" width="{:.1f}" height="{:.1f}"/>'
        '<rect class="kept" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}"/></svg>'
    )
    return Markup(shape).format(width, height, left, top, right - left, bottom - top)


def short_number(value: float) -> str:
    """A tick's label: no trailing zeros, no exponent between 0.001 and a million, k for thousands."""
    if value and (abs(value) < 1e-3 or abs(value) >= 1e6):
        return f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e")
    if abs(value) >= 10_000:
        return f"{value / 1000:g}k"
    return f"{round(value, 6):g}"


def _drawable(series: Series, log_y: bool) -> Series:
    kept = [(x, y) for x, y in series.points if math.isfinite(x) and math.isfinite(y) and (y > 0 or not log_y)]
    return Series(name=series.name, points=kept, look=series.look)


def _axes(points: Points, log_y: bool) -> tuple[Axis, Axis]:
    left, right = min(x for x, _ in points), max(x for x, _ in points)
    low, high = min(y for _, y in points), max(y for _, y in points)
    # steps are counted from 1, and an axis that starts there has odd ticks
    left = 0.0 if 0 < left < 0.05 * right else left
    if log_y:
        low, high = low / 1.15, high * 1.15
    else:
        # zero belongs on the axis of a loss unless the data lie far above it
        low = 0.0 if low > 0 and low < 0.6 * high else low
        high += (high - low) * 0.05
    if right <= left:
        right = left + 1.0
    if high <= low:
        high = low + (abs(low) or 1.0)
    return (
        Axis(left, right, LEFT, WIDTH - RIGHT),
        Axis(low, high, HEIGHT - BOTTOM, TOP, log=log_y),
    )


def _bins(points: Points, edges: Sequence[float]) -> list[tuple[float, float, float]]:
    """(centre, mean, half-width of the mean's 95 % interval) of each bin that holds a point."""
    bins: list[tuple[float, float, float]] = []
    for start, end in itertools.pairwise(edges):
        last = end == edges[-1]
        values = [y for x, y in points if start <= x < end or (last and x == end)]
        if not values:
            continue
        mean = sum(values) / len(values)
        variance = sum((value - mean) ** 2 for value in values) / max(len(values) - 1, 1)
        bins.append(((start + end) / 2, mean, 1.96 * math.sqrt(variance / len(values))))
    return bins


def _grid(x: Axis, y: Axis, x_label: str, y_label: str) -> list[Markup]:
    parts: list[Markup] = []
    for tick in y.ticks():
        line = '<line class="grid" x1="{}" x2="{}" y1="{:.1f}" y2="{:.1f}"/>'
        parts.append(Markup(line).format(LEFT, WIDTH - RIGHT, y(tick), y(tick)))
        label = '<text class="tick" x="{}" y="{:.1f}" text-anchor="end">{}</text>'
        parts.append(Markup(label).format(LEFT - 7, y(tick) + 4, short_number(tick)))
    for tick in x.ticks():
        # a label in the middle of the last tick would leave the picture
        anchor = "end" if x(tick) > WIDTH - RIGHT - 12 else "middle"
        label = '<text class="tick" x="{:.1f}" y="{}" text-anchor="{}">{}</text>'
        parts.append(Markup(label).format(x(tick), HEIGHT - BOTTOM + 17, anchor, short_number(tick)))
    axis = '<line class="axis" x1="{}" x2="{}" y1="{}" y2="{}"/>'
    parts.append(Markup(axis).format(LEFT, WIDTH - RIGHT, HEIGHT - BOTTOM, HEIGHT - BOTTOM))
    label = '<text class="label" x="{:.1f}" y="{}" text-anchor="middle">{}</text>'
    parts.append(Markup(label).format((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 6, x_label))
    side = '<text class="label" transform="translate(11 {:.1f}) rotate(-90)" text-anchor="middle">{}</text>'
    parts.append(Markup(side).format((TOP + HEIGHT - BOTTOM) / 2, y_label))
    return parts


def _line(series: Series, x: Axis, y: Axis) -> Markup:
    if len(series.points) == 1:
        ((only_x, only_y),) = series.points
        dot = Markup('<circle class="{}" cx="{:.1f}" cy="{:.1f}" r="3"/>')
        return dot.format(series.look, x(only_x), y(only_y))
    return _path([(x(each), y(value)) for each, value in series.points], series.look)


def _path(places: Points, look: Look) -> Markup:
    steps = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
    return Markup('<path class="{}" d="{}"/>').format(look, steps)


def _figure(body: Sequence[Markup], series: Sequence[Series], description: str) -> Markup:
    places: list[tuple[float, int]] = []  # of each name: x and row; the rows grow upwards, away from the plot
    end, row = float(LEFT), 0
    for each in series:
        width = 22 + 6.4 * len(each.name) + 18
        if end > LEFT and end + width > WIDTH:
            end, row = float(LEFT), row + 1
        places.append((end, row))
        end += width
    entry = (
        '<line class="swatch {0}" x1="{1:.0f}" x2="{2:.0f}" y1="{3}" y2="{3}"/>'
        '<text class="legend" x="{4:.0f}" y="{5}">{6}</text>'
    )
    legend = [
        Markup(entry).format(each.look, x, x + 16, 10 - 18 * (row - own), x + 22, 14 - 18 * (row - own), each.name)
        for each, (x, own) in zip(series, places, strict=True)
    ]
    head = '<svg class="plot" viewBox="0 {} {} {}" role="img" aria-label="{}">{}</svg>'
    text = Markup("").join([*legend, *body])
    return Markup(head).format(-18 * row, WIDTH, HEIGHT + 18 * row, escape(description), text)
