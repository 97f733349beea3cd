"""A worker: a process with its own base and one thread, which runs one unit after the other."""

import json
import multiprocessing
import os
import re
import signal
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from ..bases import Base, load_base
from ..errors import Failed
from ..files import write_atomic
from .claim import load_claim
from .context import Context
from .results import Unit, without_paths


@dataclass(frozen=True, kw_only=True)
class Job:
    """The arguments shared by all units of one claim.

    Args:
        claim: its id.
        folder: of the definitions.
        base: arguments of `load_base`.
        work, pictures: see `Context`.
        data: what --data named, or None.
    """

    claim: str
    folder: Path
    base: Mapping[str, Any]
    work: Path
    pictures: Path
    data: Path | None = None


@dataclass(frozen=True)
class Outcome:
    """The end of one unit: its scores, or an error without paths."""

    seconds: float
    scores: dict[str, Any] | None = None
    error: str = ""


def work(job: Job, connection: Connection) -> None:
    """Takes units from a connection and answers each with its `Outcome`, until the other side closes it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends its workers
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # an exit that cleans up
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    torch.set_num_threads(1)
    base: Base | None = None
    while True:
        try:
            unit: Unit = connection.recv()
        except EOFError:
            return
        started = time.perf_counter()
        try:
            if base is None and load_claim(job.folder, job.claim).needs_base:
                base = load_base(**job.base)
                started = time.perf_counter()
            scores = run_unit(job, unit, base)
            outcome = Outcome(time.perf_counter() - started, scores)
        except Exception as error:
            outcome = Outcome(
                time.perf_counter() - started, error=f"{type(error).__name__}: {without_paths(str(error))}"
            )
        if base and (outcome.error or base.attachments):
            base = None  # whatever was left on it is gone with it
        connection.send(outcome)


def run_unit(job: Job, unit: Unit, base: Base | None) -> dict[str, Any]:
    """Runs one unit; a failure leaves its traceback beside the unit's folder."""
    context = Context(base=base, claim=job.claim, unit=unit, work=job.work, pictures=job.pictures, data_folder=job.data)
    try:
        text = json.dumps(load_claim(job.folder, job.claim).run(unit, context), allow_nan=False)
        if found := re.search(r'"(/|[A-Za-z]:\\)[^"]*"', text):
            raise Failed(f"scores must hold no absolute path, found one that ends in {Path(found[0][1:-1]).name}")
    except Exception:
        write_atomic(context.folder.with_name(context.folder.name + ".error.txt"), traceback.format_exc())
        raise
    return json.loads(text)


def _end_with_the_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent:
        parent.join()
        os._exit(1)
