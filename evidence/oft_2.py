"""OFT-2: OFT learns a subject better than LoRA and DreamBooth at an equal budget; ours: no worse, and it leaks less."""

from pathlib import Path
from typing import Any

from fabricated import subject_scores
from subjects import (
    ALONE,
    CONTENDERS,
    ON_THE_WAY_STEPS,
    SEED_OF,
    SUBJECTS,
    average,
    by_subject,
    chosen_rates,
    draw_sheet,
    rates_in_words,
    subject_table,
    teach,
    teaching,
    train,
    tuning_units,
)
from torch import Generator
from unit_cost import WHOLE, Cost, cost

from diffadapt.evidence import (
    Claim,
    Comparison,
    Context,
    Design,
    Results,
    Settings,
    Unit,
    Verdict,
)
from diffadapt.metrics import interval_of_nested_mean, interval_of_nested_ratio
from diffadapt.report.finding import claimed_better, confirmed, goal, in_a_sentence, within

DRAWN = ("fox", "koala", "helicopter")
# Cut to fit the budget: textual inversion is tuned here and tested by PF-2; every weight trains with the prior only.
EVERYONE = {name: each for name, each in CONTENDERS.items() if name != "token"} | {
    name: each for name, each in ALONE.items() if name != "dreambooth-alone"
}
MARGIN = 0.03
LEVEL = 1 - 0.05 / 3  # three comparisons, which hold together in 95 % of the cases


def units(results: Results, settings: Settings) -> list[Unit]:
    tuning = tuning_units(results, CONTENDERS)
    if any(not results.where(**unit) for unit in tuning):
        return tuning
    rates = rates_of(results)
    tests = [test_unit(noun, name, rates[name], settings.seeds[0]) for noun in SUBJECTS for name in EVERYONE]
    sheet = {"stage": "pictures", "seed": settings.seeds[0], **{f"rate_{name}": rate for name, rate in rates.items()}}
    return tuning + tests + ([sheet] if len(results) >= len(tuning) + len(tests) else [])


def rates_of(results: Results) -> dict[str, float]:
    """Contender -> rate; without prior preservation that of its twin."""
    rates = chosen_rates(results, CONTENDERS)
    return {name: rates[name.removesuffix("-alone")] for name in EVERYONE}


def test_unit(noun: str, contender: str, rate: float, seed: int) -> Unit:
    """Of a subject, with its own seed after the first of all."""
    return {"stage": "test", "contender": contender, "subject": noun, "rate": rate, "seed": seed + SEED_OF[noun]}


def run(unit: Unit, context: Context) -> dict[str, Any]:
    if unit["stage"] == "pictures":
        adapters = {(noun, name): adapter_of(noun, name, unit, context) for noun in DRAWN for name in EVERYONE}
        return {"picture": draw_sheet(context, adapters, {name: each.title for name, each in EVERYONE.items()})}
    on_the_way = ON_THE_WAY_STEPS if unit["stage"] == "test" else ()
    contender = (CONTENDERS | EVERYONE)[unit["contender"]]
    return teach(context, unit["subject"], contender, unit["rate"], seed=unit["seed"], on_the_way=on_the_way)


def adapter_of(noun: str, contender: str, unit: Unit, context: Context) -> Path:
    """The adapter of one test; trained again where the test itself was run on another machine."""
    rate, seed = unit[f"rate_{contender}"], unit["seed"]
    test = test_unit(noun, contender, rate, seed)
    folder = context.folder_of(test)
    if not (folder / "adapter.safetensors").exists():
        train(context, noun, EVERYONE[contender], rate, out=folder, seed=test["seed"])
    return folder / "adapter.safetensors"


def judge(results: Results) -> Verdict:
    tested = results.where(stage="test")
    fidelity = {name: by_subject(tested, name, average("fidelity")) for name in ("oft", "lora", "dreambooth")}
    fidelity_second = {name: by_subject(tested, name, average("fidelity_second")) for name in fidelity}
    better, second = (
        [
            Comparison(
                name=f"fidelity, OFT minus {CONTENDERS[name].title},", margin=MARGIN,
                interval=interval_of_nested_mean(seen["oft"] - seen[name], level=LEVEL),
            )
            for name in ("lora", "dreambooth")
        ]
        for seen in (fidelity, fidelity_second)
    )  # fmt: skip
    leaked = {name: by_subject(tested, name, average("leaked")) for name in ("oft-alone", "lora-alone")}
    less = Comparison(
        name="leakage without prior preservation, OFT's over LoRA's,", margin=0.1, alike=1.0, more_is_better=False,
        interval=interval_of_nested_ratio(leaked["oft-alone"], leaked["lora-alone"], level=LEVEL),
    )  # fmt: skip
    parts = [better[0].not_worse, second[0].not_worse, within(less.interval, high=0.5)]
    return Verdict(
        paper=confirmed(claimed_better(better), second),
        goal=goal(parts, in_a_sentence([less])),
        comparisons=[*better, less],
        tables=[subject_table(tested, EVERYONE, f"Rates: {rates_in_words(results, CONTENDERS)}.")],
        pictures=[("subjects.png", "The same five prompts and the same noise for every contender")],
    )


def null(unit: Unit, generator: Generator) -> dict[str, Any]:
    """All contenders are one, each with another seed."""
    if unit["stage"] == "pictures":
        return {"picture": ""}
    return subject_scores(unit["subject"], generator, fidelity=0.58 - off_the_best(unit))


def oracle(unit: Unit) -> dict[str, Any]:
    if unit["stage"] == "pictures":
        return {"picture": ""}
    mine = unit["contender"].startswith("oft")
    fidelity = (0.7 if mine else 0.58) - off_the_best(unit)
    return subject_scores(
        unit["subject"], None, fidelity=fidelity, leaked=0.1 if mine else 0.4, speed=2.0 if mine else 1.0
    )


def off_the_best(unit: Unit) -> float:
    """In a tuning: how much is lost for not being the middle one of the first rates."""
    return 0.1 * (unit["stage"] == "tune" and unit["rate"] != CONTENDERS[unit["contender"]].rates[1])


def cost_of(unit: Unit) -> Cost:
    """52 pictures at the end, 30 on the way of a test, and a share of the base's own; five prompts in the sheet."""
    if unit["stage"] == "pictures":
        return cost("subject, LoRA", 0, 5 * len(DRAWN) * len(EVERYONE), sampling=WHOLE)
    return teaching(unit["contender"], pictures=82 if unit["stage"] == "test" else 52)


CLAIM = Claim(
    id="OFT-2",
    title="OFT learns a subject better than LoRA and DreamBooth at an equal budget",
    paper="Table 1: DINO .632 for OFT, .613 for LoRA, .614 for DreamBooth (25 subjects, Stable Diffusion 1.5); here: "
    "fidelity above that of LoRA with as many parameters and above DreamBooth's",
    goal="fidelity not worse than LoRA's by more than .03, and without prior preservation at most half of LoRA's "
    "leakage into the class",
    design=Design(
        resampled="subjects, each with a training seed of its own",
        margin="fidelity .03, leakage a tenth of LoRA's",
        half_width=0.092,
        pilot="of the fidelity difference to LoRA; 16 subjects with one seed, from the first round's 8 with three, "
        "which give .130; the paper's own gain is .019, so that a gain of that size stays undecided, as it would with "
        "24 subjects (.073)",
        seconds=lambda unit: cost_of(unit).seconds,
        basis=teaching("oft", pictures=82).words,
    ),
    units=units,
    run=run,
    judge=judge,
    null=null,
    oracle=oracle,
    measures=2,
)  # fmt: skip
