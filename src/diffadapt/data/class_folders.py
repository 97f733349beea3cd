"""Folders of classes: pictures sorted into one folder for each class, whose name is their only caption."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from ..errors import Refused
from ..files import at_home
from .captioned import Captioned
from .folder import list_folder, natural_order
from .styles import Styles


class ClassFolders(Styles):
    """Pictures grouped by class, from `load_classes`; the counterpart of `Styles`.

    Attributes:
        root, kept: what `load_classes` was given: the folder, and how many pictures of each class are kept back.
    """

    def __init__(
        self, pictures: Mapping[str, Captioned], held_out: Mapping[str, Captioned], *, root: Path, kept: int
    ) -> None:
        super().__init__(pictures, held_out)
        self.root, self.kept = root, kept


def load_classes(folder: str | Path, *, held_out: int = 8) -> ClassFolders:
    """Reads FOLDER/CLASS/PICTURE; every picture's caption is the name of its class.

    Args:
        folder: holds the classes, or `train` and `test` with the classes in each; then `test` is what is kept back.
        held_out: pictures of each class, the last ones, that are kept back to measure by where there is no `test`.

    Raises:
        Refused: fewer than two classes, a class without a picture, or one with fewer pictures than are kept back.
    """
    folder = at_home(folder)
    split = (folder / "train").is_dir() and (folder / "test").is_dir()
    learned = _classes(folder / "train" if split else folder)
    if len(learned) < 2:
        raise Refused(
            f"{folder} holds {len(learned)} classes; expected a folder for each of two or more, with its pictures in it"
        )
    if split:
        tested = {name: each for name, each in _classes(folder / "test").items() if name in learned}
        return ClassFolders(learned, tested, root=folder, kept=held_out)
    pictures, kept = {}, {}
    for name, each in learned.items():
        cut = len(each) - held_out
        if cut < 2:
            raise Refused(
                f"class {name!r} in {folder} has {len(each)} pictures; {held_out} are kept back to measure by, and 2 "
                "or more must be left: add pictures or lower held_out"
            )
        pictures[name] = Captioned(each.folder, each.examples[:cut], each.notes)
        if held_out:
            kept[name] = Captioned(each.folder, each.examples[cut:], [])
    return ClassFolders(pictures, kept, root=folder, kept=held_out)


def _classes(folder: Path) -> dict[str, Captioned]:
    """Class -> its pictures."""
    if not folder.is_dir():
        raise Refused(f"expected a folder of class folders at {folder}; check the path")
    found = {}
    for place in sorted(
        (each for each in folder.iterdir() if each.is_dir() and each.name[0] != "."), key=natural_order
    ):
        examples, notes = list_folder(place)  # refuses a class without a picture
        found[place.name] = Captioned(place, [replace(each, caption=place.name) for each in examples], notes)
    return found
