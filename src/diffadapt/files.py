"""Files that are either whole or not there: atomic writes, safetensors and JSON, never pickle."""

import contextlib
import json
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from .errors import Failed, Refused


def write_atomic(path: str | Path, data: bytes | str) -> Path:
    """Writes a file beside its final place and moves it there, so that a kill or a full disk leaves the old one.

    Raises:
        Failed: the disk is full or the folder cannot be written; the old file, if any, is untouched.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):  # the folder itself may be what is wrong
            temporary.unlink(missing_ok=True)
        raise Failed(f"cannot write {path}: {error.strerror}; free some space or choose another folder") from error
    return path


def save_tensors(path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> Path:
    """Writes a safetensors file atomically. Tensors are made contiguous and moved to the CPU."""
    whole = {key: value.detach().to("cpu").contiguous() for key, value in tensors.items()}
    return write_atomic(path, save(whole, dict(metadata or {})))


def load_tensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Reads a safetensors file: its tensors (on the CPU) and its metadata.

    Raises:
        Refused: the file is missing, cut short or not safetensors.
    """
    path = Path(path)
    if not path.is_file():
        raise Refused(f"no file at {path}; expected a .safetensors file")
    try:
        with safe_open(path, "pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except (SafetensorError, OSError, struct.error) as error:
        raise Refused(f"{path} is not a whole safetensors file ({error}); copy or train it again") from error


def write_json(path: str | Path, value: Any) -> Path:
    """Writes indented JSON atomically; a number that is not finite is an error, not a file others cannot read."""
    return write_atomic(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def read_json(path: str | Path) -> Any:
    """Reads JSON.

    Raises:
        Refused: the file is missing or not JSON.
    """
    try:
        return json.loads(Path(path).read_text())
    except OSError as error:
        raise Refused(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise Refused(f"{path} is not JSON: {error}") from error
