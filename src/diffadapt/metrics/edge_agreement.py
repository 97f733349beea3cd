"""Edge agreement: do two edge maps have their edges at the same pixels?"""

import torch
from torch import Tensor

from ..errors import Refused


def edge_agreement(wanted: Tensor, found: Tensor) -> dict[str, Tensor]:
    """Intersection over union and F1 of two edge maps, per picture; the metric is the mean of each.

    The canny consistency of Qiu et al., OFT (2023), section 5.2 (there: "IoU" and "F1"). A pixel counts as found only
    where it is wanted: no tolerance, so that a line drawn one pixel beside another scores nothing.

    Args:
        wanted, found: (N, H, W) bool, True on an edge.

    Returns:
        "iou" and "f1", each (N,) in [0, 1], float64. Two maps without any edge agree: 1.

    Raises:
        Refused: shapes that differ, or not bool.
    """
    if wanted.shape != found.shape or wanted.ndim != 3 or wanted.dtype != torch.bool or found.dtype != torch.bool:
        kinds = [f"{tuple(t.shape)} {str(t.dtype).removeprefix('torch.')}" for t in (wanted, found)]
        raise Refused(f"edge_agreement: expected two (N, H, W) bool, got {kinds[0]} and {kinds[1]}")
    both = (wanted & found).sum((1, 2)).double()
    either = (wanted | found).sum((1, 2)).double()
    empty = either == 0
    iou = torch.where(empty, 1.0, both / either.clamp(min=1))
    return {"iou": iou, "f1": 2 * iou / (1 + iou)}  # F1 = 2 both / (wanted + found), and wanted + found = both + either
