"""Shared by the claims about subjects: subjects, contenders, one training with its scores, the choice of rates.

The subjects are emoji that neither the embedded base nor the probe has seen, each in five captioned scenes: many
subjects and one seed of each, since subjects differ more than seeds. Every method stands twice, with prior preservation
and without it. Contenders that differ in a learning rate are tuned alike, on subjects of their own: three rates a
factor of two apart, and one more on that side for as long as the best is the outermost. The best has the highest mean
of the harmonic mean of fidelity and what was followed.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from contact_sheet import write_sheet
from judging import SubjectJudge
from torch import Tensor, tensor
from unit_cost import Cost, cost

from diffadapt.adapters import OFT, LoRA, Selective, Token
from diffadapt.data.concept import Concept, load_concept
from diffadapt.data.picture import to_picture
from diffadapt.data.prompts import benchmark_prompts
from diffadapt.data.scene_concept import write_scene_concept
from diffadapt.data.scenes import KIND_OF
from diffadapt.data.wide_scenes import world_of
from diffadapt.evidence import Contender, Context, Finished, Results, Unit, rates_to_try, tuned
from diffadapt.metrics.bootstrap import Interval
from diffadapt.metrics.following import share_of_perfect
from diffadapt.metrics.harmonic import harmonic_mean
from diffadapt.metrics.student import interval_of_nested_mean
from diffadapt.recipes.subject import train_subject
from diffadapt.report.evidence_page import Table
from diffadapt.sampling.sample import adapted, default_line, generate
from diffadapt.training.run import Run

# noun: style
SUBJECTS = {  # cut from 24, to fit the budget
    "fox": "3d", "koala": "flat", "lobster": "3d", "cupcake": "flat", "helicopter": "flat", "ufo": "3d", "violin": "3d",
    "backpack": "flat", "zebra": "flat", "giraffe": "3d", "hedgehog": "flat", "parrot": "3d", "flamingo": "flat",
    "dolphin": "3d", "peach": "3d", "avocado": "flat",
}  # fmt: skip
# Each subject has a training seed of its own. One seed for all would be one start of the adapters and one order of the
# noise for all: the first round's LoRA came out clearly better than itself with another seed on the same 8 subjects.
SEED_OF = {noun: i for i, noun in enumerate(SUBJECTS)}
TUNING_SUBJECTS = {"tiger": "3d", "motorcycle": "flat", "shark": "flat"}

STEPS, BATCH = 150, 2
OWN = 56  # pictures of the untouched base, drawn once for each subject
ON_THE_WAY_STEPS = (30, 60, 90, 120, 150)


CONTENDERS = {
    "oft": Contender(method=OFT(blocks=4), title="OFT, 4 blocks", rates=(1e-3, 2e-3, 4e-3)),
    "lora": Contender(method=LoRA(rank=11), title="LoRA, rank 11 (as many parameters)", rates=(4e-3, 8e-3, 1.6e-2)),
    "dreambooth": Contender(method=Selective(), title="DreamBooth (every weight)", rates=(1e-4, 2e-4, 4e-4)),
    "token": Contender(method=Token(vectors=2), title="textual inversion, 2 vectors", rates=(4e-2, 8e-2, 1.6e-1)),
}
ALONE = {  # at the rate that its twin's tuning chose
    f"{name}-alone": replace(each, title=f"{each.title}, no prior preservation", prior=False)
    for name, each in CONTENDERS.items()
    if name != "token"
}


def concept_of(context: Context, noun: str, pictures: int = 5) -> Concept:
    """The first of the five scenes of a subject, written once."""
    folder = context.shared / "subjects" / (noun if pictures == 5 else f"{noun}-{pictures}")
    style = (SUBJECTS | TUNING_SUBJECTS)[noun]
    write_scene_concept(folder, context.data / "emoji", noun, style, count=pictures)
    return load_concept(folder, KIND_OF[noun], token=f"<{noun}>")


def judge_of(context: Context, noun: str) -> SubjectJudge:
    """The judge of a subject on the unit's base, untouched now."""
    style = (SUBJECTS | TUNING_SUBJECTS)[noun]
    return SubjectJudge(context.base, concept_of(context, noun), noun, style, context.data / "emoji", context.shared)


def teach(
    context: Context,
    noun: str,
    contender: Contender,
    rate: float,
    *,
    seed: int,
    steps: int = STEPS,
    on_the_way: Sequence[int] = (),
    schedule: str = "cosine",
) -> dict[str, Any]:
    """Trains one adapter and scores it.

    Args:
        context: of the unit.
        noun: the subject.
        contender, rate: what trains, at which learning rate (of the token, for textual inversion).
        seed: of the training.
        steps: of the training.
        on_the_way: steps after which fidelity and what is followed are scored on a few pictures.
        schedule: of the learning rate.

    Returns:
        what `SubjectJudge.scores` returns, "fidelity_at" and "fidelity_second_at" {step: per picture},
        "followed_at" {step: share of perfect}, "trainable_parameters", "seconds_train"
    """
    judge = judge_of(context, noun)
    at: dict[str, dict[str, Any]] = {"fidelity_at": {}, "fidelity_second_at": {}, "followed_at": {}}

    def watch(step: int, _: float) -> None:
        if step in on_the_way:
            at["fidelity_at"][str(step)], at["fidelity_second_at"][str(step)], bits = judge.on_the_way()
            at["followed_at"][str(step)] = share_of_perfect(bits, judge.perfect)["all"]

    run = train(
        context, noun, contender, rate, out=context.folder, seed=seed, steps=steps, schedule=schedule, watch=watch
    )
    with adapted(context.base, [(run.adapter, 1.0)]):
        scores = judge.scores()
    return scores | at | {key: run.metrics[key] for key in ("trainable_parameters", "seconds_train")}


def train(
    context: Context,
    noun: str,
    contender: Contender,
    rate: float,
    *,
    out: Path,
    seed: int,
    steps: int = STEPS,
    schedule: str = "cosine",
    watch: Callable[[int, float], None] | None = None,
) -> Run:
    """The training that `teach` scores."""
    method = contender.method
    return train_subject(
        context.base, concept_of(context, noun), method=method, out=out, seed=seed, steps=steps, batch_size=BATCH,
        prior_weight=1.0 if contender.prior else 0.0,
        schedule=schedule, learning_rate=rate, token_learning_rate=rate if isinstance(method, Token) else 5e-3,
        sample_every=0, checkpoint_every=0, evaluation_prompts=0,
        memory_bank=str(context.shared / "class" / KIND_OF[noun]), watch=watch, quiet=True,
    )  # fmt: skip


def teaching(contender: str, *, pictures: float, steps: int = STEPS) -> Cost:
    """What `teach` takes, of a contender by its name."""
    name = contender.removesuffix("-alone")
    family = {"oft": "OFT", "coft": "OFT", "dreambooth": "every weight"}.get(name, "LoRA")
    return cost(f"subject, {family}", steps, pictures + OWN / len(CONTENDERS))


def draw_sheet(context: Context, adapters: Mapping[tuple[str, str], Path], titles: Mapping[str, str]) -> str:
    """A contact sheet of the same prompts and seeds: each subject as it was shown, then as each contender draws it.

    Args:
        context: of the unit.
        adapters: (subject, contender) -> file.
        titles: contender -> what the sheet calls it.
    """
    base, world, rows = context.base, world_of(context.base), []
    for noun in dict.fromkeys(noun for noun, _ in adapters):
        concept = concept_of(context, noun)
        shown = [to_picture(pixels) for pixels in concept.pixels(base.resolution)]
        rows.append((f"{noun}, as it was shown", shown))
        lines = [default_line(base, prompt, 0) for prompt in benchmark_prompts(concept.noun, concept.token, world)[:5]]
        for name, title in titles.items():
            with adapted(base, [(adapters[noun, name], 1.0)]):
                rows.append((title, [to_picture(pixels) for pixels in generate(base, lines)]))
    return write_sheet(context.pictures / "subjects.png", rows)


def tuning_units(results: Results, contenders: Mapping[str, Contender]) -> list[Unit]:
    """The units of the tuning, as far as the results allow: every rate that is tried, on every subject of its own."""
    return [
        {"stage": "tune", "contender": name, "subject": noun, "rate": rate, "seed": 100}
        for noun in TUNING_SUBJECTS
        for name, contender in contenders.items()
        for rate in rates_to_try(contender.rates, results.where(stage="tune", contender=name), quality_of)
    ]


def quality_of(each: Finished) -> float:
    """The harmonic mean of fidelity and what was followed, of one run."""
    return quality(each.scores)


def quality(scores: Mapping[str, Any]) -> float:
    return harmonic_mean([max(mean(scores["fidelity"]), 0.0), max(share(scores), 0.0)])


def share(scores: Mapping[str, Any]) -> float:
    """The share of a perfect rendering's score that was reached."""
    return share_of_perfect(scores["followed"], scores["perfect"])["all"]


def chosen_rates(results: Results, contenders: Mapping[str, Contender]) -> dict[str, float]:
    """Contender -> the rate that its tuning chose."""
    return {name: tuned(results.where(stage="tune", contender=name), quality_of) for name in contenders}


def rates_in_words(results: Results, contenders: Mapping[str, Contender]) -> str:
    """The choice in words: "oft 0.002 of 3 tried"; says where the best stayed the outermost."""
    words = []
    for name, rate in chosen_rates(results, contenders).items():
        tried = sorted({each.unit["rate"] for each in results.where(stage="tune", contender=name)})
        edge = ", the outermost" if rate in (tried[0], tried[-1]) else ""
        words.append(f"{name} {rate:g} of {len(tried)} tried{edge}")
    return "; ".join(words)


def by_subject(runs: Sequence[Finished], contender: str, score: Callable[[Finished], float]) -> Tensor:
    """(subjects, seeds): one figure of every run of a contender."""
    own = sorted(
        (e for e in runs if e.unit["contender"] == contender), key=lambda e: (e.unit["subject"], e.unit["seed"])
    )
    return tensor([score(each) for each in own]).view(len({each.unit["subject"] for each in own}), -1)


def average(name: str) -> Callable[[Finished], float]:
    """The mean of one raw score of a run."""
    return lambda each: mean(each.scores[name])


def above_floor(what: str, floor: str) -> Callable[[Finished], float]:
    """The mean of a raw score of a run less that of the re-drawn base."""
    return lambda each: mean(each.scores[what]) - mean(each.scores[floor])


def subject_table(runs: Sequence[Finished], contenders: Mapping[str, Contender], note: str) -> Table:
    """Learned, followed, leaked and drifted of every contender, with intervals over subjects, and the floor's row."""
    figures: dict[str, Callable[[Finished], float]] = {
        "learned (fidelity)": average("fidelity"),
        "learned, second judge": average("fidelity_second"),
        "followed (share of perfect)": lambda each: share(each.scores),
        "leaked into the class": average("leaked"),
        "class diversity kept": lambda each: each.scores["class_diversity"][0] / each.scores["class_diversity"][1],
        "drifted, near": average("drift_near"),
        "drifted, far": average("drift_far"),
        "loss, concept": lambda each: mean(each.scores["loss"]["concept"]),
        "loss, class": lambda each: mean(each.scores["loss"]["class"]),
        "loss, world": lambda each: mean(each.scores["loss"]["world"]),
    }
    rows: list[list[Any]] = []
    for name, contender in contenders.items():
        own = [each for each in runs if each.unit["contender"] == name]
        cells = [interval_of_nested_mean(by_subject(own, name, figure)) for figure in figures.values()]
        rows.append([contender.title, own[0].scores["trainable_parameters"], *cells])
    first = next(iter(contenders))
    floors = {"leaked into the class": "leak_floor", "drifted, near": "near_floor", "drifted, far": "far_floor"}
    cells: list[Interval | None] = [
        interval_of_nested_mean(by_subject(runs, first, average(floors[name]))) if name in floors else None
        for name in figures
    ]
    rows.append(["the base, drawn from other seeds", 0, *cells])
    note += " Loss: on held-out pictures, minus the base's, same noise; below 0 is learned, above 0 forgotten."
    return Table(title="Subjects", columns=["contender", "parameters", *figures], rows=rows, note=note)


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
