"""Any picture file becomes one upright RGB(A) picture, or one sentence that names it."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from diffadapt.data.picture import SUFFIXES, find_crop, fit, on_white, open_mask, open_picture, to_tensor
from diffadapt.errors import Refused


def gradient(width: int = 48, height: int = 32) -> Image.Image:
    """Red grows to the right, green downwards."""
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([x, y, np.full_like(x, 90)], axis=-1).astype(np.uint8), "RGB")


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "bmp", "avif"])
def test_the_usual_formats_open_as_rgb(tmp_path: Path, suffix: str) -> None:
    if f".{suffix}" not in SUFFIXES:
        pytest.skip("this Pillow has no AVIF")
    gradient().save(tmp_path / f"a.{suffix}")
    picture = open_picture(tmp_path / f"a.{suffix}")
    assert (picture.mode, picture.size) == ("RGB", (48, 32))
    assert np.abs(np.asarray(picture, float) - np.asarray(gradient(), float)).mean() < 10


def test_sixteen_bits_of_grey_keep_their_tones(tmp_path: Path) -> None:
    tones = np.linspace(0, 65535, 40, dtype=np.uint16)[None].repeat(40, 0)
    Image.fromarray(tones).save(tmp_path / "deep.png")
    picture = np.asarray(open_picture(tmp_path / "deep.png"))
    assert picture.shape == (40, 40, 3)
    assert np.abs(picture[0, :, 0] - tones[0] / 257).max() <= 0.5


def test_sixteen_bit_colour_keeps_its_tones(tmp_path: Path) -> None:
    """Pillow cannot write one, so the file is made by hand."""
    pixels = np.full((20, 20, 3), (0x4000, 0x8000, 0xC000), dtype=">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    chunks = (b"IHDR", struct.pack(">IIBBBBB", 20, 20, 16, 2, 0, 0, 0)), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")
    data = b"\x89PNG\r\n\x1a\n"
    for kind, body in chunks:
        data += struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    (tmp_path / "deep.png").write_bytes(data)
    assert open_picture(tmp_path / "deep.png").getpixel((5, 5)) == (0x40, 0x80, 0xC0)


def test_cmyk_jpeg_opens_in_its_colours(tmp_path: Path) -> None:
    Image.new("CMYK", (32, 32), (0, 255, 255, 0)).save(tmp_path / "print.jpg")
    red, green, blue = to_tensor(open_picture(tmp_path / "print.jpg")).float().mean((1, 2))
    assert red > 240 and green < 15 and blue < 15


def test_palette_with_transparency_keeps_both(tmp_path: Path) -> None:
    picture = Image.new("P", (32, 32), 0)
    picture.putpalette([255, 0, 0, 0, 0, 255])
    picture.paste(1, (0, 0, 16, 32))
    picture.save(tmp_path / "palette.png", transparency=0)
    opened = open_picture(tmp_path / "palette.png")
    assert opened.mode == "RGBA"
    assert opened.getpixel((4, 4)) == (0, 0, 255, 255)
    assert opened.getchannel("A").getpixel((30, 4)) == 0
    white, mask = on_white(opened)
    assert mask is not None and white.getpixel((30, 4)) == (255, 255, 255)


def test_grey_with_alpha_keeps_its_alpha(tmp_path: Path) -> None:
    picture = Image.new("LA", (32, 32), (100, 255))
    picture.putpixel((0, 0), (100, 0))
    picture.save(tmp_path / "grey.png")
    opened = open_picture(tmp_path / "grey.png")
    assert opened.getpixel((5, 5)) == (100, 100, 100, 255) and opened.getchannel("A").getpixel((0, 0)) == 0


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGBA"])
def test_other_opaque_modes_open_as_rgb(tmp_path: Path, mode: str) -> None:
    gradient().convert(mode).save(tmp_path / "a.png")
    assert open_picture(tmp_path / "a.png").mode == "RGB"


def test_a_camera_that_was_turned_gives_an_upright_picture(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera lay on its side: show it turned by 90 degrees clockwise
    gradient().save(tmp_path / "turned.png", exif=exif)
    upright = np.asarray(open_picture(tmp_path / "turned.png"))
    assert (upright == np.rot90(np.asarray(gradient()), -1)).all()


def test_damaged_exif_is_noted_and_does_no_harm(tmp_path: Path) -> None:
    gradient().save(tmp_path / "a.jpg", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    assert open_picture(tmp_path / "a.jpg", []).size == (48, 32)


def wide_profile() -> bytes:
    """An ICC profile with the primaries of Display P3 and a plain gamma of 2.2, as phones state one."""
    numbers = {
        "wtpt": (0.9642, 1.0, 0.8249), "rXYZ": (0.5151, 0.2412, -0.0011), "gXYZ": (0.2920, 0.6922, 0.0419),
        "bXYZ": (0.1571, 0.0666, 0.7841),
    }  # fmt: skip
    bodies = {
        tag: b"XYZ \0\0\0\0" + struct.pack(">3i", *(round(v * 65536) for v in xyz)) for tag, xyz in numbers.items()
    }
    curve = b"curv\0\0\0\0" + struct.pack(">IHH", 1, round(2.2 * 256), 0)
    bodies |= {"rTRC": curve, "gTRC": curve, "bTRC": curve}
    bodies["desc"] = b"desc\0\0\0\0" + struct.pack(">I", 5) + b"Wide\0" + bytes(79)
    bodies["cprt"] = b"text\0\0\0\0none\0\0\0\0"
    table, data = struct.pack(">I", len(bodies)), b""
    start = 128 + 4 + 12 * len(bodies)
    for tag, body in bodies.items():
        table += tag.encode() + struct.pack(">II", start + len(data), len(body))
        data += body
    date = struct.pack(">6H", 2020, 1, 1, 0, 0, 0)
    white = struct.pack(">3i", 63190, 65536, 54061)
    header = struct.pack(">I", start + len(data)) + bytes(4) + b"\x02\x40\0\0mntrRGB XYZ " + date
    header += b"acsp" + bytes(28) + white
    return header.ljust(128, b"\0") + table + data


def test_a_wide_colour_profile_is_converted_to_srgb(tmp_path: Path) -> None:
    """Grey stays grey; a colour of the wide space lies further out in sRGB."""
    picture = Image.new("RGB", (32, 32), (128, 128, 128))
    picture.paste((200, 100, 100), (0, 0, 16, 32))
    picture.save(tmp_path / "phone.png", icc_profile=wide_profile())
    opened = np.asarray(open_picture(tmp_path / "phone.png")).astype(int)
    assert np.abs(opened[5, 20] - 128).max() <= 3
    assert opened[5, 5, 0] > 207 and opened[5, 5, 1] < 97


def test_a_profile_that_changes_nothing_or_does_not_fit_leaves_the_colours(tmp_path: Path) -> None:
    for space in ("sRGB", "LAB"):
        profile = ImageCms.ImageCmsProfile(ImageCms.createProfile(space)).tobytes()  # type: ignore[arg-type]
        gradient().save(tmp_path / "a.png", icc_profile=profile)
        assert (np.asarray(open_picture(tmp_path / "a.png")) == np.asarray(gradient())).all()
    gradient().save(tmp_path / "a.png", icc_profile=b"no profile")
    assert (np.asarray(open_picture(tmp_path / "a.png")) == np.asarray(gradient())).all()


def test_a_phone_picture_with_a_preview_is_no_animation(tmp_path: Path) -> None:
    gradient().save(tmp_path / "phone.jpg", format="MPO", save_all=True, append_images=[gradient()])
    notes: list[str] = []
    assert open_picture(tmp_path / "phone.jpg", notes).size == (48, 32) and notes == []


@pytest.mark.parametrize("suffix", ["gif", "webp"])
def test_an_animation_gives_its_first_frame_and_a_note(tmp_path: Path, suffix: str) -> None:
    frames = [Image.new("RGB", (32, 32), colour) for colour in ("red", "blue", "green")]
    frames[0].save(tmp_path / f"moving.{suffix}", save_all=True, append_images=frames[1:], lossless=True)
    notes: list[str] = []
    red, _, blue = open_picture(tmp_path / f"moving.{suffix}", notes).convert("RGB").getpixel((9, 9))  # type: ignore
    assert red > 250 and blue < 5
    assert len(notes) == 1 and "3 frames" in notes[0] and f"moving.{suffix}" in notes[0]


def test_the_content_decides_not_the_name(tmp_path: Path) -> None:
    gradient().save(tmp_path / "a.png")
    (tmp_path / "a.png").rename(tmp_path / "really.jpg")
    assert open_picture(tmp_path / "really.jpg").size == (48, 32)


def test_the_crop_is_the_largest_square_in_the_middle() -> None:
    assert find_crop((48, 32)).box == (8, 0, 40, 32)
    assert find_crop((32, 49)).box == (0, 8, 32, 40)
    assert find_crop((32, 32)).box == (0, 0, 32, 32)


@pytest.mark.parametrize(("left", "expected"), [(30, 19), (0, 0), (90, 68)])
def test_the_crop_follows_the_mask_and_stays_inside(left: int, expected: int) -> None:
    mask = Image.new("L", (100, 32), 0)
    mask.paste(255, (left, 10, left + 10, 20))
    assert find_crop((100, 32), mask).box == (expected, 0, expected + 32, 32)


def test_fitting_keeps_picture_and_mask_together() -> None:
    mask = Image.new("L", (100, 40), 0)
    mask.paste(255, (70, 10, 90, 30))
    picture = Image.merge("RGB", [mask] * 3)
    fitted, its_mask, crop = fit(picture, 20, mask)
    assert fitted.size == (20, 20) and its_mask is not None and crop.box == (60, 0, 100, 40) and crop.side == 40
    difference = to_tensor(fitted)[:1].float() - to_tensor(its_mask).float()
    assert difference.abs().mean() < 6  # two resampling filters of the same square
    assert to_tensor(fitted).dtype == torch.uint8 and to_tensor(fitted).shape == (3, 20, 20)


def test_a_mask_of_the_same_shape_is_resized_and_another_refused(tmp_path: Path) -> None:
    mask = Image.new("L", (96, 64), 0)
    mask.paste(255, (0, 0, 48, 64))
    mask.save(tmp_path / "m.png")
    notes: list[str] = []
    resized = open_mask(tmp_path / "m.png", (48, 32), notes)
    assert resized.size == (48, 32) and resized.getpixel((4, 4)) == 255 and "resized" in notes[0]
    with pytest.raises(Refused, match=r"m\.png is 96x64, its upright picture 50x50"):
        open_mask(tmp_path / "m.png", (50, 50))
