"""Inception v3 as FID and KID have it: pictures -> pool3, from a local file of weights.

The network is Szegedy et al. 2015 (arXiv:1512.00567) with the pools of the graph that FID's authors published
(Heusel et al. 2017, arXiv:1706.08500): means leave the padding out, and the last block pools by the maximum. The names
are those of torchvision and pytorch-fid, whose `pt_inception-2015-12-05` is the usual file; saved again as safetensors,
since a pickle is not read.
"""

from collections.abc import Iterable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import Refused
from ..files import at_home, load_tensors

SIDE, WIDTH, BATCH = 299, 2048, 16
Shape = tuple[int, ...]  # (in, out, kernel height and width, stride, padding height and width)


class Unit(nn.Module):
    """Convolution without bias, batch norm, ReLU."""

    def __init__(self, inputs: int, outputs: int, kernel: int | Shape = 1, stride: int = 1, same: bool = True) -> None:
        super().__init__()
        height, width = (kernel, kernel) if isinstance(kernel, int) else kernel
        padding = (height // 2, width // 2) if same else (0, 0)
        self.conv = nn.Conv2d(inputs, outputs, (height, width), stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


class Block(nn.Module):
    """Branches side by side; each is a row of units, or units that fork at its end.

    Args:
        units: name -> unit.
        branches: names of each branch in order; names joined by "|" fork.
        pool: "mean" or "max" in front of the unit `branch_pool`, or "shrink": a maximum with stride 2 and no unit.
    """

    def __init__(self, units: dict[str, Unit], branches: Iterable[str], pool: str) -> None:
        super().__init__()
        for name, unit in units.items():
            self.add_module(name, unit)
        self.branches, self.pool = tuple(branches), pool

    def forward(self, x: Tensor) -> Tensor:
        found = []
        for branch in self.branches:
            *row, last = branch.split()
            y = x
            for name in row:
                y = self.get_submodule(name)(y)
            found += [self.get_submodule(name)(y) for name in last.split("|")]
        if self.pool == "shrink":
            found.append(F.max_pool2d(x, 3, 2))
        else:
            mean = F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
            pooled = mean if self.pool == "mean" else F.max_pool2d(x, 3, 1, 1)
            found.append(self.get_submodule("branch_pool")(pooled))
        return torch.cat(found, 1)


def _a(inputs: int, pool: int) -> Block:
    units = {
        "branch1x1": Unit(inputs, 64), "branch5x5_1": Unit(inputs, 48), "branch5x5_2": Unit(48, 64, 5),
        "branch3x3dbl_1": Unit(inputs, 64), "branch3x3dbl_2": Unit(64, 96, 3), "branch3x3dbl_3": Unit(96, 96, 3),
        "branch_pool": Unit(inputs, pool),
    }  # fmt: skip
    branches = ("branch1x1", "branch5x5_1 branch5x5_2", "branch3x3dbl_1 branch3x3dbl_2 branch3x3dbl_3")
    return Block(units, branches, "mean")


def _b(inputs: int) -> Block:
    units = {
        "branch3x3": Unit(inputs, 384, 3, 2, same=False), "branch3x3dbl_1": Unit(inputs, 64),
        "branch3x3dbl_2": Unit(64, 96, 3), "branch3x3dbl_3": Unit(96, 96, 3, 2, same=False),
    }  # fmt: skip
    return Block(units, ("branch3x3", "branch3x3dbl_1 branch3x3dbl_2 branch3x3dbl_3"), "shrink")


def _c(width: int) -> Block:
    across, down = (1, 7), (7, 1)
    units = {
        "branch1x1": Unit(768, 192), "branch7x7_1": Unit(768, width), "branch7x7_2": Unit(width, width, across),
        "branch7x7_3": Unit(width, 192, down), "branch7x7dbl_1": Unit(768, width),
        "branch7x7dbl_2": Unit(width, width, down), "branch7x7dbl_3": Unit(width, width, across),
        "branch7x7dbl_4": Unit(width, width, down), "branch7x7dbl_5": Unit(width, 192, across),
        "branch_pool": Unit(768, 192),
    }  # fmt: skip
    doubled = " ".join(f"branch7x7dbl_{i}" for i in range(1, 6))
    return Block(units, ("branch1x1", "branch7x7_1 branch7x7_2 branch7x7_3", doubled), "mean")


def _d() -> Block:
    units = {
        "branch3x3_1": Unit(768, 192), "branch3x3_2": Unit(192, 320, 3, 2, same=False),
        "branch7x7x3_1": Unit(768, 192), "branch7x7x3_2": Unit(192, 192, (1, 7)),
        "branch7x7x3_3": Unit(192, 192, (7, 1)), "branch7x7x3_4": Unit(192, 192, 3, 2, same=False),
    }  # fmt: skip
    return Block(
        units,
        ("branch3x3_1 branch3x3_2", "branch7x7x3_1 branch7x7x3_2 branch7x7x3_3 branch7x7x3_4"),
        "shrink",
    )


def _e(inputs: int, pool: str) -> Block:
    across, down = (1, 3), (3, 1)
    units = {
        "branch1x1": Unit(inputs, 320), "branch3x3_1": Unit(inputs, 384), "branch3x3_2a": Unit(384, 384, across),
        "branch3x3_2b": Unit(384, 384, down), "branch3x3dbl_1": Unit(inputs, 448), "branch3x3dbl_2": Unit(448, 384, 3),
        "branch3x3dbl_3a": Unit(384, 384, across), "branch3x3dbl_3b": Unit(384, 384, down),
        "branch_pool": Unit(inputs, 192),
    }  # fmt: skip
    forks = ("branch3x3_1 branch3x3_2a|branch3x3_2b", "branch3x3dbl_1 branch3x3dbl_2 branch3x3dbl_3a|branch3x3dbl_3b")
    return Block(units, ("branch1x1", *forks), pool)


class Inception(nn.Module):
    """Pictures (N, 3, H, W) in [0, 1] -> pool3, (N, 2048); pictures are resized to 299 pixels, bilinearly."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = Unit(3, 32, 3, 2, same=False)
        self.Conv2d_2a_3x3 = Unit(32, 32, 3, same=False)
        self.Conv2d_2b_3x3 = Unit(32, 64, 3)
        self.Conv2d_3b_1x1 = Unit(64, 80)
        self.Conv2d_4a_3x3 = Unit(80, 192, 3, same=False)
        self.Mixed_5b, self.Mixed_5c, self.Mixed_5d = _a(192, 32), _a(256, 64), _a(288, 64)
        self.Mixed_6a = _b(288)
        self.Mixed_6b, self.Mixed_6c, self.Mixed_6d, self.Mixed_6e = _c(128), _c(160), _c(160), _c(192)
        self.Mixed_7a, self.Mixed_7b, self.Mixed_7c = _d(), _e(1280, "mean"), _e(2048, "max")

    def forward(self, pixels: Tensor) -> Tensor:
        x = F.interpolate(pixels, (SIDE, SIDE), mode="bilinear", align_corners=False) * 2 - 1
        for name, layer in self.named_children():
            x = layer(x)
            if name in ("Conv2d_2b_3x3", "Conv2d_4a_3x3"):
                x = F.max_pool2d(x, 3, 2)
        return x.mean((2, 3))


def load_inception(file: str | Path) -> Inception:
    """Reads the weights from a safetensors file; what is no part of the features (`fc`, `AuxLogits`) is passed over.

    Raises:
        Refused: no such file, not safetensors, or weights of another network.
    """
    tensors, _ = load_tensors(at_home(file))
    network = Inception()
    wanted = network.state_dict()
    lacking = [name for name in wanted if name not in tensors and not name.endswith("num_batches_tracked")]
    if lacking:
        raise Refused(f"{file} holds no Inception v3: it lacks {lacking[0]}; save pytorch-fid's weights as safetensors")
    held = {name: tensors[name].float() for name in wanted if name in tensors}
    misfit = [name for name, value in held.items() if value.shape != wanted[name].shape]
    if misfit:
        expected, found = tuple(wanted[misfit[0]].shape), tuple(held[misfit[0]].shape)
        raise Refused(f"{file} holds another network: {misfit[0]} has shape {found}, expected {expected}")
    network.load_state_dict(held, strict=False)
    return network.eval().requires_grad_(False)


@torch.no_grad()
def inception_features(network: Inception, pixels: Tensor) -> Tensor:
    """pool3 of pictures (N, 3, H, W) in [0, 1], (N, 2048) float32: what `kid` and `fid` are defined on."""
    return torch.cat([network(part.float()) for part in pixels.split(BATCH)])
