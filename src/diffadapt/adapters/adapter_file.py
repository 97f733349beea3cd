"""Adapter files: reading one, and putting it on the base that it was trained on."""

import json
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from ..errors import Refused
from ..files import load_tensors
from .adapter import Method
from .attach import FORMAT_VERSION, AdaptableBase, Attachment, attach, package_version
from .methods import METHODS


def read_adapter(path: str | Path) -> tuple[Method, list[str], dict[str, str], dict[str, Tensor], dict[str, str]]:
    """Reads an adapter file without a base.

    Returns:
        method, roles, tokens, tensors, the whole header

    Raises:
        Refused: it is not an adapter of ours, of a newer format, or of an unknown method.
    """
    tensors, header = load_tensors(path)
    if header.get("format") != "diffadapt":
        raise Refused(
            f"{path} is a safetensors file but not an adapter of diffadapt (its format is {header.get('format')!r})"
        )
    if int(header["format_version"]) > FORMAT_VERSION:
        raise Refused(
            f"{path} has format version {header['format_version']}, this diffadapt {package_version()} reads up to "
            f"{FORMAT_VERSION}; update diffadapt"
        )
    if header["method"] not in METHODS:
        raise Refused(f"{path} was made with method {header['method']!r}; known: {', '.join(METHODS)}")
    method = METHODS[header["method"]](**json.loads(header["config"]))
    return method, json.loads(header["roles"]), json.loads(header["tokens"]), tensors, header


def load_adapter(base: AdaptableBase, path: str | Path, *, any_base: bool = False) -> Attachment:
    """Loads an adapter file onto the base that it was trained on.

    Args:
        base: a loaded base.
        path: a file that `Attachment.save` wrote.
        any_base: also accept another base whose layers have the same shapes (a fine-tuned sibling).

    Raises:
        Refused: another base, a shape that does not fit, a newer format; says what to do.
    """
    method, roles, tokens, tensors, header = read_adapter(path)
    if header["base_fingerprint"] != base.fingerprint and not any_base:
        raise Refused(
            f"{path} was trained on base {header['base']!r} ({header['base_fingerprint']}), this is {base.name!r} "
            f"({base.fingerprint}); load that base, or pass any_base=True if the two are siblings"
        )
    first_vectors = {token: text for token, text in tokens.items() if not _is_further_vector(token, tokens)}
    attachment = attach(base, method, roles, tokens=first_vectors)
    try:
        attachment.load_state_dict(tensors)
    except Refused as error:
        attachment.detach()
        raise Refused(f"{path} does not fit base {base.name!r}: {error}") from error
    return attachment


def _is_further_vector(token: str, tokens: Mapping[str, str]) -> bool:
    stem, _, number = token.rpartition("_")
    return number.isdigit() and stem in tokens
