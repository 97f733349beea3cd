"""A contact sheet: labelled rows of small pictures in one PNG, for the report."""

import io
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from diffadapt.files import write_atomic

SIDE, GAP, LABEL = 96, 4, 18  # pixels: of a picture, between pictures, height of a label
PAPER, INK = (252, 251, 248), (31, 29, 26)
MOST_BYTES = 200_000


def write_sheet(path: Path, rows: Sequence[tuple[str, Sequence[Image.Image]]]) -> str:
    """Writes (label, pictures) rows, each label above its pictures, as a PNG of at most 200 kB.

    Returns:
        the file's name, for `Verdict.pictures`
    """
    width = GAP + max(len(pictures) for _, pictures in rows) * (SIDE + GAP)
    sheet = Image.new("RGB", (width, len(rows) * (LABEL + SIDE + GAP) + GAP), PAPER)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    for row, (label, pictures) in enumerate(rows):
        top = GAP + row * (LABEL + SIDE + GAP)
        pen.text((GAP, top), label, fill=INK, font=font)
        for column, picture in enumerate(pictures):
            sheet.paste(picture.convert("RGB").resize((SIDE, SIDE)), (GAP + column * (SIDE + GAP), top + LABEL))
    data = _png(sheet)
    colours = 256
    while len(data) > MOST_BYTES and colours >= 32:
        data, colours = _png(sheet.quantize(colours)), colours // 2
    return write_atomic(path, data).name


def _png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
