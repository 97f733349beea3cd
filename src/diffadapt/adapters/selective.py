"""Selective fine-tuning: the base's own weights, or only its biases (BitFit, arXiv:2106.10199), made trainable.

The trainable values are a copy, so that the base stays as it is and `detach` restores it. Full fine-tuning of every
layer is DreamBooth's setting (Ruiz et al. 2022, arXiv:2208.12242).

Strength moves on the straight line from the base's value to the trained one.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ..config import option
from ..errors import Refused
from .adapter import Adapter, Mergeable, Method


@dataclass(frozen=True, kw_only=True)
class Selective(Method):
    """Trains existing parameters of the layers: all of them ("full") or the biases alone ("bias")."""

    name: ClassVar[str] = "selective"
    title: ClassVar[str] = "selective fine-tuning"
    recipes: ClassVar[tuple[str, ...]] = ("subject", "control", "style", "sequence", "classify")

    train: str = option("full", "which parameters of a layer train: full or bias", choices=("full", "bias"))

    def summary(self) -> str:
        return f"{self.title}, train {self.train}"

    def default_roles(self, known: Iterable[str]) -> list[str]:
        return [role for role in known if not role.startswith("text.")]

    def adapts(self, layer: nn.Module) -> bool:
        # Embedding tables stay: new words are the business of tokens, and transformers reads their weight directly.
        return not isinstance(layer, nn.Embedding) and whole(layer) and any(trained_names(layer, self.train))

    def build(self, layer: nn.Module, path: str, role: str, generator: torch.Generator) -> Adapter:
        names = list(trained_names(layer, self.train))
        if not names:
            raise Refused(f"{path} ({type(layer).__name__}) has no parameter to train for train = {self.train!r}")
        return SelectiveAdapter(layer, names, path)


def whole(layer: nn.Module) -> bool:
    """Whether a layer's parameters are a weight and a bias: what makes tokens of a picture has others and parts."""
    return all(name in ("weight", "bias") for name, _ in layer.named_parameters(recurse=False))


def trained_names(layer: nn.Module, train: str) -> Iterable[str]:
    """The names of a leaf layer's parameters that train."""
    return (name for name, _ in layer.named_parameters(recurse=False) if train == "full" or name == "bias")


class SelectiveAdapter(Mergeable):
    """A trainable copy of some of one layer's parameters, by their names: `values.weight`, `values.bias`."""

    def __init__(self, layer: nn.Module, names: Iterable[str], path: str) -> None:
        super().__init__(layer)
        self.path = path
        self.put_on_(layer)
        self.values = nn.ParameterDict(
            {name: nn.Parameter(layer.get_parameter(name).detach().float().clone()) for name in names}
        )

    def put_on_(self, layer: nn.Module) -> None:
        if isinstance(layer, Adapter):
            raise Refused(f"training {self.path} itself must be the first attachment on it; detach the other one first")
        super().put_on_(layer)

    def adapted(self, x: Tensor) -> Tensor:
        values = {name: self._between(self.layer.get_parameter(name), value) for name, value in self.values.items()}
        return functional_call(self.layer, values, (x,))

    def _between(self, w0: Tensor, w1: Tensor) -> Tensor:
        if self.strength == 1:
            return w1.to(w0.dtype)
        return (w0.float() + self.strength * (w1 - w0.float())).to(w0.dtype)

    def weight(self, w0: Tensor) -> Tensor:
        return self._between(w0, self.values["weight"]) if "weight" in self.values else w0

    def bias(self, b0: Tensor | None) -> Tensor | None:
        return self._between(b0, self.values["bias"]) if b0 is not None and "bias" in self.values else b0
