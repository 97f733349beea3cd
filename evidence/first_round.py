"""The first round's stored scores, judged by today's rules where they allow it, and used as the pilot of what follows.

    python evidence/first_round.py       prints the figures of docs/evidence/first_round.md

They stand on the first embedded base. Where the present one has another fingerprint, no claim reads them.
"""

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import oft_3
import oft_5
from subjects import by_subject, mean

from diffadapt.evidence import Finished, Results
from diffadapt.evidence.results import read_results
from diffadapt.metrics import interval_of_nested_mean, interval_of_nested_ratio
from diffadapt.metrics.crossed import expected_half_width
from diffadapt.metrics.harmonic import harmonic_mean

BASE = "sha256:fe524511b49acea8"
FOLDER = Path(__file__).parent / "results"
RATES = {"oft": 0.002, "lora": 0.008, "dreambooth": 0.0002}  # that the first round's tuning chose


def stored(claim: str) -> Results:
    """The first round's units of a claim that were finished."""
    return Results([*read_results(FOLDER / claim, BASE).finished.values()])


def tests_of_oft_2() -> list[Finished]:
    """Eight subjects and three seeds of OFT, LoRA and DreamBooth."""
    tested = stored("OFT-2").where(stage="test")
    return [each for each in tested if each.unit["rate"] == RATES.get(each.unit["contender"])]


def one_against_itself(runs: Sequence[Finished], contender: str, seed: int, other: int) -> list[Finished]:
    """Runs of one contender with one seed under the name of OFT, with another under that of LoRA."""
    own = [each for each in runs if each.unit["contender"] == contender]
    names = {seed: "oft", other: "lora"}
    return [
        Finished({**each.unit, "contender": names[each.unit["seed"]], "seed": 0}, each.scores, each.seconds)
        for each in own
        if each.unit["seed"] in names
    ]


def kept(runs: Sequence[Finished], contender: str, first: int, last: int) -> tuple[Any, Any]:
    """Quality (fidelity and alignment, as it was) at the last mark over that at the first, and at the last."""

    def quality(each: Finished, mark: int) -> float:
        pair = [mean(each.scores[f"{name}_at"][str(mark)]) for name in ("fidelity", "alignment")]
        return harmonic_mean([max(value, 0.0) for value in pair])

    values = [by_subject(runs, contender, lambda each, m=mark: quality(each, m)) for mark in (first, last)]
    return interval_of_nested_ratio(values[1], values[0]), values[1]


def shown(interval: Any) -> str:
    return f"{interval.value:.3f} [{interval.low:.3f}, {interval.high:.3f}]"


def main() -> None:
    runs = tests_of_oft_2()
    under, sooner, never = oft_3.compared(runs, "oft", "lora")
    print(f"OFT-3: {under}; {sooner}; {never} runs never got there")
    for seed, other in itertools.combinations(range(3), 2):
        area, steps, _ = oft_3.compared(one_against_itself(runs, "lora", seed, other), "oft", "lora")
        told = f"area {shown(area.interval)} ({area.standing}), steps {steps.interval.value:.2f}"
        print(f"  LoRA's seed {seed} against its seed {other}: {told}")
    long = [each for each in stored("OFT-4") if "contender" in each.unit]
    last = {}
    for name in ("coft", "oft", "lora"):
        ratio, last[name] = kept(long, name, 150, 1350)
        print(f"OFT-4: {name} keeps {shown(ratio)} of the mark at step 150; two subjects")
    print(f"  COFT minus OFT at the last mark {shown(interval_of_nested_mean(last['coft'] - last['oft']))}")
    verdict = oft_5.judge(stored("OFT-5"))
    print(f"OFT-5: paper {verdict.paper.status}, goal {verdict.goal.status}")
    for each in verdict.comparisons:
        print(f"  {each}")
    print("half widths of a difference to LoRA, 8 subjects x 3 seeds and 24 x 1:")
    figures: dict[str, Callable[[Finished], float]] = {
        "fidelity": lambda each: mean(each.scores["fidelity"]),
        "alignment": lambda each: mean(each.scores["alignment"]),
        "area under fidelity": lambda each: oft_3.area(oft_3.curve(each.scores)),
    }
    for name, figure in figures.items():
        difference = by_subject(runs, "oft", figure) - by_subject(runs, "lora", figure)
        few, many = (expected_half_width(difference, subjects=s, seeds=k) for s, k in ((8, 3), (24, 1)))
        print(f"  {name}: {few:.3f}, {many:.3f}")


if __name__ == "__main__":
    main()
