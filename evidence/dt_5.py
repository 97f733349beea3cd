"""DT-5: less forgetting: the adapted base's loss on the base's own pictures near the data. Read off DT-2's runs."""

from typing import Any

import torch
from torch import Generator
from transfer import OBJECTIVES, is_test
from transfer_sets import TARGETS

from diffadapt.evidence import Claim, Comparison, Context, Design, Results, Settings, Table, Unit, Verdict
from diffadapt.metrics import interval_of_nested_mean, interval_of_nested_ratio
from diffadapt.report.finding import claimed_better, goal, within

MOST, MARGIN = 1.15, 0.02


def units(results: Results, settings: Settings) -> list[Unit]:
    return []


def run(unit: Unit, context: Context) -> dict[str, Any]:
    raise NotImplementedError("DT-5 has no units of its own")


def judge(results: Results) -> Verdict:
    runs = list(results.of("DT-2"))
    forgotten = {}
    for objective in OBJECTIVES:
        found = {e.unit["target"]: e.scores["forgotten"] for e in runs if is_test(e, "full", objective)}
        forgotten[objective] = torch.tensor([[found[target]] for target in TARGETS])
    plain, kept = forgotten["standard"], forgotten["difftuning"]
    comparison = Comparison(
        name="loss near the data on memory, Diff-Tuning over plain,", interval=interval_of_nested_ratio(kept, plain),
        margin=MARGIN, alike=1.0, more_is_better=False,
    )  # fmt: skip
    of_kept, of_plain = interval_of_nested_mean(kept), interval_of_nested_mean(plain)
    return Verdict(
        paper=claimed_better([comparison]),
        goal=goal(
            [within(of_kept, high=MOST)],
            f"With Diff-Tuning it is {of_kept.value:.2f} [{of_kept.low:.2f}, {of_kept.high:.2f}] times the base's, "
            f"without {of_plain.value:.2f} [{of_plain.low:.2f}, {of_plain.high:.2f}].",
        ),
        comparisons=[comparison],
        tables=[
            Table(
                title="Loss near the data on the base's own pictures, times the base's",
                columns=["target", "plain", "Diff-Tuning"],
                rows=[[t, float(plain[i]), float(kept[i])] for i, t in enumerate(TARGETS)],
                note="Pictures that were not in the memory, under the null condition, the same noise for all.",
            )
        ],
    )


def null(unit: Unit, generator: Generator) -> dict[str, Any]:
    raise NotImplementedError("DT-5 has no units of its own")


def oracle(unit: Unit) -> dict[str, Any]:
    raise NotImplementedError("DT-5 has no units of its own")


CLAIM = Claim(
    id="DT-5",
    title="Diff-Tuning forgets less near the data",
    paper="Section 4.4: the distance from the pretrained weights is smaller; figure 1: it is the levels near the data",
    goal="the loss near the data on unseen pictures of the base is at most 1.15 times the base's",
    design=Design(
        resampled="target sets", margin="2 % of the loss", half_width=0.06, pilot="assumed, see DT-2", seconds=0.0
    ),
    units=units,
    run=run,
    judge=judge,
    null=null,
    oracle=oracle,
    uses=("DT-2",),
)
