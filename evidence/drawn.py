"""Shared by SI-1 to SI-3: pictures in drawn styles that the base never saw, contenders of equal size, and scores.

A style's pictures are the base's own pictures of captions of its world, drawn by a function (`data/drawn_styles.py`):
so they exist on every base, show the same contents in every style, and the style of a picture has an exact target.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor
from unit_cost import WHOLE, Cost, cost

from diffadapt.adapters import LoRA, StyleInject
from diffadapt.bases import Base
from diffadapt.data.drawn_styles import HELD_OUT, SEEN, draw_in_style
from diffadapt.data.picture import to_picture, write_png
from diffadapt.data.prompts import drift_prompts
from diffadapt.data.styles import Styles, load_styles
from diffadapt.data.wide_scenes import world_of
from diffadapt.evaluation.evaluate_style import read_pairs
from diffadapt.evidence import Comparison, Contender, Results, Table, Unit, tuned
from diffadapt.files import write_atomic
from diffadapt.metrics import interval_of_nested_mean
from diffadapt.sampling.sample import default_line, generate

STYLES = HELD_OUT
# The paper's layers: linear ones and convolutions. With attention alone nobody could name the style after 300 steps.
ROLES = ("self_attention.*", "cross_attention.*", "feed_forward.*", "residual.*")
TUNED_ON = SEEN[:2]  # rates are chosen on styles that decide nothing
RATES = (1e-3, 2e-3, 4e-3, 8e-3)
CONTENDERS = {
    "style_inject": Contender(method=StyleInject(), title="StyleInject, n = 4, r = 4", rates=RATES, roles=ROLES),
    "lora": Contender(method=LoRA(rank=14), title="LoRA, rank 14", rates=RATES, roles=ROLES),
}
TRAINED_ON, KEPT = 30, 16
STYLE_MARGIN, KEPT_MARGIN = 0.03, 0.03
FIGURES = {
    "style": "share of the way to the style", "style_second": "the same, second judge", "kept": "content kept",
    "loss_style": "rise of the loss on held-out pictures", "loss_world": "on the base's own of other things",
}  # fmt: skip


def pictures(base: Base, folder: Path, style: str, *, named: bool = False) -> Styles:
    """A style's pictures: 30 to learn from and 16 kept back; with `named`, captions say which style it is."""
    place = folder / f"drawn-{base.fingerprint.split(':')[-1][:8]}" / ("named" if named else "plain") / style
    captions = drift_prompts(world_of(base), TRAINED_ON + KEPT, seed=7)
    if not (place / f"{len(captions) - 1:03d}.txt").is_file():
        lines = [default_line(base, caption, 1000 + i) for i, caption in enumerate(captions)]
        drawn = draw_in_style(style, torch.stack(generate(base, lines)))
        for i, (caption, pixels) in enumerate(zip(captions, drawn, strict=True)):
            write_png(place / f"{i:03d}.png", to_picture(pixels))
            write_atomic(place / f"{i:03d}.txt", f"{caption}, {style}" if named else caption)
    return load_styles(place, held_out=KEPT)


def scores_of(measured: dict[str, Any], style: str) -> dict[str, float]:
    """How far of the way to the style, 1 at its pictures' mean, by both judges, how much of the contents was kept, and
    the rise of the denoising loss, over all styles of the training.

    The second judge has no say in the contents: of perfect drawings in a style it knows too few again
    (docs/evidence/how_we_measure.md).
    """
    figures = measured["by_style"][style]
    way = {
        name: 1 - figures[distance]["value"] / figures[distance]["base"]
        for name, distance in (("style", "style_distance"), ("style_second", "style_distance (second)"))
    }
    losses = {name: measured["values"][name]["value"] for name in ("loss_style", "loss_world")}
    return {**way, "kept": figures["content_kept"]["value"], **losses}


def way_to_target(run: Path, style: str) -> float:
    """How far of the way from the base's pictures to the same ones drawn in the style, 1 there: an exact answer.

    Mean absolute differences of the pictures that a style's evaluation left in the run's folder, same prompts
    and noise. What becomes of the contents counts, too.
    """
    made, base = read_pairs(run / "styles" / style)
    target = draw_in_style(style, base)
    return 1 - float((made - target).abs().mean() / (base - target).abs().mean())


def styling(steps: int) -> Cost:
    """What a training on one style takes, and its evaluation: 16 pictures in the style, 16 of other things, twice."""
    return cost("style, StyleInject", steps, 64, sampling=WHOLE)


def best_rates(results: Results) -> dict[str, float]:
    """Contender -> the rate of the highest mean style score in its tuning."""
    runs = {name: results.where(stage="tune", contender=name) for name in CONTENDERS}
    return {name: tuned(runs[name], lambda each: each.scores["style"]) for name in CONTENDERS}


def by_style(results: Results, name: str, figure: str, **where: Any) -> Tensor:
    """(S, K) a figure of each style, with its seeds."""
    styles = list(dict.fromkeys(each.unit["style"] for each in results.where(stage="test", **where)))
    tests = [results.where(stage="test", contender=name, style=style, **where) for style in styles]
    return torch.tensor([[each.scores[figure] for each in row] for row in tests])


def both(results: Results, *, level: float = 0.975, title: str = "", **where: Any) -> list[Comparison]:
    """StyleInject against LoRA in style and in kept content, on the same styles and seeds."""
    margins = {"style": STYLE_MARGIN, "kept": KEPT_MARGIN}
    words = {"style": "share of the way to the style", "kept": "content kept"}
    return [
        Comparison(
            name=f"{words[figure]}{title}, StyleInject minus LoRA,", margin=margin,
            interval=interval_of_nested_mean(
                by_style(results, "style_inject", figure, **where) - by_style(results, "lora", figure, **where),
                level=level,
            ),
        )
        for figure, margin in margins.items()
    ]  # fmt: skip


def seen_by_second(results: Results, *, level: float = 0.975, title: str = "", **where: Any) -> list[Comparison]:
    """StyleInject against LoRA in style, as the second judge sees the same pictures."""
    gain = by_style(results, "style_inject", "style_second", **where) - by_style(
        results, "lora", "style_second", **where
    )
    return [
        Comparison(
            name=f"share of the way to the style{title}, StyleInject minus LoRA,", margin=STYLE_MARGIN,
            interval=interval_of_nested_mean(gain, level=level),
        )
    ]  # fmt: skip


def table(results: Results, title: str, **where: Any) -> Table:
    """The figures of every contender."""
    rows = [
        [
            each.title,
            *(interval_of_nested_mean(by_style(results, name, figure, **where)) for figure in FIGURES),
        ]
        for name, each in CONTENDERS.items()
    ]
    return Table(title=title, columns=["contender", *FIGURES.values()], rows=rows)


# --- scores of runs that were never made ------------------------------------------------------------------------------


def fabricated(unit: Unit, generator: Generator | None, *, better: bool) -> dict[str, Any]:
    """Scores around those of a pilot; of the oracle, StyleInject's are better by more than the margins."""
    name = str(unit.get("style", ""))
    place = (sum(map(ord, name)) % 7 - 3) / 30  # of this style among all

    def around(mean: float, of_run: float) -> float:
        return mean + place + of_run * (float(torch.randn((), generator=generator)) if generator else 0.0)

    gain = better and unit["contender"] == "style_inject"
    off = 0.2 * (unit["stage"] == "tune" and unit["rate"] != RATES[1])
    style, kept = around(0.7 if gain else 0.5, 0.06) - off, around(0.8 if gain else 0.6, 0.05)
    second = around(0.7 if gain else 0.5, 0.06) - off
    return {"style": style, "style_second": second, "kept": kept, "loss_style": -0.01, "loss_world": 0.005}
