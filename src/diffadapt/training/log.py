"""A run's log: one JSON line a step in a file."""

import json
import math
import os
import time
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import IO, Any

from ..errors import Failed, Refused
from ..files import parse_json, read_text, text_lines, write_atomic
from ..shapes import LOG_LINE


class RunLog:
    """`log.jsonl` of a run, continued on resume: lines of steps that will be done again are dropped first.

    While it is open it is locked: no other process trains in the same folder, and others can tell a training that goes
    on, see `is_being_written`.

    Args:
        path: the file.
        resume_at: the next step to be done; later lines are removed.

    Raises:
        Refused: another process trains here.
    """

    def __init__(self, path: Path, *, resume_at: int = 0) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        # The file that another process has locked, if there is one; Windows has no locks, and replaces no open file.
        with open(path, "a", encoding="utf-8") if os.name == "posix" else nullcontext() as before:
            if before:
                self._claim(before)
            kept = [line for line in _lines(path) if _step(line) <= resume_at] if path.exists() and resume_at else []
            write_atomic(path, "".join(line + "\n" for line in kept))
            self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115  (closed by close())
        try:
            self._claim(self._file)
        except Refused:
            self._file.close()
            raise

    def write(self, row: Mapping[str, Any]) -> None:
        """Appends one line; numbers are rounded to six significant digits.

        Raises:
            Failed: the disk is full.
        """
        try:
            self._file.write(json.dumps(_rounded(row), allow_nan=False) + "\n")
            self._file.flush()
        except OSError as error:
            raise Failed(
                f"cannot write {self._path}: {error.strerror}; free some space and run again to resume"
            ) from error

    def close(self) -> None:
        self._file.close()

    def _claim(self, file: IO[str]) -> None:
        for _ in range(10):  # who asks whether it is locked locks it for a moment
            if _lock(file, shared=False):
                return
            time.sleep(0.05)
        raise Refused(
            f"another process trains in {self._path.parent} now; wait for it or stop it, or choose another out folder"
        )


def is_being_written(path: Path) -> bool:
    """Whether a training that goes on has this log open; a lock ends with its process, however that ends."""
    if not path.is_file():
        return False
    with open(path, "rb") as file:
        return not _lock(file, shared=True)


def _lock(file: IO[Any], *, shared: bool) -> bool:
    """Locks an open file until it is closed; False when it is locked already, True as well where there are no locks."""
    try:
        import fcntl  # Windows has none

        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except (ImportError, OSError):
        pass
    return True


def _lines(path: Path) -> list[str]:
    return [line for line in text_lines(read_text(path)) if line.endswith("}")]  # a killed write leaves half a line


def _step(line: str) -> int:
    return int(parse_json(line, LOG_LINE, "a line of log.jsonl")["step"])


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        if not math.isfinite(value):  # the gradient norm of a step that the loss scaler passed over; null in JSON
            return None
        return float(f"{value:.6g}")
    if isinstance(value, Mapping):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(item) for item in value]
    return value
