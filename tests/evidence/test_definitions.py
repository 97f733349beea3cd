"""The definitions under evidence/: each can be read, asks for units, and judges."""

import json
from pathlib import Path
from typing import Any

import pytest

from diffadapt.evidence import Finished, Results, Settings, claim_names, load_claim, simulated
from diffadapt.evidence.results import identity

FOLDER = Path(__file__).parents[2] / "evidence"
every_claim = pytest.mark.parametrize("name", claim_names(FOLDER))


@every_claim
def test_a_definition_says_what_it_tests(name: str):
    claim = load_claim(FOLDER, name)
    assert claim.title and claim.paper and claim.goal and not claim.title.endswith(".")
    assert set(claim.uses) < set(claim_names(FOLDER))


@every_claim
def test_units_are_flat_distinct_and_the_same_every_time(name: str):
    claim = load_claim(FOLDER, name)
    if claim.uses:
        return  # asked only when those are complete
    units = list(claim.units(Results(), Settings()))
    assert units and len({identity(unit) for unit in units}) == len(units)
    assert all(isinstance(value, str | int | float) for unit in units for value in unit.values())
    assert json.dumps(units) == json.dumps(list(claim.units(Results(), Settings())))


def test_every_contender_that_is_tuned_is_taught(monkeypatch):
    """Textual inversion is tuned in OFT-2 and tested in PF-2."""
    claim, taught = load_claim(FOLDER, "OFT-2"), []
    monkeypatch.setitem(claim.run.__globals__, "teach", lambda context, noun, *_, **more: taught.append(noun))
    units = list(claim.units(Results(), Settings()))
    for unit in units:
        claim.run(unit, None)
    assert {unit["contender"] for unit in units} >= {"oft", "lora", "token"} and len(taught) == len(units)


def blind(name: str, scores: dict[str, Any]) -> dict[str, Any]:
    """Scores of which the second judge sees the same, whoever trained."""
    if name.startswith("SI"):
        styles = {style: blind("SI-1", each) for style, each in scores.get("styles", {}).items()}
        return {**scores, "style_second": 0.5, "styles": styles}
    if name.startswith("CL"):
        same = {**scores["second"], "mmd_at_end": [1e-3] * 10, "mmd_since_learned": [1e-3] * 9}
        return {**scores, "second": same}
    if "likeness" not in scores:
        return scores
    return {**scores, "likeness": {**scores["likeness"], "second": [[[0.1, 0.1]] * 12] * 2}}


@pytest.mark.parametrize("name", ["SI-1", "SI-2", "SI-3", "SI-4", "SI-5", "CL-1", "CL-2", "PF-3"])
def test_what_the_probe_alone_sees_is_undecided(name: str):
    claim, ideal = load_claim(FOLDER, name), simulated(FOLDER, name, Settings())
    assert claim.judge(ideal).paper.status == "reproduced"
    used = {
        each: Results([Finished(one.unit, blind(each, one.scores), 1.0) for one in ideal.of(each)])
        for each in claim.uses
        if each[:2] == name[:2] and each[:2] != "PF"
    }
    blinded = Results([Finished(each.unit, blind(name, each.scores), 1.0) for each in ideal], {**ideal.used, **used})
    found = claim.judge(blinded).paper
    assert found.status == "undecided" and "The second judge does not agree" in found.sentence


def oft_1(cosine_change_of_oft: float) -> Results:
    """Fabricated runs of OFT-1 in which LoRA and full fine-tuning move."""
    changes = {"oft": cosine_change_of_oft, "lora": 0.2, "full": 0.1}
    return Results(
        [
            Finished(
                {"stage": "train", "contender": name, "seed": seed},
                {"angle_degrees": [5.0, 7.0]}
                | {
                    kind: {f"{strength:g}": [0.0, -change] for strength in (-1, 0.25, 0.5, 1, 2)}
                    for kind in ("cosine_change", "norm_change", "energy_change")
                },
                1.0,
            )
            for name, change in changes.items()
            for seed in (0, 1, 2)
        ]
    )


@pytest.mark.parametrize(("change", "status"), [(2e-7, "reproduced"), (2e-6, "not reproduced")])
def test_oft_1_is_judged_by_the_largest_change(change: float, status: str):
    verdict = load_claim(FOLDER, "OFT-1").judge(oft_1(change))
    assert verdict.paper.status == status and f"{change:.1e}" in verdict.paper.sentence
    assert len(verdict.tables[0].rows) == 15
