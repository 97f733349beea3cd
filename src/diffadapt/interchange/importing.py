"""Reading another tool's adapter into an adapter file."""

import shlex
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from ..adapters import Hint, attach
from ..adapters.attach import AdaptableBase
from ..adapters.oft import OFTAdapter
from ..errors import Refused
from ..files import load_tensors
from .exporting import OUTPUT_SIDE
from .found import Found
from .official import is_official, read_official
from .packed import read_kohya
from .peft import CONFIG, read_peft
from .series import describe

PICKLES = (".bin", ".ckpt", ".pt", ".pth")
_CONVERSION = (
    "import sys, torch, safetensors.torch as s; d = torch.load(sys.argv[1], map_location='cpu', weights_only=True); "
    "s.save_file({k: v.contiguous().clone() for k, v in d.get('state_dict', d).items()}, sys.argv[2])"
)


def import_adapter(base: AdaptableBase, source: str | Path, out: str | Path) -> tuple[list[Path], str]:
    """Reads another tool's OFT into an adapter file.

    Known are PEFT directories, the paper's own checkpoints and the `oft_v2` files of kohya's scripts and OneTrainer.

    Args:
        base: the base that it was trained on; its fingerprint goes into the file.
        source: a directory or a .safetensors file.
        out: the adapter file, a new one. An encoder of control signals goes beside it, as `<stem>-hint.safetensors`.

    Returns:
        the files, and one note on what was read and how faithful it is, which is in their headers too

    Raises:
        Refused: another method or base, an output-side rotation, a pickle, `out` exists.
    """
    source, out = Path(source).expanduser(), Path(out).expanduser()
    if out.exists():
        raise Refused(f"{out} exists already; choose a new name, nothing is overwritten")
    if out.suffix != ".safetensors":
        raise Refused(f"{out}: an adapter file's name ends in .safetensors")
    found = read(source, base)
    attachment = found.attach(base)
    try:
        mine = {path: adapter for path, adapter in attachment.adapters.items() if isinstance(adapter, OFTAdapter)}
        note = [f"{len(found.q)} layers of {', '.join(attachment.roles)} from {found.source}"]
        if len(mine) > len(found.q):
            note.append(f"the other {len(mine) - len(found.q)} layers of these roles stay as they are")
        if found.terms is not None:
            note.append(describe((mine[path] for path in found.q), found.terms))
        text = "; ".join([*note, *found.remarks])
        files = [attachment.save(out, {"note": text})]
    finally:
        attachment.detach()
    if found.hint:
        files.append(_save_hint(base, found, out.with_name(f"{out.stem}-hint.safetensors"), text))
    return files, text


def read(source: Path, base: AdaptableBase) -> Found:
    """What a directory or file of another tool holds.

    Raises:
        Refused: none of the known formats.
    """
    if source.is_dir():
        return read_peft(source, base)
    if (source.parent / CONFIG).is_file() and source.name.startswith("adapter_model."):
        return read_peft(source.parent, base)
    if source.suffix in PICKLES:
        command = shlex.join(["python", "-c", _CONVERSION, str(source), str(source.with_suffix(".safetensors"))])
        raise Refused(
            f"{source} is a pickle, which can run code when read, so none is opened; if you trust it, convert it: "
            + command
        )
    tensors, header = load_tensors(source)
    if header.get("format") == "diffadapt":
        raise Refused(f"{source} is an adapter of diffadapt already")
    if _holds(tensors, ".oft_blocks") or _holds(tensors, ".oft_diag"):
        raise Refused(f"{source} cannot be read: {OUTPUT_SIDE}; merge it into the base in the tool that made it")
    if _holds(tensors, ".oft_R."):
        return read_kohya(source, tensors, base)
    if is_official(tensors):
        return read_official(source, tensors, base)
    raise Refused(
        f"{source} holds no OFT that diffadapt knows: expected a PEFT directory, a checkpoint of the paper's code or "
        "an oft_v2 file of kohya's scripts or OneTrainer"
    )


def _holds(tensors: Mapping[str, Tensor], mark: str) -> bool:
    return any(mark in name for name in tensors)


def _save_hint(base: AdaptableBase, found: Found, out: Path, note: str) -> Path:
    """Writes the encoder of control signals that a checkpoint has beside its rotations."""
    attachment = attach(base, Hint())
    try:
        (path,) = attachment.adapters
        attachment.load_state_dict({f"{path}.encoder.{name}": tensor for name, tensor in found.hint.items()})
        return attachment.save(out, {"note": note})
    finally:
        attachment.detach()
