"""The report of one run: reads its folder, chooses what to show, fills the template."""

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from ..files import write_atomic
from .movement import read_movement
from .page import Picture, PictureRow, PictureTable, duration, embed_picture, file_size, longest_side, render, spread
from .plots import crop_mark, interval_mark
from .run_folder import RunFolder, finite, inside, read_run_folder
from .run_plots import geometry_plot, loss_plot, noise_plot
from .usage import usage
from .verdict import KINDS, read_figures, read_verdict

METHOD_NAMES = {
    "lora": "LoRA",
    "token": "token learning (textual inversion)",
    "selective": "selective fine-tuning",
    "oft": "OFT",
}
MOST_ROWS, MOST_COLUMNS, MOST_PAIRS = 8, 6, 12

# of each training picture: itself, its caption, what the crop kept in words, the same as a sketch
Concept = list[tuple[Picture, str, str, Markup]]
Columns = list[tuple[str, Mapping[int, Path]]]  # title, picture number -> file


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What the run is about, as far as its folder says."""

    token: str
    noun: str
    base: str
    method: str
    name: str

    @property
    def phrase(self) -> str:
        """ "<biscuit> cat", or what there is of it; the folder's name when there is nothing."""
        return " ".join(part for part in (self.token, self.noun) if part) or self.name


def write_report(run_folder: str | Path) -> Path:
    """Writes `report.html` into a run folder, from whatever is there, and returns its path.

    The page is one file that needs nothing else: pictures are embedded, plots are SVG, no scripts. A part that is
    missing in the folder is left out; a run that stopped early gets a page that says so. An existing report is
    replaced atomically.

    Raises:
        Refused: there is no such folder, or it is no run folder.
        Failed: the page cannot be written.
    """
    run = read_run_folder(run_folder)
    subject = _subject(run)
    figures = read_figures(run.metrics)
    by_step, by_strength, pairs = _step_columns(run), _strength_columns(run), _drift_pairs(run)
    shown = sum(min(len(files), MOST_ROWS) for _, files in by_step + by_strength)
    longest = longest_side(shown + len(run.concept) + 2 * min(len(pairs), MOST_PAIRS))
    concept = _concept(run, longest)
    step_table = _picture_table(run, by_step, longest)
    seen = [picture for picture, *_ in concept]
    seen += [picture for row in (step_table.rows if step_table else ()) for picture in row.pictures if picture]
    page = render(
        "run_report.html",
        title=f"{subject.phrase}: a diffadapt run",
        subject=subject,
        verdict=read_verdict(figures, f"the {subject.phrase}", subject.noun),
        started=str(_made_by(run).get("started", "")),
        notices=_notices(run, measured=bool(figures)),
        facts=_facts(run),
        large=any(not picture.pixel_art for picture in seen),
        opening=_opening(concept, step_table),
        concept=concept,
        by_step=step_table,
        by_strength=_picture_table(run, by_strength, longest),
        pairs=_embedded_pairs(pairs, longest),
        pairs_in_all=len(pairs),
        plots=[plot for plot in (loss_plot(run), geometry_plot(run), noise_plot(run)) if plot is not None],
        figure_groups=[(KINDS[kind], [each for each in figures if each.kind == kind]) for kind in KINDS],
        figures=figures,
        interval_mark=interval_mark,
        features=str(run.metrics.get("features") or ""),
        movement=read_movement(run.metrics),
        costs=_costs(run),
        config_text=run.config_text.strip(),
        usage=usage(run, token=subject.token, noun=subject.noun, base=subject.base) if run.adapter else [],
    )
    return write_atomic(run.folder / "report.html", page)


def _subject(run: RunFolder) -> Subject:
    method, details = run.metadata.get("method"), ""
    table = run.config.get("method")
    if isinstance(table, dict):
        method = method or next((str(table[key]) for key in ("name", "kind", "type") if key in table), None)
        details = "".join(
            f", {key.replace('_', ' ')} {table[key]}" for key in ("train", "rank", "block_size") if key in table
        )
    method = str(method or run.setting("method") or "")
    return Subject(
        token=str(run.prompts.get("token") or run.setting("token") or ""),
        noun=str(run.prompts.get("noun") or run.setting("noun") or ""),
        base=str(run.metadata.get("base") or _made_by(run).get("base") or run.setting("base") or ""),
        method=METHOD_NAMES.get(method, method) + details,
        name=run.folder.resolve().name,
    )


def _made_by(run: RunFolder) -> Mapping[str, Any]:
    made_by = run.config.get("made_by")
    return made_by if isinstance(made_by, dict) else {}


def _notices(run: RunFolder, measured: bool) -> list[str]:
    notices = list(run.remarks)
    if not run.complete:
        asked = f" of {run.steps}" if run.steps else ""
        kept = f" The last checkpoint is {run.last_checkpoint.relative_to(run.folder)}." if run.last_checkpoint else ""
        notices.insert(
            0,
            f"This run has not finished: it is at step {run.last_step}{asked}, and there is no adapter.safetensors."
            f" The page shows what was there.{kept} The same call resumes it.",
        )
    elif not measured:
        notices.append("Training went to its end, but nothing was measured: what it learned and forgot is not known.")
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


def _costs(run: RunFolder) -> list[tuple[str, str]]:
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


def _opening(concept: Concept, table: PictureTable | None) -> list[tuple[Picture, str]]:
    """The pair beside the title: the first training picture, and what the last column makes of the first prompt."""
    last = table.rows[0].pictures[-1] if table and table.rows and len(table.columns) > 1 else None
    first = concept[0][0] if concept else None
    if first is None or last is None or table is None:
        return []
    at = table.columns[-1]
    return [(first, "a training picture"), (last, "with the adapter" if at.startswith("final") else f"at {at}")]


def _concept(run: RunFolder, longest: int) -> Concept:
    shown: Concept = []
    for index, file in enumerate(run.concept):
        crop = run.crops[index] if index < len(run.crops) else {}
        caption = str(crop.get("caption") or "")
        name = str(crop.get("file") or file.name)
        alt = f"Training picture {index + 1}: {caption or Path(name).name}"
        picture = embed_picture(file, alt=alt, longest=longest)
        if picture:
            shown.append((picture, caption, *_crop(crop)))
    return shown


def _crop(crop: Mapping[str, Any]) -> tuple[str, Markup]:
    try:
        width, height = (int(side) for side in crop["original"])
        left, top, right, bottom = (int(side) for side in crop["box"])
    except (KeyError, TypeError, ValueError):
        return "", Markup("")
    if not (0 <= left < right <= width and 0 <= top < bottom <= height):
        return f"{width} x {height}", Markup("")
    whole = (left, top, right, bottom) == (0, 0, width, height)
    kept = "whole" if whole else f"{100 * (right - left) * (bottom - top) / (width * height):.0f} % kept"
    return f"{width} x {height}, {kept}", crop_mark((width, height), (left, top, right, bottom))


def _by_number(files: Iterable[Path]) -> Mapping[int, Path]:
    """Files by the number in their name (07.png -> 7), so that a missing one leaves a gap and shifts nothing."""
    return {int(file.stem) if file.stem.isdigit() else place: file for place, file in enumerate(files)}


def _step_columns(run: RunFolder) -> Columns:
    columns: Columns = [("base", _by_number(run.base_samples))] if run.base_samples else []
    steps = list(run.samples)
    # the last step's samples are the finished adapter's; else its pictures at strength 1 are
    apart = run.complete and 1.0 in run.strengths and (not steps or steps[-1] < run.last_step)
    for place in spread(len(steps), MOST_COLUMNS - len(columns) - apart):
        last = run.complete and not apart and steps[place] == steps[-1]
        columns.append(("final, " * last + f"step {steps[place]:,}", _by_number(run.samples[steps[place]])))
    if apart:
        columns.append(("final", _by_number(run.strengths[1.0])))
    # the base alone shows nothing of the run
    return columns if len(columns) > bool(run.base_samples) else []


def _strength_columns(run: RunFolder) -> Columns:
    columns: Columns = [("0, the base", _by_number(run.base_samples))] if run.base_samples else []
    columns += [(f"{strength:g}", _by_number(files)) for strength, files in run.strengths.items()]
    return columns if run.strengths else []


def _picture_table(run: RunFolder, columns: Columns, longest: int) -> PictureTable | None:
    numbers = sorted({number for _, files in columns for number in files})
    prompts, seeds = run.prompts.get("prompts"), run.prompts.get("seeds")
    rows: list[PictureRow] = []
    for place in spread(len(numbers), MOST_ROWS):
        index = numbers[place]
        prompt = str(prompts[index]) if isinstance(prompts, list) and index < len(prompts) else f"picture {index}"
        seed = f"seed {seeds[index]}" if isinstance(seeds, list) and index < len(seeds) else ""
        pictures = [
            embed_picture(files[index], alt=f"{prompt} ({title})", longest=longest) if index in files else None
            for title, files in columns
        ]
        rows.append(PictureRow(title=prompt, note=seed, pictures=pictures))
    return PictureTable(columns=[title for title, _ in columns], rows=rows) if rows else None


def _drift_pairs(run: RunFolder) -> list[tuple[str, Path, Path]]:
    pairs = run.metrics.get("drift_pictures")
    found: list[tuple[str, Path, Path]] = []
    for pair in pairs if isinstance(pairs, list) else ():
        if not isinstance(pair, list) or len(pair) != 3:
            continue
        before, after = inside(run.folder, pair[1]), inside(run.folder, pair[2])
        if before and after:
            found.append((str(pair[0]), before, after))
    return found


def _embedded_pairs(pairs: Sequence[tuple[str, Path, Path]], longest: int) -> list[tuple[str, Picture, Picture]]:
    shown: list[tuple[str, Picture, Picture]] = []
    for place in spread(len(pairs), MOST_PAIRS):
        prompt, before, after = pairs[place]
        base = embed_picture(before, alt=f"{prompt} (base)", longest=longest)
        adapted = embed_picture(after, alt=f"{prompt} (with the adapter)", longest=longest)
        if base and adapted:
            shown.append((prompt, base, adapted))
    return shown


def _metadata_json(run: RunFolder, key: str) -> Any:
    """A JSON value of the adapter file's metadata, None when there is none."""
    try:
        return json.loads(run.metadata.get(key, "null"))
    except ValueError:
        return None
