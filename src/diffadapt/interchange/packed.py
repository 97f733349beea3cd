"""Strict upper triangles, the form that PEFT, OneTrainer and kohya's `oft_v2` share: `<layer>.oft_R.weight`.

OneTrainer and kohya's scripts write one safetensors file and no settings. Both compute the Cayley-Neumann series with
five terms and turn the inputs of a linear layer by R, so that the tensor is our Q; the filters of a convolution they
turn by R and not by its transpose, so that it is -Q there. OneTrainer's `scaled_oft` says that the tensor is to be
divided by 2 sqrt(b - 1).
"""

import math
import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from ..errors import Refused
from ..network import Network
from .found import Found
from .names import known_names

_KEY = re.compile(r"(?:base_model\.model\.)?(.+)\.oft_R(?:\.default)?\.(weight|scaled_oft)")


def read_kohya(path: Path, tensors: Mapping[str, Tensor], base: Network) -> Found:
    """Reads a file of kohya's `oft_v2` or of OneTrainer.

    Raises:
        Refused: a tensor or layer that is unknown, or a PEFT file without its settings.
    """
    if any(name.startswith("base_model.") for name in tensors):
        raise Refused(
            f"{path} is a PEFT file without its adapter_config.json, which says which of two signs it has; "
            "give the whole directory"
        )
    packed, scaled = by_layer(path, tensors, base)
    found = Found(f"an oft_v2 file of kohya's scripts or OneTrainer, {path.name}", terms=5)
    for layer, v in packed.items():
        v = -v if isinstance(base.module(layer), nn.Conv2d) else v
        side = (1 + math.isqrt(1 + 8 * v.shape[-1])) // 2
        found.q[layer] = v / (2 * math.sqrt(side - 1)) if layer in scaled else v
    return found


def by_layer(
    source: Path, tensors: Mapping[str, Tensor], base: Network, part: str | None = None
) -> tuple[dict[str, Tensor], set[str]]:
    """All tensors of the file `source`, as ({layer path: tensor in float32}, the paths of those that are scaled).

    Raises:
        Refused: a tensor that is no part of OFT, or a layer that the base does not have.
    """
    names = known_names(base, part)
    packed, scaled = {}, set()
    for key, tensor in tensors.items():
        match = _KEY.fullmatch(key)
        if match is None:
            raise Refused(f"{source} holds {key}, which is no part of OFT as diffadapt knows it")
        name, kind = match.groups()
        if name not in names:
            raise Refused(f"{source} is about a layer {name!r}, which base {base.name!r} does not have")
        if kind == "scaled_oft":
            scaled.add(names[name])
        elif tensor.ndim != 2 or not tensor.numel():
            raise Refused(f"{source}: {key} has shape {tuple(tensor.shape)}, which holds no rotations")
        else:
            packed[names[name]] = tensor.float()
    return packed, scaled
