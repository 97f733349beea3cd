"""The table [train.memory]: every option that is set replaces the preset's, and no other."""

from dataclasses import asdict

import pytest

from diffadapt.errors import Refused
from diffadapt.objectives import PRESETS
from diffadapt.training.retention_config import MemoryConfig


@pytest.mark.parametrize("name", PRESETS)
def test_a_table_without_options_is_the_preset(name):
    assert MemoryConfig().mixture(name) == PRESETS[name]


@pytest.mark.parametrize(
    ("option", "field", "value"),
    [
        ("condition", "memory_condition", "generated"),
        ("estimator", "estimator", "weighted"),
        ("psi", "psi", "snr"),
        ("tau", "tau", 0.0),
        ("step_at", "step_at", 0.0),
        ("psi_table", "psi_table", (0.25, 1.0)),
        ("weight", "memory_weight", 0.0),
        ("share", "memory_share", 0.0),
    ],
)
def test_an_option_replaces_one_setting_of_the_preset_even_by_nought(option, field, value):
    found = asdict(MemoryConfig(**{option: value}).mixture("difftuning"))
    before = asdict(PRESETS["difftuning"])
    assert found.pop(field) == value != before.pop(field) and found == before


def test_an_unknown_objective_is_refused():
    with pytest.raises(Refused, match="objective 'other'; expected "):
        MemoryConfig().mixture("other")
