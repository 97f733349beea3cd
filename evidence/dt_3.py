"""DT-3: a ControlNet learns to follow its signal sooner with Diff-Tuning, on five kinds of signal.

The same held-out signals are followed from the same noise every `EVERY` steps, and read again from the pictures made.
The step of sudden convergence is found at one threshold for both trainings of a signal, that of the plain one
(`metrics/convergence.py`). Who does not get there in the steps that there are counts as having needed all of them; a
signal on which the plain training's curve does not leap shows no difference. Depth order stands for the paper's depth,
landmarks for its normals, which a flat world has not, and line art for its sketches. The mean over signals is that of
the logarithms of the ratios.
"""

import json
import math
from typing import Any

import torch
from oft_5 import MISSED, mean, scene_pairs
from torch import Generator
from unit_cost import cost

from diffadapt.adapters.control_net import ControlNet
from diffadapt.data.control_pairs import ControlPairs
from diffadapt.evaluation.evaluate_control import DECIDING, MEANINGS
from diffadapt.evaluation.judge import draw
from diffadapt.evidence import (
    Claim,
    Comparison,
    Context,
    Curve,
    Design,
    Plot,
    Results,
    Settings,
    Table,
    Unit,
    Verdict,
    tuned,
)
from diffadapt.files import write_json
from diffadapt.metrics import interval_of_nested_mean
from diffadapt.metrics.bootstrap import Interval
from diffadapt.metrics.control_consistency import control_consistency
from diffadapt.metrics.convergence import find_leap, first_past
from diffadapt.metrics.reader import load_reader
from diffadapt.recipes.control import train_control
from diffadapt.report.finding import claimed_better, goal, within
from diffadapt.training.retention_config import MemoryConfig

OBJECTIVES = {"standard": "plain", "difftuning": "Diff-Tuning"}
# signal: the score of a picture, and whether more is better
SIGNALS = {signal: (score, MEANINGS[score][0] == "higher") for signal, score in DECIDING.items()}
RATES = (5e-4, 1e-3, 2e-3)  # those of OFT-5, tried on segmentation without Diff-Tuning
STEPS, EVERY, BATCH, TRAINING, HELD_OUT, SAMPLING_STEPS, MEMORY = 1000, 25, 8, 1000, 16, 10, 1000
MARKS = tuple(range(EVERY, STEPS + 1, EVERY))
WANTED, MARGIN = 0.24, 0.05
COST = cost("control, ControlNet", STEPS, HELD_OUT * len(MARKS))  # the memory is drawn once for all
DEFAULT_PROMPT = "default_prompt"  # the paper's condition of memory


def units(results: Results, settings: Settings) -> list[Unit]:
    seed = settings.seeds[0]
    tuning = [
        {"stage": "tune", "signal": "segmentation", "rate": rate, "objective": "standard", "seed": seed + 100}
        for rate in RATES
    ]
    if len(results) < len(tuning):
        return tuning
    best = tuned(results.where(stage="tune"), lambda each: mean(each.scores["curve"]))
    return tuning + [
        {"stage": "test", "signal": signal, "rate": best, "objective": objective, "seed": seed}
        for signal in SIGNALS
        for objective in OBJECTIVES
    ]


def run(unit: Unit, context: Context) -> dict[str, Any]:
    base, signal = context.base, unit["signal"]
    held_out = scene_pairs(context, signal, HELD_OUT, seed=2)
    _, wanted = held_out.read(range(HELD_OUT), base.resolution)
    reader = load_reader() if base.world else None
    place = context.folder / "curve.json"
    curve: dict[str, float] = json.loads(place.read_text(encoding="utf-8")) if place.is_file() else {}

    def watch(step: int, loss: float) -> None:
        if step % EVERY:
            return
        controls = list(wanted)
        made = draw(base, held_out.captions(), same_noise=False, steps=SAMPLING_STEPS, controls=controls)
        rows = control_consistency(signal, wanted, made, reader)[SIGNALS[signal][0]]
        curve[str(step)] = round(float(rows.nan_to_num(MISSED).mean()), 5)
        write_json(place, curve)

    run = train_control(
        base, training_pairs(context, signal), method=ControlNet(), out=context.folder / "run", seed=unit["seed"],
        steps=STEPS, batch_size=BATCH, learning_rate=unit["rate"], schedule="constant", objective=unit["objective"],
        memory=MemoryConfig(
            latents=MEMORY, folder=str(context.shared / "memory"), condition="null" if base.world else DEFAULT_PROMPT
        ),
        sample_every=0, evaluation_pairs=0, watch=watch, quiet=True,
    )  # fmt: skip
    return {"curve": [curve[str(step)] for step in MARKS], "premise": run.metrics.get("premise", {})}


def training_pairs(context: Context, signal: str) -> ControlPairs:
    return scene_pairs(context, signal, TRAINING, seed=1)


def steps_to(results: Results, signal: str) -> dict[str, float] | None:
    """Objective -> the step of sudden convergence at the plain training's threshold; None where that has no leap."""
    curves = {each.unit["objective"]: each.scores["curve"] for each in results.where(stage="test", signal=signal)}
    leap = find_leap(MARKS, curves["standard"])
    if leap is None or (curves["standard"][-1] > curves["standard"][0]) != SIGNALS[signal][1]:
        return None
    rising = SIGNALS[signal][1]
    found = {name: first_past(MARKS, curve, leap.threshold, rising=rising) for name, curve in curves.items()}
    return {name: float(STEPS if step is None else step) for name, step in found.items()}


def judge(results: Results) -> Verdict:
    rows, ratios = [], []
    for signal in SIGNALS:
        found = steps_to(results, signal)
        ratios.append(found["difftuning"] / found["standard"] if found else 1.0)
        rows.append([signal, *(found[name] if found else "no leap" for name in OBJECTIVES), 1 - ratios[-1]])
    logs = interval_of_nested_mean(torch.tensor(ratios).log()[:, None])  # where twice and half are equally far from 1
    value, high, low = (1 - math.exp(each) for each in (logs.value, logs.low, logs.high))
    sooner = Interval(value=value, low=low, high=high, n=logs.n)
    comparison = Comparison(name="share of the steps that Diff-Tuning saves,", interval=sooner, margin=MARGIN)
    leaps = sum(1 for row in rows if row[1] != "no leap")
    return Verdict(
        paper=claimed_better([comparison]),
        goal=goal(
            [within(sooner, low=WANTED)],
            f"It saves {100 * sooner.value:.0f} % [{100 * sooner.low:.0f}, {100 * sooner.high:.0f}] of the steps; "
            f"{leaps} of {len(SIGNALS)} plain curves leap.",
        ),
        comparisons=[comparison],
        tables=[
            Table(
                title="Step of sudden convergence",
                columns=["signal", *OBJECTIVES.values(), "saved"],
                rows=rows,
                note=f"At the plain training's threshold; {HELD_OUT} held-out signals every {EVERY} steps, "
                f"{STEPS} steps counted where a curve does not get there.",
            )
        ],
        plots=[curve_plot(results, signal) for signal in SIGNALS],
    )


def curve_plot(results: Results, signal: str) -> Plot:
    curves = []
    for name, title in OBJECTIVES.items():
        (each,) = results.where(stage="test", signal=signal, objective=name)
        scores = zip(MARKS, each.scores["curve"], strict=True)
        points = [(step, Interval(value=v, low=v, high=v, n=HELD_OUT)) for step, v in scores]
        curves.append(Curve(name=title, points=points))
    return Plot(
        title=f"Following {signal}", caption=f"Mean over {HELD_OUT} held-out signals; one training each",
        x_label="step", y_label=SIGNALS[signal][0], curves=curves,
    )  # fmt: skip


def fabricated(unit: Unit, generator: Generator | None, *, saved: float = 0.0) -> dict[str, Any]:
    """A curve that leaps near the middle of the steps; two trainings leap a tenth of that apart (assumed)."""
    noise = torch.randn(len(MARKS) + 1, generator=generator) if generator else torch.zeros(len(MARKS) + 1)
    sooner = saved if unit["objective"] == "difftuning" else 0.0
    at = 400 * (1 - sooner) * float((0.1 * noise[0]).exp())
    steps = torch.tensor(MARKS, dtype=torch.float32)
    low, high = (0.2, 0.6) if SIGNALS[unit["signal"]][1] else (0.6, 0.2)
    values = low + (high - low) * torch.sigmoid((steps - at) / 20) + 0.01 * noise[1:]
    return {"curve": values.tolist(), "premise": {}}


def null(unit: Unit, generator: Generator) -> dict[str, Any]:
    return fabricated(unit, generator)


def oracle(unit: Unit) -> dict[str, Any]:
    return fabricated(unit, None, saved=0.4)


CLAIM = Claim(
    id="DT-3",
    title="A ControlNet converges sooner with Diff-Tuning",
    paper="Section 4.2 and table 2: sudden convergence after 24 % fewer steps, mean of six conditions",
    goal="24 % fewer steps or more, mean of five conditions, at the plain training's threshold",
    design=Design(
        resampled="kinds of signal",
        margin="5 % of the steps",
        half_width=0.18,
        pilot="assumed: the steps of two trainings on one signal differ by a tenth",
        seconds=COST.seconds,
        basis=COST.words,
    ),
    units=units,
    run=run,
    judge=judge,
    null=null,
    oracle=oracle,
)
