"""Files that are either whole or not there: atomic writes, safetensors, JSON and UTF-8 text, never pickle."""

import contextlib
import functools
import hashlib
import json
import os
import platform
import re
import shutil
import struct
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import Failed, Refused
from .shapes import hold

if TYPE_CHECKING:  # torch takes a second to load, and a command's help needs none of it
    from torch import Tensor

_TEMPORARY = re.compile(r"\..+\.(\d+)\.tmp")
_ELSEWHERE = 86_400.0  # seconds: what a process of another machine has left alone for so long, it has left behind


def write_atomic(path: str | Path, data: bytes | str) -> Path:
    """Writes a file beside its final place and moves it there, so that a kill or a full disk leaves the old one.

    Text is written as UTF-8, whatever the machine's own encoding is.

    Raises:
        Failed: the disk is full or the folder cannot be written; the old file, if any, is untouched.
    """
    path = Path(path)
    temporary = temporary_of(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:  # an interrupt as well: no temporary file stays
        with contextlib.suppress(OSError):  # the folder itself may be what is wrong
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise Failed(f"cannot write {path}: {error.strerror}; free some space or choose another folder") from error
        raise
    return path


def write_new(files: Mapping[Path, bytes | str]) -> None:
    """Writes files of which none is there yet, or holds something else: one that holds the same is kept.

    Raises:
        Refused: a file is there and holds something else; nothing is written.
        Failed: as by `write_atomic`.
    """
    contents = {path: data.encode() if isinstance(data, str) else data for path, data in files.items()}
    for path, data in contents.items():
        if path.exists() and (not path.is_file() or path.read_bytes() != data):
            raise Refused(
                f"{path} exists already and holds something else; choose another folder, nothing is overwritten"
            )
    for path, data in contents.items():
        if not path.exists():
            write_atomic(path, data)


def temporary_of(path: Path) -> Path:
    """Where what comes to `path` is made: beside it, hidden, named for this machine and process, so that `sweep` knows.

    What killed processes have left in that folder is swept first, once in a process.
    """
    _sweep_once(path.parent.absolute())
    return path.with_name(f".{path.name}.{platform.node()}.{os.getpid()}.tmp")


@functools.cache
def _sweep_once(folder: Path) -> None:
    sweep(folder)  # a cache holds many files, and looking through them at each write would take longer than the write


def sweep(folder: str | Path, *, deep: bool = False) -> list[Path]:
    """Removes the temporary files and folders that killed processes have left in a folder, and nothing else.

    A process of this machine is gone when it does not run; of another one, which shares the disk, after a day.

    Args:
        folder: where to look; it need not be there.
        deep: look in the folders in it, too.
    """
    swept = []
    for path in list(Path(folder).glob("**/.*.tmp" if deep else ".*.tmp")):
        with contextlib.suppress(OSError):
            if _left_behind(path):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
                swept.append(path)
    return swept


def _left_behind(path: Path) -> bool:
    found = _TEMPORARY.fullmatch(path.name)
    if not found or path.is_symlink() or _alive(int(found[1])):
        return False
    here = path.name.endswith(f".{platform.node()}.{found[1]}.tmp")
    return here or time.time() - path.stat().st_mtime > _ELSEWHERE


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        return True
    return True


def at_home(path: str | os.PathLike[str]) -> Path:
    """A path with the user's home in place of "~"; one that names no home ("~nobody", a null byte) stays as it is."""
    try:
        return Path(os.path.expanduser(path))
    except ValueError:
        return Path(path)


def is_there(text: str | Path) -> bool:
    """Whether a text names a file or folder that exists; a text that can name none (too long, a null byte) does not."""
    try:
        return at_home(text).exists()
    except (OSError, ValueError):
        return False


def save_tensors(path: str | Path, tensors: "Mapping[str, Tensor]", metadata: Mapping[str, str] | None = None) -> Path:
    """Writes a safetensors file atomically. Tensors are made contiguous and moved to the CPU.

    Raises:
        Failed: a value is not a number, or the disk is full; nothing is written.
    """
    from safetensors.torch import save

    whole = {key: value.detach().to("cpu").contiguous() for key, value in tensors.items()}
    for key, value in whole.items():
        if not _finite(value):
            raise Failed(f"{key} holds values that are not numbers; {path} is not written")
    return write_atomic(path, save(whole, dict(metadata or {})))


def load_tensors(path: str | Path) -> "tuple[dict[str, Tensor], dict[str, str]]":
    """Reads a safetensors file: its tensors (on the CPU) and its metadata.

    Raises:
        Refused: the file is missing, cut short or not safetensors, or a value in it is no finite real number.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if not path.is_file():
        raise Refused(f"no file at {path}; expected a .safetensors file")
    try:
        with safe_open(path, "pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            header = dict(file.metadata() or {})
    except (SafetensorError, OSError, struct.error, ValueError, RuntimeError, AttributeError, KeyError) as error:
        raise Refused(f"{path} is not a whole safetensors file ({error}); copy or train it again") from error
    for key, value in tensors.items():
        if value.is_complex():
            raise Refused(f"{path}: {key} holds complex numbers; expected real ones")
        if not _finite(value):
            raise Refused(f"{path}: {key} holds values that are not numbers (nan or infinity); train or copy it again")
    return tensors, header


def _finite(tensor: "Tensor") -> bool:
    import torch

    if not tensor.is_floating_point():
        return True
    values = tensor if tensor.element_size() > 1 else tensor.float()  # eight bits have no isfinite
    return bool(torch.isfinite(values).all())


def file_digest(path: str | Path) -> str:
    """SHA-256 (hex) of a file's bytes.

    Raises:
        Refused: it cannot be read.
    """
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise Refused(f"cannot read {path}: {error.strerror}") from error
    return digest.hexdigest()


def read_text(path: str | Path) -> str:
    """Reads UTF-8 text, with or without a byte order mark.

    Raises:
        Refused: it cannot be read or is in another encoding; says where.
    """
    try:
        return Path(path).read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        raise Refused(f"{path} is not UTF-8 (byte 0x{byte:02x} at {error.start}); save it as UTF-8") from error
    except OSError as error:
        raise Refused(f"cannot read {path}: {error.strerror}") from error


def text_lines(text: str) -> list[str]:
    """The lines of a text: only line feeds end one, with or without a carriage return (U+2028 and its like do not)."""
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return lines[:-1] if lines[-1] == "" else lines


def filled_lines(path: str | Path) -> list[str]:
    """The lines of a text file that are not blank, without the space around them; refused as by `read_text`."""
    lines = (line.strip() for line in text_lines(read_text(at_home(path))))
    return [line for line in lines if line]


def write_json(path: str | Path, value: Any) -> Path:
    """Writes indented JSON atomically; a number that is not finite is an error, not a file others cannot read."""
    return write_atomic(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def read_json(path: str | Path, shape: Any = None) -> Any:
    """Reads JSON.

    Args:
        path: the file.
        shape: what it must look like, see `shapes.py`; None takes anything.

    Raises:
        Refused: the file is missing, not JSON, or of another shape.
    """
    return parse_json(read_text(path), shape, str(path))


def parse_json(text: str, shape: Any, place: str) -> Any:
    """The value that a JSON text says, held against a shape (None takes anything); `place` is its place, for messages.

    Raises:
        Refused: it is not JSON, or of another shape.
    """
    try:
        value = json.loads(text)
    except ValueError as error:
        raise Refused(f"{place} is not JSON: {error}") from error
    except RecursionError as error:
        raise Refused(f"{place} is not JSON that can be read: its tables lie too deep in each other") from error
    return value if shape is None else hold(value, shape, place)
