"""Verdicts on comparisons of two contenders: one rule turns an interval into words."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ..metrics.bootstrap import Interval

Status = Literal["reproduced", "equal", "not reproduced", "met", "not met", "undecided"]
Standing = Literal["better", "equal", "worse", "undecided"]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One verdict.

    Args:
        status: of a paper's claim "reproduced", "equal" (the difference is none that counts) or "not reproduced"; of
            our own goal "met" or "not met"; of either "undecided".
        sentence: the figures that decide, in one sentence.
    """

    status: Status
    sentence: str


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One contender against another.

    Args:
        name: who against whom, and in what: "fidelity, OFT minus LoRA".
        interval: of the difference, or of the ratio.
        margin: how far from `alike` still counts as equal, 0 or more.
        alike: the figure of two contenders that are the same: 0 of a difference, 1 of a ratio.
        more_is_better: False where less is, as of forgetting.
    """

    name: str
    interval: Interval
    margin: float
    alike: float = 0.0
    more_is_better: bool = True

    @property
    def standing(self) -> Standing:
        """Equal where the interval is within the margin, better or worse where it is clear of `alike`, or undecided.

        Equal comes first: a gain that is clear of nothing and smaller than what counts is no gain.
        """
        low, high = self.interval.low - self.alike, self.interval.high - self.alike
        if -self.margin <= low and high <= self.margin and self.margin > 0:
            return "equal"
        if low > 0:
            return "better" if self.more_is_better else "worse"
        if high < 0:
            return "worse" if self.more_is_better else "better"
        return "undecided"

    @property
    def not_worse(self) -> bool | None:
        """Whether it is worse by no more than the margin; None where that is not decided."""
        low, high = self.interval.low - self.alike, self.interval.high - self.alike
        if not self.more_is_better:
            low, high = -high, -low
        return True if low >= -self.margin else False if high < -self.margin else None

    def __str__(self) -> str:
        it, sign = self.interval, "+" if self.alike == 0 else ""
        return f"{self.name} {it.value:{sign}.3f} [{it.low:{sign}.3f}, {it.high:{sign}.3f}] ({self.standing})"


def claimed_better(comparisons: Sequence[Comparison]) -> Finding:
    """The verdict of a paper that claims to be better in every one of some comparisons."""
    standings = {each.standing for each in comparisons}
    status: Status = "undecided"
    if standings == {"better"}:
        status = "reproduced"
    elif "worse" in standings:
        status = "not reproduced"
    elif standings == {"equal"} or standings == {"equal", "better"}:
        status = "equal"
    return Finding(status=status, sentence=in_a_sentence(comparisons))


def confirmed(finding: Finding, second: Sequence[Comparison]) -> Finding:
    """A finding that rests on one judge's eyes, held against a second judge's: what only one of them sees is undecided.

    Args:
        finding: of a paper's claim, by the first judge.
        second: the comparisons that decide it, as a judge that shares nothing with the first scores the same pictures.
    """
    standings = {each.standing for each in second}
    against = {"reproduced": standings - {"better"}, "not reproduced": standings & {"better"}}
    opposed = against.get(finding.status, set())
    status: Status = "undecided" if opposed else finding.status
    agrees = "does not agree" if opposed else "agrees"
    return Finding(status=status, sentence=f"{finding.sentence} The second judge {agrees}: {in_a_sentence(second)}")


def in_a_sentence(comparisons: Sequence[Comparison]) -> str:
    """Comparisons in one sentence."""
    words = "; ".join(map(str, comparisons))
    return words[:1].upper() + words[1:] + "."


def goal(parts: Sequence[bool | None], sentence: str) -> Finding:
    """The verdict of a goal with several parts: each is met, not met, or None where that is not decided."""
    status: Status = "not met" if False in parts else "undecided" if None in parts else "met"
    return Finding(status=status, sentence=sentence)


def within(interval: Interval, *, low: float = float("-inf"), high: float = float("inf")) -> bool | None:
    """Whether a whole interval lies from `low` to `high`: True; False where none of it does; else None."""
    if low <= interval.low and interval.high <= high:
        return True
    return False if interval.high < low or interval.low > high else None
