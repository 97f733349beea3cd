"""Was what the prompt asked for done? Each attribute is read on its own, as compositional benchmarks do (Ghosh et al.
2023, GenEval, arXiv:2310.11513): no one number in which a wrong subject and a wrong background cancel.

Two networks that know neither denoiser nor adapter read a picture of the embedded world: the probe's heads say what is
there, the reader's mask says where and how large. Neither reads perfectly, so that a score is worth what perfect
renderings of the same prompts reach: `share_of_perfect`.
"""

from collections.abc import Mapping, Sequence

from torch import Tensor

from ..errors import Refused
from .features import ProbeFeatures
from .reader import Reader

ATTRIBUTES = ("background", "pattern", "position", "size", "style", "colour", "count", "wearing", "drawn", "second",
              "relation")  # fmt: skip
BY_MASKS = ("position", "size")  # read by where the object is, and not by the probe's heads
CENTRAL = 6.0  # pixels off the middle up to which an object is in the centre
LEAST = 20  # pixels of an object
SIZES = {"small": 30.0, "medium": 42.5, "large": 64.0}  # the longer side of its box, in pixels, up to


def look(pictures: Tensor, probe: ProbeFeatures, reader: Reader) -> list[dict[str, str]]:
    """Recognised attributes of pictures (N, 3, 64, 64) in [0, 1]: attribute -> label, for each.

    What the probe's heads name, but "position" and "size" of the larger object by the reader's masks, "none" without
    one. "object" and "second" are nouns. Without a head for it, "relation" is "next to" or "above" where there are two
    masks, whichever is the upper one, else "none".
    """
    named = probe.describe(pictures)
    seen = []
    for i, layers in enumerate(reader.read(pictures).layers):
        masks = [layers == layer for layer in (1, 2) if (layers == layer).sum() >= LEAST]
        masks.sort(key=lambda mask: -int(mask.sum()))
        seen.append(_placed(masks) | {name: labels[i] for name, labels in named.items() if name not in BY_MASKS})
    return seen


def followed(asked: Sequence[Mapping[str, str]], seen: Sequence[Mapping[str, str]]) -> dict[str, list[float]]:
    """Attribute -> 1.0 or 0.0 for every picture whose prompt asked for it, in the order of the pictures.

    What the probe has no head for is left out.

    Args:
        asked: what each picture's prompt asks for, as `data.asked.asked_of` returns it.
        seen: what `look` saw in it.

    Raises:
        Refused: the counts differ.
    """
    if len(asked) != len(seen):
        raise Refused(f"{len(seen)} pictures for {len(asked)} prompts; pass the prompt of each picture")
    right: dict[str, list[float]] = {}
    for wanted, found in zip(asked, seen, strict=True):
        for name, label in wanted.items():
            if name not in found:
                continue
            either = (found["object"], found["second"]) if name == "second" else (found[name],)
            right.setdefault(name, []).append(float(label in either))
    return {name: right[name] for name in ATTRIBUTES if name in right}


def share_of_perfect(scores: Mapping[str, Sequence[float]], perfect: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Attribute -> mean score over what perfect renderings of the same prompts reach, and "all", their plain mean.

    Args:
        scores: of a contender's pictures, as `followed` returns them.
        perfect: the same of perfect renderings; an attribute that even those never show is left out.

    Raises:
        Refused: there is nothing that both hold.
    """
    mean = {name: sum(values) / len(values) for name, values in perfect.items() if any(values)}
    shares = {name: sum(scores[name]) / len(scores[name]) / mean[name] for name in mean if scores.get(name)}
    if not shares:
        raise Refused("nothing was asked that perfect renderings show; expected attributes such as a background")
    return {**shares, "all": sum(shares.values()) / len(shares)}


def _placed(masks: Sequence[Tensor]) -> dict[str, str]:
    """Position and size of the first object, and how two of them stand."""
    if not masks:
        return {"position": "none", "size": "none", "relation": "none"}
    centres, side = [], 0.0
    for mask in masks[::-1]:  # the largest last
        ys, xs = mask.nonzero(as_tuple=True)
        box = [float(each) for each in (xs.min(), xs.max() + 1, ys.min(), ys.max() + 1)]
        centres.append(((box[0] + box[1]) / 2, (box[2] + box[3]) / 2))
        side = max(box[1] - box[0], box[3] - box[2])
    middle = masks[0].shape[-1] / 2
    dx, dy = centres[-1][0] - middle, centres[-1][1] - middle
    position = ("left" if dx < 0 else "right") if abs(dx) >= abs(dy) else ("top" if dy < 0 else "bottom")
    relation = "none"
    if len(masks) == 2:
        across, down = (abs(a - b) for a, b in zip(*centres, strict=True))
        relation = "next to" if across >= down else "above"
    return {
        "position": "center" if max(abs(dx), abs(dy)) <= CENTRAL else position,
        "size": next(name for name, most in SIZES.items() if side <= most),
        "relation": relation,
    }
