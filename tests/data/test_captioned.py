"""A captioned folder: any number of pictures, each with a caption; decoded when asked for."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from diffadapt.data.captioned import load_captioned
from diffadapt.errors import Refused


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for i in range(40):
        Image.new("RGB", (40, 30), (i, 0, 0)).save(tmp_path / f"{i}.png")
        (tmp_path / f"{i}.txt").write_text(f"picture {i}")
    return tmp_path


def test_more_than_thirty_pictures_load_with_their_captions(folder: Path) -> None:
    captioned = load_captioned(folder)
    assert len(captioned) == 40 and captioned.captions()[10] == "picture 10" == captioned.caption(10)
    pixels = captioned.pixels([3, 20], 16)
    assert pixels.shape == (2, 3, 16, 16)
    assert torch.equal((pixels[:, 0, 0, 0] * 255).round(), torch.tensor([3.0, 20.0]))
    assert captioned.crop(0).box == (5, 0, 35, 30) and captioned.mask(0, 16) is None


def test_a_picture_without_a_caption_is_left_out_and_noted(folder: Path) -> None:
    (folder / "5.txt").unlink()
    captioned = load_captioned(folder)
    assert len(captioned) == 39 and captioned.notes == ["5.png: left out, it has no caption"]


def test_a_folder_without_any_caption_is_refused(tmp_path: Path) -> None:
    Image.new("RGB", (40, 30)).save(tmp_path / "a.png")
    with pytest.raises(Refused, match="none of the 1 pictures"):
        load_captioned(tmp_path)


def test_a_damaged_picture_is_named_when_it_is_read(folder: Path) -> None:
    (folder / "7.png").write_bytes(b"no picture")
    captioned = load_captioned(folder)
    with pytest.raises(Refused, match=r"7\.png is not a picture"):
        captioned.pixels([7], 16)


def test_alpha_is_the_mask(folder: Path) -> None:
    Image.new("RGBA", (30, 30), (9, 9, 9, 128)).save(folder / "0.png")
    mask = load_captioned(folder).mask(0, 16)
    assert mask is not None and mask.shape == (1, 16, 16) and torch.allclose(mask, torch.tensor(128 / 255))
