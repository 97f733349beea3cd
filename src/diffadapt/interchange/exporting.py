"""Writing an adapter for another tool."""

from pathlib import Path

import torch

from ..adapters import load_adapter
from ..errors import Refused
from ..files import at_home
from ..network import Network
from .diff import write_diff
from .lora_writing import write_lora
from .peft import write_peft
from .words import word_files, write_words

FORMATS = {
    "lora": "one file in kohya's layout (lora and dora, exactly; other methods brought to a rank) for ComfyUI, A1111, "
    "sd-scripts and diffusers; of a transformer in diffusers' layout",
    "peft": "a PEFT directory (lora, dora, ia3; oft on linear layers), exact",
    "diff": "a file of weight differences (any method that can be merged) for ComfyUI, A1111 and LyCORIS",
}
OUTPUT_SIDE = (
    "oft_blocks (LyCORIS diag-oft and boft, kohya's first OFT, ComfyUI, A1111) turn the outputs of a layer, W' = R W, "
    "and OFT turns the inputs, W' = W R^T; no R makes the one of the other"
)


def export_adapter(
    base: Network,
    adapter: str | Path,
    out: str | Path,
    *,
    to: str = "lora",
    strength: float = 1.0,
    dtype: torch.dtype = torch.float16,
    rank: int | None = None,
    progress: bool = False,
) -> tuple[list[Path], str]:
    """Writes an adapter in another tool's format, and beside it its new words as textual inversion.

    Args:
        base: the base that the adapter was trained on.
        adapter: an adapter file.
        out: what is written, a new folder for "peft" and a new file for the others.
        to: "lora", "peft" or "diff", see `FORMATS`.
        strength: at which it is written, 0 to 1 and beyond; the other tool's own strength 1 is then this one.
        dtype: of "lora" and "diff": float16 (the default) or float32. bfloat16 would round small turns off.
        rank: of "lora", for a method that is none: the rank that its change is brought to.
        progress: show progress on stderr where a change is brought to a rank, a decomposition for each layer.

    Returns:
        all that was written, and a note on what the other tool will not read or what was lost ("" where nothing was)

    Raises:
        Refused: the format cannot hold the adapter, or a file that would be written exists.
    """
    out = at_home(out)
    if to == "oft_blocks":
        raise Refused(f"oft_blocks cannot be written: {OUTPUT_SIDE}; --to diff reaches the same tools")
    if to not in FORMATS:
        raise Refused(f"no format {to!r}; known: " + ", ".join(f"{name} ({text})" for name, text in FORMATS.items()))
    if dtype not in (torch.float16, torch.float32):
        raise Refused(f"values are written as float16 or float32, which keep small turns; got {dtype}")
    if rank is not None and to != "lora":
        raise Refused(f"a rank goes with --to lora; {to} is exact")
    if to != "peft" and out.suffix != ".safetensors":
        raise Refused(f"{out}: --to {to} writes a file, whose name ends in .safetensors")
    if out.exists():
        raise Refused(f"{out} exists already; choose a new name, nothing is overwritten")
    attachment = load_adapter(base, adapter)
    try:
        if attachment.classes:
            raise Refused(
                f"{adapter} brings the classes {', '.join(attachment.classes[:5])}, which other tools' files have no "
                "place for; merge it into its base and save that (diffadapt merge)"
            )
        attachment.strength = strength
        words = word_files(attachment, out)
        if to == "peft":
            written, notes = write_peft(attachment, out), []
        elif to == "diff":
            written, notes = write_diff(attachment, out, dtype)
        else:
            written, notes = write_lora(attachment, out, dtype, rank, progress=progress)
        return written + write_words(words), "; ".join(notes)
    finally:
        attachment.detach()
