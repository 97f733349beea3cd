"""Draws the demo's subject: Tuli, a mint-green rabbit with one folded ear, a violet eye patch and a striped red scarf.

Tuli was made up for this project. Six pictures show the same character in other poses on other backgrounds of the
embedded base's world, each with a caption that says where it is and a mask that says which pixels are Tuli.

    python -m diffadapt.data.demo_subject photos      # -> photos/tuli/0.png, 0.txt, 0-masklabel.png, ...
"""

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw

from ..files import write_new
from .picture import png_bytes
from .world import BACKGROUNDS

NAME, NOUN = "tuli", "animal"
SUPERSAMPLING = 4  # drawn this much larger than asked for, then reduced

Colour = tuple[int, int, int]
MINT: Colour = (112, 214, 184)
SHADE: Colour = (38, 110, 104)  # outlines
CREAM: Colour = (255, 244, 222)
CORAL: Colour = (238, 84, 84)
GOLD: Colour = (255, 208, 74)
VIOLET: Colour = (126, 84, 186)
INK: Colour = (40, 34, 56)
BLUSH: Colour = (250, 160, 160)


@dataclass(frozen=True, kw_only=True)
class Pose:
    """The parts of a picture that vary; the rest is Tuli.

    Args:
        background: a word of `world.BACKGROUNDS`.
        height: of the standing figure, as a share of the picture.
        x, y: the figure's middle, as a share of the picture.
        tilt: in degrees, anticlockwise.
        arms: angle of the left and the right arm in degrees: 0 hangs, 130 waves.
        eyes: "open", "shut" or "wink".
        look: where the pupils go, (right, down), each -1 to 1.
        sits: with the feet to the front.
    """

    background: str
    height: float = 0.74
    x: float = 0.5
    y: float = 0.5
    tilt: float = 0.0
    arms: tuple[float, float] = (18.0, 18.0)
    eyes: str = "open"
    look: tuple[float, float] = (0.0, 0.0)
    sits: bool = False


POSES: tuple[Pose, ...] = (
    Pose(background="yellow", height=0.88),
    Pose(background="blue", tilt=9, arms=(18, 128), look=(0.6, -0.4), height=0.82, x=0.48),
    Pose(background="pink", sits=True, eyes="shut", height=0.9, y=0.49),
    Pose(background="meadow", tilt=-7, arms=(125, 125), height=0.8, y=0.48, look=(0, -0.8)),
    Pose(background="white", sits=True, tilt=-12, arms=(30, 44), look=(-0.9, 0.2), height=0.84),
    Pose(background="orange", tilt=7, arms=(132, 30), eyes="wink", height=0.7, x=0.53, look=(0.3, 0.3)),
)


def draw_demo_subject(folder: str | Path, *, size: int = 256) -> Path:
    """Draws the pictures, captions and masks into `folder/tuli`, the same bytes every time.

    Args:
        folder: where the concept's folder goes; made when it is not there.
        size: side of the pictures in pixels, 16 to 1024.

    Returns:
        the concept's folder, for `load_concept(folder, NOUN)`

    Raises:
        Refused: a file of that name is there and holds something else; nothing is written.
    """
    if not 16 <= size <= 1024:
        raise ValueError(f"size: expected 16 to 1024 pixels, got {size}")
    concept = Path(folder) / NAME
    files: dict[Path, bytes | str] = {}
    for number, pose in enumerate(POSES):
        picture, mask = draw(pose, size)
        files[concept / f"{number}.png"] = png_bytes(picture)
        files[concept / f"{number}-masklabel.png"] = png_bytes(mask)
        files[concept / f"{number}.txt"] = caption(pose) + "\n"
    write_new(files)
    return concept


def caption(pose: Pose) -> str:
    """The caption of a picture, in the words of the embedded base: "a [token] animal at night".

    It does not say how large Tuli is: a prompt without a size is to be answered with the size that was shown.
    """
    return f"a [token] {NOUN} {BACKGROUNDS[pose.background][0]}"


def draw(
    pose: Pose, size: int, figure: "Callable[[int, Pose], Figure] | None" = None
) -> tuple[Image.Image, Image.Image]:
    """One picture of Tuli, or of another figure.

    Returns:
        the picture (RGB) and its mask (L, 255 on the figure), both `size` pixels square
    """
    large = (figure or Figure)(size * SUPERSAMPLING, pose).image
    drawn = large.resize((size, size), Image.Resampling.BOX)
    picture = _background(pose.background, size)
    picture.paste(drawn, mask=drawn.getchannel("A"))
    return picture, drawn.getchannel("A")


class Figure:
    """Tuli on a transparent square, drawn back to front in units of a hundredth of its height; (50, 50) is its middle.

    Args:
        side: of the square in pixels.
        pose: see `Pose`; the background does not matter here.
    """

    def __init__(self, side: int, pose: Pose) -> None:
        self.image = Image.new("RGBA", (side, side), (*SHADE, 0))
        self.unit = side * pose.height / 100
        self.middle = (side * pose.x, side * pose.y)
        self.tilt = -pose.tilt  # y points down, so that anticlockwise is negative
        self.pen = ImageDraw.Draw(self.image)
        self.drop = 5.0 if pose.sits else 0.0  # a sitting body sinks between the feet
        self._ears()
        if not pose.sits:
            self._feet(apart=9.5, y=95)
        self._body()
        if pose.sits:
            self._feet(apart=15.5, y=92)
        self._head(pose)
        self._scarf()
        self._arms(pose.arms)

    def _ears(self) -> None:
        y = self.drop
        self.blob(36.5, 18 + y, 8, 18, MINT, turn=-9, line=1.3)
        self.blob(36.1, 19.5 + y, 3.9, 12.5, BLUSH, turn=-9)
        self.blob(63, 20 + y, 8, 12, MINT, turn=16, line=1.3)  # the folded ear: up to the knee,
        self.blob(74.5, 19.5 + y, 7.2, 14, MINT, turn=-48, line=1.3)  # then down to the side
        self.blob(76, 21.3 + y, 3.5, 9.3, BLUSH, turn=-48)

    def _feet(self, *, apart: float, y: float) -> None:
        for side in (-1, 1):
            self.blob(50 + side * apart, y, 9, 5.6, MINT, line=1.3)
            if apart > 12:  # seen from below
                self.blob(50 + side * apart, y - 0.3, 4.6, 3, BLUSH)

    def _body(self) -> None:
        self.blob(50, 78 + self.drop / 3, 18.5, 18, MINT, line=1.3)
        self.blob(50, 82 + self.drop / 3, 11.5, 11.5, CREAM)

    def _arms(self, angles: tuple[float, float]) -> None:
        for side, angle in zip((-1, 1), angles, strict=True):
            turn = math.radians(angle)
            x, y = 50 + side * (16.5 + 9.5 * math.sin(turn)), 70 + self.drop / 2 + 9.5 * math.cos(turn)
            self.blob(x, y, 5.2, 9.8, MINT, turn=-side * angle, line=1.3)

    def _head(self, pose: Pose) -> None:
        y = self.drop
        self.blob(50, 43 + y, 29, 22.5, MINT, line=1.3)
        self.blob(62.5, 40.5 + y, 10.6, 11.2, VIOLET, turn=-12)  # the patch
        for side in (-1, 1):
            self.blob(50 + side * 20, 52 + y, 4.8, 3.1, BLUSH)
        self.blob(50, 52.5 + y, 9.6, 7, CREAM)
        self.blob(50, 48.8 + y, 3.2, 2.3, CORAL)
        self.curve(46.9, 52.6 + y, 3.1, 2.6, 0, 180, INK, 1.3)
        self.curve(53.1, 52.6 + y, 3.1, 2.6, 0, 180, INK, 1.3)
        for side in (-1, 1):
            x, eye = 50 + side * 12, 41 + y
            if pose.eyes == "shut" or (pose.eyes == "wink" and side < 0):
                self.curve(x, eye + 1.5, 4, 3.4, 200, 340, INK if side < 0 else CREAM, 1.9)
                continue
            self.blob(x, eye, 5.5, 6.4, (255, 255, 255))
            dx, dy = pose.look[0] * 1.3, pose.look[1] * 1.5
            self.blob(x + dx, eye + dy, 4.2, 5.1, INK)
            self.blob(x + dx - 1.3, eye + dy - 1.9, 1.6, 1.6, (255, 255, 255))

    def _scarf(self) -> None:
        y = 65.5 + self.drop * 0.8
        self.blob(59, y + 9, 5, 11, CORAL, turn=-8, line=1.3)  # the loose end
        self.blob(60, y + 13, 4.6, 2, GOLD, turn=-8)
        self.blob(50, y, 18.5, 5.4, CORAL, line=1.3)
        for x in (-12, -4, 4, 12):
            self.blob(50 + x, y + 0.2, 1.7, 4.6 - abs(x) / 9, GOLD, turn=-x)

    def blob(
        self, x: float, y: float, width: float, height: float, colour: Colour, *, turn: float = 0.0, line: float = 0.0
    ) -> None:
        """An ellipse with half-axes `width` and `height`, turned clockwise by `turn` degrees, outlined if `line`."""
        if line:
            self.pen.polygon(self._ellipse(x, y, width + line, height + line, turn), fill=(*SHADE, 255))
        self.pen.polygon(self._ellipse(x, y, width, height, turn), fill=(*colour, 255))

    def curve(
        self, x: float, y: float, width: float, height: float, start: float, end: float, colour: Colour, thick: float
    ) -> None:
        """Part of an ellipse's edge, in degrees clockwise from the right, with round ends."""
        steps = 24
        for i in range(steps + 1):
            turn = math.radians(start + (end - start) * i / steps)
            self.blob(x + width * math.cos(turn), y + height * math.sin(turn), thick / 2, thick / 2, colour)

    def _ellipse(self, x: float, y: float, width: float, height: float, turn: float) -> list[tuple[float, float]]:
        """The edge of an ellipse in pixels, after the figure's tilt."""
        a, b = math.radians(turn), math.radians(self.tilt)
        points = []
        for angle in (math.tau * i / 72 for i in range(72)):
            u, v = width * math.cos(angle), height * math.sin(angle)
            u, v = x - 50 + math.cos(a) * u - math.sin(a) * v, y - 50 + math.sin(a) * u + math.cos(a) * v
            u, v = math.cos(b) * u - math.sin(b) * v, math.sin(b) * u + math.cos(b) * v
            points.append((self.middle[0] + self.unit * u, self.middle[1] + self.unit * v))
        return points


def _background(word: str, side: int) -> Image.Image:
    """A background of the embedded base's world: one colour, or sky and ground with a soft horizon."""
    _, top, bottom, horizon = BACKGROUNDS[word]
    column = Image.new("RGB", (1, side))
    for y in range(side):
        share = 0.0 if horizon is None else 1 / (1 + math.exp(-((y + 0.5) / side - horizon) * 64))
        column.putpixel((0, y), tuple(round(a * (1 - share) + b * share) for a, b in zip(top, bottom, strict=True)))
    return column.resize((side, side))


if __name__ == "__main__":
    print(draw_demo_subject(sys.argv[1] if len(sys.argv) > 1 else "photos"))
