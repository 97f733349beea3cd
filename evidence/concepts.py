"""What the claims about perfusion share: contenders, one training, scores of a file at several biases or steps.

Subjects are those of `subjects.py`, shown with masks. Perfusion and textual inversion see four pictures a step, methods
that change weights two and two of the class. Learning rates of DreamBooth and textual inversion are those that OFT-2's
tuning chose, on the same data; perfusion and Custom Diffusion are tuned here in the same way, moved by one like them.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from subjects import CONTENDERS as OFT_2
from subjects import chosen_rates as chosen_there
from subjects import concept_of, listed, mean

from diffadapt.adapters import Method, Perfusion, Selective, Token
from diffadapt.adapters.custom_diffusion import ROLES
from diffadapt.bases import Base
from diffadapt.data.concept import Concept
from diffadapt.data.prompts import benchmark_prompts, drift_prompts, spread
from diffadapt.data.scenes import KIND_OF, world_of
from diffadapt.evidence import Context, Results, Unit
from diffadapt.metrics.alignment import text_alignment
from diffadapt.metrics.drift import drift_pixels
from diffadapt.metrics.features import load_features
from diffadapt.metrics.fidelity import subject_fidelity
from diffadapt.metrics.harmonic import harmonic_mean
from diffadapt.recipes.subject import train_subject
from diffadapt.sampling.sample import adapted, biased, default_line, generate
from diffadapt.training.checkpoint import place_of

STEPS, EVERY, PROMPTS, DRIFT_PROMPTS, SAMPLING_STEPS = 200, 50, 12, 8, 10
MARKS = tuple(range(EVERY, STEPS + 1, EVERY))
BIASES = (0.3, 0.45, 0.6, 0.75, 0.9, 1.05)


class Contender(NamedTuple):
    """A method, its roles (none: its own), the rates that its tuning tries (none: tuned by OFT-2), and its title."""

    method: Method
    roles: tuple[str, ...]
    rates: tuple[float, ...]
    title: str


CONTENDERS = {
    "perfusion": Contender(Perfusion(), (), (0.0075, 0.015, 0.03), "Perfusion"),
    "custom": Contender(Selective(), ROLES, (1e-4, 2e-4, 4e-4), "Custom Diffusion"),
    "dreambooth": Contender(Selective(), (), (), OFT_2["dreambooth"].title),
    "token": Contender(Token(vectors=2), (), (), OFT_2["token"].title),
}
TUNED = {name: contender for name, contender in CONTENDERS.items() if contender.rates}


def rates_of(results: Results) -> dict[str, float]:
    """Contender -> the rate that its tuning chose: the highest mean of the harmonic mean at the last step."""

    def quality(name: str, rate: float) -> float:
        runs = results.where(stage="tune", contender=name, rate=rate)
        return mean([both(each.scores["at_step"][str(STEPS)]) for each in runs])

    there = chosen_there(results.of("OFT-2"), OFT_2)
    return {name: there[name] for name in CONTENDERS if name not in TUNED} | {
        name: max(contender.rates, key=lambda rate, name=name: quality(name, rate)) for name, contender in TUNED.items()
    }


def both(scores: dict[str, list[float]]) -> float:
    """The harmonic mean of mean fidelity and mean alignment."""
    return harmonic_mean([max(mean(scores[name]), 0.0) for name in ("fidelity", "alignment")])


def train(
    context: Context,
    noun: str,
    method: Method,
    rate: float,
    *,
    seed: int,
    out: Path,
    roles: Sequence[str] = (),
    masked: bool = True,
    pictures: int = 5,
) -> Path:
    """Trains one concept, if it is not there; returns the run's folder with a checkpoint at every mark.

    Args:
        context: of the unit.
        noun: the subject.
        method, roles: what trains.
        rate: of the layers; perfusion's word learns at a fifth of it, textual inversion's at the rate itself.
        seed: of the training.
        out: the run's folder.
        masked: count the loss where the subject is; only for perfusion.
        pictures: how many of the subject's five are shown.
    """
    if (out / "adapter.safetensors").exists():
        return out
    light = isinstance(method, Perfusion | Token)
    word = {Perfusion: rate / 5, Token: rate}.get(type(method), 5e-3)
    train_subject(
        context.base, concept_of(context, noun, pictures), method=method, out=out, seed=seed, steps=STEPS,
        batch_size=4 if light else 2, prior_weight=0.0 if light else 1.0, learning_rate=rate, token_learning_rate=word,
        roles=tuple(roles), masked=masked and isinstance(method, Perfusion),
        weight_decay=0.0 if light else 1e-2, schedule="constant" if isinstance(method, Perfusion) else "cosine",
        checkpoint_every=EVERY, keep_checkpoints=0, sample_every=0, evaluation_prompts=0,
        memory_bank=str(context.shared / "class" / KIND_OF[noun]), quiet=True,
    )  # fmt: skip
    return out


class Judge:
    """Scores files of one concept, always with the same prompts and seeds.

    Args:
        base: the untouched base.
        concept: what was learned.
        alone: whether its word stands for the noun.
    """

    def __init__(self, base: Base, concept: Concept, *, alone: bool) -> None:
        self.base, self.encoder = base, load_features("probe")
        self.concept = concept.standing_alone() if alone else concept
        self.mine = self.encoder.subjects(concept.pixels(base.resolution))
        world = world_of(base)
        self.asked = self.concept.said(spread(benchmark_prompts(concept.noun, concept.token, world), PROMPTS))
        self.texts = self.encoder.texts(spread(benchmark_prompts(concept.noun, "", world), PROMPTS))
        self.unrelated = drift_prompts(world, DRIFT_PROMPTS, 0, without=concept.noun)

    def score(
        self, adapter: Path, bias: float | None = None, temperature: float | None = None
    ) -> dict[str, list[float]]:
        """Fidelity and alignment of each picture; `bias` and `temperature` are of perfusion's gate."""
        lines = [default_line(self.base, prompt, i, steps=SAMPLING_STEPS) for i, prompt in enumerate(self.asked)]
        with (
            adapted(self.base, [(adapter, 1.0)]) as attachments,
            biased(attachments, {} if bias is None else {self.concept.token: bias}),
        ):
            for attachment in attachments if temperature else ():
                attachment.shared.temperature = temperature
            pixels = torch.stack(generate(self.base, lines))
        return {
            "fidelity": listed(subject_fidelity(self.encoder.subjects(pixels), self.mine)),
            "alignment": listed(text_alignment(self.encoder.pictures(pixels), self.texts)),
        }

    def drift(self, adapter: Path) -> list[float]:
        """Root mean square change of unrelated pictures."""
        lines = [default_line(self.base, prompt, i, steps=SAMPLING_STEPS) for i, prompt in enumerate(self.unrelated)]
        before = torch.stack(generate(self.base, lines))
        with adapted(self.base, [(adapter, 1.0)]):
            return listed(drift_pixels(torch.stack(generate(self.base, lines)), before))


def checkpoint(folder: Path, step: int) -> Path:
    """The adapter after one of `MARKS` of the run in a folder."""
    return place_of(folder / "checkpoints", step) / "adapter.safetensors"


def at_marks(judge: Judge, folder: Path) -> dict[str, Any]:
    """Scores of the checkpoint at every mark, by step."""
    return {str(mark): judge.score(checkpoint(folder, mark)) for mark in MARKS}


def tuning_units() -> list[Unit]:
    """Three rates, two subjects, one seed for every contender that is tuned here."""
    return [
        {"stage": "tune", "contender": name, "subject": noun, "rate": rate, "seed": 100}
        for noun in ("tiger", "motorcycle")
        for name, contender in TUNED.items()
        for rate in contender.rates
    ]
