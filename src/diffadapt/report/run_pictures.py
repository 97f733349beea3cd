"""The pictures of a run, chosen for a page: what was shown, samples by step and by strength, what else changed."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from .page import Picture, PictureRow, PictureTable, embed_picture, spread
from .plots import crop_mark
from .run_folder import RunFolder, inside

MOST_ROWS, MOST_COLUMNS, MOST_PAIRS = 8, 6, 12

# of each training picture: itself, its caption, what the crop kept in words, the same as a sketch
Concept = list[tuple[Picture, str, str, Markup]]
Columns = list[tuple[str, Mapping[int, Path]]]  # title, picture number -> file


def concept_pictures(run: RunFolder, longest: int) -> Concept:
    """The training pictures, as training saw them."""
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


def step_columns(run: RunFolder) -> Columns:
    """Signal, base, steps on the way, the finished adapter; empty where no step is there."""
    columns: Columns = [("signal", _by_number(run.signals))] if run.signals else []
    columns += [("base", _by_number(run.base_samples))] if run.base_samples else []
    without = len(columns)
    steps = list(run.samples)
    # The last step's samples are the finished adapter's, unless another step was chosen; else its pictures at
    # strength 1 are.
    chosen, last_step = run.selection()
    apart = run.complete and 1.0 in run.strengths and (not steps or steps[-1] < run.last_step or chosen != last_step)
    for place in spread(len(steps), MOST_COLUMNS - len(columns) - apart):
        last = run.complete and not apart and chosen == last_step and steps[place] == steps[-1]
        columns.append(("final, " * last + f"step {steps[place]:,}", _by_number(run.samples[steps[place]])))
    if apart:
        columns.append(("final", _by_number(run.strengths[1.0])))
    return columns if len(columns) > without else []


def strength_columns(run: RunFolder) -> Columns:
    """The base, then the finished adapter at rising strengths; empty where it was not sampled so."""
    columns: Columns = [("signal", _by_number(run.signals))] if run.signals else []
    columns += [("0, the base", _by_number(run.base_samples))] if run.base_samples else []
    columns += [(f"{strength:g}", _by_number(files)) for strength, files in run.strengths.items()]
    return columns if run.strengths else []


def asked_for(run: RunFolder) -> tuple[list[Any], list[Any]]:
    """Prompts and seeds of a run's samples; empty where they are not known."""
    prompts, seeds = (run.prompts.get(key) for key in ("prompts", "seeds"))
    return prompts if isinstance(prompts, list) else [], seeds if isinstance(seeds, list) else []


def picture_table(
    columns: Columns, prompts: Sequence[Any], seeds: Sequence[Any], longest: int, most: int = MOST_ROWS
) -> PictureTable | None:
    """Pictures by prompt and column, at most `most` prompts, evenly chosen; None without a picture."""
    numbers = sorted({number for _, files in columns for number in files})
    rows: list[PictureRow] = []
    for place in spread(len(numbers), most):
        index = numbers[place]
        prompt = str(prompts[index]) if index < len(prompts) else f"picture {index}"
        seed = f"seed {seeds[index]}" if index < len(seeds) else ""
        pictures = [
            embed_picture(files[index], alt=f"{prompt} ({title})", longest=longest) if index in files else None
            for title, files in columns
        ]
        rows.append(PictureRow(title=prompt, note=seed, pictures=pictures))
    return PictureTable(columns=[title for title, _ in columns], rows=rows) if rows else None


def drift_pairs(run: RunFolder) -> list[tuple[str, Path, Path]]:
    """(prompt, the base's picture, the adapted one) of the unrelated prompts that were kept."""
    pairs = run.metrics.get("drift_pictures")
    found: list[tuple[str, Path, Path]] = []
    for pair in pairs if isinstance(pairs, list) else ():
        if not isinstance(pair, list) or len(pair) != 3:
            continue
        before, after = inside(run.folder, pair[1]), inside(run.folder, pair[2])
        if before and after:
            found.append((str(pair[0]), before, after))
    return found


def embedded_pairs(pairs: Sequence[tuple[str, Path, Path]], longest: int) -> list[tuple[str, Picture, Picture]]:
    """At most MOST_PAIRS of `drift_pairs`, evenly chosen, with their pictures."""
    shown: list[tuple[str, Picture, Picture]] = []
    for place in spread(len(pairs), MOST_PAIRS):
        prompt, before, after = pairs[place]
        base = embed_picture(before, alt=f"{prompt} (base)", longest=longest)
        adapted = embed_picture(after, alt=f"{prompt} (with the adapter)", longest=longest)
        if base and adapted:
            shown.append((prompt, base, adapted))
    return shown
