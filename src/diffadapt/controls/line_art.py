"""Line art: a soft line drawing, white on black, computed without a network.

The dark side of every edge is found by a difference of Gaussians, after Winnemoeller et al., XDoG (2012), section 2.
Deviations: each colour channel is filtered and the strongest response is taken, so that edges between equally bright
colours are drawn too; and the soft threshold is tanh of the response alone, without the brightness term that fills
shadows.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import Refused
from .signal import Signal, check_pictures

WIDER = 1.6  # ratio of the two Gaussians, close to a Laplacian
GAIN = 2.5  # a step of full contrast is drawn at tanh(2.5) = 0.99, one of a quarter at 0.55


def line_art(pictures: Tensor, *, sigma: float = 0.6) -> Tensor:
    """Draws the dark side of edges; stronger edges are whiter.

    Args:
        pictures: (N, 3, H, W) in [0, 1].
        sigma: width of the narrow Gaussian in pixels, > 0; larger draws fewer and broader lines.

    Returns:
        (N, 3, H, W) in [0, 1), three equal channels.

    Raises:
        Refused: no pictures, or a sigma that is not positive.
    """
    check_pictures("line_art", pictures)
    if not 0 < sigma < math.inf:
        raise Refused(f"line_art: expected sigma > 0 pixels, got {sigma:g}")
    pixels = pictures.detach().float()
    response = (_blurred(pixels, WIDER * sigma) - _blurred(pixels, sigma)).clamp(min=0)
    response = response.amax(1, keepdim=True)  # (N, 1, H, W)
    lines = torch.tanh(GAIN * response / _largest_response())
    return lines.expand(-1, 3, -1, -1).clone()


def _largest_response() -> float:
    """Largest difference of the Gaussians beside a step from 0 to 1: the largest gap between the two normal CDFs."""
    at = WIDER * math.sqrt(2 * math.log(WIDER) / (WIDER**2 - 1))  # in units of sigma
    return 0.5 * (math.erf(at / math.sqrt(2)) - math.erf(at / WIDER / math.sqrt(2)))


def _blurred(pixels: Tensor, sigma: float) -> Tensor:
    """Gaussian blur, (N, 3, H, W) -> the same; the border is replicated."""
    reach = math.ceil(3 * sigma)
    x = torch.arange(-reach, reach + 1, device=pixels.device, dtype=torch.float32)
    weights = torch.exp(-x.square() / (2 * sigma**2))
    weights = (weights / weights.sum()).expand(3, 1, -1)  # one kernel a channel
    padded = F.pad(pixels, (reach,) * 4, mode="replicate")
    return F.conv2d(F.conv2d(padded, weights[:, :, None, :], groups=3), weights[:, :, :, None], groups=3)


LINE_ART = Signal(name="line_art", doc="a soft line drawing, white on black", extract=line_art)
