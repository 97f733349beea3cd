"""PEFT's directories: `adapter_config.json` and `adapter_model.safetensors`, of LoRA and DoRA (see `lora_reading`), of
OFT, and of IA3, which is written only.

Of OFT, PEFT turns the inputs, x R, like us. From one tensor v its exact transform makes R(-v) and its series R(v), so:

    use_cayley_neumann = false    v = -Q    what is written
    use_cayley_neumann = true     v = Q     read too, see `series.py`

A directory is about one model. That of the UNet is the directory itself, those of other parts are in it under the name
of the part (`text_encoder`, `text_encoder_2`, `transformer`); `unet`, where PEFT's own examples put that, is read too.

Convolutions with a kernel above 1x1 are left out: PEFT turns overlapping patches of the picture and adds them up again,
which changes the layer even where Q = 0, and is another function than a convolution with turned filters.
"""

import re
from collections import defaultdict
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..adapters import IA3, OFT, Attachment, DoRA, LoRA
from ..adapters.ia3 import IA3Adapter
from ..adapters.oft import OFTAdapter
from ..errors import Refused
from ..files import load_tensors, read_json, save_tensors, write_json
from ..network import Network
from ..shapes import PEFT_CONFIG
from .found import Found
from .found_lora import FoundLoRA
from .lora_reading import add_pairs, peft_alpha
from .lora_writing import write_peft_lora
from .packed import by_layer

PARTS = ("unet", "transformer", "text_encoder", "text_encoder_2", "text_encoder_3")
CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
_CONVOLUTION = "its layer {} is a convolution, and those with kernels above 1x1 PEFT does not turn but distort"
_BEFORE_018 = "written by PEFT before 0.18, whose series ended otherwise, so that what is said of it is rough"
_OLD = "{} is in a form of earlier versions of PEFT, which PEFT itself no longer reads; train it again with a newer one"


def write_peft(attachment: Attachment, out: Path) -> list[Path]:
    """Writes a LoRA or OFT attachment at its present strength; returns the directories.

    Raises:
        Refused: another method, a convolution, or a gain per neuron, which PEFT's OFT does not have.
    """
    method = attachment.method
    if isinstance(method, LoRA | DoRA):
        return write_peft_lora(attachment, out, CONFIG, TENSORS)
    if isinstance(method, IA3):
        return _write_ia3(attachment, out)
    if not isinstance(method, OFT):
        raise Refused(
            f"a PEFT directory is written for lora, dora, ia3 and oft, and this adapter is {method.name}; --to diff "
            "takes every method that can be merged"
        )
    tensors: dict[str, dict[str, Tensor]] = defaultdict(dict)  # by part
    for path, adapter in attachment.layers.items():
        assert isinstance(adapter, OFTAdapter)
        if not _turned_by_peft(adapter.innermost()):
            raise Refused(f"PEFT cannot hold this adapter: {_CONVOLUTION.format(path)}; use --to diff, which is exact")
        if adapter.log_gain is not None and adapter.log_gain.any():
            raise Refused("PEFT's OFT has no gain per neuron, and this adapter was trained with rescale; use --to diff")
        part, _, name = path.partition(".")
        tensors[part][f"base_model.model.{name}.oft_R.weight"] = -attachment.strength * adapter.q
    folders = []
    for part, own in tensors.items():
        folder = out if part == "unet" else out / part
        save_tensors(folder / TENSORS, own, {"format": "pt"})
        names = [key.removeprefix("base_model.model.").removesuffix(".oft_R.weight") for key in own]
        bounded = method.constraint == "peft" and abs(attachment.strength) <= 1
        write_json(folder / CONFIG, _config(method, names, attachment.base.name, bounded))
        folders.append(folder)
    return folders


def _write_ia3(attachment: Attachment, out: Path) -> list[Path]:
    """l = 1 + strength g of every layer: (out, 1), or (1, out, 1, 1) of a convolution; never of a layer's input."""
    tensors: dict[str, dict[str, Tensor]] = defaultdict(dict)  # by part
    for path, adapter in attachment.layers.items():
        assert isinstance(adapter, IA3Adapter)
        part, _, name = path.partition(".")
        factors = (1 + attachment.strength * adapter.gain.detach())[:, None]
        shaped = factors[None, :, :, None] if isinstance(adapter.innermost(), nn.Conv2d) else factors
        tensors[part][f"base_model.model.{name}.ia3_l"] = shaped
    folders = []
    for part, own in tensors.items():
        folder = out if part == "unet" else out / part
        save_tensors(folder / TENSORS, own, {"format": "pt"})
        names = [key.removeprefix("base_model.model.").removesuffix(".ia3_l") for key in own]
        config = {"peft_type": "IA3", "task_type": None, "base_model_name_or_path": attachment.base.name}
        config |= {"inference_mode": True, "target_modules": names, "feedforward_modules": [], "init_ia3_weights": True}
        write_json(folder / CONFIG, config)
        folders.append(folder)
    return folders


def _config(method: OFT, layers: list[str], base: str, bounded: bool) -> dict[str, Any]:
    return {
        "peft_type": "OFT",
        "task_type": None,
        "base_model_name_or_path": base,
        "inference_mode": True,
        "r": method.blocks or 0,
        "oft_block_size": 0 if method.blocks else method.block_size,
        "block_share": method.share_blocks,
        "module_dropout": method.dropout,
        "coft": bounded,
        "eps": method.radius if bounded else 6e-5,
        "use_cayley_neumann": False,
        "num_cayley_neumann_terms": 5,
        "target_modules": layers,
        "bias": "none",
        "fan_in_fan_out": False,
        "init_weights": True,
    }


def read_peft(directory: Path, base: Network) -> Found | FoundLoRA:
    """Reads a PEFT directory, that of one part of the base or of several.

    Raises:
        Refused: another method or an old version of PEFT's, no safetensors, a layer that the base does not have, a
            convolution that is turned, directories of the parts that do not agree or of a part that it lacks.
    """
    folders = [each for each in (directory, *(directory / part for part in PARTS)) if (each / CONFIG).is_file()]
    if not folders:
        raise Refused(f"{directory} is no PEFT directory: there is no {CONFIG} in it")
    for folder in folders:
        if folder != directory and folder.name not in base.modules():
            parts = ", ".join(base.modules())
            raise Refused(f"{folder} is about a part that base {base.name!r} does not have; it has {parts}")
    configs = {folder: _read_config(folder) for folder in folders}
    kinds = {config["peft_type"] for config in configs.values()}
    if len(kinds) > 1:
        raise Refused(f"{' and '.join(map(str, folders))} are of {' and '.join(sorted(kinds))}; import each by itself")
    source = f"a PEFT directory, {directory.name}"
    return _lora(source, configs, base) if kinds == {"LORA"} else _oft(source, configs, base)


def _lora(source: str, configs: dict[Path, dict[str, Any]], base: Network) -> FoundLoRA:
    found = FoundLoRA(source)
    for folder, config in configs.items():
        found.dropout = float(config.get("lora_dropout") or 0.0)

        def alpha(layer: str, rank: int, config: dict[str, Any] = config) -> float:
            return peft_alpha(config, layer, rank)

        add_pairs(found, folder / TENSORS, _read_tensors(folder), base, alpha, part=_part(folder, base))
    return found


def _oft(source: str, configs: dict[Path, dict[str, Any]], base: Network) -> Found:
    found = Found(source)
    for folder, config in configs.items():
        if "oft_block_size" not in config:
            raise Refused(_OLD.format(folder))
        series, settings = config.get("use_cayley_neumann", True), _settings(config)
        terms = int(config.get("num_cayley_neumann_terms", 5)) if series else None
        if found.q and (terms, settings) != (found.terms, found.settings):
            raise Refused(f"{' and '.join(map(str, configs))} have different settings; import each by itself")
        found.terms, found.settings, found.by_blocks = terms, settings, bool(config.get("r"))
        found.remarks = [_BEFORE_018] if series and "peft_version" not in config else []
        for path, v in by_layer(folder / TENSORS, _read_tensors(folder), base, _part(folder, base))[0].items():
            if not _turned_by_peft(base.module(path)):
                raise Refused(f"{folder} cannot be read: {_CONVOLUTION.format(path)}; train it in diffadapt")
            found.q[path] = v if series else -v
    return found


def _part(folder: Path, base: Network) -> str | None:
    """The part of a base that a directory is named for."""
    return folder.name if folder.name in base.modules() else None


def _settings(config: dict[str, Any]) -> dict[str, Any]:
    """`OFT`'s settings of a PEFT config, beside the blocks' size and number, which the tensors' shapes tell."""
    settings = {"share_blocks": bool(config.get("block_share")), "dropout": float(config.get("module_dropout", 0))}
    if config.get("coft"):
        settings |= {"constraint": "peft", "radius": float(config.get("eps", 6e-5))}
    return settings


def _read_config(folder: Path) -> dict[str, Any]:
    config = read_json(folder / CONFIG, PEFT_CONFIG)
    if config["peft_type"] not in ("LORA", "OFT"):
        raise Refused(f"{folder} is a PEFT directory of {config['peft_type']}; diffadapt reads those of LORA and OFT")
    return config


def _read_tensors(folder: Path) -> dict[str, Tensor]:
    if not (folder / TENSORS).exists() and (folder / "adapter_model.bin").exists():
        raise Refused(
            f"{folder} holds a pickle, which can run code when read; load it in PEFT and call "
            "save_pretrained(..., safe_serialization=True)"
        )
    tensors, _ = load_tensors(folder / TENSORS)
    if any(re.search(r"\.oft_r(\.|$)", key) for key in tensors):
        raise Refused(_OLD.format(folder))
    return tensors


def _turned_by_peft(layer: nn.Module) -> bool:
    return not isinstance(layer, nn.Conv2d) or layer.kernel_size == (1, 1)
