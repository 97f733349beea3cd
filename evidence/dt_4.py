"""DT-4: parameter-efficient methods gain from Diff-Tuning, too."""

from typing import Any

from torch import Generator
from transfer import CONTENDERS, cost_of, fabricated, gain, seconds_of, teach, tests, tuning

from diffadapt.evidence import Claim, Comparison, Context, Design, Forest, Results, Settings, Unit, Verdict
from diffadapt.report.finding import claimed_better, goal

METHODS = ("lora", "oft", "diff_fit")
MARGIN = 0.05
LEVEL = 1 - 0.05 / len(METHODS)  # three comparisons decide


def units(results: Results, settings: Settings) -> list[Unit]:
    tuned = tuning(METHODS)
    return tuned + (tests(results, METHODS, settings.seeds[0]) if len(results) >= len(tuned) else [])


def run(unit: Unit, context: Context) -> dict[str, Any]:
    return teach(unit, context)


def judge(results: Results) -> Verdict:
    comparisons = [
        Comparison(
            name=f"logarithm of FD, {CONTENDERS[name].title} with minus without,", margin=MARGIN, more_is_better=False,
            interval=gain(list(results), name, level=LEVEL),
        )
        for name in METHODS
    ]  # fmt: skip
    return Verdict(
        paper=claimed_better(comparisons),
        goal=goal([each.standing == "better" for each in comparisons], "; ".join(map(str, comparisons)) + "."),
        comparisons=comparisons,
        plots=[
            Forest(
                title="Diff-Tuning with parameter-efficient methods", caption="Eight target sets; below 0 is better.",
                label="change of log FD", rows=[(each.name, each.interval) for each in comparisons], mark=0.0,
            )
        ],
    )  # fmt: skip


def null(unit: Unit, generator: Generator) -> dict[str, Any]:
    return fabricated(unit, generator)


def oracle(unit: Unit) -> dict[str, Any]:
    return fabricated(unit, None, better=0.5)


CLAIM = Claim(
    id="DT-4",
    title="LoRA, OFT and DiffFit make better pictures of a target with Diff-Tuning",
    paper="Section 4.3 and table 1: DiffFit gains on converged FID and converges faster; claimed for every subset",
    goal="each of the three better with than without, clear of zero",
    design=Design(
        resampled="target sets",
        margin="5 % of FD",
        half_width=0.15,
        pilot="assumed, see DT-2",
        seconds=seconds_of,
        basis=cost_of({"stage": "test", "method": "diff_fit"}).words,
    ),
    units=units,
    run=run,
    judge=judge,
    null=null,
    oracle=oracle,
)
