"""The report of one run: reads its folder, chooses what to show, fills the template."""

import json
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from ..adapters import TRAINED
from ..config import build
from ..errors import Refused
from ..files import write_atomic
from ..run_layout import RunLayout
from .movement import read_movement
from .page import Picture, PictureTable, duration, file_size, longest_side, number, render, spread
from .plots import interval_mark
from .run_folder import RunFolder, finite, read_run_folder
from .run_pictures import (
    MOST_PAIRS,
    MOST_ROWS,
    Concept,
    asked_for,
    concept_pictures,
    drift_pairs,
    embedded_pairs,
    picture_table,
    step_columns,
    strength_columns,
)
from .run_plots import (
    following_plot,
    forgetting_plot,
    geometry_plot,
    held_out_plot,
    loss_plot,
    noise_plot,
    switch_plot,
)
from .usage import usage
from .verdict import KINDS, read_figures, read_verdict

RELOAD = 15  # seconds after which the page of a run that goes on loads itself again


@dataclass(frozen=True, kw_only=True)
class Subject:
    """The subject of the run, as far as its folder says."""

    token: str
    noun: str
    base: str
    short: str  # the method's name alone
    method: str
    name: str
    prompt_phrase: str = ""  # how prompts call it, where the run says

    @property
    def phrase(self) -> str:
        """ "<biscuit> cat", or what there is of it; the folder's name when there is nothing."""
        return self.prompt_phrase or " ".join(part for part in (self.token, self.noun) if part) or self.name


PLOTS = (loss_plot, following_plot, geometry_plot, noise_plot, held_out_plot, forgetting_plot, switch_plot)


def write_report(run_folder: str | Path, *, running: bool = False) -> Path:
    """Writes `report.html` into a run folder, from whatever is there, and returns its path.

    The page is one file that needs nothing else: pictures are embedded, plots are SVG, no scripts. A part that is
    missing in the folder is left out; a run that stopped early gets a page that says so. An existing report is
    replaced atomically.

    Args:
        run_folder: of the run.
        running: the run goes on, so that the page loads itself again now and then.

    Raises:
        Refused: there is no such folder, or it is no run folder.
        Failed: the page cannot be written.
    """
    run = read_run_folder(run_folder)
    subject = read_subject(run)
    figures = read_figures(run.metrics)
    by_step, by_strength, pairs = step_columns(run), strength_columns(run), drift_pairs(run)
    shown = sum(min(len(files), MOST_ROWS) for _, files in by_step + by_strength)
    longest = longest_side(shown + len(run.concept) + 2 * min(len(pairs), MOST_PAIRS))
    concept = concept_pictures(run, longest)
    step_table = picture_table(by_step, *asked_for(run), longest)
    seen = [picture for picture, *_ in concept]
    seen += [picture for row in (step_table.rows if step_table else ()) for picture in row.pictures if picture]
    page = render(
        "run_report.html",
        title=f"{subject.phrase}: a diffadapt run",
        subject=subject,
        verdict=read_verdict(figures, f"the {subject.phrase}", subject.noun),
        started=str(_made_by(run).get("started", "")),
        notices=[_progress(run)] if running else _notices(run, measured=bool(figures)),
        reload=RELOAD if running else 0,
        facts=_facts(run),
        large=any(not picture.pixel_art for picture in seen),
        opening=_opening(concept),
        first=_first(step_table),
        concept=concept,
        controlled=bool(run.signals),
        by_step=step_table,
        by_strength=picture_table(by_strength, *asked_for(run), longest),
        pairs=embedded_pairs(pairs, longest),
        pairs_in_all=len(pairs),
        plots=[plot for each in PLOTS if (plot := each(run)) is not None],
        figure_groups=[(KINDS[kind], [each for each in figures if each.kind == kind]) for kind in KINDS],
        figures=figures,
        interval_mark=interval_mark,
        features=str(run.metrics.get("features") or ""),
        movement=read_movement(run.metrics),
        costs=costs(run),
        config_text=run.config_text.strip(),
        usage=usage(run, token=subject.token, noun=subject.noun, base=subject.base) if run.adapter else [],
    )
    return write_atomic(RunLayout(run.folder).report, page)


def read_subject(run: RunFolder) -> Subject:
    """The subject of the run, read from its folder."""
    table = run.config.get("method")
    settings = table if isinstance(table, dict) else {}
    name = run.metadata.get("method") or settings.get("name") or run.setting("method") or ""
    short, method = _titles(str(name), settings)
    return Subject(
        token=str(run.prompts.get("token") or run.setting("token") or ""),
        noun=str(run.prompts.get("noun") or run.setting("noun") or ""),
        base=str(run.metadata.get("base") or _made_by(run).get("base") or run.setting("base") or ""),
        short=short,
        method=method,
        name=run.folder.resolve().name,
        prompt_phrase=str(run.prompts.get("phrase") or ""),
    )


def _titles(name: str, settings: Mapping[str, Any]) -> tuple[str, str]:
    """The title of a method, and its title with the settings that matter most, as far as they are known here."""
    if name not in TRAINED:
        return name, name
    method = TRAINED[name]
    known = {field.name for field in fields(method)}
    try:
        summary = build(method, {key: value for key, value in settings.items() if key in known}).summary()
    except Refused:  # written by a later version
        summary = method.title
    return method.title, summary


def _made_by(run: RunFolder) -> Mapping[str, Any]:
    made_by = run.config.get("made_by")
    return made_by if isinstance(made_by, dict) else {}


def _progress(run: RunFolder) -> str:
    """How far a run that goes on is, and how long it will take, as far as its log says."""
    if not run.log or not run.steps:
        return "Training begins; this page loads itself again as it goes on."
    taken = [seconds for record in run.log if (seconds := finite(record.get("seconds"))) is not None]
    left = statistics.median(taken) * max(0, run.steps - run.last_step) if taken else None
    loss = finite(run.log[-1].get("loss"))
    return (
        f"Training was at step {run.last_step} of {run.steps} when this page was written"
        + (f", with a loss of {number(loss)}" if loss is not None else "")
        + (f"; about {duration(left)} of steps were left" if left is not None else "")
        + ". The page is written with each samples and checkpoint, and loads itself again."
    )


def _notices(run: RunFolder, measured: bool) -> list[str]:
    notices = list(run.remarks)
    if not run.complete:
        usable = [path.parent.name for path in sorted(run.folder.glob("checkpoints/step-*/adapter.safetensors"))]
        asked = f" of {run.steps}" if run.steps else ""
        kept = f" The last checkpoint is {run.last_checkpoint.relative_to(run.folder)}." if run.last_checkpoint else ""
        kept += f" These can be sampled with: {', '.join(usable)}." if usable else ""
        notices.insert(
            0,
            f"This run has not finished: it is at step {run.last_step}{asked}, and there is no adapter.safetensors."
            f" The page shows what was there.{kept} The same call resumes it.",
        )
    elif not measured:
        notices.append("Training went to its end, but nothing was measured: what it learned and forgot is not known.")
    chosen, last = run.selection()
    if chosen != last:
        notices.append(
            f"Step {chosen} was chosen among the checkpoints, by the harmonic mean of fidelity and alignment; the"
            f" figures are its own. Step {last}, the last one, is in adapter-last.safetensors."
        )
    if run.log and "loss" in run.log[-1] and finite(run.log[-1]["loss"]) is None:
        notices.append(f"The loss was no longer a number at step {run.log[-1]['step']}; lower the learning rate.")
    return notices


def _facts(run: RunFolder) -> list[tuple[str, str]]:
    """The strip under the title: a few figures that people ask for first."""
    metrics, images = run.metrics, [finite(record.get("images")) for record in run.log[-1:]]
    size = finite(metrics.get("adapter_bytes")) or (run.adapter.stat().st_size if run.adapter else None)
    parameters = finite(metrics.get("trainable_parameters"))
    return [
        (name, value)
        for name, value in (
            ("steps", f"{run.last_step:,}" if run.last_step else ""),
            ("pictures seen", f"{images[0]:,.0f}" if images and images[0] else ""),
            ("training", duration(_seconds(run)) if _seconds(run) else ""),
            ("trainable", f"{parameters:,.0f}" if parameters else ""),
            ("adapter", file_size(size) if size else ""),
        )
        if value
    ]


def _seconds(run: RunFolder) -> float | None:
    logged = [seconds for record in run.log if (seconds := finite(record.get("seconds"))) is not None]
    return finite(run.metrics.get("seconds_train")) or (sum(logged) or None)


def costs(run: RunFolder) -> list[tuple[str, str]]:
    """Time, memory, sizes, hardware, versions: name and value of each that is known."""
    logged = [seconds for record in run.log if (seconds := finite(record.get("seconds"))) is not None]
    total, memory = finite(run.metrics.get("seconds_total")), finite(run.metrics.get("peak_memory_mb"))
    parameters = finite(run.metrics.get("trainable_parameters"))
    size = finite(run.metrics.get("adapter_bytes")) or (run.adapter.stat().st_size if run.adapter else None)
    rows = [
        ("training", duration(_seconds(run)) if _seconds(run) else ""),
        ("whole run", duration(total) if total else ""),
        ("median step", f"{statistics.median(logged) * 1000:,.0f} ms" if logged else ""),
        ("peak memory", file_size(memory * 1e6) if memory else ""),
        ("trainable parameters", f"{parameters:,.0f}" if parameters else ""),
        ("adapter file", file_size(size) if size else ""),
    ]
    patterns = _metadata_json(run, "roles")
    rows.append(("adapted roles", ", ".join(map(str, patterns)) if isinstance(patterns, list) else ""))
    seed = run.setting("seed")
    rows.append(("seed", "" if seed is None else str(seed)))
    for key, value in _made_by(run).items():
        parts = value.items() if isinstance(value, dict) else [(key, value)]
        rows += [(str(name).replace("_", " "), str(each)) for name, each in parts]
    return [(name, value) for name, value in rows if value]


def _opening(concept: Concept) -> list[tuple[Picture, str]]:
    """Beside the title: the first training picture."""
    return [(concept[0][0], "a training picture")] if concept and concept[0][0] else []


def _first(table: PictureTable | None) -> list[tuple[Picture, Picture, str]]:
    """The opening pictures: up to four prompts, the base's picture and the last one of each, and their captions."""
    if table is None or len(table.columns) < 2 or table.columns[0] != "base":
        return []
    at = table.columns[-1]
    last = "the adapter at strength 1" if at.startswith("final") else f"the adapter at {at}"
    rows = [row for row in table.rows if row.pictures[0] and row.pictures[-1]]
    chosen = [rows[i] for i in spread(len(rows), 4)]
    return [
        (row.pictures[0], row.pictures[-1], f"{row.title} ({row.note + '; ' if row.note else ''}the base, {last})")
        for row in chosen
        if row.pictures[0] and row.pictures[-1]
    ]


def _metadata_json(run: RunFolder, key: str) -> Any:
    """A JSON value of the adapter file's metadata, None when there is none."""
    try:
        return json.loads(run.metadata.get(key, "null"))
    except ValueError:
        return None
