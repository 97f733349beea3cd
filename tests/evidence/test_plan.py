"""The units a claim still needs, by its definition and the results so far."""

from pathlib import Path

import pytest

from diffadapt.errors import Refused
from diffadapt.evidence import Evidence, Finished, Results, Settings, claim_names, load_claim
from diffadapt.evidence.plan import plan, seconds_left
from diffadapt.evidence.results import ResultFile, identity


def finished(unit: dict, score: float = 0.0, seconds: float = 1.0) -> dict[str, Finished]:
    return {identity(unit): Finished(unit, {"score": score}, seconds)}


def tuned(best: int) -> dict[str, Finished]:
    """The toy's first stage, where one rate did best."""
    return {
        key: each for rate in (1, 2, 3) for key, each in finished({"stage": "tune", "rate": rate}, rate == best).items()
    }


def test_a_stage_follows_when_all_of_the_one_before_is_finished(folder: Path):
    claim, settings = load_claim(folder, "TOY-1"), Settings(seeds=(0, 1))
    first = plan(claim, {}, settings, {})
    assert [unit["rate"] for unit in first.pending] == [1, 2, 3] and len(first.results) == 0
    two_of_three = dict(list(tuned(best=3).items())[:2])
    assert list(plan(claim, two_of_three, settings, {}).pending) == [{"stage": "tune", "rate": 3}]
    second = plan(claim, tuned(best=3), settings, {})
    assert list(second.pending) == [{"stage": "test", "rate": 3, "seed": seed} for seed in (0, 1)]
    assert len(second.results) == 3 and not second.complete


def test_results_that_nobody_asks_for_are_left_out(folder: Path):
    other_rate = finished({"stage": "test", "rate": 2, "seed": 0})
    found = plan(load_claim(folder, "TOY-1"), tuned(best=3) | other_rate, Settings(seeds=(0,)), {})
    assert [each.unit["stage"] for each in found.results] == ["tune"] * 3 and len(found.pending) == 1


def test_results_are_found_by_the_fields_of_their_unit():
    results = Results([*tuned(best=1).values()])
    assert [each.unit for each in results.where(stage="tune", rate=2)] == [{"stage": "tune", "rate": 2}]
    assert results.where(rate=9) == []


def test_a_claim_waits_for_those_whose_results_it_reads(folder: Path):
    evidence = Evidence(folder, folder / "results", "sha256:0", Settings(seeds=(0,)))
    assert evidence.plan("TOY-2").waits_for == ["TOY-1"]
    file = ResultFile(folder / "results" / "TOY-1", {"commit": "abc", "base": {"fingerprint": "sha256:0"}})
    for each in [*tuned(best=3).values(), *finished({"stage": "test", "rate": 3, "seed": 0}).values()]:
        file.add(each)
    found = evidence.plan("TOY-2")
    assert found.complete and len(found.results.of("TOY-1")) == 4


def test_time_left_is_that_of_the_most_similar_units():
    done = finished({"method": "lora", "seed": 0}, seconds=10) | finished({"method": "full", "seed": 0}, seconds=50)
    waiting = [{"method": "full", "seed": 1}, {"method": "lora", "seed": 1}, {"method": "new", "seed": 1}]
    assert seconds_left(waiting, done.values(), workers=2) == (50 + 10 + 30) / 2
    assert seconds_left(waiting, [], workers=2) is None


def test_definitions_are_named_for_their_claims(folder: Path):
    (folder / "toy_10.py").write_text("CLAIM = 3")
    assert claim_names(folder) == ["TOY-1", "TOY-2", "TOY-10"]
    with pytest.raises(Refused, match="must define CLAIM"):
        load_claim(folder, "TOY-10")
    with pytest.raises(Refused, match="there are TOY-1, TOY-2, TOY-10"):
        load_claim(folder, "TOY-3")


def test_without_definitions_it_is_said_where_they_are(tmp_path: Path):
    with pytest.raises(Refused, match="clone of the repository"):
        claim_names(tmp_path)
