"""PF-3: two concepts, trained apart, in one picture; counted by a detector that knows neither model nor adapters.

An object counts as a concept from the likeness that three of four pictures of it alone reach, drawn by all contenders'
adapters of that one concept: a bar that adapters can reach, the same for all of them. No two pairs share a subject.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pf_2
import torch
from both_present import JUDGES, Detector, relation
from concepts import SAMPLING_STEPS
from contact_sheet import write_sheet
from subjects import SUBJECTS, by_subject, mean

from diffadapt.adapters import Selective, attach, read_adapter
from diffadapt.adapters.custom_diffusion import merge_custom_diffusion
from diffadapt.data.picture import to_picture
from diffadapt.data.scenes import KIND_OF
from diffadapt.evidence import (
    Claim,
    Comparison,
    Context,
    Design,
    Finished,
    Forest,
    Results,
    Settings,
    Table,
    Unit,
    Verdict,
)
from diffadapt.metrics import Interval, interval_of_nested_mean, interval_of_nested_ratio
from diffadapt.report.finding import claimed_better, confirmed, goal, within
from diffadapt.sampling.sample import adapted, default_line, generate

PAIRS = (
    ("fox", "helicopter"), ("koala", "backpack"), ("lobster", "cupcake"), ("ufo", "violin"), ("zebra", "peach"),
    ("giraffe", "avocado"), ("hedgehog", "parrot"), ("flamingo", "dolphin"),
)  # fmt: skip
REACHED = 0.25  # quantile of the likeness of single concepts that sets the bar
LEVEL = 1 - 0.05 / 2  # of two comparisons, so that in 95 % of the cases neither wrongly finds a difference
GROUNDS = (
    "on a red background",
    "on a blue background",
    "on a white background",
    "in a meadow",
    "at the sea",
    "at night",
)
RELATIONS = ("next to", "above")
TITLES = {
    "perfusion": "Perfusion, two files", "custom": "Custom Diffusion, closed-form merge",
    "dreambooth": "DreamBooth, sum of both changes",
}  # fmt: skip
PROMPTS = [(relation, ground) for ground in GROUNDS for relation in RELATIONS]


def units(results: Results, settings: Settings) -> list[Unit]:
    rates, seed = rates_of_pf_2(results), settings.seeds[0]
    bars = [
        {"stage": "alone", "contender": name, "subject": noun, "rate": rates[name], "seed": seed}
        for pair in PAIRS
        for noun in pair
        for name in TITLES
    ]
    tests = [
        {"stage": "test", "contender": name, "pair": f"{first} {second}", "rate": rates[name], "seed": seed}
        for first, second in PAIRS
        for name in TITLES
    ]
    checks = [{"stage": "check", "pair": f"{first} {second}", "seed": seed} for first, second in PAIRS]
    sheet = {"stage": "pictures", "seed": seed, **{f"rate_{name}": rates[name] for name in TITLES}}
    return [*bars, *checks, *tests, sheet]


def rates_of_pf_2(results: Results) -> dict[str, float]:
    return {each.unit["contender"]: each.unit["rate"] for each in results.of("PF-2").where(stage="test")}


def run(unit: Unit, context: Context) -> dict[str, Any]:
    if unit["stage"] == "pictures":
        return {"picture": draw_sheet(unit, context)}
    detector = Detector(context.base, context.data / "emoji", SUBJECTS, context.shared / "detector")
    if unit["stage"] == "alone":
        found = detector.find(drawn_alone(context, unit["subject"], unit["contender"], unit["rate"], unit["seed"]))
        likeness = {judge: detector.likeness(found, unit["subject"], judge) for judge in JUDGES}
        return {"best": {judge: [max(objects, default=-1.0) for objects in each] for judge, each in likeness.items()}}
    pair = unit["pair"].split()
    if unit["stage"] == "check":  # what the detector finds in scenes that have both, or one and something else
        others = [noun for noun in SUBJECTS if noun not in pair][:6]
        wrong = torch.cat([detector.scenes([pair[0], other], 8, seed=91 + i) for i, other in enumerate(others)])
        both = {"right": detector.scenes(pair, 48, seed=90), "wrong": wrong}
        return {name: seen(detector, scenes, pair) for name, scenes in both.items()}
    return seen(detector, drawn(context, (pair[0], pair[1]), unit["contender"], unit["rate"], unit["seed"]), pair)


def seen(detector: Detector, pictures: torch.Tensor, pair: Sequence[str]) -> dict[str, Any]:
    """Raw: by both judges the likeness of every object in every picture to both concepts, and where it is."""
    found = detector.find(pictures)
    return {
        "likeness": {judge: [detector.likeness(found, noun, judge) for noun in pair] for judge in JUDGES},
        "centres": [[[round(x, 1) for x in centre] for centre in each.centres.tolist()] for each in found],
    }


def drawn_alone(context: Context, noun: str, name: str, rate: float, seed: int) -> torch.Tensor:
    """(N, 3, H, W): what a contender's adapter of one concept draws of it, on every ground."""
    word = f"<{noun}>" if name == "perfusion" else f"<{noun}> {KIND_OF[noun]}"
    asked = [f"a {word} {ground}" for ground in GROUNDS]
    lines = [default_line(context.base, prompt, i, steps=SAMPLING_STEPS) for i, prompt in enumerate(asked)]
    file = pf_2.trained(context, noun, name, rate, seed) / "adapter.safetensors"
    with adapted(context.base, [(file, 1.0)]):
        return torch.stack(generate(context.base, lines))


def drawn(context: Context, pair: tuple[str, str], name: str, rate: float, seed: int, count: int = len(PROMPTS)) -> Any:
    """(N, 3, H, W): what a contender draws for the pair."""
    phrases = [f"<{noun}>" if name == "perfusion" else f"<{noun}> {KIND_OF[noun]}" for noun in pair]
    asked = [f"a {phrases[0]} {relation} a {phrases[1]} {ground}" for relation, ground in PROMPTS[:count]]
    lines = [default_line(context.base, prompt, i, steps=SAMPLING_STEPS) for i, prompt in enumerate(asked)]
    with adapted(context.base, [(file, 1.0) for file in files_of(context, pair, name, rate, seed)]):
        return torch.stack(generate(context.base, lines))


def files_of(context: Context, pair: tuple[str, str], name: str, rate: float, seed: int) -> list[Path]:
    """The adapter files that bring both concepts: those of PF-2, trained again where that was run elsewhere."""
    alone = [pf_2.trained(context, noun, name, rate, seed) / "adapter.safetensors" for noun in pair]
    if name == "perfusion":
        return alone
    out = context.folder / f"{name}-{'-'.join(pair)}-{seed}.safetensors"
    if not out.exists():
        (merge_custom_diffusion if name == "custom" else add_changes)(context.base, alone, out)
    return [out]


@torch.no_grad()
def add_changes(base: Any, files: list[Path], out: Path) -> Path:
    """One adapter whose weights are the base's plus what each file changed, with the words of all."""
    read = [read_adapter(file) for file in files]
    tokens = {word: noun for _, _, each, _, _ in read for word, noun in each.items()}
    whole = attach(base, Selective(), read[0][1], tokens=tokens)
    try:
        for name, value in whole.state_dict().items():
            values = [tensors[name] for _, _, _, tensors, _ in read]
            if name.endswith(".vectors"):
                value.copy_(torch.cat(values))
            else:
                value.add_(sum(each - value for each in values))  # where it starts is the base
        return whole.save(out)
    finally:
        whole.detach()


def draw_sheet(unit: Unit, context: Context) -> str:
    rows = []
    for pair in PAIRS:
        for name, title in TITLES.items():
            pixels = drawn(context, pair, name, unit[f"rate_{name}"], unit["seed"], 6)
            rows.append((f"{' and '.join(pair)}: {title}", [to_picture(each) for each in pixels]))
    return write_sheet(context.pictures / "pairs.png", rows)


def bars_of(results: Results, judge: str) -> dict[str, float]:
    """Subject -> the likeness from which an object counts as it, as a judge sees it."""
    bars = {}
    for noun in {noun for pair in PAIRS for noun in pair}:
        reached = [value for each in results.where(stage="alone", subject=noun) for value in each.scores["best"][judge]]
        bars[noun] = float(np.quantile(reached, REACHED))
    return bars


def relations(scores: Mapping[str, Any], pair: str, bars: Mapping[str, float], judge: str) -> list[str | None]:
    """Of every picture how the first concept stands to the second; None where one of them is missing."""
    first, second = pair.split()
    rows = zip(*scores["likeness"][judge], scores["centres"], strict=True)
    return [relation(one, other, centres, bars[first], bars[second]) for one, other, centres in rows]


class Seen(NamedTuple):
    """What a judge sees: tests with what was found in each, shares by contender, comparisons, and its own checks."""

    runs: list[Finished]
    rates: dict[str, torch.Tensor]
    gains: list[Comparison]
    right: float
    wrong: float


def seen_by(results: Results, judge: str) -> Seen:
    bars = bars_of(results, judge)
    runs = []
    for each in results.where(stage="test"):
        found = relations(each.scores, each.unit["pair"], bars, judge)
        unit = {**each.unit, "subject": each.unit["pair"]}
        runs.append(Finished(unit, {**each.scores, "found": found}, each.seconds))
    rates = {name: by_subject(runs, name, lambda each: share(each.scores["found"])) for name in TITLES}
    gains = [
        Comparison(
            name=f"share of pictures with both concepts, Perfusion minus {TITLES[name]}", margin=0.03,
            interval=interval_of_nested_mean(rates["perfusion"] - rates[name], level=LEVEL),
        )
        for name in TITLES
        if name != "perfusion"
    ]  # fmt: skip
    right, wrong = (
        mean([share(relations(e.scores[key], e.unit["pair"], bars, judge)) for e in results.where(stage="check")])
        for key in ("right", "wrong")
    )
    return Seen(runs, rates, gains, right, wrong)


def judge(results: Results) -> Verdict:
    baselines = [name for name in TITLES if name != "perfusion"]
    (runs, rates, gains, right, wrong), (_, seconds, by_second, *_) = (seen_by(results, judge) for judge in JUDGES)
    best = max(baselines, key=lambda name: float(rates[name].mean()))
    if rates[best].sum() == 0:  # any share above nothing is more than twice
        twice, told_twice = within(gains[baselines.index(best)].interval, low=1e-9), "No baseline drew both even once."
    else:
        ratio = interval_of_nested_ratio(rates["perfusion"], rates[best])
        top = f"{ratio.high:.2f}" if ratio.high < 1000 else "no bound"
        twice = within(ratio, low=2)
        told_twice = f"Over that of {TITLES[best]}: {ratio.value:.2f} [{ratio.low:.2f}, {top}]."
    lesser = means(runs, lambda each: mean(nearest(each.scores["likeness"][JUDGES[0]])))
    apart = means(runs, lambda each: mean(opposed(each.scores["likeness"][JUDGES[0]])))

    def asked(name: str, wanted: str) -> Interval:
        """Share of the pictures that were asked for with one relation in which the concepts stand so."""
        places = [i for i, (each, _) in enumerate(PROMPTS) if each == wanted]
        return interval_of_nested_mean(
            by_subject(runs, name, lambda each: share([each.scores["found"][i] for i in places], wanted))
        )

    shares = means(runs, lambda each: share(each.scores["found"]))
    return Verdict(
        paper=confirmed(claimed_better(gains), by_second),
        goal=goal([twice], told_twice),
        comparisons=gains,
        tables=[
            Table(
                title="Both concepts in the picture",
                columns=["contender", "share", "second judge", "side by side as asked", "above as asked"],
                rows=[
                    [TITLES[n], shares[n], interval_of_nested_mean(seconds[n]), *(asked(n, each) for each in RELATIONS)]
                    for n in TITLES
                ],
                note=f"The detector finds both in {right:.0%} of rendered scenes that have both, and in {wrong:.0%} of "
                "those with one of them and something else.",
            ),
            Table(
                title="How nearly, without a bar",
                columns=["contender", "likeness of the lesser", "told apart"],
                rows=[[TITLES[name], lesser[name], apart[name]] for name in TITLES],
                note="No part of the verdict. Likeness of the lesser: objects are taken for the concepts as suits them "
                "best, the lower of both likenesses counts. Told apart: share of pictures where one object is more "
                "like the first concept than the second and another the other way round.",
            ),
        ],
        plots=[
            Forest(
                title="Both concepts in the picture", label="share of pictures", mark=0.0,
                caption="Twelve pairs, twelve prompts", rows=[(TITLES[name], shares[name]) for name in TITLES],
            )
        ],
        pictures=[("pairs.png", "Six prompts of each pair, the same noise for every contender")],
    )  # fmt: skip


def null(unit: Unit, generator: torch.Generator) -> dict[str, Any]:
    """All contenders are one, each with another seed: a third of the pictures show both concepts."""
    return fabricated(unit, 0.33, generator)


def oracle(unit: Unit) -> dict[str, Any]:
    return fabricated(unit, 0.9 if unit.get("contender") == "perfusion" else 0.25, None)


def fabricated(unit: Unit, rate: float, generator: torch.Generator | None) -> dict[str, Any]:
    """Pictures with two objects, like the concepts (.8) or not (.1), next to each other or above as asked."""
    if unit["stage"] == "pictures":
        return {"picture": ""}
    if unit["stage"] == "alone":
        return {"best": {judge: [0.7] * len(GROUNDS) for judge in JUDGES}}

    def pictures(share_of_both: float) -> dict[str, Any]:
        n = len(PROMPTS)
        even = [(i + 0.5) / n for i in range(n)]

        def likeness() -> list[list[list[float]]]:
            draws = torch.rand(n, generator=generator).tolist() if generator else even
            both = [0.8 if draw < share_of_both else 0.1 for draw in draws]
            return [[[0.8, 0.1]] * n, [[0.1, each] for each in both]]

        centres = [[[10.0, 30.0], [40.0, 30.0]] if r == "next to" else [[30.0, 10.0], [30.0, 40.0]] for r, _ in PROMPTS]
        return {"likeness": {judge: likeness() for judge in JUDGES}, "centres": centres}

    if unit["stage"] == "check":
        return {"right": pictures(1.0), "wrong": pictures(0.0)}
    return pictures(rate)


def share(found: Sequence[str | None], *relations: str) -> float:
    """Share of pictures with both concepts, in one of some relations where any are named."""
    return mean([float(each in relations if relations else each is not None) for each in found])


def means(runs: Sequence[Finished], score: Callable[[Finished], float]) -> dict[str, Interval]:
    """Contender -> the mean of a score over its runs."""
    return {name: interval_of_nested_mean(by_subject(runs, name, score)) for name in TITLES}


def nearest(likeness: Sequence[Sequence[list[float]]]) -> list[float]:
    """Of every picture the lower likeness of two different objects, each to a concept of its own; 0 without two."""
    return [
        max((min(a, b) for i, a in enumerate(one) for j, b in enumerate(other) if i != j), default=0.0)
        for one, other in zip(*likeness, strict=True)
    ]


def opposed(likeness: Sequence[Sequence[list[float]]]) -> list[float]:
    """Of every picture 1 where two objects lean to different concepts, else 0."""
    return [
        float(len({a > b for a, b in zip(one, other, strict=True)}) == 2) for one, other in zip(*likeness, strict=True)
    ]


CLAIM = Claim(
    id="PF-3",
    title="Several separately trained concepts go into one picture",
    paper="Figures 1 and 6: concepts trained apart are combined at inference; baselines fail to combine them; here: "
    "both present more often than with either baseline",
    goal="both present at least twice as often as with the best baseline, interval included",
    design=Design(
        resampled="pairs of subjects, no subject in two of them",
        margin=".03 of the pictures",
        half_width=0.12,
        pilot="of the difference in share; 8 pairs of 12 pictures at a share of about .06, where the first round's "
        "six pairs, with shared subjects, gave .11",
        seconds=4.0,
        basis="timed: mean of the first round's units, beside other work",
    ),
    units=units,
    run=run,
    judge=judge,
    null=null,
    oracle=oracle,
    uses=("PF-2",),
    measures=3,
)
