"""Stable Diffusion 1.x, 2.x and XL as one .safetensors file, in the layout of the original checkpoints."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

from safetensors import safe_open

from ..errors import Refused
from .hub import fetch_configuration
from .local_folder import PICKLES, first_line, tensor_names

_PARTS = {"model.diffusion_model.": "UNet", "first_stage_model.": "autoencoder", "cond_stage_model.": "text encoder"}
_PARTS_OF_XL = {
    "model.diffusion_model.": "UNet", "first_stage_model.": "autoencoder",
    "conditioner.embedders.0.": "first text encoder", "conditioner.embedders.1.": "second text encoder",
}  # fmt: skip
_OTHERS = (
    ("lora", "an adapter (LoRA); load a base and attach it there"),
    ("double_blocks.", "a FLUX checkpoint"),
    ("joint_blocks.", "a Stable Diffusion 3 checkpoint"),
    ("control_model.", "a ControlNet"),
    ("down_blocks.", "one part of a diffusers pipeline; pass the folder with model_index.json instead"),
)
# As diffusers tells them apart: 2.x has text of width 1024. Its files do not say whether they predict epsilon or v.
_TEXT_WIDTH = "model.diffusion_model.input_blocks.{}.1.transformer_blocks.0.attn2.to_k.weight"
_REPOSITORIES = {
    1: "stable-diffusion-v1-5/stable-diffusion-v1-5",
    2: "stabilityai/stable-diffusion-2-1",
    "xl": "stabilityai/stable-diffusion-xl-base-1.0",
}


def check_file(path: Path) -> str:
    """The family of a checkpoint: "stable_diffusion" or "stable_diffusion_xl".

    Raises:
        Refused: it is a pickle, cut short, or no whole checkpoint of these.
    """
    if path.suffix.lower() in PICKLES:
        raise Refused(f"{path} is a pickle, which can run code when read; convert it to .safetensors")
    if path.suffix.lower() != ".safetensors":
        raise Refused(f"{path} is no base: expected a .safetensors file or a folder with model_index.json")
    names = tensor_names(path)
    xl = any(name.startswith("conditioner.embedders.") for name in names)
    parts = _PARTS_OF_XL if xl else _PARTS
    missing = [part for prefix, part in parts.items() if not any(name.startswith(prefix) for name in names)]
    kind = next((kind for mark, kind in _OTHERS if any(mark in name for name in names)), None)
    if missing and kind:
        raise Refused(f"{path} is {kind}; expected a Stable Diffusion 1.x, 2.x or XL checkpoint in one file")
    if missing:
        which = "XL" if xl else "1.x / 2.x"
        raise Refused(f"{path} holds no {' and no '.join(missing)}; expected all of a Stable Diffusion {which} model")
    return "stable_diffusion_xl" if xl else "stable_diffusion"


def configuration_of(path: Path, kind: str) -> Path:
    """The folder of configuration files that a checkpoint needs, out of the local cache or from the hub (2 MB).

    Args:
        path: the file.
        kind: as `check_file` returned it.

    Raises:
        Refused: they cannot be had.
    """
    with safe_open(path, "pt") as file:
        names = set(file.keys())
        width = next(
            (file.get_slice(key).get_shape()[-1] for i in (1, 2, 4) if (key := _TEXT_WIDTH.format(i)) in names), None
        )
    repository = _REPOSITORIES["xl" if kind == "stable_diffusion_xl" else 2 if width == 1024 else 1]
    try:
        return fetch_configuration(repository)
    except Refused as error:
        raise Refused(
            f"{path} holds weights only, and the configuration of its kind cannot be loaded ({error}); "
            "pass config=FOLDER, any Stable Diffusion folder of the same version in diffusers format"
        ) from error


def open_single_file(
    pipeline_class: Any, path: Path, configuration: Path, dtype: Any, parts: Collection[str], **without: Any
) -> Any:
    """The pipeline of a checked file.

    Args:
        pipeline_class: of diffusers.
        path: the file.
        configuration: a folder with the configuration and the tokenizers of its kind.
        dtype: of the weights.
        parts: components that must have all their weights.
        without: components that the base does without, each None, and what else the class takes.

    Raises:
        Refused: file and configuration do not fit, or weights are missing.
    """
    try:
        pipeline = pipeline_class.from_single_file(
            str(path), config=str(configuration), torch_dtype=dtype, local_files_only=True, **without
        )
    except Exception as error:  # see open_pipeline; keys of no part that it knows have one more class
        raise Refused(f"{path} does not fit the configuration {configuration}: {first_line(error)}") from error
    for part in parts:
        empty = [name for name, weight in getattr(pipeline, part).named_parameters() if weight.is_meta]
        if empty:
            raise Refused(f"{path} lacks {len(empty)} weights of the {part}, the first: {empty[0]}")
    return pipeline
