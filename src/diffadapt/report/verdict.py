"""One sentence on what a run learned and forgot, made from its figures and no more certain than they are."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from .page import listed, number
from .run_folder import finite

Kind = Literal["fidelity", "control", "alignment", "diversity", "drift", "other"]
KINDS: Mapping[Kind, str] = {
    "fidelity": "Fidelity: is it the subject?",
    "control": "Control: does the picture follow the signal?",
    "drift": "Drift: what changed on prompts that have nothing to do with it?",
    "alignment": "Alignment: does the picture follow the prompt?",
    "diversity": "Diversity: do the pictures differ?",
    "other": "Other figures",
}
# only for figures whose file does not say its kind; drift first, since "text alignment drift" is about drift
HINTS: tuple[tuple[Kind, str], ...] = (
    ("drift", r"drift|leak|forg|retention|retain|preserv|distance to base|unrelated"),
    ("diversity", r"divers|spread"),
    ("alignment", r"align|clip[ _-]?t\b|text|prompt|background|style|position"),
    ("fidelity", r"fidel|dino|clip[ _-]?i\b|subject|identity"),
)


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One line of the metrics table."""

    name: str
    kind: Kind
    value: float
    low: float | None
    high: float | None
    n: int | None
    base: float | None
    better: str
    unit: str
    meaning: str
    change_low: float | None = None  # the interval of the change, from pairs of pictures
    change_high: float | None = None
    floor: float | None = None  # the untouched base, drawn again from other seeds
    perfect: float | None = None  # perfect renderings of the same prompts

    @property
    def change(self) -> float | None:
        """Value minus the untouched base's figure."""
        return None if self.base is None else self.value - self.base

    @property
    def moved(self) -> tuple[float, float]:
        """The interval of the change: its own where it is known, else that of the value less the base's figure."""
        if self.change_low is not None and self.change_high is not None:
            return self.change_low, self.change_high
        return (self.low or 0.0) - (self.base or 0.0), (self.high or 0.0) - (self.base or 0.0)

    @property
    def standing(self) -> Literal["above", "below", "undecided", "unknown"]:
        """Where the figure lies to the base's; "undecided" where the interval holds it, "unknown" without both.

        The interval is that of the change where it is known. That of the value takes the base's figure for exact, and
        does not know that their pictures are of the same prompts and seeds.
        """
        if self.base is None or self.low is None or self.high is None:
            return "unknown"
        low, high = self.moved
        return "above" if low > 0 else "below" if high < 0 else "undecided"

    @property
    def verdict(self) -> Literal["good", "bad", "undecided", "unknown"]:
        """The standing, judged by which direction is better."""
        if self.standing == "undecided":
            return "undecided"
        if self.standing == "unknown" or (self.base == 0 and self.better == "lower"):
            return "unknown"  # a distance to the base is never 0, so there is nothing to judge
        if self.better not in ("higher", "lower"):
            return "bad"  # near the base was asked for, and it is not
        return "good" if (self.standing == "above") == (self.better == "higher") else "bad"


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A part of the verdict in plain words, and the figure that it rests on (may be empty)."""

    text: str
    evidence: str


def read_figures(metrics: Mapping[str, Any]) -> list[Figure]:
    """The figures of a metrics.json, in the order of KINDS; entries without a finite value are left out."""
    values = metrics.get("values")
    figures: list[Figure] = []
    for name, entry in values.items() if isinstance(values, dict) else ():
        entry = entry if isinstance(entry, dict) else {"value": entry}
        value = finite(entry.get("value"))
        if value is None:
            continue
        better = str(entry.get("better") or "")
        count = finite(entry.get("n"))
        figures.append(
            Figure(
                name=str(name).replace("_", " "),
                kind=_kind(str(name), entry.get("kind"), better),
                value=value,
                low=finite(entry.get("low")),
                high=finite(entry.get("high")),
                n=None if count is None else int(count),
                base=finite(entry.get("base")),
                better=better,
                change_low=finite(entry.get("change_low")),
                change_high=finite(entry.get("change_high")),
                unit=str(entry.get("unit") or ""),
                meaning=str(entry.get("meaning") or ""),
                floor=finite(entry.get("floor")),
                perfect=finite(entry.get("perfect")),
            )
        )
    order = list(KINDS)
    return sorted(figures, key=lambda figure: order.index(figure.kind))


def read_verdict(figures: list[Figure], subject: str, noun: str = "") -> list[Claim]:
    """Claims on what was learned, then on what was forgotten, to be read as one sentence; empty if none was measured.

    Args:
        figures: what was measured.
        subject: the learned thing in words, for example "the <biscuit> cat".
        noun: its class, for example "cat"; empty when not known.
    """
    if not figures:
        return []
    drift = [figure for figure in figures if figure.kind == "drift"]
    # a mere distance to the base is told and not judged, as zero is no aim
    leak = _headline([figure for figure in drift if "leak" in figure.name])
    quality = _headline([figure for figure in drift if figure.base and "leak" not in figure.name])
    distance = _headline([figure for figure in drift if not figure.base and "leak" not in figure.name])
    claims = [
        _claim(
            _headline([figure for figure in figures if figure.kind == "fidelity"]),
            good=_learned(figures, subject),
            bad=f"It did not learn {subject}",
            undecided=f"Whether it learned {subject} is not decided",
            unknown=f"Its likeness to {subject} was measured with nothing to judge it by",
        ),
        _claim(
            _headline([figure for figure in figures if figure.kind == "control"]),
            good="It follows the signal",
            bad="It follows the signal less than the base does by chance",
            undecided="Whether it follows the signal is not decided",
            unknown="How well it follows the signal was measured with nothing to judge it by",
        ),
        _price(figures),
        _claim(
            quality,
            good="on unrelated prompts it lost nothing",
            bad="on unrelated prompts it forgot something",
            undecided="on unrelated prompts no forgetting could be measured",
            unknown="unrelated prompts were measured with nothing to judge them by",
        ),
        _leak_claim(leak, f"a plain {noun}" if noun else "its plain class"),
        _claim(distance, unknown=_moved_away(distance)),
        None if drift else Claim(text="what it forgot was not measured", evidence=""),
    ]
    return [claim for claim in claims if claim]


def _claim(figure: Figure | None, *, unknown: str, **texts: str) -> Claim | None:
    """One of the texts, by the figure's verdict; None without a figure."""
    return Claim(text=texts.get(figure.verdict, unknown), evidence=_evidence(figure)) if figure else None


def _moved_away(distance: Figure | None) -> str:
    if distance and distance.name.startswith("loss"):
        low, high = distance.low or 0.0, distance.high or 0.0
        rose = "rose" if low > 0 else "fell" if high < 0 else "did not change as far as could be measured"
        return f"its loss on pictures of the base's own {rose}"
    if distance and distance.value == 0 and distance.high == 0:
        return "pictures of unrelated prompts are the base's own"
    if distance and distance.floor is not None and distance.high is not None and distance.high <= distance.floor:
        return "pictures of unrelated prompts moved no further from the base's than other seeds move them"
    return "pictures of unrelated prompts moved away from the base's"


def _leak_claim(figure: Figure | None, plain: str) -> Claim | None:
    """Whether the class without the token has taken on the subject: the drift that subject learning is known for."""
    if figure is None:
        return None
    text = {
        "above": f"{plain} now takes after it",
        "below": f"{plain} has changed, away from it",
        "undecided": f"{plain} is no more like it than before, as far as could be measured",
        "unknown": f"{plain} was measured with nothing to judge it by",
    }[figure.standing]
    return Claim(text=text, evidence=_evidence(figure))


def _learned(figures: list[Figure], subject: str) -> str:
    """The verdict on a likeness that is clear of the base's: learned only where the prompts hold as well.

    A picture of the subject for whatever is asked has the highest fidelity, and is nothing that anybody wants. What one
    judge sees and another does not is not decided.
    """
    seen = [each for each in figures if each.kind == "fidelity" and each.standing != "unknown"]
    if any(each.verdict != "good" for each in seen):
        return f"Whether it learned {subject} is not decided, as not all judges see it"
    judged = [each for each in figures if each.kind in ("alignment", "diversity") and each.standing != "unknown"]
    if any(each.verdict == "bad" for each in judged):
        return f"It took on {subject}, at a price"
    if not any(each.kind == "alignment" for each in judged):
        return f"It took on {subject}; whether the prompts still hold was not measured"
    return f"It learned {subject}"


def _price(figures: list[Figure]) -> Claim | None:
    """The claim on the subject's own prompts, with its figures; None where none of them was measured."""
    judged = [each for each in figures if each.kind in ("alignment", "diversity") and each.standing != "unknown"]
    worse = [each for each in judged if each.verdict == "bad"]
    changes: list[str] = []
    for standing, verb in (("below", "fell"), ("above", "rose")):
        names = [figure.name for figure in worse if figure.standing == standing]
        if names:
            changes.append(f"{listed(names)} {verb}")
    if not judged:
        return None
    text = f"{', and '.join(changes)}" if changes else "nothing was lost as far as could be measured"
    return Claim(text=f"on its own prompts, {text}", evidence=", ".join(_evidence(each) for each in worse or judged))


def _headline(figures: list[Figure]) -> Figure | None:
    """The first one that can be judged against the base, otherwise the first."""
    return next((figure for figure in figures if figure.standing != "unknown"), figures[0] if figures else None)


def _evidence(figure: Figure) -> str:
    value = f"{figure.name} {number(figure.value)} {figure.unit}".strip()
    known = figure.low is not None and figure.high is not None
    interval = f" (95 % interval {number(figure.low)} to {number(figure.high)})" if known else ""
    against = f" against the base's {number(figure.base)}" if figure.base else ""
    if against and figure.change_low is not None and figure.change_high is not None:
        against += f", which is a change of {number(figure.change_low)} to {number(figure.change_high)}"
    return value + interval + against


def _kind(name: str, given: object, better: str) -> Kind:
    for kind in KINDS:
        if given == kind:
            return kind
    words = name.replace("_", " ").lower()
    for kind, pattern in HINTS:
        if re.search(pattern, words):
            return kind
    return "drift" if better == "near base" else "other"
