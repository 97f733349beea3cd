"""Conditioning: all that a denoiser is given beside noisy latents and the noise level, as one value.

Bases make it of prompts or class names, batches carry it, adapters may ask for parts of it, samplers hand it on. Which
fields are set is a family's own matter; every tensor has one row for each picture.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .errors import Refused

PICTURES = "pictures"  # the name in `Conditioning.control` of a classifier's own pictures


@dataclass(frozen=True, kw_only=True)
class Conditioning:
    """The conditioning of N pictures; fields that a family has no use for are None.

    Args:
        token_ids: (N, L) int64, the tokenized prompts.
        text: (N, L, D) the encoded prompts.
        text_mask: (N, L) bool, the places of `text` that count; None means all.
        pooled_text: (N, D) one vector for each prompt.
        class_labels: (N,) int64.
        image_sizes: (N, K) sizes and crops in pixels, as the family orders them.
        control: {name: (N, C, H, W)} control signals.
    """

    token_ids: Tensor | None = None
    text: Tensor | None = None
    text_mask: Tensor | None = None
    pooled_text: Tensor | None = None
    class_labels: Tensor | None = None
    image_sizes: Tensor | None = None
    control: Mapping[str, Tensor] | None = None

    def __len__(self) -> int:
        """N, the number of rows.

        Raises:
            Refused: there is nothing in it, or its tensors have different numbers of rows.
        """
        counts = {name: len(tensor) for name, tensor in self._named()}
        if len(set(counts.values())) != 1:
            found = ", ".join(f"{name} {count}" for name, count in counts.items()) or "nothing"
            raise Refused(f"expected conditioning with the same number of rows in every tensor, got {found}")
        return next(iter(counts.values()))

    def rows(self, index: slice | Sequence[int] | Tensor) -> "Conditioning":
        """The rows of an index, in its order: a slice, a list of positions, or a tensor of positions or booleans."""
        return self._map(lambda tensor: tensor[index])

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> "Conditioning":
        """On a device, and floating-point tensors in a dtype; token ids, labels and masks keep theirs."""
        return self._map(lambda tensor: tensor.to(device, dtype if tensor.is_floating_point() else None))

    def detach(self) -> "Conditioning":
        """Without the graph of its tensors."""
        return self._map(torch.Tensor.detach)

    @classmethod
    def cat(cls, parts: Iterable["Conditioning"]) -> "Conditioning":
        """The rows of all parts, one behind the other.

        Raises:
            Refused: a field is set in some parts and missing in others.
        """
        parts = list(parts)
        joined: dict[str, Any] = {}
        for name in (field.name for field in dataclasses.fields(cls)):
            values = [getattr(part, name) for part in parts]
            if all(value is None for value in values):
                continue
            if any(value is None for value in values):
                raise Refused(f"cannot join conditioning with and without {name}; give it to all rows or to none")
            if isinstance(values[0], Mapping):
                joined[name] = {key: torch.cat([value[key] for value in values]) for key in values[0]}
            else:
                joined[name] = torch.cat(values)
        return cls(**joined)

    def _named(self) -> Iterable[tuple[str, Tensor]]:
        """(name, tensor) of what is set."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Mapping):
                yield from ((f"{field.name}.{key}", tensor) for key, tensor in value.items())
            elif isinstance(value, Tensor):
                yield field.name, value

    def _map(self, change: Any) -> "Conditioning":
        changed: dict[str, Any] = {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Mapping):
                changed[field.name] = {key: change(tensor) for key, tensor in value.items()}
            elif isinstance(value, Tensor):
                changed[field.name] = change(value)
        return dataclasses.replace(self, **changed)
