"""The checkpoints of the paper's own code (Qiu et al. 2023; github.com/Zeju1997/oft), as safetensors.

It keeps dense blocks A (r, b, b), or one (b, b) for all, in a tensor named R, takes their skew part S = (A - A^T) / 2
and turns the inputs by a Cayley transform whose sign differs between its files. In ours:

    oft-db, oft-t2i    <attention>.processor.to_q_oft.R                           Q = -S
    oft-control        model.diffusion_model.input_blocks.1.1. ... .to_q.R        Q = -S (r, b, b), Q = S (b, b)

oft-control's file is the whole model: beside the blocks stand `scaling_factors` (out, 1), our gains, and the hint's
encoder in `control_model.input_hint_block`. The code had the other sign in earlier versions, and the files do not say
which it was; what comes out then is the inverse, and strength -1 puts it right.
"""

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ..errors import Refused
from ..network import Network
from .found import Found
from .names import from_original

_PROCESSOR = re.compile(r"(?:unet\.)?(.+)\.processor\.(to_[qkv]|to_out)_oft")
_CONVOLUTION = re.compile(r"\.(in_layers|out_layers|skip_connection|op|conv)\b")
_HINT = re.compile(r"(?:control_model\.)?input_hint_block\.(\d+\.(?:weight|bias))")
_SIGN = "the sign is that of the code's last version; should pictures look wrong, the file is of an earlier one, which "


def is_official(tensors: Mapping[str, Tensor]) -> bool:
    """Whether a file is of this kind, by its names."""
    return any(name.endswith(".R") for name in tensors)


def read_official(path: Path, tensors: Mapping[str, Tensor], base: Network) -> Found:
    """Reads a checkpoint of oft-db, oft-t2i or oft-control.

    Raises:
        Refused: a layer that the base does not have, a convolution, a gain that is not positive.
    """
    found = Found(f"a checkpoint of the paper's code, {path.name}", by_blocks=True)
    layers = {layer for paths in base.roles.values() for layer in paths}
    down = sum(1 for _ in base.module("unet.down_blocks.0.resnets").children())
    for key, blocks in tensors.items():
        if not key.endswith(".R"):
            continue
        own = key.removesuffix(".R")
        layer = _layer(own, down)
        if layer is None and _CONVOLUTION.search(own):
            raise Refused(
                f"{path} turns the convolution {own}; the paper's code mixes up the numbers of its filters before it "
                "turns them, which is no rotation of the filters and cannot be read"
            )
        if layer not in layers:
            raise Refused(f"{path} is about a layer {own!r}, which base {base.name!r} does not have")
        sign = 1 if blocks.ndim == 2 and not _PROCESSOR.fullmatch(own) else -1
        found.q[layer] = sign * _skew_triangle(blocks.float(), key)
        if (gain := tensors.get(f"{own}.scaling_factors")) is not None:
            if not (gain > 0).all():
                raise Refused(
                    f"{own}.scaling_factors in {path} has a gain that is not positive, which turns neurons over"
                )
            found.gains[layer] = gain.float().flatten().log()
        if _number(path, tensors, f"{own}.oft_is_coft"):
            found.settings |= {"constraint": "official", "radius": _number(path, tensors, f"{own}.oft_eps")}
    found.remarks.append(_SIGN + ("cannot be read" if found.gains else "strength -1 puts right"))
    found.hint = {match[1]: tensor for key, tensor in tensors.items() if (match := _HINT.fullmatch(key))}
    return found


def _number(path: Path, tensors: Mapping[str, Tensor], key: str) -> float:
    """The one number of a tensor; 0 where there is no such tensor.

    Raises:
        Refused: it is several.
    """
    tensor = tensors.get(key)
    if tensor is not None and tensor.numel() != 1:
        raise Refused(f"{path}: {key} has shape {tuple(tensor.shape)}; expected one number")
    return 0.0 if tensor is None else float(tensor)


def _layer(own: str, layers_per_block: int) -> str | None:
    """The path of a layer from its name in the checkpoint; None where it is not one of a transformer block."""
    if match := _PROCESSOR.fullmatch(own):
        attention, projection = match.groups()
        return f"unet.{attention}.{'to_out.0' if projection == 'to_out' else projection}"
    return from_original(own.removeprefix("model.diffusion_model."), layers_per_block)


def _skew_triangle(blocks: Tensor, key: str) -> Tensor:
    """Dense (r, b, b) or (b, b) -> strict upper triangles of the skew part, (r, b(b-1)/2) or (1, b(b-1)/2)."""
    if blocks.ndim not in (2, 3) or blocks.shape[-1] != blocks.shape[-2]:
        raise Refused(f"{key} has shape {tuple(blocks.shape)}; expected square blocks (r, b, b) or one (b, b)")
    i, j = torch.triu_indices(blocks.shape[-1], blocks.shape[-1], 1)
    return ((blocks - blocks.mT) / 2)[..., i, j].view(-1, len(i))
