"""Shared by the claims about perfusion: contenders, one training, scores of a file at several biases or steps.

Subjects are those of `subjects.py`, shown with masks. Perfusion and textual inversion see four pictures a step, methods
that change weights two and two of the class. Learning rates of DreamBooth and textual inversion are those that OFT-2's
tuning chose, on the same data; perfusion and Custom Diffusion are tuned here in the same way.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fabricated import subject_scores
from judging import SubjectJudge, listed
from subjects import CONTENDERS as OFT_2
from subjects import TUNING_SUBJECTS, concept_of, quality, share
from subjects import chosen_rates as chosen_there
from torch import Generator

from diffadapt.adapters import Method, Perfusion, Selective, Token
from diffadapt.adapters.custom_diffusion import ROLES
from diffadapt.data.scenes import KIND_OF
from diffadapt.evidence import Contender, Context, Finished, Results, Unit, rates_to_try, tuned
from diffadapt.recipes.subject import train_subject
from diffadapt.run_layout import checkpoint_of
from diffadapt.sampling.sample import adapted, biased

STEPS, EVERY, SAMPLING_STEPS = 200, 50, 10
MARKS = tuple(range(EVERY, STEPS + 1, EVERY))
BIASES = (0.3, 0.45, 0.6, 0.75, 0.9, 1.05)


CONTENDERS = {
    "perfusion": Contender(method=Perfusion(), title="Perfusion", rates=(0.00375, 0.0075, 0.015)),
    "custom": Contender(method=Selective(), title="Custom Diffusion", rates=(1e-4, 2e-4, 4e-4), roles=ROLES),
    "dreambooth": Contender(method=Selective(), title=OFT_2["dreambooth"].title),
    "token": Contender(method=Token(vectors=2), title=OFT_2["token"].title),
}
TUNED = {name: contender for name, contender in CONTENDERS.items() if contender.rates}


def rates_of(results: Results) -> dict[str, float]:
    """Contender -> the rate that its tuning chose: the highest quality at the last step."""
    there = chosen_there(results.of("OFT-2"), OFT_2)
    return {name: there[name] for name in CONTENDERS if name not in TUNED} | {
        name: tuned(results.where(stage="tune", contender=name), quality_at_end) for name in TUNED
    }


def both(scores: dict[str, Any]) -> float:
    """The harmonic mean of mean fidelity and the share that was followed."""
    return quality(scores)


def followed(scores: dict[str, Any]) -> float:
    """The share of what was asked that is followed, of what perfect renderings reach."""
    return share(scores)


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


def score(
    judge: SubjectJudge, adapter: Path, bias: float | None = None, temperature: float | None = None
) -> dict[str, Any]:
    """Fidelity of a file's pictures and what was followed; `bias` and `temperature` are of perfusion's gate."""
    with (
        adapted(judge.base, [(adapter, 1.0)]) as attachments,
        biased(attachments, {} if bias is None else {judge.concept.token: bias}),
    ):
        for attachment in attachments if temperature else ():
            attachment.shared.temperature = temperature
        drawn = judge.draw(judge.asked, 1)
    return {
        "fidelity": listed(judge.fidelity(judge.encoder, drawn)),
        "fidelity_second": listed(judge.fidelity(judge.second, drawn)),
        "followed": judge.follows(drawn),
        "perfect": judge.perfect,
    }


def forgotten(judge: SubjectJudge, adapter: Path) -> dict[str, list[float]]:
    """Leakage into the class and drift of other pictures, as the claims about subjects measure it."""
    with adapted(judge.base, [(adapter, 1.0)]):
        return {
            "leaked": judge.leaked(judge.draw(judge.plain, 1)),
            **{f"drift_{name}": judge.drift(judge.draw(each, 1), name) for name, each in judge.others.items()},
        }


def checkpoint(folder: Path, step: int) -> Path:
    """The adapter after one of `MARKS` of the run in a folder."""
    return checkpoint_of(folder / "checkpoints", step) / "adapter.safetensors"


def at_marks(judge: SubjectJudge, folder: Path) -> dict[str, Any]:
    """Scores of the checkpoint at every mark, by step."""
    return {str(mark): score(judge, checkpoint(folder, mark)) for mark in MARKS}


def tuning_of(results: Results) -> list[Unit]:
    """The units of the tuning, as far as the results allow, on subjects of its own."""
    return [
        {"stage": "tune", "contender": name, "subject": noun, "rate": rate, "seed": 100}
        for noun in TUNING_SUBJECTS
        for name, contender in TUNED.items()
        for rate in rates_to_try(contender.rates, results.where(stage="tune", contender=name), quality_at_end)
    ]


def quality_at_end(each: Finished) -> float:
    """The quality at the last step of one run."""
    return both(each.scores["at_step"][str(STEPS)])


def fabricated(unit: Unit, generator: Generator | None, **means: float) -> dict[str, Any]:
    """The scores of a unit of PF-2 in a null or an oracle: the same at every step and bias."""
    off = 0.1 if unit["stage"] == "tune" and unit["rate"] != TUNED[unit["contender"]].rates[1] else 0.0
    means = {"fidelity": 0.5, "followed": 0.8} | means
    scores = subject_scores(unit["subject"], generator, **{**means, "fidelity": means["fidelity"] - off})
    one = {name: scores[name] for name in ("fidelity", "fidelity_second", "followed", "perfect")}
    at_bias = {f"{bias:g}": one for bias in BIASES} if unit["contender"] == "perfusion" else {}
    forgotten = {name: scores[name] for name in ("leaked", "drift_near", "drift_far")}
    return {"at_step": {str(mark): one for mark in MARKS}, "at_bias": at_bias, "bytes": 7_752, "forgotten": forgotten}
