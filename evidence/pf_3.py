"""PF-3: two concepts, trained apart, in one picture; counted by a detector that knows neither model nor adapters."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pf_2
import torch
from both_present import Detector
from concepts import SAMPLING_STEPS
from contact_sheet import write_sheet
from subjects import SUBJECTS, by_subject, mean

from diffadapt.adapters import Selective, attach, read_adapter
from diffadapt.adapters.custom_diffusion import merge_custom_diffusion
from diffadapt.data.picture import to_picture
from diffadapt.data.scenes import KIND_OF
from diffadapt.evidence import Claim, Context, Finished, Forest, Results, Settings, Table, Unit, Verdict
from diffadapt.metrics import Interval, interval_of_nested_mean, interval_of_nested_ratio
from diffadapt.sampling.sample import adapted, default_line, generate

PAIRS = (
    ("fox", "helicopter"), ("koala", "backpack"), ("lobster", "cupcake"), ("ufo", "violin"), ("fox", "cupcake"),
    ("koala", "ufo"),
)  # fmt: skip
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
    tested = results.of("PF-2").where(stage="test")
    rates = {each.unit["contender"]: each.unit["rate"] for each in tested}
    if not rates:
        return []
    tests = [
        {"stage": "test", "contender": name, "pair": f"{first} {second}", "rate": rates[name], "seed": seed}
        for seed in settings.seeds
        for first, second in PAIRS
        for name in TITLES
    ]
    checks = [{"stage": "check", "pair": f"{first} {second}", "seed": settings.seeds[0]} for first, second in PAIRS]
    sheet = {"stage": "pictures", "seed": settings.seeds[0], **{f"rate_{name}": rates[name] for name in TITLES}}
    return [*checks, *tests, sheet]


def run(unit: Unit, context: Context) -> dict[str, Any]:
    if unit["stage"] == "pictures":
        return {"picture": draw_sheet(unit, context)}
    first, second = unit["pair"].split()
    detector = Detector(context.base, context.data / "emoji", SUBJECTS, context.shared / "detector")
    if unit["stage"] == "check":  # what the detector finds in scenes that have both, or one and something else
        others = [noun for noun in SUBJECTS if noun not in (first, second)]
        right = detector.scenes([first, second], 48, seed=90)
        wrong = torch.cat([detector.scenes([first, other], 8, seed=91 + i) for i, other in enumerate(others)])
        both = {"right": right, "wrong": wrong}
        return {name: detector.relations(detector.find(scenes), first, second) for name, scenes in both.items()}
    found = detector.find(drawn(context, (first, second), unit["contender"], unit["rate"], unit["seed"]))
    return {
        "found": detector.relations(found, first, second),
        "likeness": [
            [[round(v, 4) for v in row] for row in detector.likeness(found, noun)] for noun in (first, second)
        ],
    }


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


def judge(results: Results) -> Verdict:
    runs = [Finished({**e.unit, "subject": e.unit["pair"]}, e.scores, e.seconds) for e in results.where(stage="test")]
    rates = {name: by_subject(runs, name, lambda each: share(each.scores["found"])) for name in TITLES}
    checked = results.where(stage="check")
    right, wrong = (mean([share(each.scores[key]) for each in checked]) for key in ("right", "wrong"))
    best = max(("custom", "dreambooth"), key=lambda name: float(rates[name].mean()))
    if rates[best].sum() == 0:
        gain = interval_of_nested_mean(rates["perfusion"])
        told = f"no baseline drew both even once; perfusion {gain.value:.2f} [{gain.low:.2f}, {gain.high:.2f}]"
        status = "reproduced" if gain.low > 0 else "undecided"
    else:
        gain = interval_of_nested_ratio(rates["perfusion"], rates[best])
        status = "reproduced" if gain.low >= 2 else "not reproduced" if gain.high < 2 else "undecided"
        top = f"{gain.high:.2f}" if gain.high < 1000 else "no bound"
        told = f"perfusion's over that of {TITLES[best]}: {gain.value:.2f} [{gain.low:.2f}, {top}]"
    shares = means(runs, lambda each: share(each.scores["found"]))
    lesser = means(runs, lambda each: mean(nearest(each.scores["likeness"])))
    apart = means(runs, lambda each: mean(opposed(each.scores["likeness"])))

    def asked(name: str, relation: str, *relations: str) -> Interval:
        """Share of the pictures that were asked for with one relation in which the concepts stand in one of some."""
        places = [i for i, (each, _) in enumerate(PROMPTS) if each == relation]
        return interval_of_nested_mean(
            by_subject(runs, name, lambda each: share([each.scores["found"][i] for i in places], *relations))
        )

    return Verdict(
        status=status,
        sentence=f"Share of pictures with both concepts, {told}.",
        tables=[
            Table(
                title="Both concepts in the picture",
                columns=["contender", "share", "next to: both", "and side by side", "above: both", "and as asked"],
                rows=[
                    [
                        TITLES[name], shares[name], asked(name, "next to"), asked(name, "next to", "next to"),
                        asked(name, "above"), asked(name, "above", "above"),
                    ]
                    for name in TITLES
                ],
                note=f"The detector finds both in {right:.0%} of rendered scenes that have both, and in {wrong:.0%} of "
                "those with one of them and something else.",
            ),
            Table(
                title="How nearly, without a threshold",
                columns=["contender", "likeness of the lesser", "told apart"],
                rows=[[TITLES[name], lesser[name], apart[name]] for name in TITLES],
                note="Added when the count above came out near nothing, so no part of the verdict. Likeness of the "
                "lesser: objects are taken for the concepts as suits them best, the lower of both likenesses counts. "
                "Told apart: share of pictures where one object is more like the first concept than the second and "
                "another the other way round.",
            ),
        ],
        plots=[
            Forest(
                title="Both concepts in the picture", label="share of pictures", mark=0.0,
                caption="Six pairs, twelve prompts, the seeds", rows=[(TITLES[name], shares[name]) for name in TITLES],
            )
        ],
        pictures=[("pairs.png", "Six prompts of each pair, the same noise for every contender, training seed 0")],
    )  # fmt: skip


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
    paper="Figures 1 and 6: concepts trained apart are combined at inference; baselines fail to combine them",
    goal="both present at least twice as often as with the best baseline, interval included",
    units=units,
    run=run,
    judge=judge,
    uses=("PF-2",),
)
