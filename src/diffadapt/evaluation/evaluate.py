"""Measures what an adapted base learned and what it forgot.

Protocol, after the DreamBooth benchmark (Ruiz et al. 2022, section 4): 25 prompts that put the subject into other
contexts, 4 pictures each, seeds fixed. Beside it, always, what was forgotten: the base's own pictures of the class and
of what has nothing to do with the concept against the adapted ones, same seeds, and its loss on them, same noise.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from ..adapters import Attachment
from ..bases import Base
from ..data.asked import asked_of
from ..data.cache import TensorCache
from ..data.concept import Concept
from ..data.picture import to_picture, write_png
from ..data.wide_scenes import world_of
from ..errors import Refused
from ..metrics.drift import drift_pixels
from ..metrics.features import Features, ProbeFeatures
from ..metrics.questions import Questions
from ..progress import Steps
from ..sampling.sample import LAST_SEED, adapted, biased
from .agreement import FIGURES, SECOND, agreement
from .figure import figure
from .forgetting import about_its_kind, pictures_forgotten
from .geometry import movement
from .held_out_loss import LossSet, loss_by_level, loss_figures, losses
from .judge import Judge, class_prompt_count, load_encoders
from .prompt_following import drawable, following, perfect_pictures


def evaluate(
    base: Base,
    concept: Concept,
    *,
    adapters: Sequence[tuple[str | Path | Attachment, float]],
    bias: Mapping[str, float] | None = None,
    out: str | Path | None = None,
    prompts: int = 25,
    per_prompt: int = 4,
    drift_count: int = 25,
    seed: int = 0,
    features: Sequence[str] = (),
    questions: str | None = None,
    steps: int | None = None,
    kept: TensorCache | None = None,
    quiet: bool = True,
) -> "Evaluation":
    """Subject fidelity, text alignment, diversity and drift, each with its interval and the untouched base's figure.

    Args:
        base: a loaded base.
        concept: the subject; its pictures are the reference.
        adapters: (file or attachment, strength) pairs.
        bias: word of a concept -> bias of its gate, for perfusion, as in `sample`.
        out: folder for the drift pictures; None keeps none.
        prompts, per_prompt: how many of the benchmark's 25 prompts, and pictures of each (2 or more for diversity).
        drift_count: how many unrelated prompts, one picture each.
        seed: picture i of a prompt starts from seed + i, for the base and the adapted base alike.
        features: encoders by name ("probe", "second", "clip:...", "dino:..."); empty means probe and second judge
            on the embedded base, else CLIP ViT-B/32 and DINO ViT-S/16 from the hub as the paper's protocol has them.
        questions: hub id or folder of a model that answers questions about pictures, see `metrics.questions`.
        steps: denoising steps; None means the base's default.
        kept: where the untouched base's pictures, three fifths of all, are kept for the next adapter that is measured
            by the same prompts; None draws them anew.
        quiet: show no progress.

    Returns:
        what `metrics.json` holds: "values" {name: {value, low, high, n, base, better, unit, meaning}}, "per_picture"
        [{prompt, seed, and its score by each figure that has one}], "features", "protocol", "held_out_loss" by noise
        level, "drift_pictures", and what `geometry.movement` returns; its `pictures` are those of "per_picture"

    Raises:
        Refused: an encoder cannot be loaded, the adapter does not fit, or something else is attached and on.
    """
    given = [id(adapter) for adapter, _ in adapters]
    if any(each.enabled and each.strength and id(each) not in given for each in base.attachments):
        raise Refused(
            "something is attached to the base, and on, that is not among the adapters to measure, so that the base "
            "is not untouched; pass it with its strength, switch it off, or detach it"
        )
    if prompts < 1 or per_prompt < 1 or drift_count < 1:
        raise Refused(
            f"evaluation needs 1 or more prompts, pictures and drift prompts; got {prompts, per_prompt, drift_count}"
        )
    if not 0 <= seed <= LAST_SEED or (steps is not None and steps < 1):
        raise Refused(f"expected a seed from 0 to {LAST_SEED} and 1 or more steps; got {seed} and {steps}")
    encoders = load_encoders(base, features)
    asked = Questions(questions, device=base.device) if questions else None
    judge = Judge(
        base, concept, prompts=prompts, per_prompt=per_prompt, unrelated=drift_count, seed=seed, steps=steps
    )  # fmt: skip
    judge.kept = kept
    judge.bar = Steps("evaluate", picture_count(prompts, per_prompt, drift_count), quiet=quiet)
    with judge.bar:
        with adapted(base, [(a, 0.0) for a, _ in adapters if isinstance(a, Attachment)]):
            before = _Drawn(judge.of_prompts_alone(), judge.of_class(), judge.of_unrelated())
            redrawn = _Drawn(before.benchmark, judge.of_class(redrawn=True), judge.of_unrelated(redrawn=True))
            sets = _loss_sets(base, concept, judge, before)
            without_token = sets | {"concept": sets["concept"]._replace(prompts=concept.class_captions())}
            losses_before = losses(base, without_token, seed=seed)
        with adapted(base, adapters) as attachments, biased(attachments, bias or {}):
            prompted = judge.asked  # what is attached now says how the concept is named
            after = _Drawn(judge.of_concept(), judge.of_class(), judge.of_unrelated())
            sets["concept"] = sets["concept"]._replace(prompts=judge.named.captions())
            losses_after = losses(base, sets, seed=seed)
            moved = movement(attachments)

    values: dict[str, dict[str, Any]] = {}
    rows = [
        {"prompt": prompt, "seed": seed + i} for prompt in prompted for i in range(per_prompt)
    ]  # one for each picture of the concept
    first = [encoder for encoder in encoders if encoder.name != SECOND]
    kinds = [encoder.name.split(":")[0] for encoder in first]
    for encoder in encoders:
        kind = encoder.name.split(":")[0]
        suffix = f" ({kind if kinds.count(kind) < 2 else encoder.name})"
        suffix = suffix if len(first) > 1 or encoder.name == SECOND else ""
        figures, scores = _feature_values(judge, encoder, prompted, before, after, redrawn)
        for name, row in figures.items():
            if encoder.name != SECOND or name in FIGURES:
                values[name + suffix] = row
        for name, each in scores.items():
            for row, score in zip(rows, each.tolist(), strict=True):
                row[name + suffix] = score
    for encoder in encoders:
        if encoder.name == SECOND and first:
            drawn = (after.benchmark, before.benchmark)
            values["judges_agree"] = agreement(judge, first[0], encoder, drawn, seed=seed)
    if asked:
        plain = [prompt for prompt in judge.plain for _ in range(per_prompt)]
        yes, before_yes = (asked.yes(each.benchmark, plain) for each in (after, before))
        values["says_yes"] = figure(
            yes, before_yes, "higher", f"how sure {asked.source} is that the picture shows its prompt (probability of "
            "yes)", groups=judge.groups, seed=seed, kind="alignment",
        )  # fmt: skip
    values |= loss_figures(sets, losses_after, losses_before, seed=seed)
    values["drift_pixels"] = figure(
        drift_pixels(after.unrelated, before.unrelated), None, "lower", "root mean square change of unrelated "
        "pictures, same prompt and seed; one grey level of 255 is 0.0039", seed=seed,
    )  # fmt: skip
    pictures = _keep_drift_pictures(Path(out), judge.unrelated, before.unrelated, after.unrelated) if out else []
    measured = {
        "values": values,
        "per_picture": rows,
        "features": ", ".join(encoder.name for encoder in encoders),
        "protocol": {"prompts": len(judge.plain), "per_prompt": per_prompt, "drift_prompts": drift_count, "seed": seed},
        "held_out_loss": loss_by_level(losses_after, losses_before),
        "drift_pictures": pictures,
        **moved,
    }
    return Evaluation(measured, [to_picture(pixels) for pixels in after.benchmark])


class Evaluation(dict[str, Any]):
    """The figures of `evaluate` as `metrics.json` holds them, and the pictures that they are of.

    Attributes:
        pictures: PIL pictures of the concept, in the order of "per_picture".
    """

    def __init__(self, figures: Mapping[str, Any], pictures: Sequence[Image.Image]) -> None:
        super().__init__(figures)
        self.pictures = list(pictures)


def picture_count(prompts: int, per_prompt: int, drift_count: int) -> int:
    """How many pictures `evaluate` draws, of the adapted base and of the untouched one."""
    return 2 * prompts * per_prompt + 3 * (class_prompt_count(prompts) + drift_count)


class _Drawn(NamedTuple):
    """Pictures of one of the two bases, (N, 3, H, W) each: benchmark prompts, the plain class, unrelated prompts."""

    benchmark: Tensor
    of_class: Tensor
    unrelated: Tensor


def _loss_sets(base: Base, concept: Concept, judge: Judge, before: _Drawn) -> dict[str, LossSet]:
    """The pictures that the loss is measured on: the subject's, the class's, and those of other things."""
    return {
        "concept": LossSet(
            concept.pixels(base.resolution), concept.captions(), "on the subject's own pictures, which it was shown",
            "other",
        ),
        "class": LossSet(
            before.of_class, judge.class_prompts, "on the untouched base's pictures of the plain class"
        ),
        "world": LossSet(before.unrelated, judge.unrelated, "on the untouched base's pictures of unrelated prompts"),
    }  # fmt: skip


def _feature_values(
    judge: Judge, encoder: Features, prompts: Sequence[str], before: _Drawn, after: _Drawn, redrawn: _Drawn
) -> tuple[dict[str, dict[str, Any]], dict[str, Tensor]]:
    """The figures of one encoder, and the scores of single pictures of the concept by figure.

    Those that need texts, or several pictures of a prompt, are left out where there are none.
    """
    seed, groups, world = judge.seed, judge.groups, world_of(judge.base)
    asked = [prompt for prompt in prompts for _ in range(judge.per_prompt)]
    knows = world if isinstance(encoder, ProbeFeatures) else None
    best = perfect_pictures(judge.base, judge.concept, asked, knows, seed=seed) if knows else None
    one = torch.tensor([bool(knows) and drawable(asked_of(prompt, knows)) for prompt in asked])

    single: dict[str, Tensor] = {}
    result: dict[str, dict[str, Any]] = {}

    def compare(
        name: str, score: Callable[[Features, Tensor], Tensor], better: str, meaning: str, groups: Tensor | None = None
    ) -> None:
        values, base = score(encoder, after.benchmark), score(encoder, before.benchmark)
        if len(values) == len(asked):
            single[name] = values
        reached = share = None
        if best is not None and len(values) == len(one) and one.any():
            reached = float(score(encoder, best)[one].mean())
            share = float(values[one].mean()) / reached if reached > 0 and not one.all() else None
        result[name] = figure(values, base, better, meaning, groups=groups, seed=seed, perfect=reached, share=share)

    meaning = "likeness to the concept's pictures (mean cosine)"
    compare("subject_fidelity", judge.fidelity, "higher", meaning, groups)
    if encoder.reads_texts:
        meaning = "does the picture show what the rest of the prompt says (cosine)"
        compare("text_alignment", judge.alignment, "higher", meaning, groups)
    if judge.per_prompt > 1:
        meaning = "how much pictures of one prompt differ (mean pairwise cosine distance)"
        compare("diversity", judge.diversity, "near base", meaning)
    if knows and isinstance(encoder, ProbeFeatures):
        result |= following(
            encoder, after.benchmark, before.benchmark, asked, knows, seed=seed, groups=groups, perfect=best
        )
    near = about_its_kind(judge.unrelated, judge.concept.noun)
    return result | pictures_forgotten(judge, encoder, after, before, redrawn, near), single


def _keep_drift_pictures(
    folder: Path, prompts: Sequence[str], before: Tensor, after: Tensor, most: int = 12
) -> list[list[str]]:
    rows = []
    for i, prompt in enumerate(prompts[:most]):
        pair = [f"drift/{i:02d}-base.png", f"drift/{i:02d}-adapted.png"]
        for name, pixels in zip(pair, (before[i], after[i]), strict=True):
            write_png(folder / name, to_picture(pixels))
        rows.append([prompt, *pair])
    return rows
