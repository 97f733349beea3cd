"""The denoising objective inside a mask: what is not the subject is not learned with it.

    loss = mean over places of  m / mean(m) * |prediction - target|^2

Each mask is divided by its mean, so that the size of the region that it covers does not change the loss's scale.
"""

from torch import Tensor

from .denoising import Denoising
from .objective import Batch


class Masked(Denoising):
    """Denoising with the batch's masks; a batch without any is learned as a whole."""

    def weighed(self, error: Tensor, batch: Batch) -> Tensor:
        if batch.mask is None:
            return error
        return error * (batch.mask / batch.mask.mean((1, 2, 3), keepdim=True).clamp(min=1e-6))
