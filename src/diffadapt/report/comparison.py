"""Finished runs of one subject side by side: the same prompts and seeds, the figures, what it cost, what moved."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from ..errors import Refused
from ..files import write_atomic
from ..metrics.bootstrap import Interval
from .evidence_page import Cell, Forest, Table, cell, draw, interval_text
from .movement import read_movement
from .page import PictureRow, PictureTable, listed, longest_side, number, render
from .run_folder import RunFolder, finite, read_run_folder
from .run_pictures import MOST_COLUMNS, Columns, asked_for, concept_pictures, drift_pairs, picture_table, step_columns
from .run_report import costs, read_subject
from .verdict import Claim, Figure, Kind, read_figures

Runs = Mapping[str, RunFolder]  # by the name that the page gives each
Measured = Mapping[str, Mapping[str, Figure]]  # run -> name of a figure -> the figure


class Finished(Protocol):
    """A run as training functions return it."""

    @property
    def folder(self) -> Path: ...


def compare(runs: Sequence[str | Path | Finished], out: str | Path = "comparison.html") -> Path:
    """Writes one page, which needs nothing else, about two or more finished runs of the same subject.

    Args:
        runs: what `train_subject` returned, or folders of runs, in the order of the columns.
        out: the page; an existing one is replaced atomically.

    Returns:
        the page

    Raises:
        Refused: fewer than two runs, one that is not finished, or runs that do not compare: of other pictures, of
            another base, or sampled with other prompts or seeds.
        Failed: the page cannot be written.
    """
    folders = [each if isinstance(each, str | Path) else each.folder for each in runs]
    found = _named([read_run_folder(folder) for folder in folders])
    first = next(iter(found.values()))
    subject = read_subject(first)
    figures = {name: {each.name: each for each in read_figures(run.metrics)} for name, run in found.items()}
    longest = longest_side(2 * MOST_COLUMNS * (len(found) + 1) + len(first.concept))
    page = render(
        "comparison.html",
        title=f"{subject.phrase}: {listed([*found])} side by side",
        subject=subject,
        names=[*found],
        verdict=read_comparison(figures, f"the {subject.phrase}"),
        notices=_notices(found),
        concept=concept_pictures(first, longest),
        samples=_samples(found, longest),
        unrelated=_unrelated(found, longest),
        figures=_figure_table(figures),
        forests=[(each, draw(each)) for each in _forests(figures)],
        features=str(first.metrics.get("features") or ""),
        tables=[_cost_table(found), _geometry_table(found)],
        cell=cell,
    )
    return write_atomic(out, page)


def read_comparison(figures: Measured, subject: str) -> list[Claim]:
    """Which run learned more and which changed the rest more; undecided where intervals overlap.

    Args:
        figures: of each run; what not all have is passed over.
        subject: the learned thing in words, for example "the <biscuit> cat".
    """
    more, claims = "more" if len(figures) == 2 else "most", []
    if learned := _shared(figures, "fidelity"):
        best, rivals, others = _ranked(learned)
        if not any(each.verdict == "good" for each in learned.values()):
            text = f"None is shown to have learned {subject}"
        elif rivals:
            text = f"Whether {listed(rivals, 'or')} learned {subject} better is not decided"
        else:
            text = f"{best} learned {subject} better than {listed(others)}"
        claims.append(Claim(text=text, evidence=_evidence(learned)))
    if drifted := _shared(figures, "drift"):
        most, rivals, others = _ranked(drifted)
        if rivals:
            text = f"whether {listed(rivals, 'or')} changed the rest {more} is not decided"
        else:
            text = f"{most} changed the rest more than {listed(others)}"
        claims.append(Claim(text=text, evidence=_evidence(drifted)))
    return claims


def _shared(figures: Measured, kind: Kind) -> Mapping[str, Figure]:
    """The first figure of a kind that every run has with an interval, by run; leakage is not about the rest."""
    for name, figure in next(iter(figures.values())).items():
        found = {run: each[name] for run, each in figures.items() if name in each and _interval(each[name])}
        if figure.kind == kind and "leak" not in name and len(found) == len(figures):
            return found
    return {}


def _ranked(figures: Mapping[str, Figure]) -> tuple[str, list[str], list[str]]:
    """The run with the largest value; if there are any, it and those whose interval reaches its own; all but it."""
    largest = max(figures, key=lambda name: figures[name].value)
    reaching = [name for name, figure in figures.items() if (figure.high or 0.0) >= (figures[largest].low or 0.0)]
    return largest, reaching if len(reaching) > 1 else [], [name for name in figures if name != largest]


def _evidence(figures: Mapping[str, Figure]) -> str:
    known = next(iter(figures.values()))
    each = ", ".join(f"{name} {_text(figure)}" for name, figure in figures.items())
    return f"{known.name} {each}" + (f", the base {number(known.base)}" if known.base else "")


def _interval(figure: Figure) -> Interval | None:
    if figure.low is None or figure.high is None:
        return None
    return Interval(value=figure.value, low=figure.low, high=figure.high, n=figure.n or 0)


def _text(figure: Figure) -> str:
    interval = _interval(figure)
    return interval_text(interval) if interval else number(figure.value)


def _named(runs: Sequence[RunFolder]) -> Runs:
    """The runs under the first of method, folder and path that tells them apart; refuses those that do not compare."""
    if len(runs) < 2:
        raise Refused(f"a comparison needs two or more runs, got {len(runs)}")
    first = runs[0]
    for run in runs:
        if not run.complete or not step_columns(run):
            raise Refused(f"{run.folder} has no finished adapter with samples; finish the run, then compare")
        if run.metadata.get("base_fingerprint") != first.metadata.get("base_fingerprint"):
            raise Refused(f"{run.folder} and {first.folder} were trained on different bases; compare runs of one base")
        if [file.read_bytes() for file in run.concept] != [file.read_bytes() for file in first.concept]:
            raise Refused(f"{run.folder} and {first.folder} were shown different pictures; compare runs of one subject")
        if asked_for(run) != asked_for(first):
            raise Refused(
                f"{run.folder} and {first.folder} were sampled with other prompts or seeds; train both with one noun, "
                "token and seed"
            )
    subjects = [read_subject(run) for run in runs]
    choices = ([it.short for it in subjects], [it.name for it in subjects], [str(run.folder) for run in runs])
    names = next((each for each in choices if len({*each}) == len(runs)), None)
    if names is None:
        raise Refused("a run was given twice; name different runs")
    return dict(zip(names, runs, strict=True))


def _notices(runs: Runs) -> list[str]:
    first, *others = runs.values()
    measured = ("features", "protocol")
    if all(run.metrics.get(key) == first.metrics.get(key) for run in others for key in measured):
        return []
    return ["These runs were measured differently, with other features or other numbers of pictures: read with care."]


def _samples(runs: Runs, longest: int) -> PictureTable | None:
    first = next(iter(runs.values()))
    base = [column for column in step_columns(first) if column[0] == "base"]
    final = [(name, step_columns(run)[-1][1]) for name, run in runs.items()]
    return _by_run([*base, *final], *asked_for(first), longest)


def _unrelated(runs: Runs, longest: int) -> PictureTable | None:
    """Pictures of prompts that have nothing to do with the subject: the base's, and those of each run."""
    pairs = {name: {prompt: pair for prompt, *pair in drift_pairs(run)} for name, run in runs.items()}
    first, *others = pairs.values()
    prompts = [prompt for prompt in first if all(prompt in other for other in others)]
    base = ("base", {i: first[prompt][0] for i, prompt in enumerate(prompts)})
    adapted = [(name, {i: pair[prompt][1] for i, prompt in enumerate(prompts)}) for name, pair in pairs.items()]
    return _by_run([base, *adapted], prompts, [], longest)


def _by_run(sets: Columns, prompts: Sequence[str], seeds: Sequence[int], longest: int) -> PictureTable | None:
    """A row for each set of pictures, a column for each prompt."""
    table = picture_table(sets, prompts, seeds, longest, most=MOST_COLUMNS)
    if table is None:
        return None
    columns = [f"{row.title} ({row.note})" if row.note else row.title for row in table.rows]
    rows = [
        PictureRow(title=name, note="", pictures=[row.pictures[place] for row in table.rows])
        for place, name in enumerate(table.columns)
    ]
    return PictureTable(columns=columns, rows=rows)


def _figure_table(figures: Measured) -> Table:
    """All runs side by side; the base, its floor and perfect renderings have the same figures for each."""
    names = dict.fromkeys(name for each in figures.values() for name in each)
    every = [figure for each in figures.values() for figure in each.values()]
    beside = [name for name in ("floor", "perfect") if any(getattr(each, name) is not None for each in every)]
    rows: list[list[Cell]] = []
    for name in names:
        found = [each.get(name) for each in figures.values()]
        known = next(each for each in found if each)
        stood = (getattr(known, each) for each in beside)
        rows.append([name, known.base, *stood, *(each and _text(each) for each in found), known.better])
    columns = ["figure", "base", *beside, *figures, "better"]
    note = "Floor: the untouched base, drawn again from other seeds. Perfect: renderings of the same prompts."
    return Table(title="Figures, with 95 % intervals", columns=columns, rows=rows, note=note if beside else "")


def _forests(figures: Measured) -> list[Forest]:
    """A drawing of each figure that all runs have with an interval; the upright line is the base's."""
    found: list[Forest] = []
    for name, figure in next(iter(figures.values())).items():
        known = {run: _interval(each[name]) for run, each in figures.items() if name in each}
        rows = [(run, interval) for run, interval in known.items() if interval]
        if len(rows) == len(figures):
            label = f"{figure.better} is better" if figure.better else name
            found.append(Forest(title=name, caption=figure.meaning, label=label, rows=rows, mark=figure.base))
    return found


def _cost_table(runs: Runs) -> Table:
    wanted = ("trainable parameters", "adapter file", "training", "median step", "seed")
    known = {name: dict(costs(run)) for name, run in runs.items()}
    rates = [finite(run.setting("learning_rate")) for run in runs.values()]
    rows: list[list[Cell]] = [
        ["method", *(read_subject(run).method for run in runs.values())],
        ["steps", *(run.last_step for run in runs.values())],
        ["learning rate", *(rate and f"{rate:g}" for rate in rates)],
        *([name, *(each.get(name) for each in known.values())] for name in wanted),
    ]
    return Table(title="What was trained, and what it cost", columns=["", *runs], rows=rows)


def _geometry_table(runs: Runs) -> Table:
    movements = [read_movement(run.metrics) for run in runs.values()]
    moved = [each and each.whole for each in movements]
    rows: list[list[Cell]] = [
        ["adapted layers", *(each and each.in_all for each in movements)],
        ["change of the weights, mean of the layers, %", *(each and 100 * each.change for each in moved)],
        ["angle by which neurons turned, mean, degrees", *(each and each.angle for each in moved)],
        ["largest change of the cosine of two neurons", *(each and each.cosines for each in moved)],
        ["largest change of a neuron's norm, as a share", *(each and each.norms for each in moved)],
        ["largest change of a layer's energy, as a share", *(each and each.energy for each in moved)],
    ]
    note = "A rotation of all neurons of a layer leaves the last three at rounding, some 1e-7."
    return Table(title="Changes to the neurons", columns=["", *runs], rows=rows, note=note)
