"""A contact sheet: rows of pictures with a label above each row, as one picture."""

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

GAP, LABEL, PAPER, INK = 8, 20, (252, 251, 248), (31, 29, 26)  # pixels and colours
LARGEST = 256  # pixels of a picture's longer side on the sheet


def contact_sheet(rows: Sequence[tuple[str, Sequence[Image.Image]]]) -> Image.Image:
    """One picture of all.

    Args:
        rows: (label, pictures) in order, with at least one picture; larger pictures are shown smaller, small ones as
            the squares they are made of.
    """
    longest = max(max(picture.size) for _, pictures in rows for picture in pictures)
    factor = LARGEST / longest if longest > LARGEST else max(1, LARGEST // 2 // longest)
    shown = [[_scaled(picture, factor) for picture in pictures] for _, pictures in rows]
    wide = max(picture.width for row in shown for picture in row)
    width = GAP + max(len(row) for row in shown) * (wide + GAP)
    heights = [LABEL + max(picture.height for picture in row) + GAP for row in shown]
    sheet = Image.new("RGB", (width, GAP + sum(heights)), PAPER)
    pen, font, top = ImageDraw.Draw(sheet), ImageFont.load_default(13), GAP
    for (label, _), row, height in zip(rows, shown, heights, strict=True):
        pen.text((GAP, top), _fitting(label, pen, font, width - 2 * GAP), fill=INK, font=font)
        for column, picture in enumerate(row):
            sheet.paste(picture, (GAP + column * (wide + GAP), top + LABEL))
        top += height
    return sheet


def _scaled(picture: Image.Image, factor: float) -> Image.Image:
    size = (max(1, round(picture.width * factor)), max(1, round(picture.height * factor)))
    way = Image.Resampling.NEAREST if factor >= 1 else Image.Resampling.LANCZOS
    return picture.convert("RGB").resize(size, way)


def _fitting(
    text: str, pen: ImageDraw.ImageDraw, font: ImageFont.ImageFont | ImageFont.FreeTypeFont, width: int
) -> str:
    """The text, cut with "..." where it is wider than the sheet."""
    if pen.textlength(text, font=font) <= width:
        return text
    while text and pen.textlength(text + "...", font=font) > width:
        text = text[:-1]
    return text + "..."
