"""The end of a run after its training: pictures at several strengths, measurements, and the report."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..errors import Refused
from ..files import read_json, write_json
from ..progress import say
from ..report import write_report
from ..run_layout import RunLayout
from ..sampling.adapter_files import adapter_files
from ..shapes import METRICS, hold
from .progress_samples import ProgressSamples
from .run import Run
from .task_log import read_log

STRENGTHS = (0.25, 0.5, 0.75, 1.0)


def finish(
    folder: Path,
    samples: ProgressSamples | None,
    measure: Callable[[], dict[str, Any]] | None,
    *,
    facts: dict[str, Any],
    started: float,
    quiet: bool,
) -> Run:
    """Completes a run's folder: samples at several strengths, `metrics.json`, the report; what is there is kept.

    Args:
        folder: the run's, with `adapter.safetensors`.
        samples: whose prompts are drawn at every strength; None draws none.
        measure: makes the figures; None leaves them out.
        facts: figures of the training for `metrics.json`, as `fit` returned them.
        started: when this call of the recipe began, in seconds since the epoch.
        quiet: print nothing.
    """
    if samples:
        samples.save_strengths(folder, STRENGTHS, quiet=quiet)
    layout = RunLayout(folder)
    metrics = read_json(layout.metrics, METRICS) if layout.metrics.exists() else {}
    if measure and "values" not in metrics:
        try:
            metrics = measure()
        except Refused as error:  # a photo base without its encoders: the run is worth a report all the same
            say(f"not evaluated: {error}", quiet=quiet)
    rows = read_log(folder) if layout.log.exists() else []
    resumed_at = facts.pop("resumed_at", 0)
    earlier = sum(row.get("seconds", 0.0) for row in rows if row["step"] <= resumed_at)  # of calls before this
    metrics |= facts | {
        "seconds_train": round(sum(row.get("seconds", 0.0) for row in rows), 2),
        "seconds_total": round(earlier + time.time() - started, 2),
        "adapter_bytes": sum(file.stat().st_size for file in adapter_files(folder)),
    }
    write_json(layout.metrics, hold(metrics, METRICS, str(layout.metrics)))
    run = Run(folder, metrics)
    write_report(folder)
    say(f"report: {run.report}", quiet=quiet)
    return run
