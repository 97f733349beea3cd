"""A file that is no usable picture is refused in one sentence that names it, before it can do harm."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffadapt.data.picture import open_mask, open_picture
from diffadapt.errors import Refused


def refusal(path: Path) -> str:
    with pytest.raises(Refused) as caught:
        open_picture(path)
    message = str(caught.value)
    assert path.name in message and "\n" not in message
    return message


def test_text_renamed_to_jpg_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_text("this is no picture")
    assert "not a picture" in refusal(tmp_path / "text.jpg")
    (tmp_path / "empty.jpg").write_bytes(b"")
    assert "not a picture" in refusal(tmp_path / "empty.jpg")


def test_postscript_renamed_to_jpg_is_never_run(tmp_path: Path) -> None:
    (tmp_path / "evil.jpg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n%%EndComments\nshowpage\n")
    assert "not a picture" in refusal(tmp_path / "evil.jpg")


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "bmp", "gif"])
@pytest.mark.parametrize("kept", [0.3, 0.6, 0.9])
def test_a_picture_cut_short_is_refused_or_whole(tmp_path: Path, suffix: str, kept: float) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    path = tmp_path / f"cut.{suffix}"
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * kept)])
    message = refusal(path)
    assert "damaged" in message or "not a picture" in message


@pytest.mark.parametrize(
    ("size", "expected"), [((1, 1), "at least 16"), ((20000, 10), "longer than"), ((15, 40), "at least")]
)
def test_a_picture_of_an_absurd_size_is_refused(tmp_path: Path, size: tuple[int, int], expected: str) -> None:
    Image.new("RGB", size).save(tmp_path / "odd.png")
    message = refusal(tmp_path / "odd.png")
    assert expected in message and f"{size[0]}x{size[1]}" in message


@pytest.mark.parametrize("side", [10_050, 60_000])
def test_a_decompression_bomb_is_refused_before_it_is_decoded(tmp_path: Path, side: int) -> None:
    """Both above our limit; the second is above Pillow's own, too. Only the header is real."""
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + b"IHDR" + header + struct.pack(">I", zlib.crc32(b"IHDR" + header))
    (tmp_path / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 0) + b"IDAT" + b"\0" * 4)
    assert "100 million pixels" in refusal(tmp_path / "bomb.png")


def test_a_picture_that_is_not_there_is_refused(tmp_path: Path) -> None:
    assert "no picture at" in refusal(tmp_path / "nowhere.png")


def test_a_wholly_transparent_picture_is_refused(tmp_path: Path) -> None:
    Image.new("RGBA", (32, 32), (255, 0, 0, 0)).save(tmp_path / "ghost.png")
    assert "transparent" in refusal(tmp_path / "ghost.png")


@pytest.mark.parametrize("value", [0, 1])
def test_a_mask_without_white_is_refused(tmp_path: Path, value: int) -> None:
    """A mask of zeros and ones looks black, and is a common mistake."""
    Image.new("L", (32, 32), value).save(tmp_path / "m.png")
    with pytest.raises(Refused, match=rf"m\.png marks nothing: its brightest value is {value} of 255"):
        open_mask(tmp_path / "m.png", (32, 32))
