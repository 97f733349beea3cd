"""What follows a training: pictures at several strengths, measurements, and the report."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..bases import Base
from ..data.concept import Concept
from ..errors import Refused
from ..evaluation.evaluate import evaluate
from ..files import read_json, write_json
from ..progress import say
from ..report import write_report
from ..sampling.adapter_files import adapter_files
from .progress_samples import subject_samples
from .run import Run

STRENGTHS = (0.25, 0.5, 0.75, 1.0)


def finish(
    base: Base,
    concept: Concept,
    folder: Path,
    *,
    seed: int,
    facts: dict[str, Any],
    started: float,
    prompts: int,
    per_prompt: int,
    quiet: bool,
) -> Run:
    """Completes a subject run's folder: its adapter is sampled at several strengths and measured.

    Args:
        base: the untouched base; concept: what was learned; folder: the run's, with `adapter.safetensors`.
        seed: of the pictures.
        facts: figures of the training for `metrics.json`.
        started: when this call of the recipe began, in seconds since the epoch.
        prompts, per_prompt: size of the evaluation; 0 prompts skip it.
        quiet: print nothing.
    """
    adapter = folder / "adapter.safetensors"
    subject_samples(base, concept, folder, seed).save_strengths(adapter, STRENGTHS)

    def measure_one(part: Concept, out: Path | None) -> dict[str, Any]:
        return evaluate(
            base, part, adapters=[(adapter, 1.0)], out=out, prompts=prompts, per_prompt=per_prompt,
            drift_count=min(25, 2 * prompts), seed=seed, quiet=quiet,
        )  # fmt: skip

    def measure() -> dict[str, Any]:
        whole = measure_one(concept.parts[0], folder)
        also = {part.token: measure_one(part, None)["values"] for part in concept.parts[1:]}
        return whole | ({"also": also} if also else {})

    return complete(folder, measure if prompts else None, facts=facts, started=started, quiet=quiet)


def complete(
    folder: Path, measure: Callable[[], dict[str, Any]] | None, *, facts: dict[str, Any], started: float, quiet: bool
) -> Run:
    """Writes `metrics.json` and the report. What was measured already is not measured again.

    Args:
        folder: the run's, with `adapter.safetensors`.
        measure: makes the figures; None leaves them out.
        facts, started, quiet: as in `finish`.
    """
    metrics = read_json(folder / "metrics.json") if (folder / "metrics.json").exists() else {}
    if measure and "values" not in metrics:
        try:
            metrics = measure()
        except Refused as error:  # a photo base without its encoders: the run is worth a report all the same
            say(f"not evaluated: {error}", quiet=quiet)
    log = (folder / "log.jsonl").read_text().splitlines() if (folder / "log.jsonl").exists() else []
    rows = [json.loads(line) for line in log]
    resumed_at = facts.pop("resumed_at", 0)
    earlier = sum(row.get("seconds", 0.0) for row in rows if row["step"] <= resumed_at)  # of calls before this
    metrics |= facts | {
        "seconds_train": round(sum(row.get("seconds", 0.0) for row in rows), 2),
        "seconds_total": round(earlier + time.time() - started, 2),
        "adapter_bytes": sum(file.stat().st_size for file in adapter_files(folder)),
    }
    write_json(folder / "metrics.json", metrics)
    run = Run(folder, metrics)
    write_report(folder)
    say(f"report: {run.report}", quiet=quiet)
    return run
