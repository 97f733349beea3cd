"""DT-2: with Diff-Tuning a fine-tuned base makes better pictures of the target, on eight sets."""

import math
from typing import Any

from torch import Generator
from transfer import (
    CONTENDERS,
    OBJECTIVES,
    cost_of,
    fabricated,
    gain,
    is_test,
    log_fd,
    seconds_of,
    teach,
    tests,
    tuning,
)
from transfer_sets import TARGETS

from diffadapt.evidence import Claim, Comparison, Context, Design, Results, Settings, Table, Unit, Verdict
from diffadapt.report.finding import claimed_better, goal, within

METHODS = ("full",)
MARGIN, WANTED = 0.05, math.log(1 - 0.26)


def units(results: Results, settings: Settings) -> list[Unit]:
    tuned = tuning(METHODS)
    return tuned + (tests(results, METHODS, settings.seeds[0]) if len(results) >= len(tuned) else [])


def run(unit: Unit, context: Context) -> dict[str, Any]:
    return teach(unit, context)


def judge(results: Results) -> Verdict:
    runs = list(results)
    change = gain(runs, "full")
    comparison = Comparison(
        name="logarithm of FD, Diff-Tuning minus plain,", interval=change, margin=MARGIN, more_is_better=False
    )
    found = {o: {e.unit["target"]: e for e in runs if is_test(e, "full", o)} for o in OBJECTIVES}
    pairs = [(target, found["standard"][target], found["difftuning"][target]) for target in TARGETS]
    every = all(log_fd(kept) < log_fd(plain) for _, plain, kept in pairs)
    return Verdict(
        paper=claimed_better([comparison]),
        goal=goal(
            [within(change, high=WANTED), every],
            f"FD falls by {100 * (1 - math.exp(change.value)):.0f} % [{100 * (1 - math.exp(change.high)):.0f}, "
            f"{100 * (1 - math.exp(change.low)):.0f}]; better on "
            f"{sum(log_fd(kept) < log_fd(plain) for _, plain, kept in pairs)} of {len(TARGETS)} sets.",
        ),
        comparisons=[comparison],
        tables=[
            Table(
                title=f"FD to the test pictures, {CONTENDERS['full'].title}",
                columns=["target", "plain", "Diff-Tuning", "premise: base's loss near the data, target over memory"],
                rows=[
                    [t, math.exp(log_fd(a)), math.exp(log_fd(b)), b.scores["premise"].get("ratio")] for t, a, b in pairs
                ],
                note="Equal steps and rows a step, so Diff-Tuning sees half as many target pictures.",
            )
        ],
    )


def null(unit: Unit, generator: Generator) -> dict[str, Any]:
    return fabricated(unit, generator)


def oracle(unit: Unit) -> dict[str, Any]:
    return fabricated(unit, None, better=0.5)


CLAIM = Claim(
    id="DT-2",
    title="Diff-Tuning makes better pictures of a target than plain fine-tuning",
    paper="Section 4.1 and table 1: on eight sets FID falls by 24.6 % on average (26 % in the preprint), on every one",
    goal="FD falls by 26 % or more on average, and on all eight sets",
    design=Design(
        resampled="target sets", margin="5 % of FD", half_width=0.13, seconds=seconds_of,
        basis=cost_of({"stage": "test", "method": "lora"}).words,
        pilot="assumed: two runs on one set differ by a tenth",
    ),
    units=units,
    run=run,
    judge=judge,
    null=null,
    oracle=oracle,
)  # fmt: skip
