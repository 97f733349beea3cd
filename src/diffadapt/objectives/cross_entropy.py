"""Cross-entropy over the classes of a task, as class-incremental learning without stored pictures has it.

Of the classes seen so far, those of past tasks can be masked: their logits are -inf in the loss, so that the rows of
the head that belong to them get no gradient (CODA-Prompt's protocol, Smith et al. 2023, arXiv:2211.13218, and code).
Classes of tasks that are yet to come take no part in any case.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import Refused
from .objective import Batch, Draw, Model, Objective


class CrossEntropy(Objective):
    """The loss of a classifier on one task; `batch.latents` are pictures, the labels are `condition.class_labels`.

    Args:
        first, last: the task's classes are `first` to `last` - 1 of the head.
        mask_past: whether the classes below `first` are masked.
    """

    def __init__(self, first: int, last: int, *, mask_past: bool = True) -> None:
        self.first, self.last, self.mask_past = first, last, mask_past

    def draw(self, rng: np.random.Generator, batch_size: int) -> Draw:
        return Draw(torch.zeros(batch_size, dtype=torch.long), self.sources * batch_size)

    def losses(self, model: Model, batch: Batch) -> Tensor:
        labels = batch.condition.class_labels
        if labels is None:
            raise Refused("cross-entropy needs class_labels in the batch's condition; got none")
        logits = model(batch.latents, batch.timesteps, batch.condition)[:, : self.last].float()
        if self.mask_past:
            logits = logits.index_fill(1, torch.arange(self.first, device=logits.device), float("-inf"))
        return F.cross_entropy(logits, labels, reduction="none")

    def reduce(self, losses: Tensor, batch: Batch) -> Tensor:
        return losses.mean()
