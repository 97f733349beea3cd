"""The reader: a small segmentation network for pictures of the embedded world.

Control consistency is measured with it, as it is with SegFormer and a face aligner on photographs. It was never trained
on pictures of the denoiser it judges, only on scenes rendered from sprites, half of them passed through the base's
autoencoder so that they look like decoded pictures. Its weights ship in `metrics/reader/`, trained by
`tools/train_reader.py`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..controls.segmentation import CLASSES
from ..controls.signal import check_pictures
from ..errors import Refused
from .trained_network import load_trained

WEIGHTS = Path(__file__).parent / "reader"  # reader.safetensors and reader.json
FORMAT_VERSION = 1
RESOLUTION = 64  # side of the pictures that it reads


@dataclass(frozen=True, kw_only=True)
class Reading:
    """The layer and the class of every pixel, (N, 64, 64) long each.

    Args:
        layers: index into `controls.depth_order.LAYERS`: background, back or only object, front object.
        labels: index into `controls.segmentation.CLASSES`; background wherever `layers` is background.
    """

    layers: Tensor
    labels: Tensor


def _convolutions(inside: int, outside: int, *, stride: int = 1) -> nn.Sequential:
    """Two 3x3 convolutions with batch normalisation; the stride is the first one's."""
    layers: list[nn.Module] = []
    for width, step in ((inside, stride), (outside, 1)):
        layers += [nn.Conv2d(width, outside, 3, stride=step, padding=1, bias=False), nn.BatchNorm2d(outside), nn.ReLU()]
    return nn.Sequential(*layers)


class Reader(nn.Module):
    """A U-Net (Ronneberger et al., 2015) from 64 to 4 pixels whose skips are added instead of concatenated.

    The class of an object is predicted at 32 pixels; the few channels at 64 only find its outline.

    Args:
        widths: channels at 64, 32, 16, 8 and 4 pixels.
    """

    def __init__(self, widths: tuple[int, ...] = (16, 32, 48, 64, 80)) -> None:
        super().__init__()
        self.widths = widths
        steps = list(zip(widths, widths[1:], strict=False))
        self.first = _convolutions(3, widths[0])
        self.contrast = nn.Conv2d(3, widths[0], 3, padding=1)
        self.down = nn.ModuleList(_convolutions(a, b, stride=2) for a, b in steps)
        self.whole = nn.Linear(widths[-1], widths[-1])
        self.across = nn.ModuleList(nn.Conv2d(b, a, 1) for a, b in steps)
        self.up = nn.ModuleList(_convolutions(a, a) for a, _ in steps)
        self.kind_head = nn.Conv2d(widths[1], len(CLASSES), 1)  # front or not, and the kinds
        self.object_head = nn.Conv2d(widths[0], 1, 1)

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits of every pixel.

        Args:
            pictures: (N, 3, 64, 64) in [0, 1].

        Returns:
            logits of belonging to an object (N, 64, 64); given that, to the front one (N, 64, 64), and to each kind
            (N, 11, 64, 64)
        """
        # Backgrounds are shaded from top to bottom and objects rarely touch the sides: a pixel that differs
        # from the ends of its row belongs to an object, whatever its colour.
        ends = torch.cat([pictures[..., :2], pictures[..., -2:]], -1).mean(-1, keepdim=True)  # (N, 3, 64, 1)
        levels = [self.first((pictures - 0.5) * 4) + self.contrast((pictures - ends) * 4)]  # (N, 16, 64, 64)
        for down in self.down:
            levels.append(down(levels[-1]))
        x = levels.pop()  # (N, 80, 4, 4)
        x = x + self.whole(x.mean((2, 3)))[:, :, None, None]  # global: whether there is a second object
        kinds = x
        for across, up in zip(reversed(self.across), reversed(self.up), strict=True):
            kinds, x = x, up(levels.pop() + F.interpolate(across(x), scale_factor=2))
        kinds = F.interpolate(self.kind_head(kinds), scale_factor=2)  # (N, 12, 32, 32) -> (N, 12, 64, 64)
        return self.object_head(x)[:, 0], kinds[:, 0], kinds[:, 1:]

    @torch.no_grad()
    def read(self, pictures: Tensor) -> Reading:
        """Reads pictures, 128 at a time, on the device of the weights.

        Args:
            pictures: (N, 3, 64, 64) in [0, 1].

        Returns:
            layers and labels, on the device of the pictures

        Raises:
            Refused: not pictures in [0, 1], or of another size.
        """
        check_pictures("pictures", pictures)
        if pictures.shape[2:] != (RESOLUTION, RESOLUTION):
            size = f"{pictures.shape[3]}x{pictures.shape[2]}"
            raise Refused(
                f"the reader knows the embedded world at {RESOLUTION}x{RESOLUTION} pixels, got {size}; "
                "sample at that size"
            )
        parts = []
        for part in pictures.to(self.object_head.weight.device, torch.float32).split(128):
            objects, front, kinds = self(part)
            layers = torch.where(objects > 0, 1 + (front > 0).long(), 0)
            parts.append(torch.stack([layers, torch.where(objects > 0, 1 + kinds.argmax(1), 0)]))
        layers, labels = torch.cat(parts, 1).to(pictures.device)
        return Reading(layers=layers, labels=labels)


def load_reader(folder: str | Path | None = None) -> Reader:
    """Loads a reader, float32 on the CPU, in evaluation mode, its parameters frozen.

    Args:
        folder: holds reader.safetensors and reader.json; None takes the reader that ships with the package.

    Raises:
        Refused: a file is missing or damaged, the two do not fit, or the format is newer than this package.
    """
    folder = WEIGHTS if folder is None else Path(folder)

    def build(facts: Mapping[str, Any]) -> Reader:
        if tuple(facts["classes"]) != CLASSES:
            raise Refused(
                f"{folder}: a reader of the classes {', '.join(facts['classes'])}; expected {', '.join(CLASSES)}"
            )
        return Reader(tuple(facts["widths"]))

    return load_trained(folder, "reader", "reader", version=FORMAT_VERSION, build=build)
