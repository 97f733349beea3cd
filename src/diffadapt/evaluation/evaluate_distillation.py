"""Measures what a student took from its teachers: style, and whether pictures still show what the caption says.

Same captions and seeds for base, student and teacher. One student of several teachers is compared with each. The
denoising loss is measured on the teachers' pictures and on the base's own of the same captions, with the same noise.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..adapters import Attachment
from ..bases import Base
from ..data.picture import to_picture, write_png
from ..data.prompts import spread
from ..errors import Refused
from ..metrics.alignment import text_alignment
from ..metrics.bootstrap import interval_of_mean
from ..metrics.features import load_features
from ..metrics.style import style_distance
from ..progress import Steps
from ..sampling.sample import adapted, default_line, generate
from .figure import against_base
from .held_out_loss import MOST, LossSet, loss_by_level, loss_figures, losses


def evaluate_distillation(
    base: Base,
    teachers: Mapping[str, Base],
    as_taught: Mapping[str, str],
    *,
    adapters: Sequence[tuple[str | Path | Attachment, float]],
    most: int = 16,
    seed: int = 0,
    features: str = "",
    out: str | Path | None = None,
    quiet: bool = True,
) -> dict[str, Any]:
    """Distance to each teacher's style, and text alignment, of student and base, the teacher's beside them.

    Args:
        base: the student's base.
        teachers: name -> teacher.
        as_taught: the student's caption -> the teacher's.
        adapters: (file or attachment, strength) pairs: the student.
        most: captions, one picture each.
        seed: picture i starts from seed + i everywhere.
        features: encoder by name; empty means the probe on the embedded base, else CLIP ViT-B/32.
        out: folder for the pictures, `NN-base.png`, `NN-student.png`, `NN-NAME.png`; None keeps none.
        quiet: show no progress.

    Returns:
        "values" {name: {value, low, high, n, base, better, unit, meaning}}, "teachers" {name: its text alignment},
        "held_out_loss" by noise level, "features", "protocol"

    Raises:
        Refused: fewer than two captions, or an encoder that cannot be loaded.
    """
    captions = spread(list(as_taught), most)
    if len(captions) < 2:
        raise Refused(f"student and teacher are compared on 2 captions or more; got {len(captions)}")
    encoder = load_features(features or base.encoder or "clip:openai/clip-vit-base-patch32", device=base.device)
    bar = Steps("compare", len(captions) * (2 + len(teachers)), quiet=quiet)

    def made(by: Base, prompts: Sequence[str]) -> Tensor:
        lines = [default_line(by, prompt, seed + i) for i, prompt in enumerate(prompts)]
        return torch.stack(generate(by, lines, bar=bar))

    with bar:
        pictures = {"base": made(base, captions)}
        taught = [as_taught[caption] for caption in captions]
        of_teachers = {name: made(each, taught) for name, each in teachers.items()}
        sets = _loss_sets(captions, pictures["base"], [*of_teachers.values()])
        losses_before = losses(base, sets, seed=seed)
        with adapted(base, adapters):
            pictures["student"] = made(base, captions)
            losses_after = losses(base, sets, seed=seed)
    if out:
        for name, pixels in {**pictures, **of_teachers}.items():
            for i, each in enumerate(pixels):
                write_png(Path(out) / f"{i:02d}-{name}.png", to_picture(each))

    maps = {name: encoder.maps(pixels) for name, pixels in pictures.items()}
    texts = encoder.texts(captions)
    aligned = {name: text_alignment(encoder.pictures(p), texts) for name, p in {**pictures, **of_teachers}.items()}
    values = {}
    for name, pixels in of_teachers.items():
        reference = encoder.maps(pixels)
        distance = {model: style_distance(each, reference).float() for model, each in maps.items()}
        values["style_distance" + (f" ({name})" if len(of_teachers) > 1 else "")] = {
            **interval_of_mean(distance["student"], seed=seed).as_row(),
            **against_base(distance["student"], distance["base"], groups=None, seed=seed),
            "better": "lower", "kind": "fidelity", "unit": "",
            "meaning": f"distance of the Gram matrices to the mean of those of {name}'s pictures, as a share of it",
        }  # fmt: skip
    values["text_alignment"] = {
        **interval_of_mean(aligned["student"], seed=seed).as_row(),
        **against_base(aligned["student"], aligned["base"], groups=None, seed=seed),
        "better": "higher", "kind": "alignment", "unit": "",
        "meaning": "does the picture show what its caption says (cosine)",
    }  # fmt: skip
    values |= loss_figures(sets, losses_after, losses_before, seed=seed)
    return {
        "values": values,
        "held_out_loss": loss_by_level(losses_after, losses_before),
        "teachers": {name: {"text_alignment": float(aligned[name].mean())} for name in of_teachers},
        "features": encoder.name,
        "protocol": {"captions": len(captions), "teachers": len(of_teachers), "seed": seed},
    }


def _loss_sets(captions: Sequence[str], own: Tensor, of_teachers: Sequence[Tensor]) -> dict[str, LossSet]:
    """The pictures that the loss is measured on; of each teacher as many as there is room for.

    A student of a style changes what the base drew of the same captions by design, so neither is about forgetting.
    """
    share = max(1, MOST // len(of_teachers))
    made, own_captions = torch.cat([each[:share] for each in of_teachers]), [*captions[:share]] * len(of_teachers)
    return {
        "teacher": LossSet(made, own_captions, "on the teachers' pictures with the student's captions", "other"),
        "own": LossSet(own[:MOST], captions[:MOST], "on the untouched base's pictures of the same captions", "other"),
    }
