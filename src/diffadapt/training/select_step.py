"""Chooses among the steps of a finished training: the one with the best harmonic mean of fidelity and alignment.

Methods that learn a concept within a few dozen steps are customarily taken at their best step; perfusion's authors take
one of every 25. The last step is always scored and kept beside it.
"""

from pathlib import Path
from typing import Any

from ..bases import Base
from ..data.concept import Concept
from ..errors import Refused
from ..evaluation.judge import Judge, load_encoders
from ..files import read_json, write_atomic, write_json
from ..metrics.features import Features
from ..metrics.harmonic import harmonic_mean
from ..progress import Steps
from ..run_layout import ADAPTERS, RunLayout, checkpoint_of
from ..sampling.sample import adapted
from ..shapes import SELECTION
from .checkpoint import checkpoints

NAME = ADAPTERS[0]


def select_step(
    base: Base, concept: Concept, folder: Path, *, prompts: int, seed: int = 0, quiet: bool = False
) -> dict[str, Any]:
    """Scores every checkpoint of a run and makes the best one its `adapter.safetensors`.

    The last step's adapter stays as `adapter-last.safetensors`. What is scored is kept in `selection.json`, so that an
    interrupted selection goes on.

    Args:
        base: the untouched base.
        concept: what was learned, standing alone where the method wants it so.
        folder: the run's, with checkpoints of all steps.
        prompts: of the benchmark, one picture each.
        seed: of the pictures.
        quiet: show no progress.

    Returns:
        {"chosen": step, "last": step, "steps": [{"step", "fidelity", "alignment", "harmonic_mean"}, ...]}

    Raises:
        Refused: there is no checkpoint.
    """
    run = RunLayout(folder)
    places = checkpoints(run.checkpoints)
    if not places:
        raise Refused(f"no checkpoint in {folder} to choose from; set checkpoint_every, such as 25")
    table = run.selection
    found: dict[str, Any] = read_json(table, SELECTION) if table.exists() else {"steps": []}
    judges = [Judge(base, part, prompts=prompts, seed=seed, same_noise=False) for part in concept.parts]
    encoder = load_encoders(base)[0]
    with Steps("select", len(places), done=len(found["steps"]), quiet=quiet) as bar:
        for place in places[len(found["steps"]) :]:
            scores = [_score(base, judge, encoder, place / NAME) for judge in judges]
            means = {name: sum(each[name] for each in scores) / len(scores) for name in scores[0]}
            row = {"step": int(place.name.rpartition("-")[2]), **means}
            found["steps"].append(row)
            write_json(table, found)
            bar.advance(f"step {row['step']}: {row['harmonic_mean']:.3f}")
    if "chosen" in found and run.last_adapter.exists():
        return found  # its checkpoints may be gone by now
    best = max(found["steps"], key=lambda row: row["harmonic_mean"])
    found |= {"chosen": best["step"], "last": found["steps"][-1]["step"]}
    if not run.last_adapter.exists():
        write_atomic(run.last_adapter, run.adapter.read_bytes())
    if found["chosen"] != found["last"]:
        chosen = checkpoint_of(run.checkpoints, found["chosen"]) / NAME
        write_atomic(run.adapter, chosen.read_bytes())
    write_json(table, found)
    return found


def _score(base: Base, judge: Judge, encoder: Features, adapter: Path) -> dict[str, float]:
    """Fidelity, alignment and their harmonic mean of one checkpoint."""
    with adapted(base, [(adapter, 1.0)]):
        pixels = judge.of_concept()
    fidelity = float(judge.fidelity(encoder, pixels).mean())
    alignment = float(judge.alignment(encoder, pixels).mean())
    both = harmonic_mean([max(fidelity, 0.0), max(alignment, 0.0)])
    return {"fidelity": fidelity, "alignment": alignment, "harmonic_mean": both}
