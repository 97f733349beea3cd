"""A folder of pictures as people keep them: which files are pictures, and what the files beside them say.

Read beside `cat 3.jpg`: its caption in `cat 3.txt` or `cat 3.caption` (UTF-8), or in `metadata.jsonl`, one JSON object
a line, `{"file_name": "cat 3.jpg", "text": "..."}` (the imagefolder convention; `caption` and `prompt` are taken for
`text`); its mask in `cat 3-masklabel.png`. Names are compared without the case of letters and in one form of accents
(`CAT 3.TXT`; e with an accent as one character or two). A sidecar wins over `metadata.jsonl`, `.txt` over `.caption`.
Hidden files are ignored; every other file that is not used is named in the notes.
"""

import hashlib
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from PIL import Image
from torch import Tensor

from ..errors import Refused
from ..files import at_home, parse_json, read_text, text_lines
from ..shapes import METADATA_ROW
from .picture import SUFFIXES, Crop, fit, on_white, open_mask, open_picture, to_tensor

CAPTION_SUFFIXES = (".txt", ".caption")
MASK_ENDING = "-masklabel"
_CONTROL_ENDING = "-condlabel"  # OneTrainer's control pictures lie beside the pictures, too
_METADATA = "metadata.jsonl"
_CAPTION_COLUMNS = ("text", "caption", "prompt")


@dataclass(frozen=True, kw_only=True)
class Example:
    """One picture of a folder; nothing is decoded until `read`.

    Args:
        path: the picture's file.
        caption: what the sidecar or `metadata.jsonl` says, on one line, or None.
        mask: the mask's file or None; alpha is a mask, too, and is found when the picture is read.
    """

    path: Path
    caption: str | None = None
    mask: Path | None = None

    def content(self) -> str:
        """SHA-256 (hex) over the bytes of the picture and of its mask file: an edited file has another one.

        Raises:
            Refused: a file cannot be read (any more).
        """
        try:
            digest = hashlib.sha256(self.path.read_bytes())
            if self.mask is not None:
                digest.update(hashlib.sha256(self.mask.read_bytes()).digest())
        except OSError as error:
            raise Refused(f"{error.filename} cannot be read ({error.strerror})") from error
        return digest.hexdigest()

    def open(self, notes: list[str] | None = None) -> tuple[Image.Image, Image.Image | None]:
        """Decodes the whole picture: upright RGB, and its mask (file, else alpha) of the same size, mode "L", or None.

        Raises:
            Refused: the picture or its mask cannot be used; names the file.
        """
        picture, mask = on_white(open_picture(self.path, notes))
        if self.mask is not None:
            mask = open_mask(self.mask, picture.size, notes)
        return picture, mask

    def read(self, resolution: int, notes: list[str] | None = None) -> tuple[Tensor, Tensor | None, Crop]:
        """Decodes and crops.

        Returns:
            picture (3, R, R) uint8, mask (1, R, R) uint8 or None, crop
        """
        picture, mask = self.open(notes)
        picture, mask, crop = fit(picture, resolution, mask)
        return to_tensor(picture), None if mask is None else to_tensor(mask), crop


def list_folder(folder: str | Path) -> tuple[list[Example], list[str]]:
    """Finds the pictures of a folder, in natural order (2.jpg before 10.jpg), with their captions and masks.

    Pictures in subfolders count only when `metadata.jsonl` names them.

    Returns:
        the examples, and one sentence for each file that is not used.

    Raises:
        Refused: no such folder, no picture in it, or a caption, metadata line or mask name that cannot be right.
    """
    folder = at_home(folder)
    kinds = ", ".join(suffix[1:] for suffix in SUFFIXES)
    if not folder.is_dir():
        found = "a file is there" if folder.exists() else "nothing is there"
        raise Refused(f"expected a folder of pictures at {folder}; {found}: check the path")
    try:
        files = sorted((path for path in folder.iterdir() if not path.name.startswith(".")), key=natural_order)
    except OSError as error:
        raise Refused(f"folder {folder} cannot be read ({error.strerror}); check its permissions") from error
    captions = _read_metadata(folder / _METADATA) if (folder / _METADATA).is_file() else {}
    pictures = [path for path in files if _is_picture(path)]
    nested = sorted((folder / name for name in captions if "/" in name), key=natural_order)

    notes: list[str] = []
    examples = []
    used = {folder / _METADATA}
    files_of: dict[Path, dict[str, Path]] = {folder: {plain_name(path.name): path for path in files}}
    for path in pictures + nested:
        caption = captions.get(path.relative_to(folder).as_posix())
        if path.parent not in files_of:
            files_of[path.parent] = {plain_name(each.name): each for each in sorted(path.parent.iterdir())}
        beside = files_of[path.parent]
        names = [plain_name(path.with_suffix(ending).name) for ending in CAPTION_SUFFIXES]
        sidecars = [beside[name] for name in names if name in beside and beside[name].is_file()]
        if sidecars:
            caption = _read_caption(sidecars[0]) or caption
            if len(sidecars) > 1:
                notes.append(f"{sidecars[1].name}: not used, {sidecars[0].name} comes first")
        mask = path.with_name(f"{path.stem}{MASK_ENDING}.png")
        mask = beside.get(plain_name(mask.name), mask)
        examples.append(Example(path=path, caption=caption, mask=mask if mask.is_file() else None))
        used |= {path, mask, *sidecars, *path.parents}
    for path in files:
        if path not in used:
            notes.append(f"{path.name}: skipped, {_why_skipped(path, kinds)}")
    if not examples:
        found = f"; found {_some([path.name for path in files])}" if files else " (it is empty)"
        raise Refused(f"{folder} holds no picture{found}; expected {kinds}")
    return examples, notes


def plain_name(name: str) -> str:
    """A file's name as it is compared: without the case of letters, accents in one form."""
    return unicodedata.normalize("NFC", name).casefold()


def natural_order(path: Path) -> tuple[list[tuple[int, int, str]], str]:
    """Sort key: numbers by value, letters without case, the plain path last so that the order never depends on luck."""
    parts = re.split(r"(\d+)", path.as_posix().casefold())
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts if part], path.as_posix()


def _is_picture(path: Path) -> bool:
    stem = path.stem.lower()
    return path.suffix.lower() in SUFFIXES and path.is_file() and not stem.endswith((MASK_ENDING, _CONTROL_ENDING))


def _why_skipped(path: Path, kinds: str) -> str:
    stem = path.stem.lower()
    if path.is_dir():
        return "a folder; only the pictures directly in the concept's folder are read"
    if stem.endswith(MASK_ENDING):
        return "a mask without a picture of that name (a mask is a .png)"
    if stem.endswith(_CONTROL_ENDING):
        return "a control picture"
    if path.suffix.lower() in CAPTION_SUFFIXES:
        return "a caption without a picture of that name"
    if path.suffix.lower() in (".heic", ".heif", ".avif", ".tif", ".tiff"):
        return f"convert it to one of {kinds} to use it"
    return f"not a picture ({kinds})"


def _read_caption(path: Path) -> str | None:
    """A caption file as one line of text, or None when it is blank."""
    return " ".join(read_text(path).split()) or None


def _read_metadata(path: Path) -> dict[str, str | None]:
    """`metadata.jsonl` as {file name relative to the folder, with slashes: caption or None}."""
    captions: dict[str, str | None] = {}
    beside = {plain_name(each.relative_to(path.parent).as_posix()): each for each in path.parent.rglob("*")}
    for number, row in read_metadata(path):
        place, name = f"{path} line {number}", row["file_name"]
        pure = PurePosixPath(name)
        if pure.is_absolute() or ".." in pure.parts or "\\" in name or ":" in name or "\0" in name:
            raise Refused(f'{place}: file_name "{name}" leads out of the folder; expected a path inside it, with /')
        found = beside.get(plain_name(str(pure)))
        if pure.suffix.lower() not in SUFFIXES or found is None or not found.is_file():
            raise Refused(f'{place}: there is no picture "{name}" in {path.parent}; correct or remove the line')
        pure = PurePosixPath(found.relative_to(path.parent).as_posix())
        if str(pure) in captions:
            raise Refused(f'{place}: "{name}" is named twice; keep one line for each picture')
        captions[str(pure)] = _caption_of(row, place)
    return captions


def read_metadata(path: Path) -> list[tuple[int, dict[str, Any]]]:
    """(number of the line, row) of every line of a `metadata.jsonl` that is not blank.

    Raises:
        Refused: a line is not JSON or has no "file_name".
    """
    lines = [(number, line) for number, line in enumerate(text_lines(read_text(path)), start=1) if line.strip()]
    rows = [(number, parse_json(line, METADATA_ROW, f"{path} line {number}")) for number, line in lines]
    for number, row in rows:
        if not row["file_name"]:
            raise Refused(f'{path} line {number} has no "file_name"; expected {{"file_name": "00.jpg", "text": "..."}}')
    return rows


def _caption_of(row: Mapping[str, Any], place: str) -> str | None:
    """The caption of a line, in whichever of its usual columns it is.

    Raises:
        Refused: it is no text, or two columns say different things.
    """
    texts = {}
    for column in _CAPTION_COLUMNS:
        text = row.get(column)
        if text is not None and not isinstance(text, str):
            raise Refused(f'{place}: "{column}" is {type(text).__name__}; expected a string')
        if text and text.strip():
            texts[column] = " ".join(text.split())
    if len(set(texts.values())) > 1:
        raise Refused(f"{place}: {' and '.join(texts)} say different things; keep one of them as the caption")
    return next(iter(texts.values()), None)


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
