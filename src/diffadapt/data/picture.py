"""One picture file -> one upright RGB(A) picture, or one clear sentence; and the crop that training sees.

Crop policy: the largest square of the upright picture, centred on the middle, or on the centre of the mask's box when
there is a mask (moved as little as needed to stay inside), resized to the asked resolution. Nothing is stretched and
nothing is padded. A transparent picture is composed on white, and its alpha is its mask.
"""

import io
import math
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError, features
from torch import Tensor

from ..errors import Refused
from ..files import write_atomic

_AVIF = features.check("avif")
SUFFIXES: tuple[str, ...] = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif") + ((".avif",) if _AVIF else ())
# Only these decoders may look at a file, whatever its name: Pillow also knows formats that start other programs.
_FORMATS = ["JPEG", "PNG", "WEBP", "BMP", "GIF"] + (["AVIF"] if _AVIF else [])
MAX_PIXELS = 100_000_000
MAX_ASPECT = 10.0
MIN_SIDE = 16


@dataclass(frozen=True, kw_only=True)
class Crop:
    """Which part of a picture training sees.

    Args:
        original: width and height of the upright picture, in pixels.
        box: left, top, right, bottom in pixels of the upright picture; always a square.
    """

    original: tuple[int, int]
    box: tuple[int, int, int, int]

    @property
    def side(self) -> int:
        """Side of the square in pixels of the original."""
        return self.box[2] - self.box[0]


def open_picture(path: str | Path, notes: list[str] | None = None, *, data: bytes | None = None) -> Image.Image:
    """Reads a picture: upright (EXIF), 8 bits a channel, colours in sRGB, first frame of an animation.

    16-bit, CMYK, palette, grey and 1-bit pictures are converted; other colour profiles are converted to sRGB.

    Args:
        path: a jpg, jpeg, png, webp, bmp, gif, or (when Pillow has it) avif file. The content decides, not the name.
        notes: gets one sentence for everything done to the picture that its owner may not expect.
        data: the file's bytes, where it is a member of an archive; `path` is then its name for messages.

    Returns:
        A picture of mode "RGBA" when some of it is transparent, otherwise "RGB".

    Raises:
        Refused: the file is missing, no picture, damaged, too small, too long and thin, too large or all transparent.
    """
    path = Path(path)
    notes = notes if notes is not None else []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of sizes, which are checked here, and of harmless metadata
        try:
            with Image.open(path if data is None else io.BytesIO(data), formats=_FORMATS) as file:
                _check_size(path, *file.size)
                frames = getattr(file, "n_frames", 1)
                if frames > 1 and file.format != "MPO":  # an MPO is a JPEG with a preview, not an animation
                    notes.append(f"{path.name}: an animation of {frames} frames; only the first is used")
                file.load()
                return _simplified(_upright(file, path.name, notes), path)
        except Refused:
            raise
        except FileNotFoundError as error:
            raise Refused(f"no picture at {path}; check the path") from error
        except (PermissionError, IsADirectoryError) as error:
            raise Refused(f"{path} cannot be read ({error.strerror}); expected a readable picture file") from error
        except UnidentifiedImageError as error:
            suffixes = ", ".join(suffix[1:] for suffix in SUFFIXES)
            raise Refused(f"{path} is not a picture, whatever its name says; expected {suffixes}: remove it") from error
        except Image.DecompressionBombError as error:
            raise Refused(f"{path} has more than {MAX_PIXELS // 10**6} million pixels; make it smaller") from error
        except Exception as error:  # damaged data surfaces as nearly any exception of the decoders
            raise Refused(f"{path} is damaged or cut short ({error}); copy it again or remove it") from error


def open_mask(path: str | Path, size: tuple[int, int], notes: list[str] | None = None) -> Image.Image:
    """Reads a mask, white where the subject is, and brings it to the size of its picture.

    Args:
        path: the mask's file; a transparent part counts as black.
        size: width and height of the upright picture.
        notes: gets a sentence when the mask had to be resized.

    Raises:
        Refused: another aspect ratio than the picture (beyond 2 %), or nothing is white.
    """
    path = Path(path)
    picture = open_picture(path, notes)
    if picture.mode == "RGBA":
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, (0, 0, 0, 255)), picture)
    mask = picture.convert("L")
    if mask.size != size:
        if abs(math.log(mask.width / mask.height * size[1] / size[0])) > math.log(1.02):
            raise Refused(
                f"mask {path} is {mask.width}x{mask.height}, its upright picture {size[0]}x{size[1]}: not the same"
                " shape; draw the mask over the picture at its own size"
            )
        if notes is not None:
            notes.append(f"{path.name}: resized from {mask.width}x{mask.height} to {size[0]}x{size[1]}")
        mask = mask.resize(size, Image.Resampling.BILINEAR)
    brightest = int(np.asarray(mask).max())
    if brightest < 128:
        raise Refused(
            f"mask {path} marks nothing: its brightest value is {brightest} of 255; paint the subject white (255), or"
            " remove the mask"
        )
    return mask


def on_white(picture: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """Composes a transparent picture on white.

    Returns:
        the RGB picture, and its alpha as a mask of mode "L", or None for an opaque picture.
    """
    if picture.mode != "RGBA":
        return picture, None
    white = Image.new("RGBA", picture.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, picture).convert("RGB"), picture.getchannel("A")


def find_crop(size: tuple[int, int], mask: Image.Image | None = None) -> Crop:
    """The square that training sees of a picture of this size (width, height); see the crop policy above."""
    width, height = size
    side = min(size)
    x, y = width / 2, height / 2
    if mask is not None:
        box = mask.point([0] * 128 + [255] * 128).getbbox() or mask.getbbox() or (0, 0, width, height)
        x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    left = min(max(round(x - side / 2), 0), width - side)
    top = min(max(round(y - side / 2), 0), height - side)
    return Crop(original=size, box=(left, top, left + side, top + side))


def fit(
    picture: Image.Image, resolution: int, mask: Image.Image | None = None
) -> tuple[Image.Image, Image.Image | None, Crop]:
    """Crops a picture and its mask to a square and resizes both.

    Args:
        picture: RGB.
        resolution: side of the result, in pixels.
        mask: mode "L", of the picture's size, or None.

    Returns:
        picture and mask of resolution x resolution, and the crop.
    """
    crop = find_crop(picture.size, mask)
    target = (resolution, resolution)
    fitted = picture.resize(target, Image.Resampling.LANCZOS, box=crop.box)
    if mask is not None:
        mask = mask.resize(target, Image.Resampling.BILINEAR, box=crop.box)
    return fitted, mask, crop


def to_tensor(picture: Image.Image) -> Tensor:
    """A picture of mode "RGB" or "L" as a uint8 tensor (C, H, W)."""
    array = np.array(picture)
    return torch.from_numpy(array[None] if array.ndim == 2 else array.transpose(2, 0, 1).copy())


def to_picture(pixels: Tensor) -> Image.Image:
    """(3, H, W) in [0, 1] -> an 8-bit RGB picture."""
    array = (pixels.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()
    return Image.fromarray(array)


def write_png(path: Path, picture: Image.Image) -> Path:
    """Writes one PNG, whole or not at all."""
    return write_atomic(path, png_bytes(picture))


def png_bytes(picture: Image.Image) -> bytes:
    """A picture as the content of a PNG file."""
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return buffer.getvalue()


def _check_size(path: Path, width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise Refused(f"{path} is {width}x{height}, more than {MAX_PIXELS // 10**6} million pixels; make it smaller")
    if min(width, height) < MIN_SIDE and max(width, height) < MAX_ASPECT * MIN_SIDE:
        raise Refused(f"{path} is {width}x{height} pixels; expected at least {MIN_SIDE} on each side: remove it")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise Refused(
            f"{path} is {width}x{height}, longer than {MAX_ASPECT:g}:1, and a square of it shows next to nothing;"
            " cut out the part that matters"
        )


def _upright(picture: Image.Image, name: str, notes: list[str]) -> Image.Image:
    try:
        return ImageOps.exif_transpose(picture)
    except Exception:  # damaged EXIF in a good picture, in as many ways as there are cameras
        notes.append(f"{name}: its EXIF data is damaged, so it is used the way up that it is stored")
        return picture


def _simplified(picture: Image.Image, path: Path) -> Image.Image:
    """Mode "RGBA" when some of the picture is transparent, otherwise "RGB"."""
    if picture.mode.startswith("I"):  # 16-bit grey; a plain conversion would clip at 255
        grey = np.clip(np.asarray(picture, dtype=np.int64), 0, 65535)
        return Image.fromarray(((grey + 128) // 257).astype(np.uint8), "L").convert("RGB")
    alpha = None
    if picture.has_transparency_data:
        rgba = picture.convert("RGBA")
        alpha, picture = rgba.getchannel("A"), _in_srgb(rgba.convert("RGB"), picture.info.get("icc_profile"))
    else:
        picture = _in_srgb(picture, picture.info.get("icc_profile")).convert("RGB")
    if alpha is None or int(np.asarray(alpha).min()) == 255:
        return picture
    if int(np.asarray(alpha).max()) == 0:
        raise Refused(f"{path} is transparent everywhere, so there is nothing to see; remove it or fill its alpha")
    picture.putalpha(alpha)
    return picture


def _in_srgb(picture: Image.Image, profile: bytes | None) -> Image.Image:
    """Converts colours that a profile states (phones: Display P3) to sRGB; leaves them where the profile is no use."""
    if not profile or picture.mode not in ("RGB", "CMYK"):
        return picture
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if "srgb" in ImageCms.getProfileDescription(source).lower():
            return picture
        return ImageCms.profileToProfile(picture, source, ImageCms.createProfile("sRGB"), outputMode="RGB") or picture
    except (ImageCms.PyCMSError, OSError, TypeError, ValueError):
        return picture
