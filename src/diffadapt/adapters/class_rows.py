"""New classes of a class-conditional base: rows of its label table that are learned beside any method's layers.

A label table holds the base's own classes and, last, the null class of classifier-free guidance. The new classes follow
it, so every label keeps its meaning. They start as the null class, and the null row trains on with them: Diff-Tuning
keeps what the base knows under the null class (arXiv:2406.00773, section 3.3), so it must start as it was trained.

Strength moves each row on the straight line from the base's null row to the trained one; at 0, the base's null class
stands for every new one.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import Refused
from .adapter import Adapter

CLASS_ROLE = "class_embedding"


class ClassRows(Adapter):
    """On a label table (n + 1, D) the parameter `rows` (1 + K, D): the null class, then the new ones.

    Args:
        layer: the base's own table.
        count: K, the number of new classes.
    """

    def __init__(self, layer: nn.Module, count: int) -> None:
        super().__init__(layer)
        null = layer.get_parameter("weight").detach()[-1:]
        self.rows = nn.Parameter(null.float().repeat(1 + count, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Labels (N,) in 0..n + K -> embeddings (N, D)."""
        return self.adapted(x)

    def adapted(self, x: Tensor) -> Tensor:
        weight = self.layer.get_parameter("weight")
        null = len(weight) - 1
        own = self.layer(x.clamp(max=null))  # of a new class: the null row
        if self.strength == 0:
            return own
        return torch.where((x < null)[:, None], own, self.present_rows()[(x - null).clamp(min=0)].to(own.dtype))

    def present_rows(self) -> Tensor:
        """The rows (1 + K, D) at the current strength."""
        null = self.layer.get_parameter("weight")[-1].float()
        return self.rows if self.strength == 1 else null + self.strength * (self.rows - null)

    def table(self) -> nn.Embedding:
        """One table of the base's classes, the null class and the new ones, frozen: labels mean the same in it."""
        weight = self.layer.get_parameter("weight").detach()
        return nn.Embedding.from_pretrained(torch.cat([weight[:-1], self.present_rows().detach().to(weight)]))


def class_rows(base: Any, names: Sequence[str]) -> dict[str, ClassRows]:
    """Path of the base's label table -> the adapter of new classes.

    Args:
        base: class-conditional.
        names: K different class names, in the order of the rows.

    Raises:
        Refused: the base knows no classes, names that cannot be told apart, another attachment has brought classes.
    """
    paths = base.roles.get(CLASS_ROLE, ())
    if not paths:
        raise Refused(f"{base.name!r} is not conditioned on classes, so it cannot learn new ones; leave classes out")
    if len(set(names)) < len(names) or "" in names:
        raise Refused(f"expected different class names, none of them empty, got {list(names)[:5]}")
    if len(paths) > 1:
        raise Refused(
            f"{base.name!r} has {len(paths)} label tables that differ; expected one, as DiT's checkpoints have it"
        )
    table = base.module(paths[0])
    if isinstance(table, Adapter):
        raise Refused("another attachment has brought new classes already; detach it first")
    return {paths[0]: ClassRows(table, len(names))}
