"""A toy claim: tries three rates, then tests the best one with every seed."""

from pathlib import Path

import pytest

TOY = '''
"""TOY-1: a toy."""
import math
import os
import time
from pathlib import Path

from toy_scores import score
from diffadapt.evidence import Claim, Comparison, Curve, Design, Finding, Forest, Plot, Table, Verdict
from diffadapt.metrics import Interval


def units(results, settings):
    tried = results.where(stage="tune")
    if not tried:
        return [{"stage": "tune", "rate": rate} for rate in (1, 2, 3)]
    best = max(tried, key=lambda each: each.scores["score"]).unit["rate"]
    return [{"stage": "test", "rate": best, "seed": seed} for seed in settings.seeds]


def run(unit, context):
    mood = Path(__file__).parent / "mood.txt"  # what the test wants to happen
    mood = mood.read_text() if mood.exists() else ""
    if mood == "fail" and unit.get("seed") == 1:
        raise FileNotFoundError(f"nothing at {context.folder.resolve() / 'adapter'}")
    if mood == "fail" and unit.get("seed") == 2:
        os._exit(3)
    if mood == "fail" and unit.get("seed") == 3:
        return {"file": str(context.folder.resolve())}
    if mood == "fail" and unit.get("seed") == 4:
        return {"score": math.nan}
    if mood == "slow" and unit != {"stage": "tune", "rate": 1}:
        time.sleep(600)
    return {"score": score(unit["rate"]), "fingerprint": context.base.fingerprint}


def judge(results):
    it = Interval(value=0.25, low=0.125, high=0.375, n=3)
    tested = results.where(stage="test")
    return Verdict(
        paper=Finding(
            status="reproduced" if tested[0].scores["score"] > 1 else "undecided",
            sentence=f"Rate {tested[0].unit['rate']} over {len(tested)} seeds.",
        ),
        goal=Finding(status="met", sentence="More than was asked."),
        comparisons=[Comparison(name="a minus b", interval=compared(tested), margin=0.0)],
        tables=[Table(title="Scores", columns=["who", "n", "gain"], rows=[["a | b", 1234, it], ["c", None, 0.5]])],
        plots=[
            Forest(title="Gains", caption="of all", label="gain", rows=[("a", it)], mark=0.0),
            Plot(title="Rise", caption="over time", x_label="step", y_label="score",
                 curves=[Curve(name="a", points=[(0, 0.5), (1, it)])]),
        ],
        pictures=[("toy.png", "A toy")],
    )


def compared(tested):
    x = tested[0].scores["score"] - 1.5
    return Interval(value=x, low=x - 0.4, high=x + 0.4, n=3)


CLAIM = Claim(
    id="TOY-1", title="a toy", paper="page 1", goal="a goal", units=units, run=run, judge=judge,
    earlier="An older toy was undecided by today's rules.",
    design=Design(resampled="toys", margin="none", half_width=0.25, pilot="of nothing", seconds=2.0, basis="by hand"),
    null=lambda unit, generator: {"score": 1.5}, oracle=lambda unit: {"score": 2.0 if unit.get("rate") == 3 else 1.0},
)
'''
USER = '''
"""TOY-2: reads the results of TOY-1."""
from diffadapt.evidence import Claim, Design, Finding, Verdict


def judge(results):
    open_ = Finding(status="undecided", sentence=f"Read {len(results.of('TOY-1'))} units.")
    return Verdict(paper=open_, goal=open_)


CLAIM = Claim(
    id="TOY-2", title="another", paper="page 2", goal="a goal", uses=("TOY-1",), units=lambda results, settings: [],
    run=None, judge=judge, design=Design(resampled="toys", margin="none", half_width=None, pilot="", seconds=0.0),
    null=lambda unit, generator: {}, oracle=lambda unit: {},
)
'''


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the definitions of TOY-1 and TOY-2 and the code that TOY-1 shares."""
    place = tmp_path / "evidence"
    place.mkdir()
    (place / "toy_1.py").write_text(TOY)
    (place / "toy_2.py").write_text(USER)
    (place / "toy_scores.py").write_text('"""Shared."""\n\n\ndef score(rate):\n    return rate % 3\n')
    return place
