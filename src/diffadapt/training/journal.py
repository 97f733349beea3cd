"""Files written during a loop (a log line for each step, samples, checkpoints), and its progress bar."""

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ..evaluation.geometry import geometry
from ..progress import Steps, say
from ..report import write_report
from ..run_layout import RunLayout
from .learner import Learner
from .log import RunLog
from .progress_samples import ProgressSamples

PAGE_EVERY = 30  # seconds; a run that keeps a checkpoint every second need not write its report as often


class Journal:
    """Goes through the steps that are left of a run, and writes what each of them brought.

        with Journal(learner, samples, images=4) as journal:
            for step in journal.steps():
                ...
                journal.write(row)

    Args:
        learner: what trains; it is resumed here.
        samples: the pictures on the way, None for none.
        images: pictures seen in a step, all processes together.
        watch: called with (step, loss) after every step.
        quiet: print nothing.
    """

    def __init__(
        self,
        learner: Learner,
        samples: ProgressSamples | None,
        *,
        images: int,
        watch: Callable[[int, float], None] | None = None,
        quiet: bool = False,
    ) -> None:
        self.learner, self.samples, self.images, self.watch = learner, samples, images, watch
        self.is_main = learner.accelerator.is_main_process
        self.done = learner.resume()
        if self.done:
            say(f"resumed at step {self.done} of {learner.config.steps} in {learner.folder}", quiet=quiet)
        self.log: RunLog | None = None
        self.bar = Steps("train", learner.config.steps, done=self.done, quiet=quiet)

    def __enter__(self) -> "Journal":
        if self.samples:
            self.samples.save_base(list(self.learner.attachments.values()), bar=self.bar)
        if self.is_main:
            self._write_page()  # before the log is open, since this may fail
            self.log = RunLog(RunLayout(self.learner.folder).log, resume_at=self.done)
        self.bar.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.__exit__(*error)
        if self.log:
            self.log.close()

    def steps(self) -> Iterator[int]:
        """The 0-based steps that are not done yet."""
        for step in range(self.done, self.learner.config.steps):
            self._clock = time.perf_counter()
            yield step

    def write(self, row: Mapping[str, Any]) -> None:
        """Logs a step, and writes the samples and the checkpoint that are due after it.

        With the samples the log gets how far the neurons have moved, see `geometry`.

        Args:
            row: "step", 1-based, "loss", and all other entries of the line.

        Raises:
            Failed: what is to be sampled, kept or finished is no number; nothing of the step is written.
        """
        step, config = row["step"], self.learner.config
        row = {**row, "seconds": time.perf_counter() - self._clock, "images": step * self.images}
        last = step == config.steps
        due = bool(config.sample_every) and (step % config.sample_every == 0 or last)
        kept = bool(config.checkpoint_every) and (step % config.checkpoint_every == 0 or last)
        if due or kept or last:
            self.learner.refuse_what_is_no_number(step)
        if self.log:
            if due:
                with self.learner.averaged():
                    row |= geometry(list(self.learner.attachments.values()))
            self.log.write(row)
        if self.watch:
            self.watch(step, row["loss"])
        self.bar.advance(f"loss {row['loss']:.4f}")
        if self.samples and due:
            with self.learner.averaged():
                self.samples.save_step(step, bar=self.bar)
        if self.is_main and kept:
            self.learner.checkpoint(step)
        if self.is_main and (due or kept and time.monotonic() - self._page > PAGE_EVERY):
            self._write_page()

    def _write_page(self) -> None:
        """The run's report as it stands, which reloads itself while training goes on; a loop on its own has none."""
        self._page = time.monotonic()
        if RunLayout(self.learner.folder).run.is_file():
            write_report(self.learner.folder, running=True)
