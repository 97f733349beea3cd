"""Weight differences, LyCORIS' "full" format: what ComfyUI, the A1111 family of web UIs and LyCORIS read.

    lora_unet_<path with underscores>.diff      W' - W, in W's shape       .diff_b of its bias
    lora_te_..., of two encoders lora_te1_... and lora_te2_...
    the same                        .w_norm     of a normalisation         .b_norm of its bias

Any method whose effect is a change of the weight fits, exactly but for rounding. The tool multiplies the difference by
its own strength, which for OFT is a straight line in the weights and a rotation at 1 only: to use another strength,
export at that strength.

The two of a normalisation are written together, a zero one too: ComfyUI passes over a `b_norm` without a `w_norm`, and
LyCORIS fails.
"""

from pathlib import Path

import torch
from torch import Tensor

from ..adapters import Attachment, Mergeable
from ..errors import Refused
from ..files import save_tensors
from .names import has_two_encoders, kohya_name


@torch.no_grad()
def write_diff(attachment: Attachment, out: Path, dtype: torch.dtype) -> tuple[list[Path], list[str]]:
    """Writes what an attachment changes at its present strength; returns the file and what is to be said about it.

    Raises:
        Refused: an adapter's effect depends on the input, so that it is no change of a weight.
    """
    tensors: dict[str, Tensor] = {}
    unread: list[str] = []
    of_two = has_two_encoders(attachment.base)
    for path, adapter in attachment.layers.items():
        if not isinstance(adapter, Mergeable):
            raise Refused(
                f"{type(adapter).__name__} on {path} depends on its input, so that it is no change of a weight; "
                "no other tool can hold it, use it in diffadapt"
            )
        changes = _changes(adapter)
        if not any(value.any() for value in changes.values()):
            continue
        norm = "w_norm" in changes
        if norm and path.startswith("text_encoder"):
            unread.append(path)
        kept = {name: value for name, value in changes.items() if norm or value.any()}
        tensors |= {f"{kohya_name(path, of_two=of_two)}.{name}": value.to(dtype) for name, value in kept.items()}
    if not tensors and not attachment.tokens:
        raise Refused(f"this adapter changes nothing at strength {attachment.strength:g}; there is nothing to write")
    notes = []
    if unread:
        notes.append(
            f"ComfyUI has no names for normalisations of a text encoder and passes over {len(unread)} layers, the "
            f"first {unread[0]}; diffadapt merge reaches it"
        )
    header = {"format": "pt", "method": attachment.method.name, "strength": f"{attachment.strength:g}"}
    return ([save_tensors(out, tensors, header)] if tensors else []), notes


def _changes(adapter: Mergeable) -> dict[str, Tensor]:
    """The change of a layer's weight and bias, under their names in the file."""
    own = dict(adapter.innermost().named_parameters(recurse=False))
    weight, bias = own["weight"].float(), own.get("bias")
    names = ("w_norm", "b_norm") if weight.ndim == 1 else ("diff", "diff_b")
    changes = {names[0]: adapter.weight(weight) - weight}
    if bias is not None:
        after = adapter.bias(bias.float())
        assert after is not None
        changes[names[1]] = after - bias.float()
    return changes
