"""Weight differences, LyCORIS' "full" format: what ComfyUI, the A1111 family of web UIs and LyCORIS read.

    lora_unet_<path with underscores>.diff      W' - W, in W's shape       .diff_b of its bias
    the same                        .w_norm     of a normalisation         .b_norm of its bias

Any method whose effect is a change of the weight fits, exactly but for rounding. The tool multiplies the difference by
its own strength, which for OFT is a straight line in the weights and a rotation at 1 only: to use another strength,
export at that strength.

New words go beside it, one file each in the form of textual inversion: one tensor (vectors, D), named as the word.
"""

import re
from pathlib import Path

import torch
from torch import Tensor

from ..adapters import Attachment, Mergeable
from ..errors import Refused
from ..files import save_tensors
from .names import kohya_name


@torch.no_grad()
def write_diff(attachment: Attachment, out: Path, dtype: torch.dtype) -> list[Path]:
    """Writes what an attachment changes at its present strength; returns the file, or nothing where only words changed.

    Raises:
        Refused: an adapter's effect depends on the input, so that it is no change of a weight.
    """
    tensors: dict[str, Tensor] = {}
    for path, adapter in attachment.layers.items():
        if not isinstance(adapter, Mergeable):
            raise Refused(
                f"{type(adapter).__name__} on {path} depends on its input, so that it is no change of a weight"
            )
        own = dict(adapter.innermost().named_parameters(recurse=False))
        weight, bias = own["weight"].float(), own.get("bias")
        names = ("w_norm", "b_norm") if weight.ndim == 1 else ("diff", "diff_b")
        changes = {names[0]: adapter.weight(weight) - weight}
        if bias is not None:
            after = adapter.bias(bias.float())
            assert after is not None
            changes[names[1]] = after - bias.float()
        tensors |= {f"{kohya_name(path)}.{name}": value.to(dtype) for name, value in changes.items() if value.any()}
    if not tensors and not attachment.tokens:
        raise Refused(f"this adapter changes nothing at strength {attachment.strength:g}; there is nothing to write")
    header = {"format": "pt", "method": attachment.method.name, "strength": f"{attachment.strength:g}"}
    return [save_tensors(out, tensors, header)] if tensors else []


@torch.no_grad()
def write_words(attachment: Attachment, beside: Path) -> list[Path]:
    """Writes each new word as textual inversion: `<name>-<word>.safetensors` beside the file or folder of that name."""
    rows = [adapter.rows() for adapter in attachment.words]
    if not rows:
        return []
    name = beside.name.removesuffix(".safetensors")
    vectors = attachment.method.vectors_per_word()
    words = list(attachment.tokens)[::vectors]  # "<t>", "<t>_1", ... stand one behind the other
    files = []
    for word, own in zip(words, rows[0].split(vectors), strict=True):
        plain = re.sub(r"\W+", "-", word).strip("-")
        files.append(save_tensors(beside.with_name(f"{name}-{plain}.safetensors"), {word: own}, {"format": "pt"}))
    return files
