"""Pictures and scores of a sequence: every concept after every task, what was kept, and two concepts in one picture."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..bases import Base
from ..data.picture import open_picture, to_picture, to_tensor, write_png
from ..data.sequence_record import SequenceRecord
from ..files import load_tensors
from ..metrics import MMD_AS, Features, a_mmd, drift_mmd, f_mmd, kept, kid, mmd_squared, subject_fidelity
from ..metrics.inception import Inception, inception_features
from ..sampling.sample import adapted, default_line, generate


def sample_all(base: Base, adapter: Path, record: SequenceRecord, count: int, seed: int) -> None:
    """Every concept so far with the present adapter, from the same seeds after every task."""
    with adapted(base, [(adapter, 1.0)]):
        for each in record.learned:
            place = evaluation(record, len(record.learned) - 1, each.name)
            lines = [default_line(base, f"a {each.phrase}", seed + i) for i in range(count)]
            for i, pixels in enumerate(generate(base, lines)):
                write_png(place / f"{i:02d}.png", to_picture(pixels))


def evaluation(record: SequenceRecord, number: int, name: str) -> Path:
    """Where the pictures of a concept after a task are."""
    return record.folder / "evaluation" / f"after-{number + 1:02d}" / name


def features_after(record: SequenceRecord, encoder: Features, number: int, name: str) -> Tensor:
    """Features (N, D) of a concept's pictures after a task."""
    return encoder.subjects(pictures_after(record, number, name))


def pictures_after(record: SequenceRecord, number: int, name: str) -> Tensor:
    """A concept's pictures after a task, (N, 3, H, W) in [0, 1]."""
    files = sorted(evaluation(record, number, name).glob("*.png"))
    return torch.stack([to_tensor(open_picture(file)).float() / 255 for file in files])


def reference(record: SequenceRecord, number: int, which: str = "features") -> Tensor:
    """Features (N, D) of the pictures that a task was learned from: the encoder's, or "inception"."""
    return load_tensors(record.place(number, record.learned[number].name) / "reference.safetensors")[0][which]


def score_row(record: SequenceRecord, encoder: Features, number: int) -> list[float]:
    """R[number, j] for every task so far: subject fidelity."""
    return [
        subject_fidelity(features_after(record, encoder, number, each.name), reference(record, j)).mean().item()
        for j, each in enumerate(record.learned)
    ]


def sample_pairs(base: Base, record: SequenceRecord, count: int, seed: int) -> None:
    """The first and the last concept in one prompt."""
    adapter = record.adapter()
    if adapter is None or len(record.learned) < 2:
        return
    first, last = record.learned[0], record.learned[-1]
    lines = [default_line(base, f"a {first.phrase} and a {last.phrase}", seed + i) for i in range(count)]
    with adapted(base, [(adapter, 1.0)]):
        for i, pixels in enumerate(generate(base, lines)):
            write_png(record.folder / "evaluation" / "pairs" / f"{i:02d}.png", to_picture(pixels))


def kid_at_end(record: SequenceRecord, inception: Inception) -> list[float]:
    """Of each concept the KID between the pictures that it was learned from and those after the last task."""
    last = len(record.learned) - 1
    return [
        kid(reference(record, j, "inception"), inception_features(inception, pictures_after(record, last, each.name)))
        .mean()
        .item()
        for j, each in enumerate(record.learned)
    ]


def figures(
    base: Base, record: SequenceRecord, encoder: Features, inception: Inception | None = None
) -> dict[str, Any]:
    """The figures of a sequence for `metrics.json`."""
    count = len(record.learned)  # of tasks
    scores = torch.zeros(count, count)
    for i, row in enumerate(record.scores):
        scores[i, : len(row)] = torch.tensor(row)
    names = [each.name for each in record.learned]
    at_end = [features_after(record, encoder, count - 1, name) for name in names]
    when_learned = [features_after(record, encoder, j, name) for j, name in enumerate(names)]
    references = [reference(record, j) for j in range(count)]
    enough = all(len(each.contents) > 1 for each in record.learned)  # one picture has no unbiased distance
    adapter = record.folder / "adapter.safetensors"
    whole = sum(parameter.numel() for parameter in base.denoiser.parameters())
    return {
        "sequence": {
            "tasks": names,
            "scores": record.scores,
            **asdict(kept(scores)),
            "a_mmd": a_mmd(references, at_end) if enough else None,
            "f_mmd": f_mmd(when_learned, at_end),
            "mmd_at_end": [mmd_squared(a, b) for a, b in zip(references, at_end, strict=True)] if enough else None,
            "mmd_since_learned": [drift_mmd(a, b) for a, b in zip(when_learned, at_end, strict=True)][:-1],
            "kid_at_end": kid_at_end(record, inception) if inception and enough else None,
            "mmd": MMD_AS,
            "features": encoder.name,
            "pictures": len(at_end[0]),
        },
        "denoiser_parameters": whole,
        "adapter_bytes": sum(file.stat().st_size for file in (adapter, *record.folder.glob("tasks/*/own.safetensors"))),
    }
