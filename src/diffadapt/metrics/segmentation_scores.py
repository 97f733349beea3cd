"""Segmentation scores: do two label maps name the same thing at each pixel?"""

import torch
from torch import Tensor

from ..errors import Refused


def confusion_matrix(wanted: Tensor, found: Tensor, classes: int) -> Tensor:
    """Counts pixels by wanted and by found class, one matrix a picture, so that pictures can be drawn again and added.

    Args:
        wanted, found: (N, H, W) long, in [0, classes).
        classes: how many there are.

    Returns:
        (N, classes, classes) long; row = wanted, column = found.

    Raises:
        Refused: shapes that differ, not whole numbers, or a class out of range.
    """
    if wanted.shape != found.shape or wanted.ndim != 3 or wanted.is_floating_point() or found.is_floating_point():
        kinds = [f"{tuple(t.shape)} {str(t.dtype).removeprefix('torch.')}" for t in (wanted, found)]
        raise Refused(f"confusion_matrix: expected two (N, H, W) of whole numbers, got {kinds[0]} and {kinds[1]}")
    for name, labels in (("wanted", wanted), ("found", found)):
        if labels.numel() and not (labels.min() >= 0 and labels.max() < classes):
            raise Refused(
                f"{name}: expected classes 0 to {classes - 1}, got {int(labels.min())} to {int(labels.max())}"
            )
    pairs = wanted.long() * classes + found.long()
    counts = torch.zeros(len(pairs), classes * classes, dtype=torch.long, device=pairs.device)
    counts.scatter_add_(1, pairs.flatten(1), torch.ones_like(pairs).flatten(1))
    return counts.unflatten(1, (classes, classes))


def pixel_accuracy(confusion: Tensor) -> Tensor:
    """Share of pixels named rightly in each picture: confusion (N, C, C) -> (N,) float64 in [0, 1]."""
    _check_confusion(confusion)
    counts = confusion.double()
    return counts.diagonal(dim1=1, dim2=2).sum(1) / counts.sum((1, 2))


def segmentation_scores(confusion: Tensor) -> dict[str, float]:
    """mIoU, mAcc and aAcc over all pixels of all pictures, as semantic segmentation defines them.

    Long et al., Fully Convolutional Networks (2015), section 5; used by Qiu et al., OFT (2023), section 5.2. A class
    that is neither wanted nor found is left out of mIoU, one that is not wanted out of mAcc.

    Args:
        confusion: (N, C, C) counts of each picture, row = wanted, column = found.

    Returns:
        "miou" (mean intersection over union of the classes), "macc" (mean share found of the wanted pixels of a
        class), "aacc" (share of all pixels); each in [0, 1]. Papers print them in percent.

    Raises:
        Refused: another shape, or no pixel.
    """
    _check_confusion(confusion)
    counts = confusion.double().sum(0)
    right, wanted, found = counts.diagonal(), counts.sum(1), counts.sum(0)
    either = wanted + found - right
    return {
        "miou": float((right / either)[either > 0].mean()),
        "macc": float((right / wanted)[wanted > 0].mean()),
        "aacc": float(right.sum() / counts.sum()),
    }


def _check_confusion(confusion: Tensor) -> None:
    if confusion.ndim != 3 or confusion.shape[1] != confusion.shape[2] or not (confusion.sum((1, 2)) > 0).all():
        shape = tuple(confusion.shape)
        raise Refused(f"confusion: expected (N, C, C) counts with a pixel in each picture, got {shape}")
