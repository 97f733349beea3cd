"""A sequence: concepts in the order in which they are learned, one folder of pictures each.

photos/characters/
  mia/     0.png 1.png ...
  otto/    0.png ...
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import Refused
from ..files import at_home
from .concept import Concept, load_concept, token_of
from .folder import list_folder


@dataclass(frozen=True)
class Task:
    """One concept of a sequence, whose pictures are not read yet.

    Attributes:
        name: the folder's name.
        folder: with 1 to 30 pictures.
        noun: the class.
    """

    name: str
    folder: Path
    noun: str

    @property
    def token(self) -> str:
        """The word that it gets: "<mia>"."""
        return token_of(self.name)

    def load(self) -> Concept:
        """Reads the pictures; raises Refused when they cannot be used."""
        return load_concept(self.folder, self.noun, token=self.token)

    def contents(self) -> list[str]:
        """One SHA-256 a picture, in order, of the pictures as they are now."""
        return [example.content() for example in list_folder(self.folder)[0]]

    def captions(self) -> list[str | None]:
        """The caption of each picture, in order, as its file says it now; None where there is none."""
        return [example.caption for example in list_folder(self.folder)[0]]


def load_sequence(folder: str | Path, noun: str, *, order: Sequence[str] = ()) -> list[Task]:
    """Finds the tasks in a folder of folders.

    Args:
        folder: holds one folder of 1 to 30 pictures for each concept.
        noun: what all of them show one of, such as "person"; a word that the base knows.
        order: names of the folders in the order of the tasks; empty takes them by name. Folders that are not named are
            left out.

    Raises:
        Refused: no folder, none in it, a name that is not there, or two names that would share a word; says which.
    """
    folder = at_home(folder)
    if not folder.is_dir():
        raise Refused(f"no folder at {folder}; expected one that holds a folder of pictures for each concept")
    found = {path.name: path for path in sorted(folder.iterdir()) if path.is_dir() and not path.name.startswith(".")}
    if not found:
        raise Refused(f"{folder} holds no folders; expected one folder of pictures for each concept of the sequence")
    names = list(order) or list(found)
    for name in names:
        if name not in found:
            raise Refused(f"sequence.order names {name!r}, which is no folder in {folder}; it has {', '.join(found)}")
    tasks = [Task(name, found[name], " ".join(noun.split())) for name in names]
    taken: dict[str, str] = {}
    for task in tasks:
        if task.token == "<>":
            raise Refused(f"no word can be made of the folder name {task.name!r}; use letters or digits")
        if task.token in taken:
            raise Refused(
                f"the tasks {taken[task.token]!r} and {task.name!r} in {folder} would share the word {task.token}; "
                "give every task a name of its own, once"
            )
        taken[task.token] = task.name
    return tasks
