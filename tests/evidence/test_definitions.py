"""The definitions under evidence/: each can be read, asks for units, and judges."""

import json
from pathlib import Path

import pytest

from diffadapt.evidence import Finished, Results, Settings, claim_names, load_claim
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
