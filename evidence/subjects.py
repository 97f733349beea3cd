"""What the claims about subjects share: subjects, contenders, one training with its scores, the choice of rates.

The subjects are emoji that neither the embedded base nor the probe has seen, each in five captioned scenes. Contenders
that differ in a learning rate are tuned alike: three rates a factor of two apart, two subjects of their own, one seed;
the rate with the highest mean of the harmonic mean of fidelity and alignment is taken. Where that was the outermost of
the three, the three were moved by one in its direction, once, before any test that is kept was run.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from contact_sheet import write_sheet
from torch import Tensor

from diffadapt.adapters import OFT, LoRA, Method, Selective, Token
from diffadapt.bases import Base
from diffadapt.data.concept import Concept, load_concept
from diffadapt.data.picture import to_picture
from diffadapt.data.prompts import benchmark_prompts, drift_prompts, spread
from diffadapt.data.scene_concept import write_scene_concept
from diffadapt.data.scenes import KIND_OF, world_of
from diffadapt.evidence.context import Context
from diffadapt.evidence.results import Finished, Results, Unit
from diffadapt.files import load_tensors, save_tensors
from diffadapt.metrics.alignment import text_alignment
from diffadapt.metrics.bootstrap import interval_of_nested_mean
from diffadapt.metrics.diversity import diversity
from diffadapt.metrics.drift import drift_features, drift_pixels
from diffadapt.metrics.features import load_features
from diffadapt.metrics.fidelity import subject_fidelity
from diffadapt.metrics.harmonic import harmonic_mean
from diffadapt.recipes.subject import train_subject
from diffadapt.report.evidence_page import Table
from diffadapt.sampling.sample import adapted, default_line, generate
from diffadapt.training.run import Run

# noun: style
SUBJECTS = {
    "fox": "3d", "koala": "flat", "lobster": "3d", "cupcake": "flat", "helicopter": "flat", "ufo": "3d", "violin": "3d",
    "backpack": "flat",
}  # fmt: skip
TUNING_SUBJECTS = {"tiger": "3d", "motorcycle": "flat"}

STEPS, BATCH = 150, 2
ON_THE_WAY_STEPS = (30, 60, 90, 120, 150)
PROMPTS, PER_PROMPT, DRIFT_PROMPTS, ON_THE_WAY, SAMPLING_STEPS = 12, 2, 16, 6, 10


class Contender(NamedTuple):
    """A method, the learning rates that its tuning tries, and how tables call it."""

    method: Method
    rates: tuple[float, float, float]
    title: str


CONTENDERS = {
    "oft": Contender(OFT(blocks=4), (1e-3, 2e-3, 4e-3), "OFT, 4 blocks"),
    "lora": Contender(LoRA(rank=11), (4e-3, 8e-3, 1.6e-2), "LoRA, rank 11 (as many parameters)"),
    "lora-4": Contender(LoRA(rank=4), (8e-3, 1.6e-2, 3.2e-2), "LoRA, rank 4"),
    "dreambooth": Contender(Selective(), (1e-4, 2e-4, 4e-4), "DreamBooth (every weight)"),
    "token": Contender(Token(vectors=2), (2e-2, 4e-2, 8e-2), "textual inversion, 2 vectors"),
}


def concept_of(context: Context, noun: str, pictures: int = 5) -> Concept:
    """The first of the five scenes of a subject, written once."""
    folder = context.shared / "subjects" / (noun if pictures == 5 else f"{noun}-{pictures}")
    style = (SUBJECTS | TUNING_SUBJECTS)[noun]
    write_scene_concept(folder, context.data / "emoji", noun, style, count=pictures)
    return load_concept(folder, KIND_OF[noun], token=f"<{noun}>")


def teach(
    context: Context,
    noun: str,
    method: Method,
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
        method, rate: what trains, at which learning rate (of the token, for textual inversion).
        seed: of the training and of the pictures.
        steps: of the training.
        on_the_way: steps after which fidelity and alignment are scored on a few pictures.
        schedule: of the learning rate.

    Returns:
        raw scores: "fidelity", "alignment" per picture, "diversity" per prompt, "drift_features" and "drift_pixels" per
        unrelated prompt, "fidelity_at" {step: per picture}, "alignment_at" likewise, "trainable_parameters",
        "seconds_train"
    """
    base, concept = context.base, concept_of(context, noun)
    judge = Judge(base, concept, context.shared)
    at: dict[str, dict[str, list[float]]] = {"fidelity_at": {}, "alignment_at": {}}

    def watch(step: int, _: float) -> None:
        if step in on_the_way:
            fidelity, alignment = judge.subject(ON_THE_WAY, 1)
            at["fidelity_at"][str(step)], at["alignment_at"][str(step)] = listed(fidelity), listed(alignment)

    run = train(context, noun, method, rate, out=context.folder, seed=seed, steps=steps, schedule=schedule, watch=watch)
    with adapted(base, [(run.adapter, 1.0)]):
        scores = judge.scores()
    facts = {key: run.metrics[key] for key in ("trainable_parameters", "seconds_train")}
    return {key: listed(value) for key, value in scores.items()} | at | facts


def train(
    context: Context,
    noun: str,
    method: Method,
    rate: float,
    *,
    out: Path,
    seed: int,
    steps: int = STEPS,
    schedule: str = "cosine",
    watch: Callable[[int, float], None] | None = None,
) -> Run:
    """The training that `teach` scores."""
    return train_subject(
        context.base, concept_of(context, noun), method=method, out=out, seed=seed, steps=steps, batch_size=BATCH,
        schedule=schedule, learning_rate=rate, token_learning_rate=rate if isinstance(method, Token) else 5e-3,
        sample_every=0, checkpoint_every=0, evaluation_prompts=0,
        memory_bank=str(context.shared / "class" / KIND_OF[noun]), watch=watch, quiet=True,
    )  # fmt: skip


class Judge:
    """Scores whatever is attached to a base now.

    Args:
        base: the base; with nothing attached when this is made for the first time.
        concept: the subject.
        shared: folder where the untouched base's pictures are kept.
    """

    def __init__(self, base: Base, concept: Concept, shared: Path) -> None:
        self.base, self.encoder = base, load_features("probe")
        self.mine = self.encoder.subjects(concept.pixels(base.resolution))
        world = world_of(base)
        self.asked, self.plain = (benchmark_prompts(concept.noun, token, world) for token in (concept.token, ""))
        self.unrelated = drift_prompts(world, DRIFT_PROMPTS, 0, without=concept.noun)
        kept = shared / f"drift-{concept.noun}-{base.fingerprint.split(':')[-1][:8]}.safetensors"
        if not kept.exists():
            save_tensors(kept, {"pixels": torch.stack(self._draw(self.unrelated, 1))}, {})
        self.before = load_tensors(kept)[0]["pixels"]

    def scores(self) -> dict[str, Tensor]:
        """Every figure of the final adapter."""
        pixels = torch.stack(self._draw(spread(self.asked, PROMPTS), PER_PROMPT))
        rows = self.encoder.subjects(pixels)
        texts = self.encoder.texts([prompt for prompt in spread(self.plain, PROMPTS) for _ in range(PER_PROMPT)])
        after = torch.stack(self._draw(self.unrelated, 1))
        return {
            "fidelity": subject_fidelity(rows, self.mine),
            "alignment": text_alignment(self.encoder.pictures(pixels), texts),
            "diversity": diversity(rows, torch.arange(PROMPTS).repeat_interleave(PER_PROMPT)),
            "drift_features": drift_features(self.encoder.pictures(after), self.encoder.pictures(self.before)),
            "drift_pixels": drift_pixels(after, self.before),
        }

    def subject(self, prompts: int, per_prompt: int) -> tuple[Tensor, Tensor]:
        """Fidelity and alignment of each picture of a few prompts."""
        pixels = torch.stack(self._draw(spread(self.asked, prompts), per_prompt))
        texts = self.encoder.texts([prompt for prompt in spread(self.plain, prompts) for _ in range(per_prompt)])
        fidelity = subject_fidelity(self.encoder.subjects(pixels), self.mine)
        return fidelity, text_alignment(self.encoder.pictures(pixels), texts)

    def _draw(self, prompts: Sequence[str], per_prompt: int) -> list[Tensor]:
        lines = [default_line(self.base, p, i, steps=SAMPLING_STEPS) for p in prompts for i in range(per_prompt)]
        return generate(self.base, lines)


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


def tuning_units(claim_contenders: Mapping[str, Contender]) -> list[Unit]:
    """Three rates, two subjects, one seed for every contender."""
    return [
        {"stage": "tune", "contender": name, "subject": noun, "rate": rate, "seed": 100}
        for noun in TUNING_SUBJECTS
        for name, contender in claim_contenders.items()
        for rate in contender.rates
    ]


def chosen_rates(results: Results, claim_contenders: Mapping[str, Contender]) -> dict[str, float]:
    """Contender -> the rate that its tuning chose."""

    def quality(name: str, rate: float) -> float:
        runs = [each.scores for each in results.where(stage="tune", contender=name, rate=rate)]
        return mean([harmonic_mean([max(mean(run["fidelity"]), 0.0), mean(run["alignment"])]) for run in runs])

    return {
        name: max(contender.rates, key=lambda rate, name=name: quality(name, rate))
        for name, contender in claim_contenders.items()
    }


def by_subject(runs: Sequence[Finished], contender: str, score: Callable[[Finished], float]) -> Tensor:
    """(subjects, seeds): one figure of every run of a contender."""
    own = sorted(
        (e for e in runs if e.unit["contender"] == contender), key=lambda e: (e.unit["subject"], e.unit["seed"])
    )
    return torch.tensor([score(each) for each in own]).view(len({each.unit["subject"] for each in own}), -1)


def average(name: str) -> Callable[[Finished], float]:
    """The mean of one raw score of a run."""
    return lambda each: mean(each.scores[name])


def subject_table(runs: Sequence[Finished], contenders: Mapping[str, Contender], note: str) -> Table:
    """Every figure of every contender, with intervals over subjects and seeds."""
    names = ("fidelity", "alignment", "diversity", "drift_features", "drift_pixels")
    rows = []
    for name, contender in contenders.items():
        own = [each for each in runs if each.unit["contender"] == name]
        cells = [interval_of_nested_mean(by_subject(own, name, average(figure))) for figure in names]
        seconds = mean([each.scores["seconds_train"] for each in own])
        rows.append([contender.title, own[0].scores["trainable_parameters"], *cells, round(seconds, 1)])
    columns = ["contender", "parameters", *(name.replace("_", " ") for name in names), "seconds"]
    return Table(title="Subjects", columns=columns, rows=rows, note=note)


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def listed(values: Tensor) -> list[float]:
    """Five digits are more than any score is good for."""
    return [round(float(value), 5) for value in values]
