"""The record of a sequence, `sequence.json` in its folder, and whether training may continue from it."""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from ..errors import Refused
from ..files import read_json, write_json
from ..shapes import SEQUENCE
from .sequence import Task

_Row = TypeVar("_Row")


@dataclass(frozen=True, kw_only=True)
class Learned:
    """One finished task.

    Args:
        name, token, phrase: "mia", "<mia>", and how prompts ask for it.
        contents: SHA-256 of each picture that it was learned from; the pictures themselves are not kept.
        captions: of each picture, as its file said it; None in records from before they were noted.
        adapter: SHA-256 of the adapter's file after the task.
        trainable: parameters that the task trained.
        change: the sum of |A B| at its end, for methods that tell it.
        penalty_ratio: the penalty's gradient over the whole gradient, mean over the last quarter of the steps.
        losses: denoising losses after the task, as `evaluation.sequence.losses_after` has them.
    """

    name: str
    token: str
    phrase: str
    contents: list[str]
    adapter: str
    trainable: int
    captions: list[str | None] | None = None
    change: float | None = None
    penalty_ratio: float | None = None
    losses: dict[str, Any] = field(default_factory=dict)


@dataclass
class SequenceRecord:
    """The finished tasks in their order, and the score R[i][j] on task j after task i."""

    folder: Path
    learned: list[Learned] = field(default_factory=list)
    scores: list[list[float]] = field(default_factory=list)

    @classmethod
    def read(cls, folder: Path) -> "SequenceRecord":
        """The record in a folder; an empty one when there is none.

        Raises:
            Refused: it is damaged.
        """
        path = folder / "sequence.json"
        if not path.is_file():
            return cls(folder)
        return cls(folder, *read_record(path, SEQUENCE, Learned, "scores"))

    def write(self) -> None:
        content = {"learned": [asdict(each) for each in self.learned], "scores": self.scores}
        write_json(self.folder / "sequence.json", content)

    def place(self, number: int, name: str) -> Path:
        """The folder of a task, 0-based."""
        return self.folder / "tasks" / f"{number + 1:02d}-{name}"

    def adapter(self) -> Path | None:
        """The adapter after the last finished task."""
        if not self.learned:
            return None
        return self.place(len(self.learned) - 1, self.learned[-1].name) / "adapter.safetensors"

    def in_order(self, tasks: Sequence[Task]) -> list[Task]:
        """The tasks that are still to be learned, in order; what was learned stays first, whatever folders came since.

        Raises:
            Refused: the pictures or captions of a learned task, or the adapter, were changed since.
        """
        by_name = {task.name: task for task in tasks}
        for each in self.learned:
            task = by_name.get(each.name)
            if task is None or not any(task.folder.iterdir()):
                continue  # nobody has to keep the pictures
            changed = "pictures" if task.contents() != each.contents else ""
            if not changed and each.captions is not None and task.captions() != each.captions:
                changed = "captions"
            if changed:
                raise Refused(
                    f"the {changed} in {task.folder} are not those that task {each.name!r} was learned from; put them "
                    "back (or take the folder away), or learn the new ones under another name"
                )
        last = self.adapter()
        if last is not None and (not last.is_file() or digest(last) != self.learned[-1].adapter):
            state = "was changed" if last.is_file() else "is missing"
            raise Refused(
                f"{last} {state} since task {self.learned[-1].name!r} was finished, so the sequence cannot go on; "
                "restore the file or start the sequence in a new folder"
            )
        names = {each.name for each in self.learned}
        return [task for task in tasks if task.name not in names]


def read_record(path: Path, shape: Any, kind: type[_Row], after: str) -> tuple[list[_Row], list[Any]]:
    """The learned tasks of a record, and its rows `after` each of them, of all tasks up to that one.

    Raises:
        Refused: the file is damaged, or a row is missing or of another length.
    """
    held, names = read_json(path, shape), [each.name for each in fields(kind)]  # pyright: ignore[reportArgumentType]
    learned, rows = held["learned"], held[after]
    if [len(row) for row in rows] != [*range(1, len(learned) + 1)]:
        raise Refused(
            f"{path}: expected a row after each of {len(learned)} tasks, of the tasks up to it, got rows of "
            f"{[len(row) for row in rows]}; restore the file or start in a new folder"
        )
    return [kind(**{name: each[name] for name in names if name in each}) for each in learned], rows


def digest(path: Path) -> str:
    """SHA-256 of a file, hex."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
