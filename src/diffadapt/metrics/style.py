"""Style: how far the texture statistics of pictures are from those of a style's own pictures.

Gatys, Ecker, Bethge 2016 (Image style transfer using convolutional neural networks), equation 3: the Gram matrix of a
layer's features, G = F F^T / places, says which features go together anywhere in the picture, and not what is where.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import Refused
from .rows import check_paired, unit


def gram(features: Tensor) -> Tensor:
    """Gram matrices (N, C, C) of feature maps (N, C, L), averaged over the L places."""
    if features.ndim != 3 or not len(features) or not features.isfinite().all():
        raise Refused(f"gram: expected finite features (N, C, L), got {tuple(features.shape)}")
    rows = features.cpu().double()
    return rows @ rows.mT / rows.shape[2]


def style_distance(pictures: Sequence[Tensor], reference: Sequence[Tensor]) -> Tensor:
    """How far each picture's Gram matrices are from the mean ones of a style's pictures.

        d = mean over layers of |G(picture) - M|_F^2 / |M|_F^2        M = mean of G over the reference

    Args:
        pictures: feature maps (N, C, L) of each layer.
        reference: those of the style's own pictures, (M, C, L), same layers; not those that were trained on.

    Returns:
        (N,) from 0 up; the style's own pictures, not being all alike, are not at 0 either, so report theirs beside it.

    Raises:
        Refused: layers that do not fit each other.
    """
    if len(pictures) != len(reference) or not pictures:
        raise Refused(f"style_distance: got {len(pictures)} layers of features and {len(reference)} of the reference")
    layers = []
    for own, other in zip(pictures, reference, strict=True):
        mean = gram(other).mean(0)
        layers.append((gram(own) - mean).square().sum((1, 2)) / mean.square().sum())
    return torch.stack(layers).mean(0)


def content_kept(pictures: Tensor, base: Tensor) -> Tensor:
    """Whether pictures still show what the base's do for the same prompts and seeds, whatever style all took on.

        cos(f_i - mean f, b_i - mean b)        f, b: features of the pictures and of the base's

    What a set has in common, its style among it, is taken off on both sides; what is left says how picture i differs
    from the others. An encoder that never saw a style reads all of its pictures worse, so that a plain cosine of
    picture and prompt punishes the style itself.

    Args:
        pictures: (N, D) features, N >= 3.
        base: (N, D) those of the base's pictures for the same prompts and seeds.

    Returns:
        (N,) in [-1, 1]; 1 where nothing but a common shift happened, 0 on average for unrelated pictures.

    Raises:
        Refused: not paired rows of one width, fewer than three, or not finite.
    """
    check_paired(pictures=pictures, base=base)
    if len(pictures) < 3:
        raise Refused(f"content_kept compares pictures with each other; got {len(pictures)}, give 3 or more")
    return (unit(pictures - pictures.mean(0)) * unit(base - base.mean(0))).sum(1)
