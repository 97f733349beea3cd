"""Styles: captioned pictures of one or many styles, with some of each kept back to measure by."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from ..errors import Refused
from ..files import at_home
from .captioned import Captioned, load_captioned
from .folder import list_folder, natural_order


class Styles:
    """Pictures grouped by style, as `load_styles` returns them.

    Attributes:
        pictures: style -> the pictures to learn from.
        held_out: style -> pictures of it that are not trained on; empty when none are kept back.
        notes: sentences for a person.
    """

    def __init__(self, pictures: Mapping[str, Captioned], held_out: Mapping[str, Captioned]) -> None:
        self.pictures, self.held_out = dict(pictures), dict(held_out)
        self.notes = [note for each in self.pictures.values() for note in each.notes]

    def __repr__(self) -> str:
        return f"Styles({', '.join(f'{name}: {len(each)}' for name, each in self.pictures.items())})"

    def captions(self) -> list[str]:
        """The captions of all pictures that are trained on."""
        return [caption for each in self.pictures.values() for caption in each.captions()]


def load_styles(folders: str | Path | Sequence[str | Path], *, held_out: int = 8) -> Styles:
    """Reads folders of captioned pictures, each one style under the folder's name.

    Args:
        folders: one or several; a folder that holds no pictures but folders of pictures stands for those.
        held_out: pictures of each style, the last ones, that are kept back to measure by.

    Raises:
        Refused: a folder that `load_captioned` refuses, two of one name, or fewer pictures than are kept back.
    """
    given = [folders] if isinstance(folders, str | Path) else list(folders)
    pictures: dict[str, Captioned] = {}
    kept: dict[str, Captioned] = {}
    for folder in [each for one in given for each in _folders(at_home(one))]:
        name = folder.resolve().name
        if name in pictures:
            raise Refused(f"two styles are called {name!r}; rename one of the folders")
        whole = load_captioned(folder)
        if len(whole) < held_out + 2:
            raise Refused(
                f"{folder} has {len(whole)} captioned pictures; {held_out} are kept back to measure by, and 2 or more "
                "must be left: add pictures or lower held_out"
            )
        cut = len(whole) - held_out
        pictures[name] = Captioned(folder, whole.examples[:cut], whole.notes)
        if held_out:
            kept[name] = Captioned(folder, whole.examples[cut:], [])
    return Styles(pictures, kept)


def _folders(folder: Path) -> list[Path]:
    """The folder itself, or the folders in it when these and not it hold the pictures."""
    if not folder.is_dir():
        return [folder]
    inner = sorted((each for each in folder.iterdir() if each.is_dir() and each.name[0] != "."), key=natural_order)
    if not inner:
        return [folder]
    try:
        list_folder(folder)
    except Refused:
        return inner
    return [folder]
