"""Canny edges (Canny, 1986): white lines one pixel wide on black, as ControlNet's detector draws them.

Needs OpenCV: `pip install 'diffadapt[control]'`.
"""

import numpy as np
import torch
from torch import Tensor

from ..errors import Refused
from .signal import Signal, check_pictures


def canny(pictures: Tensor, *, low: float = 100.0, high: float = 200.0) -> Tensor:
    """Edges by OpenCV's detector: Sobel 3x3, L1 norm, the strongest of the three colour channels, no blur.

    Args:
        pictures: (N, 3, H, W) in [0, 1]; rounded to 8 bits, which the detector works in.
        low, high: thresholds of the hysteresis in 8-bit gradient units, 0 <= low <= high. Edges above `high` are
            kept, and edges above `low` that touch one. ControlNet and OFT's evaluation use 100 and 200.

    Returns:
        (N, 3, H, W) of 0.0 and 1.0, three equal channels, on the device of the pictures.

    Raises:
        Refused: no pictures, thresholds out of order, or OpenCV is not installed.
    """
    check_pictures("canny", pictures)
    if not 0 <= low <= high:
        raise Refused(f"canny: expected 0 <= low <= high, got low {low:g} and high {high:g}")
    try:
        import cv2
    except ImportError as error:
        raise Refused("canny edges need OpenCV: pip install 'diffadapt[control]'") from error
    bytes_last = (pictures.detach().float() * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()  # (N, H, W, 3)
    edges = np.stack([cv2.Canny(np.ascontiguousarray(picture), low, high) for picture in bytes_last])  # (N, H, W)
    white = torch.from_numpy(edges > 0).to(pictures.device, torch.float32)
    return white[:, None].expand(-1, 3, -1, -1).clone()


CANNY = Signal(name="canny", doc="edges, white on black (OpenCV)", extract=canny)
