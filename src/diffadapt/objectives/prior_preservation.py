"""Prior preservation (Ruiz et al. 2022, arXiv:2208.12242, equation 2): the class is not lost to the subject.

loss = L(subject's pictures) + weight * L(pictures of the class that the untouched base made)
"""

import numpy as np
import torch
from torch import Tensor

from .objective import Batch, Draw, Model, Objective


class PriorPreservation(Objective):
    """An objective on the target, and the same on as many class pictures behind it.

    Args:
        objective: what is asked of both; it takes its rows from "target".
        weight: of the class pictures' mean loss.
    """

    sources = ("target", "class")

    def __init__(self, objective: Objective, *, weight: float = 1.0) -> None:
        self.objective, self.weight = objective, weight

    def rows(self, batch_size: int) -> int:
        return 2 * batch_size

    def draw(self, rng: np.random.Generator, batch_size: int) -> Draw:
        """Noise levels of target and class rows, each spread over the whole range."""
        both = [self.objective.draw(rng, batch_size).timesteps for _ in self.sources]
        return Draw(torch.cat(both), ("target",) * batch_size + ("class",) * batch_size)

    def losses(self, model: Model, batch: Batch) -> Tensor:
        return self.objective.losses(model, batch)

    def reduce(self, losses: Tensor, batch: Batch) -> Tensor:
        return losses[batch.of("target")].mean() + self.weight * losses[batch.of("class")].mean()
