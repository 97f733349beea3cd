"""A captioned folder: any number of pictures, each with its own caption, for learning a style or a domain."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..errors import Refused
from ..files import at_home
from .cache import content_key
from .folder import Example, list_folder
from .picture import Crop


class Captioned:
    """Captioned pictures, from `load_captioned`, decoded when asked for; keep latents in a `TensorCache`.

    Attributes:
        folder: where the pictures are.
        examples: the pictures that have a caption, in natural order.
        notes: sentences for a person: what is left out and why; grows as pictures are decoded.
    """

    def __init__(self, folder: Path, examples: Sequence[Example], notes: list[str]) -> None:
        self.folder, self.examples, self.notes = folder, tuple(examples), notes

    def __len__(self) -> int:
        return len(self.examples)

    def __repr__(self) -> str:
        return f"Captioned({len(self)} pictures in {str(self.folder)!r})"

    def caption(self, index: int) -> str:
        """The caption of picture `index`."""
        return self.examples[index].caption or ""

    def captions(self) -> list[str]:
        """Every caption, in order."""
        return [self.caption(index) for index in range(len(self))]

    def identity(self) -> str:
        """A key of all names, captions and bytes, so that a run knows its own pictures again; reads every file.

        Raises:
            Refused: a picture cannot be read.
        """
        rows = ((each.path.name, each.caption or "", each.content()) for each in self.examples)
        return content_key(*(part for row in rows for part in row))

    def pixels(self, indices: Sequence[int], resolution: int) -> Tensor:
        """Decodes and crops these pictures, (len(indices), 3, R, R) float32 in [0, 1].

        Raises:
            Refused: a picture cannot be used; names the file.
        """
        pictures = [self.examples[index].read(resolution, self.notes)[0] for index in indices]
        return torch.stack(pictures).float() / 255

    def mask(self, index: int, resolution: int) -> Tensor | None:
        """The mask of one picture, (1, R, R) float32 in [0, 1], or None when it has neither mask file nor alpha."""
        mask = self.examples[index].read(resolution)[1]
        return None if mask is None else mask.float() / 255

    def crop(self, index: int) -> Crop:
        """Which square of picture `index` is used."""
        return self.examples[index].read(1)[2]


def load_captioned(folder: str | Path) -> Captioned:
    """Lists a folder of captioned pictures; captions as for concepts (see `diffadapt.data.folder`).

    A picture without a caption is left out and named in the notes.

    Raises:
        Refused: no folder, no picture, no caption at all, or a caption or metadata line that cannot be right.
    """
    folder = at_home(folder)
    examples, notes = list_folder(folder)
    notes += [f"{example.path.name}: left out, it has no caption" for example in examples if example.caption is None]
    captioned = [example for example in examples if example.caption is not None]
    if not captioned:
        raise Refused(
            f"none of the {len(examples)} pictures in {folder} has a caption; write one into NAME.txt beside each"
            ' NAME.jpg, or a metadata.jsonl with {"file_name": ..., "text": ...} lines'
        )
    return Captioned(folder, captioned, notes)
