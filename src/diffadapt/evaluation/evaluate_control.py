"""Measures how well an adapted base follows control signals: the signal is read again from the pictures made with it.

Protocol, after OFT (Qiu et al. 2023, arXiv:2306.07280, section 5.2): one picture for each held-out pair, from its
caption and its signal; the same signal is extracted from the picture and compared with the one asked for. Beside it the
Frechet distance between the features of the pictures made and of the pairs' own, and the denoising loss, same noise: on
held-out pairs with their signals, on the same pictures with the signal of another pair, and on the base's own pictures
with the signals read from them.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from ..adapters import Attachment
from ..bases import Base
from ..controls import find_signal
from ..data.control_pairs import ControlPairs
from ..data.picture import to_picture, write_png
from ..errors import Refused
from ..metrics.bootstrap import interval_of_figure, interval_of_mean
from ..metrics.control_consistency import control_consistency, read_signal
from ..metrics.features import Features, load_features
from ..metrics.frechet import fid
from ..metrics.reader import Reader, load_reader
from ..metrics.segmentation_scores import segmentation_scores
from ..progress import Steps, say
from ..sampling.sample import adapted
from .held_out_loss import MOST, LossSet, loss_by_level, loss_figures, losses
from .judge import draw

MEANINGS: dict[str, tuple[str, str]] = {  # name -> better, meaning
    "iou": ("higher", "edges of the picture that lie where they were asked for (intersection over union)"),
    "f1": ("higher", "edges of the picture that lie where they were asked for (F1)"),
    "miou": ("higher", "pixels of the asked-for class (intersection over union, mean of the classes)"),
    "macc": ("higher", "share of each class's pixels that match the signal, mean of the classes"),
    "aacc": ("higher", "share of all pixels that match the signal"),
    "error": ("lower", "distance of the landmarks from where they were asked for, in pixels"),
    "detected": ("higher", "share of the landmarks asked for that were found"),
    "fid": ("lower", "Frechet distance between the features of these pictures and the pairs' own"),
}


DECIDING = {  # signal -> the figure that a training is watched by
    "canny": "f1", "line_art": "f1", "depth_order": "aacc", "landmarks": "error", "segmentation": "aacc"
}  # fmt: skip


def readable(base: Base, signal: str | None) -> str | None:
    """The signal's name, when it can be read again from pictures of the base; else None.

    What does not follow from pixels alone is read by a network that knows the embedded world only.
    """
    return signal if signal and (base.world or not needs_reader(signal)) else None


def needs_reader(signal: str | None) -> bool:
    """Whether a signal does not follow from the pixels of a picture alone."""
    return signal is not None and find_signal(signal).extract is None


def evaluate_control(
    base: Base,
    pairs: ControlPairs,
    *,
    adapters: Sequence[tuple[str | Path | Attachment, float]],
    signal: str | None = None,
    seed: int = 0,
    steps: int | None = None,
    guidance: float | None = None,
    features: str | None = None,
    compare_base: bool = True,
    batch: int = 8,
    out: str | Path | None = None,
    quiet: bool = True,
) -> dict[str, Any]:
    """Control consistency and Frechet distance, with intervals and the untouched base's figures.

    Args:
        base: a loaded base.
        pairs: held-out pairs; one picture is made for each.
        adapters: (file, run's folder or attachment, strength) pairs, one of which follows a control signal.
        signal: what the signals are, one of `SIGNALS`; None takes `pairs.signal`. Where that is unknown too, or cannot
            be read from such pictures (segmentation of photographs), only the Frechet distance is measured.
        seed: picture i starts from seed + i, for the base and the adapted base alike.
        steps, guidance: of the sampling; None means the base's defaults.
        features: the encoder of the Frechet distance; None means the probe on the embedded base, else DINO from the
            hub; "" leaves the distance out.
        compare_base: sample the untouched base from the same captions, too, and measure the loss against it.
        batch: pictures made at once.
        out: folder for the pictures, `NNNN.png`; None keeps none.
        quiet: show no progress.

    Returns:
        "values" {name: {value, low, high, n, base, better, unit, meaning}} as `evaluate` has them, "items" {name: one
        value for each pair, None where there is none}, "base_items" the same of the base, "held_out_loss" by noise
        level, "features", "protocol".
        The interval of a figure draws whole pictures; the Frechet distance has none.

    Raises:
        Refused: an adapter does not fit, no adapter follows a signal, an encoder that cannot be loaded, nothing to
            measure.
    """
    asked = signal or pairs.signal
    name = readable(base, asked)
    if asked and not name:
        say(f"{asked} cannot be read from pictures of {base.name}; only their features are compared", quiet=quiet)
    encoder = _encoder(base, features)
    if not name and not encoder:
        raise Refused("neither a signal that can be read nor features: nothing would be measured")
    reader = load_reader() if needs_reader(name) else None
    reals, signals = pairs.read(range(len(pairs)), base.resolution)
    bar = Steps("evaluate", len(pairs) * (2 if compare_base else 1), quiet=quiet)

    def make(controls: Tensor | None) -> Tensor:
        return draw(
            base, pairs.captions(), seed=seed, same_noise=False, steps=steps, guidance=guidance,
            controls=None if controls is None else list(controls), batch=batch, bar=bar,
        )  # fmt: skip

    if compare_base and base.attachments:
        raise Refused("something is attached to the base; detach it, or pass compare_base=False")
    before: Tensor | None = None
    sets: dict[str, LossSet] = {}
    with bar:
        if compare_base:
            before = make(None)
            read = read_signal(name, before[:MOST], reader) if name else None
            sets = _loss_sets(pairs.captions(), reals, signals, before, read)
        losses_before = losses(base, sets, seed=seed)
        with adapted(base, adapters):
            pictures = make(signals)
            losses_after = losses(base, sets, seed=seed)
    if out:
        for i, picture in enumerate(pictures):
            write_png(Path(out) / f"{i:04d}.png", to_picture(picture))

    scores = _consistency(name, signals, pictures, reader)
    of_base = _consistency(name, signals, before, reader) if before is not None else {}
    values = _values(scores, of_base, seed)
    if encoder and len(pairs) > 1:  # one picture has no spread
        own = encoder.pictures(reals)
        values["fid"] = _row(
            "fid", {"value": fid(encoder.pictures(pictures), own), "low": None, "high": None, "n": len(pairs)},
            None if before is None else fid(encoder.pictures(before), own),
        )  # fmt: skip
    values |= loss_figures(sets, losses_after, losses_before, seed=seed)
    return {
        "values": values,
        "items": _items(scores),
        "base_items": _items(of_base),
        "held_out_loss": loss_by_level(losses_after, losses_before),
        "features": encoder.name if encoder else "",
        "protocol": {"signal": name, "pairs": len(pairs), "seed": seed, "steps": steps, "guidance": guidance},
    }


def _loss_sets(
    captions: Sequence[str], reals: Tensor, signals: Tensor, drawn: Tensor, read: Tensor | None
) -> dict[str, LossSet]:
    """The pictures that the loss is measured on; the base's own only where their signals can be read."""
    few, first_captions = slice(MOST), captions[:MOST]
    sets = {"pairs": LossSet(reals[few], first_captions, "on held-out pairs with their signals", "other", signals[few])}
    if len(reals) > 1:
        meaning, another = "on the same pictures, each with another's signal", signals[few].roll(1, dims=0)
        sets["swapped"] = LossSet(reals[few], first_captions, meaning, "other", another)
    if read is not None:
        meaning = "on the untouched base's own pictures with the signals read from them"
        sets["world"] = LossSet(drawn[few], first_captions, meaning, signals=read)
    return sets


def _encoder(base: Base, features: str | None) -> Features | None:
    name = (base.encoder or "dino:facebook/dino-vits16") if features is None else features
    return load_features(name, device=base.device) if name else None


def _consistency(name: str | None, signals: Tensor, pictures: Tensor, reader: Reader | None) -> dict[str, Tensor]:
    return control_consistency(name, signals, pictures, reader) if name else {}


def _values(scores: dict[str, Tensor], of_base: dict[str, Tensor], seed: int) -> dict[str, dict[str, Any]]:
    """Figure -> row; those of a confusion matrix are of all pixels of all pictures together."""
    values = {}
    for name, rows in scores.items():
        if name == "confusion":
            base_whole = segmentation_scores(of_base[name]) if of_base else {}
            for figure in segmentation_scores(rows):
                interval = interval_of_figure(rows, lambda each, key=figure: segmentation_scores(each)[key], seed=seed)
                values[figure] = _row(figure, dict(interval.as_row()), base_whole.get(figure))
        elif "confusion" not in scores:  # else it is one picture's share of a figure above
            measured = rows[~rows.isnan()]
            if not len(measured):
                continue
            base_there = of_base[name][~of_base[name].isnan()] if of_base else rows[:0]
            row = dict(interval_of_mean(measured, seed=seed).as_row())
            values[name] = _row(name, row, float(base_there.mean()) if len(base_there) else None)
    return values


def _row(name: str, row: dict[str, Any], base: float | None) -> dict[str, Any]:
    better, meaning = MEANINGS[name]
    unit = "px" if name == "error" else ""
    return row | {"base": base, "better": better, "unit": unit, "meaning": meaning, "kind": "control"}


def _items(scores: dict[str, Tensor]) -> dict[str, list[float | None]]:
    return {
        name: [None if value != value else value for value in rows.tolist()]
        for name, rows in scores.items()
        if rows.ndim == 1
    }
