"""SI-5: what else of StyleInject could be otherwise, one change at a time, against the default that SI-4 trained.

The letters are those of the ablations as they were planned:

    A  number of branches, at about equal size    C  a router that does not learn
    D  a B for each branch                        E  what is routed, and how it pools
    F  which layers                               G  the text's keys and values
    H  LoRA with gains of channels, DoRA, gains alone

The formula of the variance (B) is SI-4's, another text encoder (I) SI-3's.
"""

from dataclasses import replace
from typing import Any

from drawn import by_style, fabricated, styling
from si_4 import FEW, SHOWN, STEPS, trained, with_target
from torch import Generator

from diffadapt.adapters import IA3, DoRA, GainedLoRA, StyleInject
from diffadapt.evidence import (
    Claim,
    Comparison,
    Contender,
    Context,
    Design,
    Results,
    Settings,
    Table,
    Unit,
    Verdict,
)
from diffadapt.metrics import interval_of_nested_mean
from diffadapt.report.finding import claimed_better, confirmed, goal

WHOLE, DEFAULT = StyleInject(), "full_adain"  # as SI-4 trained and calls it
FEWER = FEW[:3]  # cut to fit the budget
UNLEARNED = {  # the router's choice must matter
    "uniform": Contender(method=replace(WHOLE, temperature=1e6), title="C: all branches alike, whatever comes in"),
    "random": Contender(method=replace(WHOLE, router="random"), title="C: a router that stays as it was drawn"),
}
OTHERS = {  # none may be better than the default
    "two branches": Contender(method=replace(WHOLE, branches=2, rank=8), title="A: two branches of rank 8"),
    "eight branches": Contender(method=replace(WHOLE, branches=8, rank=2), title="A: eight branches of rank 2"),
    "own up": Contender(method=replace(WHOLE, rank=3, shared_up=False), title="D: a B for each branch, rank 3"),
    "by token": Contender(method=replace(WHOLE, scope="token"), title="E: routed by token"),
    "sum": Contender(method=replace(WHOLE, pool="sum"), title="E: pooled by a sum"),
    "convolutions": Contender(
        method=replace(WHOLE, rank=6), title="F: convolutions alone, rank 6", roles=("residual.*",)
    ),
    "attention": Contender(
        method=replace(WHOLE, rank=20), title="F: attention alone, rank 20",
        roles=("self_attention.*", "cross_attention.*"),
    ),
    "text exclude": Contender(method=replace(WHOLE, text="exclude"), title="G: the text's keys and values left alone"),
    "text same": Contender(method=replace(WHOLE, text="same"), title="G: the text's keys and values as all others"),
    "gained_lora": Contender(method=GainedLoRA(rank=14), title="H: LoRA of rank 14 with gains"),
    "dora": Contender(method=DoRA(rank=14), title="H: DoRA of rank 14"),
    "ia3": Contender(method=IA3(), title="H: gains alone (IA3)"),
}  # fmt: skip
CHANGES = UNLEARNED | OTHERS
LEVEL = 1 - 0.05 / len(CHANGES)


def units(results: Results, settings: Settings) -> list[Unit]:
    return [
        {"stage": "test", "style": style, "contender": name, "seed": settings.seeds[0]}
        for style in FEWER for name in CHANGES
    ]  # fmt: skip


def run(unit: Unit, context: Context) -> dict[str, Any]:
    return trained(unit, CHANGES[unit["contender"]], context)


def judge(results: Results) -> Verdict:
    whole = [each for each in results.of("SI-4").where(contender=DEFAULT) if each.unit["style"] in FEWER]
    runs = Results([*whole, *results])

    def against(name: str, figure: str = "target") -> Comparison:
        gain = by_style(runs, DEFAULT, figure) - by_style(runs, name, figure)
        return Comparison(
            name=f"share of the way to the exact picture, default minus {CHANGES[name].title},", margin=0.03,
            interval=interval_of_nested_mean(gain, level=LEVEL),
        )  # fmt: skip

    unlearned, second = ([against(name, figure) for name in UNLEARNED] for figure in ("target", "style_second"))
    others = [against(name) for name in OTHERS]
    titles = {DEFAULT: "the default"} | {name: each.title for name, each in CHANGES.items()}
    rows = [
        [title, *(interval_of_nested_mean(by_style(runs, name, figure)) for figure in SHOWN)]
        for name, title in titles.items()
    ]
    return Verdict(
        paper=confirmed(claimed_better(unlearned), second),
        goal=goal([each.not_worse for each in others], "; ".join(map(str, others)) + "."),
        comparisons=unlearned + others,
        tables=[Table(title="One change at a time", columns=["contender", *SHOWN.values()], rows=rows)],
    )


def null(unit: Unit, generator: Generator) -> dict[str, Any]:
    return with_target(fabricated(unit, generator, better=False))


def oracle(unit: Unit) -> dict[str, Any]:
    scores = with_target(fabricated(unit, None, better=False))
    farther = 0.1 if unit["contender"] in UNLEARNED else 0.0
    return scores | {name: scores[name] - farther for name in ("target", "style", "style_second")}


CLAIM = Claim(
    id="SI-5",
    title="StyleInject's router has to learn, and no single change of what else there is beats the default",
    paper="StyleInject: the router chooses by the features (no ablation could be obtained); here: with a learned "
    "router it comes further to the style's exact pictures than with one that does not learn",
    goal="no single change comes nearer to them by more than .03",
    design=Design(
        resampled="styles, each with one training",
        margin=".03 of the way",
        half_width=0.5,
        pilot="of the difference, 3 styles with one seed at 99.6 %: spread as in SI-4",
        seconds=styling(STEPS).seconds,
        basis=styling(STEPS).words,
    ),
    units=units,
    run=run,
    judge=judge,
    null=null,
    oracle=oracle,
    uses=("SI-4",),
)  # fmt: skip
