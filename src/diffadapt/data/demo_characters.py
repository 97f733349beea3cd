"""Draws ten similar characters: the demo's subject with other colours, other ears, and the eye patch on either side.

They were made up for this project, as a sequence of concepts of one class that are alike enough to be confused.

    python -m diffadapt.data.demo_characters photos      # -> photos/characters/anni/0.png, ...
"""

import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from PIL import ImageOps

from ..files import write_new
from .demo_subject import BLUSH, CORAL, GOLD, MINT, POSES, VIOLET, Colour, Figure, Pose, draw
from .picture import png_bytes


@dataclass(frozen=True, kw_only=True)
class Character:
    """The features of one character: colours of body, patch, scarf and its stripes; ears; the side of the patch."""

    name: str
    body: Colour
    patch: Colour
    scarf: Colour
    stripes: Colour
    ears: Literal["folded", "upright", "round"]
    mirrored: bool = False


CHARACTERS: tuple[Character, ...] = (
    Character(name="anni", body=MINT, patch=VIOLET, scarf=CORAL, stripes=GOLD, ears="folded"),
    Character(name="bo", body=(250, 190, 120), patch=(120, 70, 40), scarf=(70, 120, 220), stripes=(255, 255, 255),
              ears="round"),
    Character(name="cleo", body=(190, 200, 215), patch=(60, 70, 90), scarf=(240, 120, 170), stripes=(120, 40, 90),
              ears="upright"),
    Character(name="dago", body=(245, 225, 130), patch=(230, 120, 40), scarf=(60, 150, 90), stripes=(230, 245, 200),
              ears="folded", mirrored=True),
    Character(name="emmi", body=(225, 180, 240), patch=(250, 250, 250), scarf=(90, 60, 160), stripes=(255, 210, 90),
              ears="round", mirrored=True),
    Character(name="fips", body=(150, 190, 245), patch=(40, 80, 170), scarf=(250, 200, 60), stripes=(200, 60, 60),
              ears="upright", mirrored=True),
    Character(name="gila", body=(240, 150, 150), patch=(120, 30, 60), scarf=(90, 200, 200), stripes=(250, 250, 250),
              ears="folded"),
    Character(name="hugo", body=(165, 130, 100), patch=(245, 225, 190), scarf=(220, 60, 60), stripes=(40, 40, 60),
              ears="round"),
    Character(name="inka", body=(170, 225, 130), patch=(50, 110, 50), scarf=(250, 150, 60), stripes=(110, 60, 20),
              ears="upright"),
    Character(name="jona", body=(245, 245, 240), patch=(60, 60, 70), scarf=(130, 190, 250), stripes=(40, 70, 160),
              ears="folded", mirrored=True),
)  # fmt: skip


class CharacterFigure(Figure):
    """A figure in a character's colours and with its ears."""

    def __init__(self, side: int, pose: Pose, *, character: Character) -> None:
        self.character = character
        self.worn = {MINT: character.body, VIOLET: character.patch, CORAL: character.scarf, GOLD: character.stripes}
        super().__init__(side, pose)
        if character.mirrored:
            self.image = ImageOps.mirror(self.image)

    def blob(
        self, x: float, y: float, width: float, height: float, colour: Colour, *, turn: float = 0.0, line: float = 0.0
    ) -> None:
        super().blob(x, y, width, height, self.worn.get(colour, colour), turn=turn, line=line)

    def _ears(self) -> None:
        y = self.drop
        if self.character.ears == "folded":
            super()._ears()
            return
        for side in (-1, 1):
            if self.character.ears == "round":
                self.blob(50 + side * 21, 24 + y, 10, 10, MINT, line=1.3)
                self.blob(50 + side * 21, 25 + y, 5.5, 5.5, BLUSH)
            else:
                self.blob(50 + side * 12, 18 + y, 6.5, 18, MINT, turn=side * 6, line=1.3)
                self.blob(50 + side * 12, 19.5 + y, 3.1, 12.5, BLUSH, turn=side * 6)


def draw_demo_characters(folder: str | Path, *, count: int = 10, size: int = 128) -> Path:
    """Draws the first characters into `folder/characters/NAME/`, six pictures each, the same bytes every time.

    Args:
        folder: where `characters` goes; made when it is not there.
        count: how many characters, 1 to 10.
        size: side of the pictures in pixels.

    Returns:
        the folder of the sequence, for `load_sequence(folder, "animal")`

    Raises:
        Refused: a file of that name is there and holds something else; nothing is written.
    """
    if not 1 <= count <= len(CHARACTERS):
        raise ValueError(f"count: expected 1 to {len(CHARACTERS)} characters, got {count}")
    place = Path(folder) / "characters"
    files: dict[Path, bytes] = {}
    for character in CHARACTERS[:count]:
        for number, pose in enumerate(POSES):
            picture, _ = draw(pose, size, partial(CharacterFigure, character=character))
            files[place / character.name / f"{number}.png"] = png_bytes(picture)
    write_new(files)
    return place


if __name__ == "__main__":
    print(draw_demo_characters(sys.argv[1] if len(sys.argv) > 1 else "photos"))
