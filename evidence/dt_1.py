"""DT-1: the chain of forgetting: handing the last steps back to the base makes better pictures. Read off DT-2."""

from typing import Any

import torch
from torch import Generator
from transfer import HANDED_BACK, OBJECTIVES, is_test, log_fd
from transfer_sets import TARGETS

from diffadapt.evidence import Claim, Comparison, Context, Curve, Design, Plot, Results, Settings, Unit, Verdict
from diffadapt.metrics import interval_of_nested_mean
from diffadapt.report.finding import claimed_better, goal

SHARE, MARGIN = 0.1, 0.02


def units(results: Results, settings: Settings) -> list[Unit]:
    return []


def run(unit: Unit, context: Context) -> dict[str, Any]:
    raise NotImplementedError("DT-1 has no units of its own")


def judge(results: Results) -> Verdict:
    runs = list(results.of("DT-2"))
    curves, first = [], None
    for objective, title in OBJECTIVES.items():
        found = {e.unit["target"]: e for e in runs if is_test(e, "full", objective)}
        points = []
        for share in HANDED_BACK:
            rows = [[log_fd(found[target], share) - log_fd(found[target])] for target in TARGETS]
            points.append((share, interval_of_nested_mean(torch.tensor(rows))))
        curves.append(Curve(name=title, points=points))
        if objective == "standard":
            first = dict(points)[SHARE]
    assert first is not None
    comparison = Comparison(
        name=f"logarithm of FD, {SHARE:.0%} handed back minus none, plain,", interval=first, margin=MARGIN,
        more_is_better=False,
    )  # fmt: skip
    best = min(curves[0].points, key=lambda point: point[1].value)[0]
    return Verdict(
        paper=claimed_better([comparison]),
        goal=goal([comparison.standing == "better", best > 0], f"Plain fine-tuning is best at {best:.0%}."),
        comparisons=[comparison],
        plots=[
            Plot(
                title="Switch-model curve", caption="Over the target sets of DT-2; 0 is the fine-tuned model alone.",
                x_label="share of the last steps done by the base", y_label="change of log FD", curves=curves,
            )
        ],
    )  # fmt: skip


def null(unit: Unit, generator: Generator) -> dict[str, Any]:
    raise NotImplementedError("DT-1 has no units of its own")


def oracle(unit: Unit) -> dict[str, Any]:
    raise NotImplementedError("DT-1 has no units of its own")


CLAIM = Claim(
    id="DT-1",
    title="A fine-tuned base makes better pictures when the untouched base does the last steps",
    paper="Section 3.1 and figure 1: FID falls, then rises with the share of steps handed back; 10 % are shown",
    goal="the curve of plain fine-tuning is best at a share above 0, and at 10 % better, clear of zero",
    design=Design(resampled="target sets", margin="2 % of FD", half_width=0.05, pilot="assumed, see DT-2", seconds=0.0),
    units=units,
    run=run,
    judge=judge,
    null=null,
    oracle=oracle,
    uses=("DT-2",),
)
