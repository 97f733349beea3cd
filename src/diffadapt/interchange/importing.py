"""Reading another tool's adapter into an adapter file."""

import re
import shlex
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from ..adapters import Attachment, Hint, attach
from ..errors import Refused
from ..files import at_home, load_tensors
from ..network import Network
from .exporting import OUTPUT_SIDE
from .found import Found
from .found_lora import FoundLoRA
from .lora_reading import is_lora, read_lora
from .official import is_official, read_official
from .packed import read_kohya
from .peft import CONFIG, read_peft
from .words import attach_word, is_word

PICKLES = (".bin", ".ckpt", ".pt", ".pth")
_CONVERSION = (
    "import sys, torch, safetensors.torch as s; d = torch.load(sys.argv[1], map_location='cpu', weights_only=True); "
    "s.save_file({k: v.contiguous().clone() for k, v in d.get('state_dict', d).items()}, sys.argv[2])"
)


_DORA = r"\.dora_scale$|\.lora_magnitude_vector"

# What a file is that cannot be read, by the names in it.
_KINDS = {
    r"\.hada_": "LoHa (Hadamard products)",
    r"\.lokr_": "LoKr (Kronecker products)",
    _DORA: "DoRA on something else than LoRA",
    r"\.a1\.weight$": "GLoRA",
    r"\.on_input$": "IA3",
    r"\.diff(_b)?$": "weight differences (.diff)",
    r"\.[wb]_norm$": "weight differences (.w_norm)",
    r"^bundle_emb\.": "a LoRA with words bundled into it",
}


def import_adapter(
    base: Network, source: str | Path, out: str | Path, *, token: str | None = None
) -> tuple[list[Path], str]:
    """Reads another tool's LoRA, OFT or textual inversion into an adapter file.

    Known are LoRA and DoRA files of kohya's scripts, LyCORIS (LoCon) and diffusers, PEFT directories of LoRA, DoRA and
    OFT, the OFT paper's own checkpoints, the `oft_v2` files of kohya's scripts and OneTrainer, and textual inversion.

    Args:
        base: the base that it was trained on; its fingerprint goes into the file.
        source: a directory or a .safetensors file.
        out: the adapter file, a new one. An encoder of control signals goes beside it, as `<stem>-hint.safetensors`.
        token: of textual inversion: what the new word is to be called; None: as the file says.

    Returns:
        the files, and one note on what was read and how faithful it is, which is in their headers too

    Raises:
        Refused: another method or base, an output-side rotation, a pickle, `out` or the encoder's file exists.
    """
    source, out = at_home(source), at_home(out)
    if out.exists():
        raise Refused(f"{out} exists already; choose a new name, nothing is overwritten")
    if out.suffix != ".safetensors":
        raise Refused(f"{out}: an adapter file's name ends in .safetensors")
    if source.suffix == ".safetensors" and source.is_file():
        tensors, header = load_tensors(source)
        if is_word(tensors) and header.get("format") != "diffadapt":
            return _import_word(base, source, tensors, out, token)
    if token is not None:
        raise Refused(f"a token goes with textual inversion, and {source} is none")
    found, hint = read(source, base), out.with_name(f"{out.stem}-hint.safetensors")
    if isinstance(found, Found) and found.hint and hint.exists():
        raise Refused(f"{hint}, where the encoder of signals would go, exists already; choose a new name for both")
    attachment = found.attach(base)
    try:
        layers = len(attachment.adapters)
        note = [f"{found.layers} layers of {', '.join(attachment.roles)} from {found.source}"]
        if layers > found.layers:
            note.append(f"the other {layers - found.layers} layers of these roles stay as they are")
        text = "; ".join([*note, *found.describe(attachment), *found.remarks])
        files = [attachment.save(out, {"note": text})]
    finally:
        attachment.detach()
    if isinstance(found, Found) and found.hint:
        files.append(_save_hint(base, found, hint, text))
    return files, text


def read(source: Path, base: Network) -> Found | FoundLoRA:
    """The adapter in a directory or file of another tool.

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
    for mark, kind in _KINDS.items():
        if any(re.search(mark, name) for name in tensors) and not (mark == _DORA and is_lora(tensors)):
            raise Refused(
                f"{source} is {kind}, which diffadapt does not read yet; merge it into the base in the tool that made "
                "it, and train or sample on that base"
            )
    if _holds(tensors, ".oft_R."):
        return read_kohya(source, tensors, base)
    if is_official(tensors):
        return read_official(source, tensors, base)
    if is_lora(tensors):
        return read_lora(source, tensors, header, base)
    raise Refused(
        f"{source} holds no adapter that diffadapt knows: expected LoRA (kohya's scripts, LyCORIS' LoCon, diffusers), "
        "textual inversion, OFT (the paper's code, kohya's oft_v2, OneTrainer), or a PEFT directory of LoRA or OFT"
    )


def _import_word(
    base: Network, source: Path, tensors: Mapping[str, Tensor], out: Path, token: str | None
) -> tuple[list[Path], str]:
    attachment: Attachment = attach_word(base, source, tensors, token)
    try:
        (word, *more), start = list(attachment.tokens), next(iter(attachment.tokens.values()))
        text = (
            f"textual inversion from {source.name}, {1 + len(more)} vectors; write {word} in a prompt; strength 0 is "
            f"the mean vector of {start!r}, since the file does not say where it began"
        )
        return [attachment.save(out, {"note": text})], text
    finally:
        attachment.detach()


def _holds(tensors: Mapping[str, Tensor], mark: str) -> bool:
    return any(mark in name for name in tensors)


def _save_hint(base: Network, found: Found, out: Path, note: str) -> Path:
    """Writes the encoder of control signals that a checkpoint has beside its rotations."""
    attachment = attach(base, Hint())
    try:
        (path,) = attachment.adapters
        attachment.load_state_dict({f"{path}.encoder.{name}": tensor for name, tensor in found.hint.items()})
        return attachment.save(out, {"note": note})
    finally:
        attachment.detach()
