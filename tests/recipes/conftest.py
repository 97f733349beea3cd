from pathlib import Path

import pytest
from PIL import Image, ImageDraw


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder of three drawn pictures of one thing."""
    folder = tmp_path / "biscuit"
    folder.mkdir()
    for i, colour in enumerate(("red", "blue", "green")):
        picture = Image.new("RGB", (48, 40), colour)
        ImageDraw.Draw(picture).ellipse((10 + i, 8, 34 + i, 32), fill="orange", outline="black")
        picture.save(folder / f"{i}.png")
    return folder
