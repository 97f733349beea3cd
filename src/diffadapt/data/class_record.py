"""The record of a class-incremental training, `classes.json` in its folder, and whether it may go on."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from ..errors import Refused
from ..files import write_json
from ..shapes import CLASSES
from .class_tasks import ClassTask
from .sequence_record import digest, read_record

FILES = ("adapter", "head")


@dataclass(frozen=True, kw_only=True)
class LearnedClasses:
    """One finished task.

    Args:
        classes: names.
        contents: SHA-256 over its pictures.
        files: SHA-256 of the adapter's and the head's file after the task.
        trainable: parameters that the task trained, those of the head included.
        change: the sum of |A B| at its end, for methods that tell it.
        penalty_ratio: the penalty's gradient over the whole gradient, mean over the last quarter of the steps.
    """

    classes: list[str]
    contents: str
    files: dict[str, str]
    trainable: int
    change: float | None = None
    penalty_ratio: float | None = None


@dataclass
class ClassRecord:
    """The finished tasks, and which test pictures of task j were right after task i: `answers[i][j]`."""

    folder: Path
    learned: list[LearnedClasses] = field(default_factory=list)
    answers: list[list[list[bool]]] = field(default_factory=list)

    @classmethod
    def read(cls, folder: Path) -> "ClassRecord":
        """The record in a folder; an empty one when there is none.

        Raises:
            Refused: it is damaged.
        """
        path = folder / "classes.json"
        if not path.is_file():
            return cls(folder)
        return cls(folder, *read_record(path, CLASSES, LearnedClasses, "answers"))

    def write(self) -> None:
        write_json(
            self.folder / "classes.json",
            {"learned": [asdict(each) for each in self.learned], "answers": self.answers},
        )

    def place(self, number: int) -> Path:
        """The folder of a task, 0-based."""
        return self.folder / "tasks" / f"{number + 1:02d}"

    def refuse_changes(self, tasks: Sequence[ClassTask]) -> None:
        """Raises Refused when pictures of a learned task, or the files to go on from, were changed since."""
        for number, (each, task) in enumerate(zip(self.learned, tasks, strict=False)):
            if each.classes != list(task.classes) or each.contents != task.contents():
                raise Refused(
                    f"the classes or pictures of task {number + 1} ({each.classes[0]} ...) are not those that "
                    f"{self.folder} learned; put them back, or start in a new folder"
                )
        if not self.learned:
            return
        for name in FILES:
            file = self.place(len(self.learned) - 1) / f"{name}.safetensors"
            if not file.is_file() or digest(file) != self.learned[-1].files[name]:
                raise Refused(
                    f"{file} {'was changed' if file.is_file() else 'is missing'} since task {len(self.learned)} was "
                    "finished, so training cannot go on; restore the file or start in a new folder"
                )
