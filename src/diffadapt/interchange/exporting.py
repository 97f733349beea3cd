"""Writing an adapter for another tool."""

from pathlib import Path

import torch

from ..adapters import load_adapter
from ..adapters.attach import AdaptableBase
from ..errors import Refused
from .diff import write_diff, write_words
from .peft import write_peft

FORMATS = {
    "peft": "a PEFT directory (OFT on linear layers), exact",
    "diff": "a file of weight differences (any method) for ComfyUI, A1111 and LyCORIS",
}
OUTPUT_SIDE = (
    "oft_blocks (LyCORIS diag-oft and boft, kohya's first OFT, ComfyUI, A1111) turn the outputs of a layer, W' = R W, "
    "and OFT turns the inputs, W' = W R^T; no R makes the one of the other"
)


def export_adapter(
    base: AdaptableBase,
    adapter: str | Path,
    out: str | Path,
    *,
    to: str,
    strength: float = 1.0,
    dtype: torch.dtype = torch.float16,
) -> list[Path]:
    """Writes an adapter in another tool's format, and beside it its new words as textual inversion.

    Args:
        base: the base that the adapter was trained on.
        adapter: an adapter file.
        out: what is written, a new file for "diff" and a new folder for "peft".
        to: "peft" or "diff", see `FORMATS`.
        strength: at which it is written, 0 to 1 and beyond; the other tool's own strength 1 is then this one.
        dtype: of "diff": float16 (the default) or float32. bfloat16 would round small turns off.

    Returns:
        all that was written

    Raises:
        Refused: the format cannot hold the adapter, or `out` exists.
    """
    out = Path(out).expanduser()
    if to == "oft_blocks":
        raise Refused(f"oft_blocks cannot be written: {OUTPUT_SIDE}; --to diff reaches the same tools")
    if to not in FORMATS:
        raise Refused(f"no format {to!r}; known: " + ", ".join(f"{name} ({what})" for name, what in FORMATS.items()))
    if dtype not in (torch.float16, torch.float32):
        raise Refused(f"differences are written as float16 or float32, which keep small turns; got {dtype}")
    if to == "diff" and out.suffix != ".safetensors":
        raise Refused(f"{out}: differences go into a file whose name ends in .safetensors")
    if out.exists():
        raise Refused(f"{out} exists already; choose a new name, nothing is overwritten")
    attachment = load_adapter(base, adapter)
    try:
        attachment.strength = strength
        written = write_peft(attachment, out) if to == "peft" else write_diff(attachment, out, dtype)
        return written + write_words(attachment, out)
    finally:
        attachment.detach()
