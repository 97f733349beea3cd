"""Building blocks of every report page: the template engine, embedded pictures, and formatted numbers."""

import base64
import functools
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

# below this a picture is shown as the squares it is made of, and embedded without loss
PIXEL_ART_SIDE = 128


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A picture inside the page: a data URI, its size in pixels as embedded, and a text for who does not see it."""

    uri: str
    width: int
    height: int
    alt: str

    @property
    def pixel_art(self) -> bool:
        """Whether it is to be enlarged without smoothing."""
        return max(self.width, self.height) <= PIXEL_ART_SIDE


@dataclass(frozen=True, kw_only=True)
class PictureRow:
    """One prompt of a picture table and its pictures, one a column; None where there is none."""

    title: str
    note: str
    pictures: Sequence[Picture | None]


@dataclass(frozen=True, kw_only=True)
class PictureTable:
    """Pictures by prompt (rows) and by something that changes (columns)."""

    columns: Sequence[str]
    rows: Sequence[PictureRow]


def embed_picture(path: str | Path | io.BytesIO, *, alt: str, longest: int = 320) -> Picture | None:
    """Reads a picture into the page, shrunk so that its longer side is at most `longest` pixels.

    Small pictures are kept without loss; the others become WebP at quality 80. A file that is missing or is not a
    picture gives None: a report leaves out what it cannot show.
    """
    try:
        with Image.open(path) as opened:
            mode = "RGBA" if "A" in opened.getbands() or "transparency" in opened.info else "RGB"
            picture = opened.convert(mode)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
    if max(picture.size) > max(longest, PIXEL_ART_SIDE):
        picture.thumbnail((longest, longest), Image.Resampling.LANCZOS)
    data = io.BytesIO()
    if max(picture.size) <= PIXEL_ART_SIDE:
        picture.save(data, "WEBP", lossless=True, quality=100, method=4)
    else:
        picture.save(data, "WEBP", quality=80, method=4)
    uri = "data:image/webp;base64," + base64.b64encode(data.getvalue()).decode()
    return Picture(uri=uri, width=picture.width, height=picture.height, alt=alt)


def longest_side(pictures: int) -> int:
    """The size in pixels to shrink to when a page shows this many pictures, so that it stays below some 3 MB."""
    return next(side for most, side in ((40, 448), (80, 320), (140, 256), (math.inf, 192)) if pictures <= most)


def spread(count: int, most: int) -> list[int]:
    """At most `most` indices of range(count), evenly spread, the first and the last among them."""
    if count <= most:
        return list(range(count))
    return sorted({round(index * (count - 1) / (most - 1)) for index in range(most)})


def listed(names: Sequence[str], joint: str = "and") -> str:
    """Names in a sentence: "a", "a and b", "a, b and c"."""
    return f" {joint} ".join([*([", ".join(names[:-1])] if names[1:] else []), names[-1]])


def number(value: float | None) -> str:
    """Three significant digits without an exponent where that is readable; a dash for what is not there."""
    if value is None or not math.isfinite(value):
        return "\u2013"
    if 0 < abs(value) < 1e-7:  # what rounding leaves of nothing
        return "\u22480"
    if value == 0 or abs(value) >= 1e6 or abs(value) < 1e-4:
        return f"{value:.3g}"
    if abs(value) >= 1000 or (float(value).is_integer() and abs(value) >= 10):
        return f"{value:,.0f}"
    digits = max(2 - math.floor(math.log10(abs(value))), 0)
    return f"{value:.{min(digits, 5 if abs(value) < 0.01 else 3)}f}"


def signed(change: float | None, like: float) -> str:
    """A change with its sign (a true minus), with as many decimals as `number` gives to the figure that changed."""
    if change is None or not math.isfinite(change):
        return "\u2013"
    decimals = len(number(like).partition(".")[2])
    text = f"{abs(change):,.{decimals}f}" if "e" not in number(like) else number(abs(change))
    return (
        text
        if text.startswith("\u2248") or float(text.replace(",", "")) == 0
        else ("+" if change > 0 else "\u2212") + text
    )


def duration(seconds: float | None) -> str:
    """Seconds as "8.2 s", "2 min 31 s" or "3 h 05 min"."""
    if seconds is None or not math.isfinite(seconds):
        return "\u2013"
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def file_size(size: float | None) -> str:
    """Bytes as "812 B", "96.4 kB" or "3.21 MB" (powers of 1000, as file managers count)."""
    if size is None or not math.isfinite(size):
        return "\u2013"
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.3g} {unit}" if size < 999.5 else f"{size:.0f} {unit}"
        size /= 1000
    return f"{size:.3g} GB"


def render(template: str, **content: object) -> str:
    """Fills a template from the folder beside this file. All text is escaped; a missing name is an error."""
    return _engine().get_template(template).render(**content)


@functools.cache
def _engine() -> Environment:
    """One for all pages: a template is compiled once in a process, which a run's page needs again and again."""
    engine = Environment(
        loader=FileSystemLoader(Path(__file__).with_name("templates")),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    engine.filters.update(number=number, signed=signed, duration=duration, file_size=file_size)
    return engine
