"""Runs what a claim still needs, with several workers; stopped at any time, the same command goes on."""

import multiprocessing
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing.connection import wait
from typing import Any

from ..errors import Refused
from ..report.page import duration
from .plan import Evidence, seconds_left
from .results import Finished, ResultFile, Unit, identity
from .worker import Job, Outcome, work

Say = Callable[[str], None]


def run_claim(
    evidence: Evidence,
    job: Job,
    *,
    facts: Mapping[str, Any],
    workers: int = 1,
    minutes: float | None = None,
    say: Say = print,
) -> int:
    """Runs the units of one claim that no result file holds, stage after stage, and writes one new result file.

    A unit that fails is recorded with its error and does not stop the others; the next invocation tries it again. The
    stage that follows it has to wait until then.

    Args:
        evidence: definitions, results, settings.
        job: which claim, and what its units need.
        facts: what goes into the head of the result file.
        workers: processes, each with one thread and its own base.
        minutes: after these no further unit is started; None means no limit.
        say: is told of every unit.

    Returns:
        how many units failed

    Raises:
        Refused: fewer than one worker.
        KeyboardInterrupt: Ctrl-C; all units finished until then are kept.
    """
    if workers < 1:
        raise Refused(f"--workers: expected at least 1, got {workers}")
    deadline = time.monotonic() + 60 * minutes if minutes is not None else float("inf")
    file = ResultFile(evidence.results / job.claim, facts)
    failed: set[str] = set()
    with Pool(job, workers) as pool:
        while True:
            plan = evidence.plan(job.claim)
            units = [unit for unit in plan.pending if identity(unit) not in failed]
            if plan.waits_for:
                say(f"{job.claim} waits for {' and '.join(plan.waits_for)}: run that first")
            if not units or time.monotonic() > deadline:
                return len(failed)
            timed, left, started = list(plan.results), list(units), time.monotonic()
            say(f"{job.claim}: {len(plan.results)} units finished, {len(units)} to do in this stage")
            for unit, outcome in pool.outcomes(units, deadline):
                left.remove(unit)
                if outcome.scores is None:
                    failed.add(identity(unit))
                    file.add_failed(unit, outcome.error, outcome.seconds)
                    end = f"failed: {outcome.error}"
                else:
                    timed.append(Finished(unit, outcome.scores, outcome.seconds))
                    file.add(timed[-1])
                    end = duration(outcome.seconds)
                time_left = estimate(seconds_left(left, timed, workers))
                more = f"; {len(left)} left in this stage, {time_left}" if left else ""
                say(f"  {in_words(unit)}: {end} ({duration(time.monotonic() - started)} so far{more})")


def estimate(seconds: float | None) -> str:
    """An estimate in words."""
    return "time not known yet" if seconds is None else f"about {duration(seconds)}"


def in_words(unit: Unit) -> str:
    """A unit as a person reads it: "stage test, contender oft, seed 0"."""
    return ", ".join(f"{key} {value}" for key, value in unit.items())


class Pool:
    """Worker processes, started when needed; leaving the block ends them, whatever they do."""

    def __init__(self, job: Job, workers: int) -> None:
        self.job, self.workers = job, workers
        self._idle: list[_Worker] = []
        self._busy: dict[Any, tuple[_Worker, Unit]] = {}

    def __enter__(self) -> "Pool":
        return self

    def __exit__(self, *error: object) -> None:
        for worker, _ in self._busy.values():
            worker.process.terminate()
        for worker in [*self._idle, *(worker for worker, _ in self._busy.values())]:
            worker.end()

    def outcomes(self, units: Sequence[Unit], deadline: float) -> Iterator[tuple[Unit, Outcome]]:
        """Runs units and yields each as it ends; none is started after the deadline (of `time.monotonic`)."""
        waiting = deque(units)
        while True:
            while waiting and len(self._busy) < self.workers and time.monotonic() < deadline:
                worker = self._idle.pop() if self._idle else _Worker(self.job)
                unit = waiting.popleft()
                worker.connection.send(unit)
                self._busy[worker.connection] = worker, unit
            if not self._busy:
                return
            for connection in wait(list(self._busy)):
                worker, unit = self._busy.pop(connection)
                try:
                    outcome = worker.connection.recv()
                    self._idle.append(worker)
                except (EOFError, ConnectionError):
                    worker.end()
                    outcome = Outcome(
                        0.0, error=f"the worker died (exit code {worker.process.exitcode}); out of memory?"
                    )
                yield unit, outcome


class _Worker:
    """One process, forked from one that has imported everything and computed nothing: torch's threads, which no fork
    survives, have not begun there.
    """

    def __init__(self, job: Job) -> None:
        context = multiprocessing.get_context("forkserver" if sys.platform == "linux" else "spawn")
        context.set_forkserver_preload([work.__module__])  # seconds of imports, once for all workers
        self.connection, workers_end = context.Pipe()
        self.process = context.Process(target=work, args=(job, workers_end), daemon=True)
        self.process.start()
        workers_end.close()

    def end(self) -> None:
        self.connection.close()  # which an idle worker takes as its leave
        self.process.join(10)
        self.process.kill()
        self.process.join()
