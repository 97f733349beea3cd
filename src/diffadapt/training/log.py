"""A run's log: one JSON line a step in a file, and progress for the person who waits."""

import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ..errors import Failed
from ..files import write_atomic


class RunLog:
    """`log.jsonl` of a run, continued on resume: lines of steps that will be done again are dropped first.

    Args:
        path: the file.
        resume_at: the next step to be done; later lines are removed.
    """

    def __init__(self, path: Path, *, resume_at: int = 0) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = [line for line in _lines(path) if _step(line) <= resume_at] if path.exists() and resume_at else []
        write_atomic(path, "".join(line + "\n" for line in kept))
        self._file = open(path, "a")  # noqa: SIM115  (closed by close())
        self._path = path

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


def _lines(path: Path) -> list[str]:
    return [line for line in path.read_text().splitlines() if line.endswith("}")]  # a killed write leaves half a line


def _step(line: str) -> int:
    return int(json.loads(line)["step"])


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return value if value == 0 or not math.isfinite(value) else float(f"{value:.6g}")
    if isinstance(value, Mapping):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(item) for item in value]
    return value


class Steps:
    """Progress of counted work on stderr: a bar on a terminal, a plain line at every tenth otherwise.

    Args:
        title: what is going on, for example "train".
        total: how many steps; done: how many of them lie behind already.
        quiet: show nothing (tests, processes other than the first).
    """

    def __init__(self, title: str, total: int, *, done: int = 0, quiet: bool = False) -> None:
        self.title, self.total, self.done, self.quiet = title, total, done, quiet
        self._bar: Progress | None = None
        if not quiet and sys.stderr.isatty():
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self._bar = Progress(*columns, TextColumn("{task.fields[note]}"), console=Console(stderr=True))
            self._task = self._bar.add_task(title, total=total, completed=done, note="")

    def __enter__(self) -> "Steps":
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar:
            self._bar.stop()

    def advance(self, note: str = "", by: int = 1) -> None:
        """`by` more steps are done; `note` is a short figure to show, for example "loss 0.123"."""
        before, self.done = self.done, self.done + by
        if self.quiet:
            return
        if self._bar:
            self._bar.update(self._task, completed=self.done, note=note)
        elif self.done * 10 // self.total > before * 10 // self.total:
            print(f"{self.title} {self.done}/{self.total}  {note}".rstrip(), file=sys.stderr, flush=True)


def say(text: str, *, quiet: bool = False) -> None:
    """One plain line on stderr about what happens now."""
    if not quiet:
        print(text, file=sys.stderr, flush=True)
