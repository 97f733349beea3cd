"""Progress on stderr, for the person who waits."""

import sys
import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from .errors import printable

SHORT = 5.0  # seconds that need no word


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
            left = _left(self._began, self.done - self._first, self.total - self.done)
            say(_parts(f"{self.title} {self.done}/{self.total}", note, left))

    def aside(self, title: str, total: int) -> "Aside":
        """Counted work within a step, such as the pictures on the way."""
        return Aside(self, title, total)

    def note(self, text: str) -> bool:
        """Shows a note beside the bar; False where there is no bar."""
        if self._bar:
            self._bar.update(self._task, note=text)
        return self._bar is not None


class Aside:
    """Progress of work within a step of other work: said beside its bar, or in lines, once it has taken five seconds.

    Two bars cannot be on a terminal at a time.
    """

    def __init__(self, steps: Steps, title: str, total: int) -> None:
        self.steps, self.title, self.total, self.done = steps, title, total, 0
        self._began = time.monotonic()

    def advance(self, by: int = 1) -> None:
        """`by` more are done."""
        self.done += by
        if self.steps.quiet or time.monotonic() - self._began < SHORT:
            return
        left = _left(self._began, self.done, self.total - self.done)
        text = _parts(f"{self.title} {self.done}/{self.total}", left)
        if not self.steps.note(text):
            say(text)


def _left(began: float, done: int, left: int) -> str:
    """The time left at the pace since `began`, "" below five seconds."""
    seconds = (time.monotonic() - began) / done * left
    if seconds < SHORT:
        return ""
    return f"{seconds:.0f} s left" if seconds < 90 else f"{seconds / 60:.0f} min left"


def _parts(*parts: str) -> str:
    return "  ".join(part for part in parts if part)


def say(text: str, *, quiet: bool = False) -> None:
    """One plain line on stderr about what happens now."""
    if not quiet:
        print(printable(text), file=sys.stderr, flush=True)
