"""The page of the papers' claims: verdict, tables, plots and pictures of each, on one self-contained page."""

from collections.abc import Sequence
from dataclasses import dataclass

from ..metrics.bootstrap import Interval

Cell = str | int | float | Interval | None


@dataclass(frozen=True, kw_only=True)
class Table:
    """Figures of one experiment; an `Interval` is shown with its 95 % interval, None as a dash."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Named points (x, y); y may be an `Interval`. At most three curves share a plot."""

    name: str
    points: Sequence[tuple[float, float | Interval]]


@dataclass(frozen=True, kw_only=True)
class Plot:
    """Curves over a common x axis."""

    title: str
    caption: str
    x_label: str
    y_label: str
    curves: Sequence[Curve]
    log_y: bool = False


@dataclass(frozen=True, kw_only=True)
class Forest:
    """Intervals below each other on one axis, with a mark at the figure that decides, such as 0 or a goal."""

    title: str
    caption: str
    label: str
    rows: Sequence[tuple[str, Interval]]
    mark: float | None = None
