"""Reads LoRA of other tools: one pair of matrices for each layer, under the names that each tool has for them.

    kohya's scripts, LyCORIS' LoCon, ComfyUI    lora_unet_<path with underscores>.lora_down.weight, .lora_up, .alpha
    diffusers since 0.22, PEFT                  unet.<path>.lora_A.weight, .lora_B.weight
    diffusers 0.15 to 0.21                      unet.<path>.lora.down.weight, text_encoder.<path>.lora_linear_layer.down
    diffusers before                            unet.<attention>.processor.to_q_lora.down.weight

DoRA adds the norm of each neuron's weights: PEFT's `lora_magnitude_vector`, LyCORIS' `dora_scale` where it is taken
over what comes into a neuron, (out, 1, ...); over what leaves an input, (1, in, ...), is another method.

LoCon's `lora_mid` (a convolution between the two) is multiplied into `lora_down`, which changes nothing of the product.
"""

import math
import re
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import Refused
from ..files import parse_json
from ..network import Network
from ..shapes import NUMBER, hold
from .found_lora import FoundLoRA
from .names import has_two_encoders, known_names, names_in_part

_KEY = re.compile(r"(.+?)\.(?:(alpha)|(?:lora_)?(down|up|mid|A|B)(?:\.\w+)?\.weight)")
_MAGNITUDE = re.compile(r"(.+?)\.(dora_scale|lora_magnitude_vector)(?:(?:\.\w+)?\.weight)?")
_PROCESSOR = re.compile(r"(.+)\.processor\.(to_[qkv]|to_out)_lora")
_OLD_TEXT = re.compile(r"(.+\.self_attn)\.to_(q|k|v|out)_lora")
_PARTS = {"A": "down", "B": "up"}
OF_THE_WEIGHTS = ("pissa", "olora", "corda", "loftq")  # PEFT's starts that change the base
_METADATA = "lora_adapter_metadata"  # diffusers' entry in the header


def is_lora(tensors: Mapping[str, Tensor]) -> bool:
    """Whether a file is of this kind, by its names."""
    return any((found := _KEY.fullmatch(name)) and found[3] for name in tensors)


def read_lora(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, str], base: Network) -> FoundLoRA:
    """Reads one file of kohya's scripts, LyCORIS (LoCon) or diffusers.

    Raises:
        Refused: a tensor that is no part of LoRA, a layer that the base does not have, half a pair.
    """
    found = FoundLoRA(f"a LoRA file, {path.name}")
    config = _header_config(path, header)

    def alpha(name: str, rank: int) -> float:
        part = name.partition(".")[0]
        own = {key.removeprefix(f"{part}."): value for key, value in config.items() if key.startswith(f"{part}.")}
        return peft_alpha(own, name, rank) if own else float(rank)

    add_pairs(found, path, tensors, base, alpha)
    return found


def add_pairs(
    found: FoundLoRA,
    source: Path,
    tensors: Mapping[str, Tensor],
    base: Network,
    alpha: Callable[[str, int], float],
    *,
    part: str | None = None,
) -> None:
    """Adds the pairs of a file to what was found.

    Args:
        found: grows.
        source: the file, for messages.
        tensors: all of it.
        base: whose layers the names are held against.
        alpha: (a layer's path, its rank) -> alpha, where the file holds no tensor of it.
        part: of the base, that the file is known to be about.
    """
    names = known_names(base, part)
    layers: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for key, tensor in tensors.items():
        match = _KEY.fullmatch(key) or _MAGNITUDE.fullmatch(key)
        if match is None:
            raise Refused(f"{source} holds {key}, which is no part of LoRA as diffadapt knows it")
        name = _plain(match[1])
        if name not in names:
            of_two = name.startswith("lora_te2_") and not has_two_encoders(base)
            more = "; it is of SDXL, and this base is not" if of_two else ""
            raise Refused(f"{source} is about a layer {name!r}, which base {base.name!r} does not have{more}")
        matrix = match[2] or _PARTS.get(match[3], match[3])
        layers[names[name]][matrix] = tensor
    for layer, own in layers.items():
        if not {"down", "up"} <= own.keys():
            lacking = "down" if "up" in own else "up"
            raise Refused(f"{source} has no {lacking} matrix of {layer}; it was cut short, copy it again")
        if not isinstance(base.module(layer), nn.Linear | nn.Conv2d):
            raise Refused(f"{source} has a LoRA of {layer}, a {type(base.module(layer)).__name__}; it cannot be read")
        down, up = own["down"].float(), own["up"].float()
        if "mid" in own:  # (r, r', kh, kw) between 1x1 convolutions
            down = torch.einsum("mnhw,ni->mihw", own["mid"].float(), down.flatten(1))
        if down.ndim < 2 or up.ndim < 2 or up.shape[1] != len(down) or not len(down):
            raise Refused(f"{source}: {layer} has matrices {tuple(up.shape)} x {tuple(down.shape)}, which do not match")
        found.down[layer], found.up[layer] = down, up
        for name in own.keys() & {"dora_scale", "lora_magnitude_vector"}:
            weight = base.module(layer).get_parameter("weight")
            found.magnitude[layer] = _of_neurons(own[name], weight, name, f"{source}: {layer}")
        if "alpha" in own and own["alpha"].numel() != 1:
            raise Refused(f"{source}: the alpha of {layer} has shape {tuple(own['alpha'].shape)}; expected one number")
        found.alpha[layer] = float(own["alpha"]) if "alpha" in own else alpha(layer, len(down))


def _of_neurons(magnitude: Tensor, weight: Tensor, name: str, source: str) -> Tensor:
    """DoRA's magnitudes, (out,), of a tensor called `dora_scale` or `lora_magnitude_vector`."""
    shape, kernel, neurons = tuple(magnitude.shape), (1,) * (weight.ndim - 2), len(weight)
    shapes = {"dora_scale": [(neurons, 1, *kernel)], "lora_magnitude_vector": [(neurons,), (1, neurons, *kernel)]}
    if shape in shapes[name]:
        return magnitude.float().flatten()
    if name == "dora_scale" and shape == (1, weight.shape[1], *kernel):
        raise Refused(
            f"{source} has a norm for each of its inputs (LyCORIS with wd_on_output = false); DoRA is read with a norm "
            "for each output, as in PEFT; merge it into the base in the tool that made it"
        )
    raise Refused(f"{source} has magnitudes of shape {shape}, and its weight is {tuple(weight.shape)}")


def peft_alpha(config: Mapping[str, Any], path: str, rank: int) -> float:
    """The alpha of the layer at a path as a PEFT config has it, so that alpha / rank is what PEFT multiplies by.

    Raises:
        Refused: a pattern is none, or the adapter belongs to other weights than the base's.
    """
    refuse_other_weights(config)
    layers = names_in_part(path)
    patterns = hold(config.get("alpha_pattern") or {}, {str: NUMBER}, "alpha_pattern of the LoRA's config")
    try:
        value = next(
            (each for key, each in patterns.items() for layer in layers if re.match(rf"(.*\.)?({key})$", layer)), None
        )
    except re.error as error:
        raise Refused(f"alpha_pattern of the LoRA's config is no pattern: {error}") from error
    value = config.get("lora_alpha", 8) if value is None else value
    hold(value, NUMBER, f"lora_alpha of the LoRA's config, for {path}")
    return float(value) * (math.sqrt(rank) if config.get("use_rslora") else 1)


def refuse_other_weights(config: Mapping[str, Any]) -> None:
    """Raises Refused for a LoRA that PEFT began with parts of the base's weights, which it takes out of them again."""
    begun = str(config.get("init_lora_weights") or "").lower()
    if begun.startswith(OF_THE_WEIGHTS):
        raise Refused(
            f"the LoRA began with {begun}, which takes what it begins with out of the base's weights, and those were "
            "not saved; write it in PEFT with save_pretrained(..., path_initial_model_for_weight_conversion=...), "
            "which makes a plain LoRA of it"
        )


def _header_config(path: Path, header: Mapping[str, str]) -> dict[str, Any]:
    """{"unet.lora_alpha": ...}: what newer versions of diffusers write of PEFT's config into the header."""
    return parse_json(header.get(_METADATA, "{}"), dict, f"{path}: {_METADATA} of its header")


def _plain(name: str) -> str:
    """A layer's name without what the tools put around it."""
    name = name.removeprefix("base_model.model.")
    if match := _PROCESSOR.fullmatch(name):
        return f"{match[1]}.{match[2]}" + (".0" if match[2] == "to_out" else "")
    if match := _OLD_TEXT.fullmatch(name):
        return f"{match[1]}.{match[2]}_proj"
    return name.removesuffix(".lora").removesuffix(".lora_linear_layer")
