"""Finished runs of one subject side by side: the same prompts and seeds, the figures, what it cost, what moved."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

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

NOT_COMPARED = Claim(text="Which run learned more is not said: they were measured differently", evidence="")
Runs = Mapping[str, RunFolder]  # by the name that the page gives each
Measured = Mapping[str, Mapping[str, Figure]]  # run -> name of a figure -> the figure
ByRun = Mapping[str, Figure]  # one figure of every run, by the run's name


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
    subject, notices = read_subject(first), _notices(found)
    named = bool(subject.token or subject.prompt_phrase)
    learned = f"the {subject.phrase}" if named else "what was shown"
    figures = {name: {each.name: each for each in read_figures(run.metrics)} for name, run in found.items()}
    longest = longest_side(2 * MOST_COLUMNS * (len(found) + 1) + len(first.concept))
    page = render(
        "comparison.html",
        title=f"{subject.phrase if named else 'Runs'}: {listed([*found])} side by side",
        subject=subject,
        names=[*found],
        verdict=[NOT_COMPARED] if notices else read_comparison(figures, learned),
        notices=notices,
        concept=concept_pictures(first, longest),
        samples=_samples(found, longest),
        unrelated=_unrelated(found, longest),
        figures=_figure_table(figures),
        forests=[] if notices else [(each, draw(each)) for each in _forests(figures)],
        features=str(first.metrics.get("features") or ""),
        tables=[_cost_table(found), _geometry_table(found)],
        cell=cell,
    )
    return write_atomic(out, page)


def read_comparison(figures: Measured, subject: str) -> list[Claim]:
    """Which run learned more, what the others are better at, and which changed the rest more.

    As in the verdict of a single run, what one of two judges sees and another does not is not decided, and "better" is
    said only where prompts and variety hold as well: a picture of the subject for whatever is asked has the highest
    fidelity.

    Args:
        figures: of each run; what not all have is passed over.
        subject: the learned thing in words, for example "the <biscuit> cat".
    """
    claims = _learned(figures, subject)
    if drifted := next((each for each in _shared(figures, "drift") if "leak" not in _name(each)), None):
        more = "more" if len(figures) == 2 else "most"
        most, rivals, others = _ranked(drifted)
        if rivals:
            text = f"whether {listed(rivals, 'or')} changed the rest {more} is not decided"
        else:
            text = f"{most} changed the rest more than {listed(others)}"
        claims.append(Claim(text=text, evidence=_evidence(drifted)))
    return claims


def _learned(figures: Measured, subject: str) -> list[Claim]:
    """The claims on the subject itself; none where no fidelity was measured."""
    learned, held = _shared(figures, "fidelity"), [*_shared(figures, "alignment"), *_shared(figures, "diversity")]
    if not learned:
        return []
    evidence = _evidence(learned[0])
    if not any(each.verdict == "good" for each in learned[0].values()):
        return [Claim(text=f"None is shown to have learned {subject}", evidence=evidence)]
    best, rivals, others = _ranked(learned[0], best=True)
    unseen = [each for each in learned[1:] if each[best].verdict in ("bad", "undecided")]
    reaching = [run for each in learned[1:] for run in others if each in unseen or not _behind(each[run], each[best])]
    undecided = rivals or [run for run in figures if reaching and run in (best, *reaching)]
    ahead, told = _better_at(held, than=undecided or [best])
    fell = [] if undecided else [each for each in held if each[best].verdict == "bad"]
    if undecided:
        why = "" if rivals else ", as not all judges see it"
        text = f"Whether {listed(undecided, 'or')} learned {subject} better is not decided{why}"
    elif ahead or fell:
        text = f"{best} took on {subject} more than {listed(others)}, at a price"
    elif not _shared(figures, "alignment"):
        text = f"{best} took on {subject} more than {listed(others)}; whether the prompts still hold was not measured"
    else:
        text = f"{best} learned {subject} better than {listed(others)}"
    claims = [Claim(text=text, evidence=evidence)]
    if ahead:
        said = ", ".join(f"{run} is better at {listed(names)}" for run, names in ahead.items())
        claims.append(Claim(text=said, evidence="; ".join(map(_evidence, told))))
    elif fell:
        lost = f"{listed([_name(each) for each in fell])} of {best} did not hold"
        claims.append(
            Claim(text=f"{lost}, and no other run is shown to be better", evidence="; ".join(map(_evidence, fell)))
        )
    return claims


def _better_at(held: Sequence[ByRun], *, than: Sequence[str]) -> tuple[dict[str, list[str]], list[ByRun]]:
    """The names of the figures in which a run is clear of all these others, by run, and those figures."""
    ahead: dict[str, list[str]] = {}
    for figure in held:
        for run, own in figure.items():
            if {run} != {*than} and all(_behind(figure[other], own) for other in than if other != run):
                ahead.setdefault(run, []).append(_name(figure))
    return ahead, [figure for figure in held if any(_name(figure) in names for names in ahead.values())]


def _behind(figure: Figure, other: Figure) -> bool:
    """Whether a figure is worse than another of its kind, their intervals apart."""
    return _shortfall(other)[1] < _shortfall(figure)[0]


def _shortfall(figure: Figure) -> tuple[float, float]:
    """The interval of a figure turned so that less is better: of one that should stay, its distance from the base's."""
    low, high = figure.low or 0.0, figure.high or 0.0
    if figure.better == "higher":
        return -high, -low
    if figure.better == "lower":
        return low, high
    low, high = figure.moved
    return max(low, -high, 0.0), max(-low, high)


def _shared(figures: Measured, kind: Kind) -> list[ByRun]:
    """The figures of a kind that every run has with an interval, by run, in the order of the first run's."""
    found: list[ByRun] = []
    for name, figure in next(iter(figures.values())).items():
        known = {run: each[name] for run, each in figures.items() if name in each and _interval(each[name])}
        if figure.kind == kind and len(known) == len(figures):
            found.append(known)
    return found


def _name(figure: ByRun) -> str:
    return next(iter(figure.values())).name


def _ranked(figures: ByRun, *, best: bool = False) -> tuple[str, list[str], list[str]]:
    """The run with the largest value; if there are any, it and those whose interval reaches its own; all but it.

    Args:
        figures: of each run.
        best: of a figure of which less is better, the run with the smallest value instead.
    """
    sign = -1 if best and next(iter(figures.values())).better == "lower" else 1
    ends = {name: sorted((sign * (each.low or 0.0), sign * (each.high or 0.0))) for name, each in figures.items()}
    first = max(figures, key=lambda name: sign * figures[name].value)
    reaching = [name for name, (_, high) in ends.items() if high >= ends[first][0]]
    return first, reaching if len(reaching) > 1 else [], [name for name in figures if name != first]


def _evidence(figures: ByRun) -> str:
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
        if _asked(run) != _asked(first):
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


def _asked(run: RunFolder) -> tuple[list[Any], list[Any]]:
    """Prompts and seeds of a run's samples; a word that stands before its noun, or for it, is the same word."""
    prompts, seeds = asked_for(run)
    token, noun = (str(run.prompts.get(key) or "") for key in ("token", "noun"))
    return [str(prompt).replace(f"{token} {noun}", token) if token and noun else prompt for prompt in prompts], seeds


def _notices(runs: Runs) -> list[str]:
    first, *others = runs.values()
    measured = ("features", "protocol")
    if all(run.metrics.get(key) == first.metrics.get(key) for run in others for key in measured):
        return []
    return [
        "These runs were measured differently, with other features or other numbers of pictures, so that their figures "
        "do not compare; measure their adapters alike with diffadapt evaluate."
    ]


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
