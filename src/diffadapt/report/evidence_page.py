"""The page of the papers' claims: verdict, tables, plots and pictures of each, as HTML and as Markdown."""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from ..errors import Refused
from ..files import write_atomic
from ..metrics.bootstrap import Interval
from .finding import Comparison, Finding
from .page import Picture, embed_picture, number, render
from .plots import forest_plot, interval_plot

Cell = str | int | float | Interval | None
TITLE = "what the papers claim"
COLOURS = {"reproduced": "good", "met": "good", "not reproduced": "bad", "not met": "bad"}


@dataclass(frozen=True, kw_only=True)
class Table:
    """Figures of one experiment; an `Interval` is shown with its 95 % interval, None as a dash."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Named points (x, y); y may be an `Interval`."""

    name: str
    points: Sequence[tuple[float, float | Interval]]


@dataclass(frozen=True, kw_only=True)
class Plot:
    """Up to six curves over a common x axis."""

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


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The verdict on one claim.

    Args:
        paper: whether the paper's claim held.
        goal: whether our own goal was met, which may ask for more.
        comparisons: of contenders, the ones that decide; exact claims have none.
        tables: all figures behind it.
        plots: where a drawing says more than a table.
        pictures: (name, caption) of files in `evidence/pictures/<claim>/`.
    """

    paper: Finding
    goal: Finding
    comparisons: Sequence[Comparison] = ()
    tables: Sequence[Table] = ()
    plots: Sequence[Plot | Forest] = ()
    pictures: Sequence[tuple[str, str]] = ()


@dataclass(frozen=True, kw_only=True)
class Chapter:
    """One claim on the page.

    Args:
        id, title, paper, goal: as `Claim` has them.
        design: (name, value) of what was settled before anything was run.
        verdict: what the results say.
        pictures: folder of the verdict's pictures.
        facts: name and value of what made the results.
        commands: how to repeat them.
        failed: (unit in words, error) of those that never finished.
        left_out: stored results that do not count here, each in a sentence that says why.
    """

    id: str
    title: str
    paper: str
    goal: str
    verdict: Verdict
    pictures: Path
    facts: Sequence[tuple[str, str]]
    commands: str
    design: Sequence[tuple[str, str]] = ()
    failed: Sequence[tuple[str, str]] = ()
    left_out: Sequence[str] = ()

    @property
    def findings(self) -> list[tuple[str, str, Finding, str]]:
        """("Paper", its claim, what was found, colour), and the same of our goal."""
        both = (("Paper", self.paper, self.verdict.paper), ("Our goal", self.goal, self.verdict.goal))
        return [(claimant, text, finding, COLOURS.get(finding.status, "undecided")) for claimant, text, finding in both]

    def embedded(self) -> list[tuple[Picture, str]]:
        """The pictures that are there, with their captions."""
        found = [
            (embed_picture(self.pictures / name, alt=caption, longest=1600), caption)
            for name, caption in self.verdict.pictures
        ]
        return [(picture, caption) for picture, caption in found if picture]

    def drawn(self) -> list[tuple[Plot | Forest, Markup]]:
        """The plots as SVG."""
        return [(plot, draw(plot)) for plot in self.verdict.plots]


def write_evidence(folder: Path, chapters: Sequence[Chapter], *, base: str) -> Path:
    """Writes `report.html`, which needs nothing else, and `report.md` into a folder.

    Args:
        folder: where they go.
        chapters: the claims, in order.
        base: the base that they were tested on, in words.

    Returns:
        the HTML page

    Raises:
        Refused: a file of that name is there and is no such report; nothing is written.
    """
    for name, mark in (("report.md", f"# {TITLE}"), ("report.html", f"<title>diffadapt: {TITLE}")):
        if (folder / name).exists() and mark.casefold().encode() not in (folder / name).read_bytes().lower():
            raise Refused(f"{folder / name} is a report of something else; move it away, nothing is overwritten")
    write_atomic(folder / "report.md", markdown(chapters, base=base, folder=folder))
    page = render("evidence.html", title=f"diffadapt: {TITLE}", chapters=chapters, base=base, cell=cell)
    return write_atomic(folder / "report.html", page)


def cell(value: Cell) -> str:
    """One cell of a table as text."""
    if isinstance(value, Interval):
        return interval_text(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return number(value) if value is None or isinstance(value, float) else str(value)


def interval_text(it: Interval) -> str:
    """ "0.62 [0.58, 0.66]", with as many decimals as the interval's width is worth."""
    width = it.high - it.low
    if not 1e-4 < width < 1e6:
        return f"{number(it.value)} [{number(it.low)}, {number(it.high)}]"
    decimals = max(0, 1 - math.floor(math.log10(width)))
    return f"{it.value:.{decimals}f} [{it.low:.{decimals}f}, {it.high:.{decimals}f}]"


def draw(plot: Plot | Forest) -> Markup:
    """A plot as SVG."""
    if isinstance(plot, Forest):
        rows = [(name, interval_text(it), it.value, it.low, it.high) for name, it in plot.rows]
        return forest_plot(rows, label=plot.label, mark=plot.mark, description=plot.title)

    def point(x: float, y: float | Interval) -> tuple[float, float, float, float]:
        return (x, y.value, y.low, y.high) if isinstance(y, Interval) else (x, y, y, y)

    curves = [(each.name, [point(x, y) for x, y in each.points]) for each in plot.curves]
    return interval_plot(curves, x_label=plot.x_label, y_label=plot.y_label, description=plot.title, log_y=plot.log_y)


def markdown(chapters: Sequence[Chapter], *, base: str, folder: Path) -> str:
    """The same without plots, to be read where the repository is."""
    lines = [f"# {TITLE.capitalize()}", "", f"On the base {base}. Written by `diffadapt evidence report`, which also"]
    lines += ["writes `report.html`, with plots. In brackets: 95 % intervals.", ""]
    verdicts = [
        (f"{each.id}: {each.title}", each.verdict.paper.status, each.verdict.goal.status, each.verdict.paper.sentence)
        for each in chapters
    ]
    lines += _rows(("claim", "the paper's claim", "our goal", "figures"), verdicts)
    for each in chapters:
        lines += ["", f"## {each.id}: {each.title}", ""]
        for claimant, text, finding, _ in each.findings:
            lines += [f"- {claimant}: {text}.", f"  **{finding.status.capitalize()}.** {finding.sentence}"]
        lines += [f"- {name.capitalize()}: {value}" for name, value in each.design]
        lines += [""]
        for table in each.verdict.tables:
            lines += [f"**{table.title}**", "", *_rows(table.columns, [list(map(cell, row)) for row in table.rows]), ""]
            lines += [table.note, ""] if table.note else []
        for name, caption in each.verdict.pictures:
            if (each.pictures / name).exists():
                place = Path(os.path.relpath(each.pictures / name, folder)).as_posix()
                lines += [f"![{caption}]({place})", "", caption, ""]
        if each.failed:
            lines += [f"Units that failed: {len(each.failed)}.", ""]
            lines += [*(f"- {unit}: {error}" for unit, error in each.failed), ""]
        lines += [line for sentence in each.left_out for line in (sentence, "")]
        lines += [f"{'; '.join(f'{name}: {value}' for name, value in each.facts)}.", "", "```sh", each.commands, "```"]
    return "\n".join(lines) + "\n"


def _rows(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table."""

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(each.replace("|", "\\|") for each in cells) + " |"

    return [line(columns), "|" + "---|" * len(columns), *map(line, rows)]
