"""Measures what an adapted base learned and what it forgot.

Protocol, after the DreamBooth benchmark (Ruiz et al. 2022, section 4): 25 prompts that put the subject into other
contexts, 4 pictures each, seeds fixed. Beside it, always, drift: the base's own pictures against the adapted ones on
prompts that have nothing to do with the concept, same seeds.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..adapters import Attachment
from ..bases import Base
from ..data.concept import Concept
from ..data.picture import to_picture, write_png
from ..data.prompts import benchmark_prompts, drift_prompts, spread
from ..data.scenes import world_of
from ..errors import Refused
from ..metrics.alignment import text_alignment
from ..metrics.bootstrap import interval_of_mean
from ..metrics.diversity import diversity
from ..metrics.drift import drift_features, drift_pixels
from ..metrics.features import Features, load_features
from ..metrics.fidelity import subject_fidelity
from ..progress import say
from ..sampling.sample import adapted, biased, default_line, generate
from .geometry import movement

PHOTO_ENCODERS = ("clip:openai/clip-vit-base-patch32", "dino:facebook/dino-vits16")


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
    steps: int | None = None,
    quiet: bool = True,
) -> dict[str, Any]:
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
        features: encoders by name ("probe", "clip:...", "dino:..."); empty means the probe on the embedded base, else
            CLIP ViT-B/32 and DINO ViT-S/16 from the hub as the paper's protocol has them.
        steps: denoising steps; None means the base's default.
        quiet: show no progress.

    Returns:
        what `metrics.json` holds: "values" {name: {value, low, high, n, base, better, unit, meaning}},
        "features", "protocol", "drift_pictures", and what `geometry.movement` returns

    Raises:
        Refused: an encoder cannot be loaded, or the adapter does not fit.
    """
    if prompts < 1 or per_prompt < 1 or drift_count < 1:
        raise Refused(
            f"evaluation needs 1 or more prompts, pictures and drift prompts; got {prompts, per_prompt, drift_count}"
        )
    encoders = [
        load_features(name, device=base.device) for name in features or (("probe",) if base.world else PHOTO_ENCODERS)
    ]
    world = world_of(base)
    asked, plain = (spread(benchmark_prompts(concept.noun, token, world), prompts) for token in (concept.token, ""))
    unrelated = drift_prompts(world, drift_count, seed, without=concept.noun)
    lines = {
        "plain": [default_line(base, p, seed + i, steps=steps) for p in plain for i in range(per_prompt)],
        "class": [default_line(base, concept.class_prompt, seed + i, steps=steps) for i in range(max(4, per_prompt))],
        "unrelated": [default_line(base, p, seed, steps=steps) for p in unrelated],
    }
    total = 2 * len(lines["plain"]) + 2 * (len(lines["class"]) + len(lines["unrelated"]))
    say(f"evaluating on {total} pictures", quiet=quiet)
    with adapted(base, [(a, 0.0) for a, _ in adapters if isinstance(a, Attachment)]):
        before = {key: torch.stack(generate(base, lines[key])) for key in ("plain", "class", "unrelated")}
    with adapted(base, adapters) as attachments, biased(attachments, bias or {}):
        if any(each.method.replaces_noun and concept.token in each.tokens for each in attachments):
            concept = concept.standing_alone()
        asked = concept.said(asked)
        lines["subject"] = [default_line(base, p, seed + i, steps=steps) for p in asked for i in range(per_prompt)]
        after = {key: torch.stack(generate(base, lines[key])) for key in ("subject", "class", "unrelated")}
        moved = movement(attachments)

    groups = torch.arange(len(asked)).repeat_interleave(per_prompt)
    reference = concept.pixels(base.resolution)
    values: dict[str, dict[str, Any]] = {}
    for encoder in encoders:
        suffix = f" ({encoder.name.split(':')[0]})" if len(encoders) > 1 else ""
        for name, row in _feature_values(encoder, before, after, reference, plain, per_prompt, groups, seed).items():
            values[name + suffix] = row
    values["drift_pixels"] = _value(
        drift_pixels(after["unrelated"], before["unrelated"]), None, "lower", "root mean square change of unrelated "
        "pictures, same prompt and seed; one grey level of 255 is 0.0039", seed=seed,
    )  # fmt: skip
    pictures = _keep_drift_pictures(Path(out), unrelated, before["unrelated"], after["unrelated"]) if out else []
    return {
        "values": values,
        "features": ", ".join(encoder.name for encoder in encoders),
        "protocol": {"prompts": len(asked), "per_prompt": per_prompt, "drift_prompts": drift_count, "seed": seed},
        "drift_pictures": pictures,
        **moved,
    }


def _feature_values(
    encoder: Features,
    before: Mapping[str, Tensor],
    after: Mapping[str, Tensor],
    reference: Tensor,
    plain: Sequence[str],
    per_prompt: int,
    groups: Tensor,
    seed: int,
) -> dict[str, dict[str, Any]]:
    """The figures of one encoder; those that need texts, or several pictures of a prompt, only where there are any."""
    mine = encoder.subjects(reference)
    learned, plainly = encoder.subjects(after["subject"]), encoder.subjects(before["plain"])
    result = {
        "subject_fidelity": _value(
            subject_fidelity(learned, mine),
            subject_fidelity(plainly, mine),
            "higher", "likeness to the concept's pictures (mean cosine)", groups, seed=seed,
        )
    }  # fmt: skip
    if not encoder.name.startswith("dino"):  # the one kind of encoder without a text tower
        texts = encoder.texts([prompt for prompt in plain for _ in range(per_prompt)])
        result["text_alignment"] = _value(
            text_alignment(encoder.pictures(after["subject"]), texts),
            text_alignment(encoder.pictures(before["plain"]), texts),
            "higher", "does the picture show what the rest of the prompt says (cosine)", groups, seed=seed,
        )  # fmt: skip
    if per_prompt > 1:
        result["diversity"] = _value(
            diversity(learned, groups),
            diversity(plainly, groups),
            "near base", "how much pictures of one prompt differ (mean pairwise cosine distance)", seed=seed,
        )  # fmt: skip
    result["drift_features"] = _value(
        drift_features(encoder.pictures(after["unrelated"]), encoder.pictures(before["unrelated"])),
        None, "lower", "change of unrelated pictures, same prompt and seed (cosine distance)", seed=seed,
    )  # fmt: skip
    result["class_leakage"] = _value(
        subject_fidelity(encoder.subjects(after["class"]), mine),
        subject_fidelity(encoder.subjects(before["class"]), mine),
        "near base", "likeness to the subject of pictures of its plain class; above the base, the class was lost to it",
        seed=seed,
    )  # fmt: skip
    return result


def _value(
    values: Tensor, base: Tensor | None, better: str, meaning: str, groups: Tensor | None = None, *, seed: int
) -> dict[str, Any]:
    row: dict[str, Any] = interval_of_mean(values, groups=groups, seed=seed).as_row()
    return row | {
        "base": None if base is None else float(base.mean()),
        "better": better,
        "unit": "",
        "meaning": meaning,
    }


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
