"""Writes soft masks beside the pictures of a concept that have none."""

from pathlib import Path

from ..controls.clipseg import ClipSeg
from ..progress import Steps
from .folder import MASK_ENDING, list_folder
from .picture import to_picture, to_tensor, write_png


def write_masks(folder: str | Path, noun: str, model: ClipSeg, *, progress: bool = False) -> list[Path]:
    """One `NAME-masklabel.png` for each picture without a mask; a picture with one, or with alpha, is left alone.

    Args:
        folder: of pictures, as `load_concept` takes it.
        noun: what the pictures show one of.
        model: finds it.
        progress: show progress on stderr.

    Returns:
        the files written
    """
    examples, _ = list_folder(folder)
    written: list[Path] = []
    with Steps("masks", len(examples), quiet=not progress) as bar:
        for example in examples:
            picture, mask = example.open([])
            if mask is None:
                soft = model.masks(to_tensor(picture)[None].float() / 255, noun)[0]
                path = example.path.with_name(f"{example.path.stem}{MASK_ENDING}.png")
                write_png(path, to_picture(soft.expand(3, -1, -1)))
                written.append(path)
            bar.advance()
    return written
