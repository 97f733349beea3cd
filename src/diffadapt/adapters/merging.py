"""Writing what an attachment changes into the base's weights, and taking it out again, bit for bit."""

import itertools
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import Refused
from ..network import Network, broken_weight
from .adapter import Adapter, Mergeable, effective_bias, effective_weight
from .class_rows import ClassRows
from .token import TokenAdapter
from .tokenizer import innermost, table_with_rows

_COUNT = itertools.count()


@dataclass(kw_only=True)
class Merged:
    """What a merge must be undone with.

    Args:
        number: of the merge, in the order that merges are made in: what was merged last comes off first.
        trained: whether the adapters were in training mode.
        before: per layer what was written over, by the parameter's name.
    """

    number: int = field(default_factory=lambda: next(_COUNT))
    trained: bool
    before: dict[str, dict[str, Tensor]] = field(default_factory=dict)


@torch.no_grad()
def merge_(attachment: Any) -> None:
    """See `Attachment.merge_`; the attachment is on its base and not merged."""
    for path, adapter in attachment.adapters.items():
        if isinstance(adapter.layer, Adapter):
            raise Refused(f"another attachment stands beneath this one on {path}; merge that one first")
        if not isinstance(adapter, Mergeable | TokenAdapter | ClassRows):
            raise Refused(f"{type(adapter).__name__} on {path} depends on its input and cannot be merged")
    merged = attachment.merged = Merged(trained=any(each.training for each in attachment.modules()))
    attachment.train(False)  # dropout is for training; what is written is the whole adapter
    try:
        for path, adapter in attachment.adapters.items():
            merged.before[path] = _merge_layer(attachment.base, path, adapter)
            if broken := broken_weight({path: innermost(attachment.base.module(path))}):
                raise Refused(f"merged at strength {attachment.strength:g}, {broken}; take a strength nearer to 1")
    except BaseException:  # halfway: what is merged comes back
        unmerge_(attachment)
        raise


def _merge_layer(base: Network, path: str, adapter: Adapter) -> dict[str, Tensor]:
    """Puts the adapted layer where the adapter stood; returns what its parameters were."""
    layer = adapter.layer
    if isinstance(adapter, TokenAdapter | ClassRows):
        swap(base, path, adapter, adapter.table() if isinstance(adapter, ClassRows) else _table(adapter))
        return {}  # the table itself is untouched under the adapter
    before = {name: p.detach().clone() for name, p in layer.named_parameters(recurse=False)}
    weight, bias = effective_weight(adapter), effective_bias(adapter)
    if bias is not None and getattr(layer, "bias", None) is None:
        raise Refused(f"{type(adapter).__name__} on {path} adds a bias to a layer without one; it cannot be merged")
    if (held := getattr(layer, "weight", None)) is not None:
        held.copy_(weight)
    if (held := getattr(layer, "bias", None)) is not None and bias is not None:
        held.copy_(bias)
    swap(base, path, adapter, layer)
    return before


def _table(adapter: TokenAdapter) -> nn.Module:
    return table_with_rows(adapter.layer, adapter.rows())


def swap(base: Network, path: str, old: nn.Module, new: nn.Module) -> None:
    """Puts `new` where `old` stands in the chain of adapters at `path`."""
    outer = base.module(path)
    if outer is old:
        base.replace_(path, new)
        return
    while isinstance(outer, Adapter) and outer.layer is not old:
        outer = outer.layer
    outer.layer = new


@torch.no_grad()
def unmerge_(attachment: Any) -> None:
    """See `Attachment.unmerge_`."""
    merged = attachment.merged
    if merged is None:
        raise Refused("unmerge_() needs a merged attachment")
    for other in attachment.base.attachments:
        both = other.adapters.keys() & attachment.adapters.keys()
        if both and other.merged and other.merged.number > merged.number:
            raise Refused(
                f"another attachment was merged into {min(both)} after this one; unmerge or detach that one first"
            )
    for path, kept in merged.before.items():
        adapter = attachment.adapters[path]
        for name, value in kept.items():
            adapter.layer.get_parameter(name).copy_(value)
        # A merged attachment was the lowest: the layer, or the table that took its place, is innermost.
        swap(attachment.base, path, innermost(attachment.base.module(path)), adapter)
    attachment.merged = None
    attachment.train(merged.trained)
