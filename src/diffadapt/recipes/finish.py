"""What follows a training: pictures at several strengths, measurements, and the report."""

import json
import time
from pathlib import Path
from typing import Any

from ..bases import Base
from ..data.concept import Concept
from ..errors import Refused
from ..files import read_json, write_json
from ..report import write_report
from ..training.log import say
from .evaluate import evaluate
from .progress_samples import ProgressSamples
from .run import Run
from .sample import adapted

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
    """Completes a run's folder. What is there already is not made again, so an interrupted finish can be repeated.

    Args:
        base: the untouched base; concept: what was learned; folder: the run's, with `adapter.safetensors`.
        seed: of the pictures.
        facts: figures of the training for `metrics.json`.
        started: when the training ended, in seconds since the epoch.
        prompts, per_prompt: size of the evaluation; 0 prompts skip it.
        quiet: print nothing.
    """
    adapter = folder / "adapter.safetensors"
    samples = ProgressSamples(base, concept, folder, seed)
    for strength in STRENGTHS:
        if not samples.complete(f"strength-{strength:g}"):
            with adapted(base, [(adapter, strength)]):
                samples.save(f"strength-{strength:g}")
    metrics = read_json(folder / "metrics.json") if (folder / "metrics.json").exists() else {}
    if prompts and "values" not in metrics:
        try:
            metrics = evaluate(
                base, concept, adapters=[(adapter, 1.0)], out=folder, prompts=prompts, per_prompt=per_prompt,
                drift_count=min(25, 2 * prompts), seed=seed, quiet=quiet,
            )  # fmt: skip
        except Refused as error:  # a photo base without its encoders: the run is worth a report all the same
            say(f"not evaluated: {error}", quiet=quiet)
    log = (folder / "log.jsonl").read_text().splitlines() if (folder / "log.jsonl").exists() else []
    trained = sum(_seconds(line) for line in log)
    metrics |= facts | {
        "seconds_train": round(trained, 2),
        "seconds_total": round(trained + time.time() - started, 2),
        "adapter_bytes": adapter.stat().st_size,
    }
    write_json(folder / "metrics.json", metrics)
    run = Run(folder, metrics)
    write_report(folder)
    say(f"report: {run.report}", quiet=quiet)
    return run


def _seconds(line: str) -> float:
    return float(json.loads(line).get("seconds", 0.0))
