"""A pipeline folder as diffusers writes it: what is in it, what is missing, and is each weight file whole."""

import re
import struct
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from ..errors import Refused
from ..files import read_json
from ..shapes import COMPONENTS, MODEL_INDEX

INDEX = "model_index.json"
PICKLES = frozenset({".bin", ".ckpt", ".pt", ".pth", ".pkl", ".pickle"})
_SHARD = r"(?:-\d+-of-\d+)?"
_OLD_NAMES = ((".query.", ".to_q."), (".key.", ".to_k."), (".value.", ".to_v."), (".proj_attn.", ".to_out.0."))


def check_class(index: Path, supported: Collection[str]) -> str:
    """The pipeline class that a `model_index.json` names.

    Raises:
        Refused: the file is not JSON or the class is not among the supported.
    """
    name = read_json(index, MODEL_INDEX)["_class_name"]
    if name not in supported:
        raise Refused(
            f"{index} names the pipeline {name!r}; supported so far: {', '.join(supported)}; "
            "choose a base of one of these kinds"
        )
    return name


def check_components(folder: Path, components: Sequence[str], weights: Mapping[str, str]) -> None:
    """Raises Refused for a component that is missing, has pickled weights only, or a file that is damaged.

    Args:
        folder: a folder with `model_index.json`.
        components: names that must be there.
        weights: component with weights -> stem of its file; empty when only the configuration files are needed.
    """
    index = read_json(folder / INDEX, MODEL_INDEX)
    for name in components:
        place = folder / name
        entry = index.get(name)
        if not isinstance(entry, list) or not entry or entry[0] is None or not place.is_dir():
            raise Refused(f"{folder} has no {name}; expected folders {', '.join(components)}; copy it again")
        if not any(place.glob("*.json")):
            raise Refused(f"{place} holds no configuration (*.json); copy or download it again")
    for name, shape in COMPONENTS.items():
        if name.split("/")[0] in components and (folder / name).is_file():
            read_json(folder / name, shape)
    if weights:
        kind = variant(folder, weights)
        for name, stem in weights.items():
            for path in weight_files(folder / name, stem)[kind]:
                tensor_names(path)


def weight_files(place: Path, stem: str) -> dict[str | None, list[Path]]:
    """The safetensors files of one component by variant: None for plain names, "fp16" for `model.fp16.safetensors`.

    Raises:
        Refused: there are none, with a word about pickles where these are.
    """
    found: dict[str | None, list[Path]] = {}
    for path in sorted(place.glob("*.safetensors")):
        if name := re.fullmatch(stem + _SHARD + r"(?:\.(\w+))?" + _SHARD, path.stem):
            found.setdefault(name[1], []).append(path)
    if found:
        return found
    if any(path.suffix in PICKLES for path in place.iterdir()):
        raise Refused(f"{place} holds pickled weights only, which can run code when read; convert them to .safetensors")
    raise Refused(f"{place} holds no weights; expected {stem}.safetensors; copy or download it again")


def variant(folder: Path, weights: Mapping[str, str]) -> str | None:
    """The variant that all components have: None, the plain names, where they do; else "fp16" or the like.

    Raises:
        Refused: the components share none.
    """
    shared = set.intersection(*(set(weight_files(folder / name, stem)) for name, stem in weights.items()))
    if not shared:
        raise Refused(f"{folder}: its weight files share no variant; expected all plain or all fp16")
    return None if None in shared else min(kind for kind in shared if kind)


def tensor_names(path: Path) -> set[str]:
    """Names of the tensors in a safetensors file, from its header.

    Raises:
        Refused: it is cut short or something else, or a weight in it holds no real numbers, which loaders make some of.
    """
    try:
        with safe_open(path, "pt") as file:
            kinds = {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, struct.error) as error:
        raise Refused(f"{path} is not a whole safetensors file ({error}); copy or download it again") from error
    for name, kind in kinds.items():
        counts = kind in ("I64", "I32") and not name.endswith((".weight", ".bias"))  # identities, numbers of steps
        if not counts and not kind.startswith(("F", "BF")):
            raise Refused(f"{path}: {name} holds {kind}, expected real numbers; copy or download it again")
    return {*kinds}


def open_pipeline(
    pipeline_class: Any, folder: Path, dtype: torch.dtype, weights: Mapping[str, str], **settings: Any
) -> Any:
    """The pipeline of a checked folder.

    Args:
        pipeline_class: of diffusers.
        folder: where it is.
        dtype: of its weights.
        weights: component with weights -> stem of its file.
        settings: more for `from_pretrained`, such as safety_checker=None.

    Raises:
        Refused: a file is not what it should be, or weights are missing in it.
    """
    kind = variant(folder, weights)
    try:
        pipeline = pipeline_class.from_pretrained(
            str(folder), torch_dtype=dtype, variant=kind, use_safetensors=True, local_files_only=True, **settings
        )
    except Exception as error:  # diffusers, transformers and tokenizers have classes of their own, others every year
        raise Refused(f"{folder} cannot be opened as a {pipeline_class.__name__}: {first_line(error)}") from error
    for name, stem in weights.items():
        _check_complete(getattr(pipeline, name), folder / name, weight_files(folder / name, stem)[kind])
    return pipeline


def first_line(error: BaseException) -> str:
    """The first line of an error's message, at most 300 characters."""
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__


def _check_complete(module: nn.Module, place: Path, files: Iterable[Path]) -> None:
    """Loaders fill a missing weight with random numbers and a warning; here it is an error."""
    on_disk = {_plain(name) for path in files for name in tensor_names(path)}
    missing = [name for name, _ in module.named_parameters() if _plain(name) not in on_disk]
    if missing:
        raise Refused(f"{place} lacks {len(missing)} weights, the first: {missing[0]}; copy or download it again")


def _plain(name: str) -> str:
    """A parameter's name in the one form that all versions share."""
    name = name.removeprefix("text_model.")
    for old, new in _OLD_NAMES:
        name = name.replace(old, new)
    return name
