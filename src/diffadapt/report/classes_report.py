"""The report of classes learned task after task: the accuracy of every task after every task, and what was kept."""

from pathlib import Path
from typing import Any

from ..config import read_toml
from ..files import read_json, write_atomic
from .evidence_page import Table
from .page import file_size, number, render


def write_classes_report(folder: str | Path) -> Path:
    """Writes `report.html` into the folder of a class-incremental training, from what is in it.

    Raises:
        Failed: the disk is full.
    """
    folder = Path(folder)
    metrics, settings = read_json(folder / "metrics.json"), read_toml(folder / "run.toml")
    found = metrics["classify"]
    count, classes = len(found["tasks"]), sum(map(len, found["tasks"]))
    page = render(
        "classes.html",
        title=f"{classes} classes in {count} tasks",
        heading=f"{classes} classes in {count} task{'s' if count > 1 else ''}, {settings['method']['name']}",
        base=settings.get("base", ""),
        sentence=(
            f"Right at the end: {number(found['average'])}, mean over tasks; lost from task to task "
            f"{number(found['forgetting'])}, from the best to the end {number(found['forgetting_from_best'])}."
        ),
        tasks=[str(i + 1) for i in range(count)],
        heat=[
            (f"{j + 1}: {', '.join(names)}", [found["scores"][i][j] if i >= j else None for i in range(count)])
            for j, names in enumerate(found["tasks"])
        ],
        figures=_figures(metrics),
        cell=lambda value: value if isinstance(value, str) else number(value),
    )
    return write_atomic(folder / "report.html", page)


def _figures(metrics: dict[str, Any]) -> Table:
    found = metrics["classify"]
    rows: list[list[Any]] = [
        ["accuracy at the end, mean over tasks, A_N", found["average"]],
        ["mean loss from one task to the next, F_N", found["forgetting"]],
        ["mean loss from the best to the end", found["forgetting_from_best"]],
        ["accuracy on all classes so far, mean over tasks learned", sum(found["stages"]) / len(found["stages"])],
        ["test pictures", f"{sum(found['tested'])}"],
        ["chance at the end", 1 / sum(map(len, found["tasks"]))],
        ["trained in a task, with the head", f"{metrics['trainable_parameters']:,}"],
        ["parameters of the transformer", f"{metrics['transformer_parameters']:,}"],
        ["stored, all tasks together", file_size(metrics["stored_bytes"])],
    ]
    return Table(title="Figures", columns=["figure", "value"], rows=rows, note="The task of a picture is not told.")
