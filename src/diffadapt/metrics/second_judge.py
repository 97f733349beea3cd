"""The second judge: an encoder of subjects that shares nothing with the probe but the sprites it was shown.

No labels and no words: of two scenes of one sprite it had to find the pair among those of others. Where the probe reads
a 4 x 4 grid by learned queries, this one pools the mean and the largest of an 8 x 8 grid. What both of them see is
likelier to be in the pictures than what one of them does. Weights and card are in `metrics/second_judge/`, trained by
`tools/train_second_judge.py`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .trained_network import load_trained

WEIGHTS = Path(__file__).parent / "second_judge"  # judge.safetensors and judge.json
FORMAT_VERSION = 1
RESOLUTION = 64  # side of the pictures it reads


class SecondJudge(nn.Module):
    """Five convolutions and a linear layer.

    Args:
        widths: channels at 32, 16 and 8 pixels, and of the grid that is pooled.
        features: numbers in a row.
    """

    def __init__(self, widths: tuple[int, int, int, int] = (24, 48, 96, 192), features: int = 128) -> None:
        super().__init__()
        self.widths, self.features = widths, features
        a, b, c, d = widths

        def layer(inside: int, outside: int, kernel: int, stride: int = 1) -> nn.Sequential:
            convolution = nn.Conv2d(inside, outside, kernel, stride, padding=kernel // 2, bias=False)
            return nn.Sequential(convolution, nn.GroupNorm(8, outside), nn.GELU())

        self.trunk = nn.Sequential(layer(3, a, 5, 2), layer(a, b, 3, 2), layer(b, b, 3), layer(b, c, 3, 2),
                                   layer(c, d, 3))  # fmt: skip
        self.out = nn.Linear(2 * d, features)

    def forward(self, pixels: Tensor) -> Tensor:
        """pixels (N, 3, 64, 64) in [0, 1] -> unit rows (N, features)."""
        grid = self.trunk((pixels - 0.5) * 4)  # (N, d, 8, 8)
        return F.normalize(self.out(torch.cat([grid.mean((2, 3)), grid.amax((2, 3))], 1)).float(), dim=1)


def load_second_judge(folder: str | Path | None = None) -> SecondJudge:
    """Reads a second judge, float32 on the CPU, in evaluation mode, its parameters frozen.

    Args:
        folder: holds judge.safetensors and judge.json; None takes the one that ships with the package.

    Raises:
        Refused: a file is missing or damaged, the two do not fit, or the format is newer than this package.
    """
    folder = WEIGHTS if folder is None else Path(folder)

    def build(card: Mapping[str, Any]) -> SecondJudge:
        return SecondJudge(tuple(card["widths"]), card["features"])

    return load_trained(folder, "judge", "second judge", version=FORMAT_VERSION, build=build)
