"""Diversity: do several pictures of one prompt differ, or has the model collapsed onto its training pictures?"""

import torch
from torch import Tensor

from ..errors import Refused
from .rows import check_rows, unit


def diversity(features: Tensor, prompts: Tensor | None = None) -> Tensor:
    """Mean pairwise cosine distance (1 - cosine) among the pictures of each prompt; the metric is the mean.

    After DIV of Ruiz et al., DreamBooth (2023), section 4.3 ("average LPIPS between generated images of the same
    subject with the same prompt"), with the cosine distance of any encoder in LPIPS's place.

    Args:
        features: (N, D) features of pictures.
        prompts: (N,) whole numbers saying which prompt each picture was made from; None when it was one prompt.
            Prompts with a single picture are left out.

    Returns:
        (P,) in [0, 2], one value for each prompt with two pictures or more, prompts in rising order.

    Raises:
        Refused: no prompt has two pictures, `prompts` does not fit, or features are not finite rows.
    """
    check_rows(2, features=features)
    if prompts is None:
        prompts = torch.zeros(len(features), dtype=torch.long)
    if prompts.shape != (len(features),):
        raise Refused(f"prompts: expected one number for each of {len(features)} rows, got {tuple(prompts.shape)}")
    values = []
    for prompt in prompts.unique():
        rows = unit(features[prompts == prompt])
        n = len(rows)
        if n >= 2:
            # All pairs at once: the sum of all cosines is the squared length of the sum of the rows.
            pairs = (rows.sum(0).square().sum() - rows.square().sum()) / (n * (n - 1))
            values.append((1 - pairs).clamp(min=0))
    if not values:
        raise Refused("diversity needs a prompt with at least two pictures; make more pictures per prompt")
    return torch.stack(values)
