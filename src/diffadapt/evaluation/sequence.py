"""Pictures and scores of a sequence: every concept after every task, what was kept, and two concepts in one picture."""

from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..bases import Base
from ..data.cache import content_key
from ..data.concept import Concept
from ..data.picture import open_picture, to_picture, to_tensor, write_png
from ..data.prompts import drift_prompts
from ..data.sequence_record import SequenceRecord
from ..data.wide_scenes import world_of
from ..files import load_tensors
from ..metrics import MMD_AS, Features, a_mmd, drift_mmd, f_mmd, kept, kid, mmd_squared, subject_fidelity
from ..metrics.inception import Inception, inception_features
from ..progress import Steps
from ..sampling.sample import adapted, default_line, generate
from .agreement import SECOND
from .held_out_loss import MOST, LossSet, losses


def sample_all(base: Base, adapter: Path, record: SequenceRecord, count: int, seed: int, *, quiet: bool) -> None:
    """Every concept so far with the present adapter, from the same seeds after every task."""
    bar = Steps("pictures of all concepts", count * len(record.learned), quiet=quiet)
    with adapted(base, [(adapter, 1.0)]), bar:
        for each in record.learned:
            place = evaluation(record, len(record.learned) - 1, each.name)
            lines = [default_line(base, f"a {each.phrase}", seed + i) for i in range(count)]
            for i, pixels in enumerate(generate(base, lines, bar=bar)):
                write_png(place / f"{i:02d}.png", to_picture(pixels))


def evaluation(record: SequenceRecord, number: int, name: str) -> Path:
    """Where the pictures of a concept after a task are."""
    return record.folder / "evaluation" / f"after-{number + 1:02d}" / name


def features_after(record: SequenceRecord, encoder: Features, number: int, name: str) -> Tensor:
    """Features (N, D) of a concept's pictures after a task."""
    return encoder.subjects(pictures_after(record, number, name))


def pictures_after(record: SequenceRecord, number: int, name: str) -> Tensor:
    """A concept's pictures after a task, (N, 3, H, W) in [0, 1]."""
    return _read(sorted(evaluation(record, number, name).glob("*.png"), key=lambda file: int(file.stem)))


def _read(files: Iterable[Path]) -> Tensor:
    return torch.stack([to_tensor(open_picture(file)).float() / 255 for file in files])


def losses_after(
    base: Base, adapter: Path, record: SequenceRecord, concept: Concept, count: int, seed: int
) -> dict[str, Any]:
    """Denoising losses after the task just learned, mean over five noise levels and pictures, same noise throughout.

    No picture of a past task is kept, so what became of it is asked of the pictures that were drawn of it right after
    it was learned.

    Args:
        base: untouched.
        adapter: after the task.
        record: with the task as its last one, and its pictures drawn.
        concept: of the task.
        count: of the base's own pictures of other things, which are drawn once for all tasks of a noun; 16 at most.
        seed: of pictures and noise.

    Returns:
        "concept": on its own pictures, and "world": on the base's own of other things, both minus the untouched base's;
        "drawn": of every concept so far, on the pictures drawn of it right after it was learned
    """
    asked = drift_prompts(world_of(base), min(count, MOST), seed, without=concept.noun)
    folder = record.folder / "evaluation" / "base"
    files = [folder / f"{i:02d}-{content_key(prompt)[:8]}.png" for i, prompt in enumerate(asked)]
    for i, (prompt, file) in enumerate(zip(asked, files, strict=True)):
        if not file.is_file():
            [pixels] = generate(base, [default_line(base, prompt, seed + i)])
            write_png(file, to_picture(pixels))
    own = concept.pixels(base.resolution)
    sets = {"concept": LossSet(own, concept.captions(), ""), "world": LossSet(_read(files), asked, "")}
    without_token = sets | {"concept": sets["concept"]._replace(prompts=concept.class_captions())}
    before = losses(base, without_token, seed=seed)
    for j, each in enumerate(record.learned):
        drawn = pictures_after(record, j, each.name)
        sets[f"drawn {j}"] = LossSet(drawn, [f"a {each.phrase}"] * len(drawn), "")
    with adapted(base, [(adapter, 1.0)]):
        after = losses(base, sets, seed=seed)
    return {name: float((after[name] - before[name]).mean()) for name in before} | {
        "drawn": [float(after[f"drawn {j}"].mean()) for j in range(len(record.learned))]
    }


def reference(record: SequenceRecord, number: int) -> dict[str, Tensor]:
    """Features (N, D) of a task's own pictures by who saw them: "features" of the encoder, "second", "inception"."""
    return load_tensors(record.place(number, record.learned[number].name) / "reference.safetensors")[0]


def score_row(record: SequenceRecord, encoder: Features, number: int, key: str = "features") -> list[float]:
    """R[number, j] for every task up to that: subject fidelity, as the encoder sees it whose features are `key`."""
    return [
        subject_fidelity(features_after(record, encoder, number, each.name), reference(record, j)[key]).mean().item()
        for j, each in enumerate(record.learned[: number + 1])
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
        kid(reference(record, j)["inception"], inception_features(inception, pictures_after(record, last, each.name)))
        .mean()
        .item()
        for j, each in enumerate(record.learned)
    ]


def figures(
    base: Base,
    record: SequenceRecord,
    encoder: Features,
    inception: Inception | None = None,
    second: Features | None = None,
) -> dict[str, Any]:
    """The figures of a sequence for `metrics.json`, those of a second judge under "second"."""
    names = [each.name for each in record.learned]
    enough = all(len(each.contents) > 1 for each in record.learned)  # one picture has no unbiased distance
    adapter = record.folder / "adapter.safetensors"
    whole = sum(parameter.numel() for parameter in base.denoiser.parameters())
    return {
        "sequence": {
            "tasks": names,
            **_seen_by(record, encoder, "features", record.scores),
            "kid_at_end": kid_at_end(record, inception) if inception and enough else None,
            "mmd": MMD_AS,
            "features": encoder.name,
            "pictures": len(pictures_after(record, len(names) - 1, names[0])),
            "losses": _losses(record),
            "second": _seen_by(record, second, SECOND) if second and _shown_to_second(record) else None,
        },
        "denoiser_parameters": whole,
        "adapter_bytes": sum(file.stat().st_size for file in (adapter, *record.folder.glob("tasks/*/own.safetensors"))),
    }


def _seen_by(
    record: SequenceRecord, encoder: Features, key: str, rows: list[list[float]] | None = None
) -> dict[str, Any]:
    """Scores, what was kept, and distances as one encoder sees them; `rows` are the scores where they are known."""
    names, count = [each.name for each in record.learned], len(record.learned)
    rows = rows or [score_row(record, encoder, i, key) for i in range(count)]
    scores = torch.zeros(count, count)
    for i, row in enumerate(rows):
        scores[i, : len(row)] = torch.tensor(row)
    at_end = [features_after(record, encoder, count - 1, name) for name in names]
    when_learned = [features_after(record, encoder, j, name) for j, name in enumerate(names)]
    references = [reference(record, j)[key] for j in range(count)]
    enough = all(len(each.contents) > 1 for each in record.learned)
    return {
        "scores": rows,
        **asdict(kept(scores)),
        "a_mmd": a_mmd(references, at_end) if enough else None,
        "f_mmd": f_mmd(when_learned, at_end),
        "mmd_at_end": [mmd_squared(a, b) for a, b in zip(references, at_end, strict=True)] if enough else None,
        "mmd_since_learned": [drift_mmd(a, b) for a, b in zip(when_learned, at_end, strict=True)][:-1],
    }


def _shown_to_second(record: SequenceRecord) -> bool:
    """False where a task's own pictures, which are not kept, were learned before there was a second judge."""
    return all(SECOND in reference(record, j) for j in range(len(record.learned)))


def _losses(record: SequenceRecord) -> dict[str, list[float]] | None:
    """Rise of the loss by task: on its "concept" and on the "world" when it was learned, and of its pictures since."""
    rows = [each.losses for each in record.learned]
    if not all(rows):  # begun by an earlier version
        return None
    at_end = rows[-1]["drawn"]
    return {
        "concept": [row["concept"] for row in rows],
        "world": [row["world"] for row in rows],
        "since_learned": [at_end[j] - row["drawn"][j] for j, row in enumerate(rows)],
    }
