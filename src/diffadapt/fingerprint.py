"""A short name for a base's weights that does not depend on the precision they were loaded in."""

import hashlib
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor


def fingerprint(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """ "sha256:<16 hex digits>" over names, shapes and every value, in any order.

    Values are hashed as float16, because a base is the same base whether its file holds float32 or float16 and
    whether it was loaded as the one or the other: rounding float32 to float16 gives one answer on each of these ways.
    A change below float16's resolution (relative 0.0005) is therefore not seen; any larger one is. bfloat16 is
    coarser than that: load in float32, take the fingerprint, then cast.

    Measured on two busy cores: 0.03 s for 10 M values, 0.44 s for 200 M.
    """
    return combined(digests(tensors))


def digests(tensors: Iterable[tuple[str, Tensor]]) -> dict[str, bytes]:
    """Name -> digest of every tensor; `combined` makes a fingerprint of all of them, or of some."""
    rows = list(tensors)
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:  # hashlib and torch release the interpreter's lock
        return dict(zip((name for name, _ in rows), pool.map(_digest, rows), strict=True))


def combined(found: Mapping[str, bytes]) -> str:
    """The fingerprint of tensors whose digests are known."""
    return short_hash(b"".join(found[name] for name in sorted(found)))


def short_hash(data: bytes) -> str:
    """ "sha256:<16 hex digits>"."""
    return "sha256:" + hashlib.sha256(data).hexdigest()[:16]


def _digest(row: tuple[str, Tensor]) -> bytes:
    name, tensor = row
    head = f"{name}\0{tuple(tensor.shape)}\0".encode()
    half = tensor.detach().to("cpu", torch.float16).contiguous()
    return hashlib.sha256(head + half.numpy().tobytes()).digest()
