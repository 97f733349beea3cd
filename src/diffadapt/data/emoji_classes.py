"""A hundred emoji as classes of pictures, each drawn by eight artists: what a classifier is taught on and tested by.

Training pictures are those of six artists, test pictures those of the other two, so that a class is a thing and not a
drawing. Half of the classes are the nouns that nothing of ours was ever shown, the others every few things of the tail;
`tools/train_vit.py` leaves out all of them, in every style.
"""

from pathlib import Path

from ..errors import Refused
from .captioned import Captioned
from .class_folders import ClassFolders
from .folder import Example
from .wide_world import tail_nouns
from .world import HELD_OUT_NOUNS

TRAINED_ON = ("noto", "twemoji", "fluent-3d", "fluent-flat", "fluent-high-contrast", "openmoji-line")
TESTED_ON = ("blob", "openmoji")
CLASSES = 100
KINDS = frozenset({"animal", "food", "vehicle", "clothing", "building", "tool", "plant", "thing", "character"})


def new_classes(folder: str | Path) -> tuple[str, ...]:
    """The file stems of the hundred classes, out of a folder of sprite folders.

    Raises:
        Refused: a sprite folder is missing.
    """
    folder = Path(folder)
    for artist in (*TRAINED_ON, *TESTED_ON):
        if not (folder / artist).is_dir():
            raise Refused(f"no {folder / artist}; expected the sprites of {', '.join((*TRAINED_ON, *TESTED_ON))}")
    held_out = [stem for _, _, stem in HELD_OUT_NOUNS if drawn_by_all(folder, stem)]
    things = [
        stem
        for noun, kind, stem in tail_nouns(folder)
        if kind in KINDS and "oclock" not in noun and "thirty" not in noun and drawn_by_all(folder, stem)
    ]
    return tuple(held_out + things[:: len(things) // (CLASSES - len(held_out))][: CLASSES - len(held_out)])


def drawn_by_all(folder: Path, stem: str) -> bool:
    return all((folder / artist / f"{stem}.png").is_file() for artist in (*TRAINED_ON, *TESTED_ON))


def emoji_classes(folder: str | Path) -> ClassFolders:
    """The hundred classes with the pictures of `TRAINED_ON` to learn from and those of `TESTED_ON` to test with.

    Raises:
        Refused: a sprite folder is missing.
    """
    folder = Path(folder)
    learned, tested = (
        {
            stem: Captioned(
                folder, [Example(path=folder / artist / f"{stem}.png", caption=stem) for artist in part], []
            )
            for stem in sorted(new_classes(folder))
        }
        for part in (TRAINED_ON, TESTED_ON)
    )
    return ClassFolders(learned, tested, root=folder, kept=len(TESTED_ON))
