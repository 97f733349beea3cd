"""Progress on stderr, for the person who waits."""

import sys
import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from .errors import printable


class Steps:
    """Progress of counted work on stderr, with the time left: a bar on a terminal, else a plain line at every tenth.

    Args:
        title: what is going on, for example "train".
        total: how many steps; done: how many of them lie behind already.
        quiet: show nothing (tests, processes other than the first).
    """

    def __init__(self, title: str, total: int, *, done: int = 0, quiet: bool = False) -> None:
        self.title, self.total, self.done, self.quiet = printable(title), total, done, quiet
        self._first, self._began = done, time.monotonic()
        self._bar: Progress | None = None
        if not quiet and sys.stderr.isatty():
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self._bar = Progress(*columns, TextColumn("{task.fields[note]}"), console=Console(stderr=True))
            self._task = self._bar.add_task(self.title, total=total, completed=done, note="")

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
            parts = (f"{self.title} {self.done}/{self.total}", note, self._left())
            print("  ".join(part for part in parts if part), file=sys.stderr, flush=True)

    def _left(self) -> str:
        """The time left at the pace so far, "" below five seconds."""
        seconds = (time.monotonic() - self._began) / (self.done - self._first) * (self.total - self.done)
        if seconds < 5:
            return ""
        return f"{seconds:.0f} s left" if seconds < 90 else f"{seconds / 60:.0f} min left"


def say(text: str, *, quiet: bool = False) -> None:
    """One plain line on stderr about what happens now."""
    if not quiet:
        print(printable(text), file=sys.stderr, flush=True)
