"""Exponential moving average of what trains."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class EMA:
    """Keeps a moving average of parameters: average <- decay * average + (1 - decay) * value.

    The decay warms up as min(decay, (1 + n) / (10 + n)) over n updates, so that a short run is not all start.

    Args:
        parameters: what is averaged; the order is the identity of each.
        decay: in [0, 1); 0.99 averages over about a hundred steps.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], decay: float) -> None:
        self.parameters = list(parameters)
        self.decay = decay
        self.updates = 0
        self.averages = [p.detach().clone() for p in self.parameters]

    @torch.no_grad()
    def update(self) -> None:
        """Takes the present values in; call after each optimizer step."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        for average, value in zip(self.averages, self.parameters, strict=True):
            average.lerp_(value.detach(), 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within the block the parameters hold their averages; afterwards their own values again."""
        kept = [p.detach().clone() for p in self.parameters]
        self.settle()
        try:
            yield
        finally:
            with torch.no_grad():
                for p, value in zip(self.parameters, kept, strict=True):
                    p.copy_(value)

    @torch.no_grad()
    def settle(self) -> None:
        """Gives the parameters their averages for good, when training is over."""
        for p, average in zip(self.parameters, self.averages, strict=True):
            p.copy_(average)

    def state(self) -> dict[str, Tensor]:
        """Tensors to save."""
        return {"updates": torch.tensor(self.updates)} | {str(i): a for i, a in enumerate(self.averages)}

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        self.updates = int(tensors["updates"])
        for i, average in enumerate(self.averages):
            average.copy_(tensors[str(i)])
