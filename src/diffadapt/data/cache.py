"""A cache of tensors that are computed once: latents of pictures, embeddings of prompts.

A key is a hash of all content that the tensor depends on (`content_key`): an edited picture or another base has
another key, so entries are never stale.

    cache = TensorCache("runs/.cache")
    key = content_key("latents", base.autoencoder_fingerprint, concept.contents[0], resolution)
    latents = cache.get(key, lambda: base.encode_pictures(pixels))
"""

import hashlib
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from ..errors import Failed, Refused
from ..files import at_home, load_tensors, save_tensors


def content_key(*parts: str | int | float | bytes | Tensor) -> str:
    """SHA-256 (hex) of the parts. Order, type, shape and dtype count, and so do the boundaries between parts."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, Tensor):
            kind, data = f"tensor {part.dtype} {tuple(part.shape)}", _bytes(part)
        elif isinstance(part, bytes):
            kind, data = "bytes", part
        else:
            kind, data = type(part).__name__, str(part).encode()
        digest.update(f"{kind} {len(data)}:".encode() + data)
    return digest.hexdigest()


class TensorCache:
    """Tensors by key, in memory and, with a folder, on disk (one safetensors file each, written atomically).

    A damaged file is computed again. If the disk cannot be written, the cache goes on in memory; the reason is in
    `notes`.

    Args:
        folder: of the files (made when needed), or None for memory only.
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        self.folder = None if folder is None else at_home(folder)
        self.notes: list[str] = []
        self._memory: dict[str, Tensor] = {}
        self._writable = True

    def get(self, key: str, compute: Callable[[], Tensor]) -> Tensor:
        """Return the tensor of a key: from memory, else from disk, else computed and stored.

        Args:
            key: from `content_key`; lower-case hexadecimal.
            compute: called without gradient, at most once per key.

        Returns:
            A tensor on the CPU, bit for bit what `compute` returned the first time. Later callers get the same object:
            do not write into it.
        """
        if key not in self._memory:
            value = self._read(key)
            if value is None:
                with torch.no_grad():
                    value = compute().detach().to("cpu").contiguous()
                self._write(key, value)
            self._memory[key] = value
        return self._memory[key]

    def has(self, key: str) -> bool:
        """Whether `get` would compute nothing, damage aside."""
        path = self.path(key)
        return key in self._memory or (path is not None and path.exists())

    def path(self, key: str) -> Path | None:
        """The file of a key, or None without a folder."""
        if len(key) < 8 or set(key) - set("0123456789abcdef"):
            raise ValueError(f"cache key {key!r} is not hexadecimal; make it with content_key")
        return None if self.folder is None else self.folder / key[:2] / f"{key}.safetensors"

    def _read(self, key: str) -> Tensor | None:
        path = self.path(key)
        if path is None or not path.exists():
            return None
        try:
            tensors, metadata = load_tensors(path)
            value = tensors["value"]
        except (Refused, KeyError):
            return None
        # A file cut short is refused above; the sum finds a flipped bit, which would still parse.
        return value if metadata.get("sha256") == hashlib.sha256(_bytes(value)).hexdigest() else None

    def _write(self, key: str, value: Tensor) -> None:
        path = self.path(key)
        if path is None or not self._writable:
            return
        try:
            save_tensors(path, {"value": value}, {"sha256": hashlib.sha256(_bytes(value)).hexdigest()})
        except Failed as error:
            self._writable = False
            self.notes.append(f"the cache is kept in memory only: {error}")


def _bytes(tensor: Tensor) -> bytes:
    flat = tensor.detach().to("cpu").contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes()
