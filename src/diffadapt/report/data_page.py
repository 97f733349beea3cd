"""A page about a concept's data: each picture as training will see it, its caption as it will be used, its mask."""

import io
from collections.abc import Sequence
from pathlib import Path

from PIL import Image
from torch import Tensor

from ..data.concept import Concept
from ..data.picture import to_picture
from ..files import write_atomic
from .page import Picture, embed_picture, longest_side, render

_OUTSIDE = 0.25  # of the picture's light stays where the mask counts nothing


def write_data_page(concept: Concept, resolution: int, notes: Sequence[str], out: Path) -> Path:
    """Writes the page.

    Args:
        concept: the pictures.
        resolution: of the training, in pixels.
        notes: what to mend or to know, one sentence each.
        out: where to.
    """
    pixels, masks = concept.pixels(resolution), concept.masks(resolution)
    longest = longest_side(2 * len(concept))
    rows = []
    for i, row in enumerate(concept.crop_table()):
        mask = None if masks is None else masks[i]
        shown, masked = _embedded(pixels[i], f"{row['file']}, as training sees it", longest), None
        if mask is not None:
            dimmed = pixels[i] * (_OUTSIDE + (1 - _OUTSIDE) * mask)
            masked = _embedded(dimmed, f"{row['file']}, dark where the mask counts nothing", longest)
        rows.append((shown, masked, concept.caption(i), str(row["file"]), row))
    page = render(
        "data_page.html", title=f"{concept.phrase}: the data", concept=concept, rows=rows, notes=list(notes),
        resolution=resolution, large=resolution > 128,
    )  # fmt: skip
    return write_atomic(out, page)


def _embedded(pixels: Tensor, alt: str, longest: int) -> Picture | None:
    data = io.BytesIO()
    picture: Image.Image = to_picture(pixels.clamp(0, 1))
    picture.save(data, "PNG")
    data.seek(0)
    return embed_picture(data, alt=alt, longest=longest)
