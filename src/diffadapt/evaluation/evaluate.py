"""Measures what an adapted base learned and what it forgot.

Protocol, after the DreamBooth benchmark (Ruiz et al. 2022, section 4): 25 prompts that put the subject into other
contexts, 4 pictures each, seeds fixed. Beside it, always, drift: the base's own pictures against the adapted ones on
prompts that have nothing to do with the concept, same seeds.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from ..adapters import Attachment
from ..bases import Base
from ..data.concept import Concept
from ..data.picture import to_picture, write_png
from ..errors import Refused
from ..metrics.bootstrap import interval_of_mean
from ..metrics.drift import drift_features, drift_pixels
from ..metrics.features import Features
from ..progress import say
from ..sampling.sample import adapted, biased
from .geometry import movement
from .judge import Judge, load_encoders


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
    encoders = load_encoders(base, features)
    judge = Judge(
        base, concept, prompts=prompts, per_prompt=per_prompt, unrelated=drift_count, seed=seed, steps=steps
    )  # fmt: skip
    total = 2 * (len(judge.groups) + max(4, per_prompt) + drift_count)
    say(f"evaluating on {total} pictures", quiet=quiet)
    with adapted(base, [(a, 0.0) for a, _ in adapters if isinstance(a, Attachment)]):
        before = _Drawn(judge.of_prompts_alone(), judge.of_class(), judge.of_unrelated())
    with adapted(base, adapters) as attachments, biased(attachments, bias or {}):
        after = _Drawn(judge.of_concept(), judge.of_class(), judge.of_unrelated())
        moved = movement(attachments)

    values: dict[str, dict[str, Any]] = {}
    for encoder in encoders:
        suffix = f" ({encoder.name.split(':')[0]})" if len(encoders) > 1 else ""
        for name, row in _feature_values(judge, encoder, before, after).items():
            values[name + suffix] = row
    values["drift_pixels"] = _value(
        drift_pixels(after.unrelated, before.unrelated), None, "lower", "root mean square change of unrelated "
        "pictures, same prompt and seed; one grey level of 255 is 0.0039", seed=seed,
    )  # fmt: skip
    pictures = _keep_drift_pictures(Path(out), judge.unrelated, before.unrelated, after.unrelated) if out else []
    return {
        "values": values,
        "features": ", ".join(encoder.name for encoder in encoders),
        "protocol": {"prompts": len(judge.plain), "per_prompt": per_prompt, "drift_prompts": drift_count, "seed": seed},
        "drift_pictures": pictures,
        **moved,
    }


class _Drawn(NamedTuple):
    """What one of the two bases drew, (N, 3, H, W) each: the benchmark's prompts, the plain class, unrelated ones."""

    benchmark: Tensor
    of_class: Tensor
    unrelated: Tensor


def _feature_values(judge: Judge, encoder: Features, before: _Drawn, after: _Drawn) -> dict[str, dict[str, Any]]:
    """The figures of one encoder; those that need texts, or several pictures of a prompt, only where there are any."""
    seed, groups = judge.seed, judge.groups

    def compared(score: Callable[[Features, Tensor], Tensor], better: str, meaning: str, groups: Tensor | None = None):
        values, base = score(encoder, after.benchmark), score(encoder, before.benchmark)
        return _value(values, base, better, meaning, groups, seed=seed)

    meaning = "likeness to the concept's pictures (mean cosine)"
    result = {"subject_fidelity": compared(judge.fidelity, "higher", meaning, groups)}
    if not encoder.name.startswith("dino"):  # the one kind of encoder without a text tower
        meaning = "does the picture show what the rest of the prompt says (cosine)"
        result["text_alignment"] = compared(judge.alignment, "higher", meaning, groups)
    if judge.per_prompt > 1:
        meaning = "how much pictures of one prompt differ (mean pairwise cosine distance)"
        result["diversity"] = compared(judge.diversity, "near base", meaning)
    result["drift_features"] = _value(
        drift_features(encoder.pictures(after.unrelated), encoder.pictures(before.unrelated)),
        None, "lower", "change of unrelated pictures, same prompt and seed (cosine distance)", seed=seed,
    )  # fmt: skip
    result["class_leakage"] = _value(
        judge.fidelity(encoder, after.of_class),
        judge.fidelity(encoder, before.of_class),
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
