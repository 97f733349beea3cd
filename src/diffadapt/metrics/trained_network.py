"""Reads the small networks that measure: weights in `NAME.safetensors`, what they are in `NAME.json` beside them."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from ..errors import Refused
from ..files import load_tensors, read_json

T = TypeVar("T", bound=nn.Module)


def load_trained(folder: Path, name: str, kind: str, *, version: int, build: Callable[[Mapping[str, Any]], T]) -> T:
    """A network with its weights, float32 on the CPU, in evaluation mode, its parameters frozen.

    Args:
        folder: holds NAME.safetensors and NAME.json.
        name: of the files.
        kind: the network in words, for messages.
        version: the newest `format_version` that is read.
        build: makes the network of what NAME.json says.

    Raises:
        Refused: a file is missing or damaged, the two do not fit, or the format is newer than this package.
    """
    facts = read_json(folder / f"{name}.json")
    both = f"{folder}: {name}.json and {name}.safetensors"
    try:
        if facts["format_version"] > version:
            raise Refused(
                f"{folder / f'{name}.json'} has format {facts['format_version']}; this diffadapt reads up to "
                f"{version}: install a newer diffadapt"
            )
        network = build(facts)
        tensors, _ = load_tensors(folder / f"{name}.safetensors")
        # Batch norm's counters of batches seen are not stored: they only matter in training.
        found = network.load_state_dict({key: value.float() for key, value in tensors.items()}, strict=False)
        wrong = found.unexpected_keys + [key for key in found.missing_keys if not key.endswith("num_batches_tracked")]
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
        if isinstance(error, Refused):
            raise
        raise Refused(f"{both} do not make a {kind} ({error})") from error
    if wrong:
        raise Refused(f"{both} do not fit each other: {', '.join(wrong[:3])}")
    return network.eval().requires_grad_(False)
