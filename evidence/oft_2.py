"""OFT-2: OFT learns a subject better than LoRA and DreamBooth at an equal budget, with half of LoRA's drift."""

from pathlib import Path

from subjects import (
    CONTENDERS,
    ON_THE_WAY_STEPS,
    SUBJECTS,
    average,
    by_subject,
    chosen_rates,
    draw_sheet,
    subject_table,
    teach,
    train,
    tuning_units,
)

from diffadapt.evidence import Claim, Context, Results, Settings, Unit, Verdict
from diffadapt.metrics import interval_of_nested_mean, interval_of_nested_ratio

DRAWN = ("fox", "koala", "helicopter")


def units(results: Results, settings: Settings) -> list[Unit]:
    tuning = tuning_units(CONTENDERS)
    if len(results) < len(tuning):
        return tuning
    rates = chosen_rates(results, CONTENDERS)
    tests = [
        test_unit(noun, name, rates[name], seed) for seed in settings.seeds for noun in SUBJECTS for name in CONTENDERS
    ]
    sheet = {"stage": "pictures", "seed": settings.seeds[0], **{f"rate_{name}": rate for name, rate in rates.items()}}
    return tuning + tests + ([sheet] if len(results) >= len(tuning) + len(tests) else [])


def test_unit(noun: str, contender: str, rate: float, seed: int) -> Unit:
    return {"stage": "test", "contender": contender, "subject": noun, "rate": rate, "seed": seed}


def run(unit: Unit, context: Context) -> dict:
    if unit["stage"] == "pictures":
        adapters = {(noun, name): adapter_of(noun, name, unit, context) for noun in DRAWN for name in CONTENDERS}
        return {"picture": draw_sheet(context, adapters, {name: each.title for name, each in CONTENDERS.items()})}
    method = CONTENDERS[unit["contender"]].method
    on_the_way = ON_THE_WAY_STEPS if unit["stage"] == "test" else ()
    return teach(context, unit["subject"], method, unit["rate"], seed=unit["seed"], on_the_way=on_the_way)


def adapter_of(noun: str, contender: str, unit: Unit, context: Context) -> Path:
    """The adapter of one test; trained again where the test itself was run on another machine."""
    rate, seed = unit[f"rate_{contender}"], unit["seed"]
    folder = context.folder_of(test_unit(noun, contender, rate, seed))
    if not (folder / "adapter.safetensors").exists():
        train(context, noun, CONTENDERS[contender].method, rate, out=folder, seed=seed)
    return folder / "adapter.safetensors"


def judge(results: Results) -> Verdict:
    tested = results.where(stage="test")
    fidelity = {name: by_subject(tested, name, average("fidelity")) for name in ("oft", "lora")}
    drift = {name: by_subject(tested, name, average("drift_features")) for name in ("oft", "lora")}
    gain = interval_of_nested_mean(fidelity["oft"] - fidelity["lora"])
    ratio = interval_of_nested_ratio(drift["oft"], drift["lora"])
    met = gain.low >= 0 and ratio.high <= 0.5
    missed = gain.high < 0 or ratio.low > 0.5
    rates = ", ".join(f"{name} {rate:g}" for name, rate in chosen_rates(results, CONTENDERS).items())
    return Verdict(
        status="reproduced" if met else "not reproduced" if missed else "undecided",
        sentence=(
            "OFT's fidelity minus that of LoRA with as many parameters: "
            f"{gain.value:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}]; "
            f"drift over LoRA's: {ratio.value:.2f} [{ratio.low:.2f}, {ratio.high:.2f}]."
        ),
        tables=[subject_table(tested, CONTENDERS, f"learning rates chosen by tuning: {rates}")],
        pictures=[("subjects.png", "The same five prompts and the same noise for every contender, training seed 0")],
    )


CLAIM = Claim(
    id="OFT-2",
    title="OFT learns a subject better than LoRA and DreamBooth at an equal budget, and forgets less",
    paper="Table 1: DINO .632 for OFT, .613 for LoRA, .614 for DreamBooth (25 subjects, Stable Diffusion 1.5)",
    goal="fidelity at least that of LoRA with as many parameters and drift at most half of it, intervals included",
    units=units,
    run=run,
    judge=judge,
)
