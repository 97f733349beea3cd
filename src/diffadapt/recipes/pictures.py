"""Pictures to files, atomically."""

import io
from pathlib import Path

from PIL import Image

from ..files import write_atomic


def write_png(path: Path, picture: Image.Image) -> Path:
    """Writes one PNG, whole or not at all."""
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return write_atomic(path, buffer.getvalue())
