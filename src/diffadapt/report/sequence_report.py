"""The report of a sequence: every concept after every task, as pictures and as a heat map, and what was kept."""

from pathlib import Path
from typing import Any

from ..config import read_toml
from ..data.sequence_record import SequenceRecord
from ..files import read_json, write_atomic
from .evidence_page import Table
from .page import Picture, embed_picture, file_size, number, render


def write_sequence_report(folder: str | Path) -> Path:
    """Writes `report.html` into a sequence's folder, from what is in it.

    Raises:
        Refused: there is no finished task.
        Failed: the disk is full.
    """
    folder = Path(folder)
    record, metrics = SequenceRecord.read(folder), read_json(folder / "metrics.json")
    settings = read_toml(folder / "run.toml")
    tasks = [each.name for each in record.learned]
    pairs = [
        embed_picture(path, alt="Two concepts") for path in sorted((folder / "evaluation" / "pairs").glob("*.png"))
    ]
    first, last = record.learned[0], record.learned[-1]
    page = render(
        "sequence.html",
        title=f"{len(tasks)} concepts in sequence",
        heading=f"{len(tasks)} concept{'s' if len(tasks) > 1 else ''} in sequence, {settings['method']['name']}",
        base=settings.get("base", ""),
        sentence=_sentence(metrics["sequence"]),
        tasks=tasks,
        sheet=[(each.name, _row(record, j)) for j, each in enumerate(record.learned)],
        heat=_heat(record),
        figures=_figures(record, metrics),
        cell=lambda value: value if isinstance(value, str) else number(value),
        pairs=[it for it in pairs if it],
        pair_prompt=f"a {first.phrase} and a {last.phrase}",
    )
    return write_atomic(folder / "report.html", page)


def _sentence(found: dict[str, Any]) -> str:
    return (
        f"Fidelity at the end {number(found['average'])}; lost from task to task {number(found['forgetting'])}, from "
        f"the best to the end {number(found['forgetting_from_best'])} "
        f"({found['features']}, {found['pictures']} pictures each)."
    )


def _row(record: SequenceRecord, j: int) -> list[Picture | None]:
    """The first picture of a concept after each task; None before it was learned."""
    name, count = record.learned[j].name, len(record.learned)
    places = [record.folder / "evaluation" / f"after-{i + 1:02d}" / name / "00.png" for i in range(count)]
    return [
        embed_picture(place, alt=f"{name} after {record.learned[i].name}", longest=160) if i >= j else None
        for i, place in enumerate(places)
    ]


def _heat(record: SequenceRecord) -> list[tuple[str, list[tuple[float | None, float | None]]]]:
    """Of each concept its score after each task, with its share of the way from the lowest to the highest score."""
    known = [value for row in record.scores for value in row]
    low, span = min(known), max(max(known) - min(known), 1e-9)
    count = len(record.learned)
    return [
        (
            each.name,
            [
                (record.scores[i][j], (record.scores[i][j] - low) / span) if i >= j else (None, None)
                for i in range(count)
            ],
        )
        for j, each in enumerate(record.learned)
    ]


def _figures(record: SequenceRecord, metrics: dict[str, Any]) -> Table:
    found = metrics["sequence"]
    share = record.learned[-1].trainable / metrics["denoiser_parameters"]
    rows: list[list[Any]] = [
        ["fidelity of all concepts at the end, A_N", found["average"]],
        ["mean loss from one task to the next, F_N", found["forgetting"]],
        ["mean loss from the best to the end", found["forgetting_from_best"]],
        ["A_mmd x 1000: from the concepts' own pictures, at the end", _thousand(found["a_mmd"])],
        ["F_mmd x 1000: from the pictures right after learning", _thousand(found["f_mmd"])],
        *_of_second(found.get("second")),
        *_of_inception(found.get("kid_at_end")),
        *_of_the_loss(record, found.get("losses")),
        ["trained in a task, of the denoiser", f"{100 * share:.3f} %"],
        ["stored, all tasks together", file_size(metrics["adapter_bytes"])],
    ]
    for each in record.learned:
        if each.change is not None and each.penalty_ratio is not None:
            figures = (
                f"|A B| sums to {number(each.change)}, penalty's gradient over the whole {number(each.penalty_ratio)}"
            )
            rows.append([f"task {each.name}", figures])
    return Table(title="Figures", columns=["figure", "value"], rows=rows, note=f"MMD: {found['mmd']}.")


def _of_second(seen: dict[str, Any] | None) -> list[list[Any]]:
    """The same figures as a judge sees them that shares nothing with the first."""
    if seen is None:
        return []
    return [
        ["A_N, second judge", seen["average"]],
        ["F_N, second judge", seen["forgetting"]],
        ["A_mmd x 1000, second judge", _thousand(seen["a_mmd"])],
        ["F_mmd x 1000, second judge", _thousand(seen["f_mmd"])],
    ]


def _of_inception(kids: list[float] | None) -> list[list[Any]]:
    if not kids:
        return []
    return [["KID x 1000 (Inception): from the concepts' own pictures, at the end", 1000 * sum(kids) / len(kids)]]


def _of_the_loss(record: SequenceRecord, losses: dict[str, list[float]] | None) -> list[list[Any]]:
    """A row for each task: what the loss did on its own pictures, on those drawn of it since, and on other things."""
    if losses is None:
        return []
    words = "on its pictures {}, on those drawn of it then {} by the end, on the base's own of other things {}"
    rises = zip(losses["concept"], losses["since_learned"], losses["world"], strict=True)
    sentences = [words.format(*(f"{value:+.4f}" for value in each)) for each in rises]
    named = [f"rise of the denoising loss, {each.name}" for each in record.learned]
    return [list(row) for row in zip(named, sentences, strict=True)]


def _thousand(value: float | None) -> float | None:
    return None if value is None else 1000 * value
