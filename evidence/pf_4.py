"""PF-4: locked keys help alignment, and one picture is enough; with the paper's other ablations beside them.

Every variant learns at the rate that PF-2's tuning chose for perfusion; as published it is PF-2's own training.
"""

from pathlib import Path
from typing import Any, NamedTuple

import pf_2
from concepts import Judge, train
from contact_sheet import write_sheet
from subjects import by_subject, concept_of, mean

from diffadapt.adapters import Perfusion
from diffadapt.data.picture import to_picture
from diffadapt.data.prompts import benchmark_prompts, spread
from diffadapt.data.scenes import world_of
from diffadapt.evidence import Claim, Context, Finished, Results, Settings, Table, Unit, Verdict
from diffadapt.metrics import Interval, interval_of_nested_mean, interval_of_nested_ratio
from diffadapt.sampling.sample import adapted, default_line, generate

SUBJECTS = ("fox", "koala", "helicopter", "violin")
DRAWN = ("fox", "violin")
BIAS = 0.65  # the default
TEMPERATURES = (0.1, 0.15, 0.25)


class Variant(NamedTuple):
    """What differs from the paper's setting, and how tables call it."""

    title: str
    method: Perfusion = Perfusion()
    masked: bool = True
    pictures: int = 5


VARIANTS = {
    "locked": Variant("as published: local lock, masks, five pictures"),
    "global": Variant("global lock", Perfusion(key_lock="global")),
    "trained": Variant("trained keys", Perfusion(key_lock="trained")),
    "unmasked": Variant("without masks", masked=False),
    "one": Variant("one picture", pictures=1),
    "early": Variant("training bias 0.5", Perfusion(train_bias=0.5)),
    "late": Variant("training bias 0.9", Perfusion(train_bias=0.9)),
}


def units(results: Results, settings: Settings) -> list[Unit]:
    trained_there = results.of("PF-2").where(stage="test", contender="perfusion")
    if not trained_there:
        return []
    rate = trained_there[0].unit["rate"]
    tests = [test_unit(noun, name, rate, seed) for seed in settings.seeds for noun in SUBJECTS for name in VARIANTS]
    return [*tests, {"stage": "pictures", "rate": rate, "seed": settings.seeds[0]}]


def test_unit(noun: str, variant: str, rate: float, seed: int) -> Unit:
    return {"stage": "test", "variant": variant, "subject": noun, "rate": rate, "seed": seed}


def run(unit: Unit, context: Context) -> dict[str, Any]:
    if unit["stage"] == "pictures":
        return {"picture": draw_sheet(unit, context)}
    noun, folder = unit["subject"], trained(unit, context)
    judge = Judge(context.base, concept_of(context, noun), alone=True)
    adapter = folder / "adapter.safetensors"
    scores: dict[str, Any] = {"0.15": judge.score(adapter, BIAS)}
    if unit["variant"] == "locked":
        for temperature in TEMPERATURES:
            scores[f"{temperature:g}"] = judge.score(adapter, BIAS, temperature)
    return scores


def trained(unit: Unit, context: Context) -> Path:
    """The run of one test, trained if it is not there."""
    variant, noun, rate, seed = VARIANTS[unit["variant"]], unit["subject"], unit["rate"], unit["seed"]
    if unit["variant"] == "locked":
        return pf_2.trained(context, noun, "perfusion", rate, seed)
    return train(
        context, noun, variant.method, rate, seed=seed, out=context.folder_of(unit), masked=variant.masked,
        pictures=variant.pictures,
    )  # fmt: skip


def draw_sheet(unit: Unit, context: Context) -> str:
    """Two subjects as they were shown, then as every variant draws them: the same prompts and noise."""
    base, rows = context.base, []
    for noun in DRAWN:
        concept = concept_of(context, noun).standing_alone()
        shown = concept_of(context, noun).pixels(base.resolution)
        rows.append((f"{noun}, as it was shown", [to_picture(pixels) for pixels in shown]))
        prompts = spread(benchmark_prompts(concept.noun, concept.token, world_of(base)), 8)
        lines = [default_line(base, prompt, i) for i, prompt in enumerate(concept.said(prompts))]
        for name, variant in VARIANTS.items():
            file = trained(test_unit(noun, name, unit["rate"], unit["seed"]), context) / "adapter.safetensors"
            with adapted(base, [(file, 1.0)]):
                rows.append((variant.title, [to_picture(pixels) for pixels in generate(base, lines)]))
    return write_sheet(context.pictures / "variants.png", rows)


def figure(results: Results, variant: str, name: str, temperature: str = "0.15"):
    """(subjects, seeds): the mean of one score of every run of a variant."""
    runs = [
        Finished({**e.unit, "contender": e.unit["variant"]}, e.scores, e.seconds) for e in results.where(stage="test")
    ]
    return by_subject(runs, variant, lambda each: mean(each.scores[temperature][name]))


def judge(results: Results) -> Verdict:
    def row(title: str, variant: str, temperature: str = "0.15") -> list[Any]:
        values = [figure(results, variant, name, temperature) for name in ("fidelity", "alignment")]
        own = [figure(results, "locked", name) for name in ("fidelity", "alignment")]
        gains: list[Interval | None] = [interval_of_nested_mean(a - b) for a, b in zip(values, own, strict=True)]
        if title == VARIANTS["locked"].title:
            gains = [None, None]
        return [title, *(interval_of_nested_mean(value) for value in values), *gains]

    rows = [row(variant.title, name) for name, variant in VARIANTS.items()]
    rows += [row(f"inference temperature {t:g}", "locked", f"{t:g}") for t in TEMPERATURES if t != 0.15]
    lock = interval_of_nested_mean(figure(results, "locked", "alignment") - figure(results, "trained", "alignment"))
    shown = interval_of_nested_ratio(figure(results, "one", "fidelity"), figure(results, "locked", "fidelity"))
    met, missed = lock.low > 0 and shown.low >= 0.9, lock.high <= 0 or shown.high < 0.9
    return Verdict(
        status="reproduced" if met else "not reproduced" if missed else "undecided",
        sentence=(
            "Alignment with locked keys minus with trained ones: "
            f"{lock.value:+.3f} [{lock.low:+.3f}, {lock.high:+.3f}]; "
            f"fidelity from one picture over that from five: {shown.value:.2f} [{shown.low:.2f}, {shown.high:.2f}]."
        ),
        tables=[
            Table(
                title="Ablations",
                columns=["variant", "fidelity", "alignment", "fidelity gained", "alignment gained"],
                rows=rows,
                note=f"Four subjects and the seeds, bias {BIAS}; gained over the first row.",
            )
        ],
        pictures=[("variants.png", "The same eight prompts and noise for every variant, training seed 0")],
    )


CLAIM = Claim(
    id="PF-4",
    title="Locked keys help alignment, and one picture is enough",
    paper="Figure 9: locking moves the curve to better alignment, masks too; one picture overfits slightly; a higher "
    "training bias and an inference temperature of about 0.15 are better",
    goal="alignment above that of trained keys, interval clear of zero; one picture within 10 % of all",
    units=units,
    run=run,
    judge=judge,
    uses=("PF-2",),
)
