"""Measures what an adapted base learned of styles, and whether it still follows the prompt.

Protocol: pictures from the captions of held-out pictures of each style, same seeds for the base and the adapted base.
`style_distance` compares their texture statistics with the held-out pictures' own, as two networks see them where the
base is of the embedded world; alignment is that of picture and
caption; drift is what changed on prompts that have nothing to do with the style. One style that all prompts should
take on drifts by design; of many that captions name, what they do not name should stay. The denoising loss is measured
on held-out pictures of the styles and on the base's own pictures of unrelated prompts, with the same noise.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ..adapters import Attachment
from ..bases import Base
from ..data.cache import TensorCache
from ..data.captioned import Captioned
from ..data.picture import to_picture, to_tensor, write_png
from ..data.prompts import drift_prompts, spread
from ..data.wide_scenes import world_of
from ..errors import Refused
from ..metrics.alignment import text_alignment
from ..metrics.bootstrap import interval_of_mean
from ..metrics.drift import drift_features
from ..metrics.features import load_features
from ..metrics.frechet import fid
from ..metrics.preference import STAND_IN, load_preference
from ..metrics.style import content_kept, style_distance
from ..progress import Steps
from ..sampling.sample import adapted, default_line
from .agreement import SECOND
from .figure import against_base
from .held_out_loss import MOST, LossSet, loss_by_level, loss_figures, losses
from .judge import draw_lines


def evaluate_style(
    base: Base,
    reference: Mapping[str, Captioned],
    *,
    adapters: Sequence[tuple[str | Path | Attachment, float]],
    most: int = 16,
    drift_count: int = 16,
    seed: int = 0,
    features: str = "",
    preference: str = "",
    steps: int | None = None,
    out: str | Path | None = None,
    kept: TensorCache | None = None,
    quiet: bool = True,
) -> dict[str, Any]:
    """Distance to each style, text alignment and drift, with the untouched base's figures beside them.

    A class-conditional base has no text to be true to; its figures before the training are those of its null class,
    which new classes start from.

    Args:
        base: a loaded base.
        reference: style -> held-out pictures of it.
        adapters: (file or attachment, strength) pairs.
        most: pictures of each style, one from the caption of each held-out picture in turn.
        drift_count: how many unrelated prompts, one picture each.
        seed: picture i starts from seed + i, for the base and the adapted base alike.
        features: encoder by name; empty means the probe on the embedded base, else CLIP ViT-B/32.
        preference: a preference model as `load_preference` takes it; empty means its stand-in on the embedded base, and
            none elsewhere.
        steps: denoising steps; None means the base's default.
        out: folder for the pictures, `STYLE/NN-base.png` and `STYLE/NN-adapted.png`; None keeps none.
        kept: where the untouched base's pictures are kept for the next adapter, as `evaluate` has it.
        quiet: show no progress.

    Returns:
        "values" {name: {value, low, high, n, base, better, unit, meaning}} as `evaluate` has them, over all styles;
        "by_style" {style: {name: {value, base}}}; "held_out_loss" by noise level; "features", "protocol"

    Raises:
        Refused: no held-out picture, an encoder cannot be loaded, or an adapter does not fit.
    """
    if not reference or most < 3:
        raise Refused(f"a style is measured by held-out pictures, 3 or more; got {len(reference)} styles, most={most}")
    encoder = load_features(features or base.encoder or "clip:openai/clip-vit-base-patch32", device=base.device)
    model = preference or (STAND_IN if base.world else "")
    preferring = load_preference(model, device=base.device) if model else None
    prompts = {style: [each.caption(i % len(each)) for i in range(most)] for style, each in reference.items()}
    unrelated = spread(base.own_classes, drift_count) or drift_prompts(world_of(base), drift_count, seed)
    asked = {**prompts, "": unrelated}
    lines = {
        name: [default_line(base, prompt, seed + i, steps=steps) for i, prompt in enumerate(each)]
        for name, each in asked.items()
    }
    with Steps("evaluate", 2 * sum(map(len, lines.values())), quiet=quiet) as bar:
        # The base itself; one of classes is told those that the adapters bring.
        switched_off = [(a, 0.0) for a, _ in adapters if base.own_classes or isinstance(a, Attachment)]
        with adapted(base, switched_off):
            before = {name: draw_lines(base, each, bar=bar, kept=kept) for name, each in lines.items()}
            sets = _loss_sets(base, reference, unrelated, before[""])
            losses_before = losses(base, sets, seed=seed)
        with adapted(base, adapters):
            after = {name: draw_lines(base, each, bar=bar) for name, each in lines.items()}
            losses_after = losses(base, sets, seed=seed)

    second = load_features(SECOND, device=base.device) if base.encoder == "probe" and encoder.name != SECOND else None
    rows: dict[str, dict[str, tuple[Tensor, Tensor]]] = {name: {} for name in MEANINGS}  # (adapted, base)
    distances: dict[str, tuple[float, float]] = {}
    content: dict[str, Tensor] = {}
    for style, each in reference.items():
        own = each.pixels(range(len(each)), base.resolution)
        pair = (after[style], before[style])
        maps = encoder.maps(own)
        rows["style_distance"][style] = _pair(style_distance(encoder.maps(made), maps) for made in pair)
        if second:
            style_maps = second.maps(own)
            rows[BY_SECOND][style] = _pair(style_distance(second.maps(made), style_maps) for made in pair)
        seen, target = [encoder.pictures(made) for made in pair], encoder.pictures(own)
        if not base.own_classes:  # the names of classes describe nothing
            content[style] = content_kept(*seen).float()
            texts = encoder.texts(prompts[style])
            rows["text_alignment"][style] = _pair(text_alignment(made, texts) for made in seen)
        count = min(len(own), most)
        if count > 1:  # one picture has no spread
            distances[style] = (fid(seen[0][:count], target[:count]), fid(seen[1][:count], target[:count]))
        if out:
            _write(Path(out) / style, *pair)

    if len(reference) > 1:
        groups = torch.arange(len(reference)).repeat_interleave(most)
    else:  # pictures of one caption go together
        groups = torch.arange(most) % len(next(iter(reference.values())))
    values = {}
    rows = {name: each for name, each in rows.items() if each}
    for name in rows:
        meaning = MEANINGS[name]
        made, plain = (torch.cat(each) for each in zip(*rows[name].values(), strict=True))
        values[name] = _value(made, plain, *meaning, groups, seed)
    if content:
        values["content_kept"] = _value(torch.cat([*content.values()]), None, *KEPT, groups, seed)
    if distances:
        mean_fid = [sum(each[i] for each in distances.values()) / len(distances) for i in (0, 1)]
        values["style_fid"] = {
            "value": mean_fid[0], "low": None, "high": None, "n": min(most, *map(len, reference.values())),
            "base": mean_fid[1], "better": "lower", "unit": "", "kind": "fidelity",
            "meaning": "Frechet distance to held-out pictures of the style, by features (mean over styles); few "
            "pictures, so compare runs of equal counts only",
        }  # fmt: skip
    if preferring:
        asked_of = [prompt for each in prompts.values() for prompt in each]
        made, plain = (
            preferring.scores(torch.cat([*each.values()][: len(reference)]), asked_of) for each in (after, before)
        )
        values[preferring.title] = _value(made, plain, "higher", "other", preferring.meaning, groups, seed)
    moved = drift_features(encoder.pictures(after[""]), encoder.pictures(before[""]))
    values["drift_features"] = _value(moved, None, *DRIFT, None, seed)
    values |= loss_figures(sets, losses_after, losses_before, seed=seed)
    by_style = {
        style: {name: _two(*(float(one.mean()) for one in each[style])) for name, each in rows.items()}
        | ({"style_fid": _two(*distances[style])} if style in distances else {})
        | ({"content_kept": _two(float(content[style].mean()), 1.0)} if content else {})
        for style in reference
    }
    protocol = {"styles": len(reference), "pictures": most, "drift_prompts": drift_count, "seed": seed}
    return {
        "values": values,
        "by_style": by_style,
        "held_out_loss": loss_by_level(losses_after, losses_before),
        "features": encoder.name,
        "protocol": protocol,
    }


GRAM = "distance of the Gram matrices to the mean of the style's held-out pictures, as a share of that mean"
BY_SECOND = f"style_distance ({SECOND})"
MEANINGS: dict[str, tuple[str, str, str]] = {  # name -> better, kind, meaning
    "style_distance": ("lower", "fidelity", GRAM),
    BY_SECOND: ("lower", "fidelity", f"{GRAM}, as the second judge sees it"),
    "text_alignment": ("higher", "alignment", "does the picture show what its caption says (cosine)"),
}
KEPT = (
    "higher",
    "alignment",
    "do pictures differ from each other as the base's do for the same prompts and seeds (cosine of features less their "
    "mean, so that a style common to all does not count)",
)
DRIFT = (
    "lower",
    "drift",
    "change of pictures of unrelated prompts, same prompt and seed (cosine distance); a style that all prompts take on "
    "changes them by design",
)


def _loss_sets(base: Base, reference: Mapping[str, Captioned], unrelated: list[str], own: Tensor) -> dict[str, LossSet]:
    """The pictures that the loss is measured on: of each style as many as there is room for, and the base's own."""
    share = max(1, MOST // len(reference))
    rows = {style: range(min(share, len(each))) for style, each in reference.items()}
    pictures = torch.cat([each.pixels(rows[style], base.resolution) for style, each in reference.items()])
    captions = [each.caption(i) for style, each in reference.items() for i in rows[style]]
    return {
        "style": LossSet(pictures, captions, "on held-out pictures of the style with their captions", "other"),
        "world": LossSet(own, unrelated, "on the untouched base's pictures of unrelated prompts"),
    }


def _two(value: float, base: float) -> dict[str, float]:
    return {"value": value, "base": base}


def _pair(values: Any) -> tuple[Tensor, Tensor]:
    first, second = values
    return first.float(), second.float()


def _value(
    values: Tensor, base: Tensor | None, better: str, kind: str, meaning: str, groups: Tensor | None, seed: int
) -> dict[str, Any]:
    row: dict[str, Any] = interval_of_mean(values, groups=groups, seed=seed).as_row()
    own = {"better": better, "kind": kind, "unit": "", "meaning": meaning}
    return row | against_base(values, base, groups=groups, seed=seed) | own


def read_pairs(folder: Path) -> tuple[Tensor, Tensor]:
    """What `evaluate_style` wrote of a style, `out/STYLE`: (adapted, base), (N, 3, H, W) in [0, 1] each."""

    def pixels(name: str) -> Tensor:
        paths = sorted(folder.glob(f"*-{name}.png"))
        if not paths:
            raise Refused(f"expected pictures NN-{name}.png of an evaluation in {folder}; there are none")
        return torch.stack([to_tensor(Image.open(path)) / 255 for path in paths])

    return pixels("adapted"), pixels("base")


def _write(folder: Path, after: Tensor, before: Tensor) -> None:
    for i, pair in enumerate(zip(after, before, strict=True)):
        for name, pixels in zip(("adapted", "base"), pair, strict=True):
            write_png(folder / f"{i:02d}-{name}.png", to_picture(pixels))
