"""A method's change to the neurons of a base: measured on every layer, at the present strength, for every method."""

import pytest
import torch

from diffadapt.adapters import OFT, Attachment, Hint, LoRA, Method, Selective, Token, attach
from diffadapt.evaluation.geometry import CHANGES, geometry, largest_changes, movement

ROLES = ["cross_attention.*", "residual.conv"]  # linear layers and convolutions


def moved(base, method: Method, roles: list[str] | None, size: float = 0.1, seed: int = 0) -> Attachment:
    """An attachment whose parameters are away from where they start."""
    attachment = attach(base, method, roles, tokens={"<biscuit>": "cat"} if isinstance(method, Token) else None)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in attachment.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * size)
    return attachment


@pytest.mark.parametrize("strength", [1.0, 0.3, -1.0])
def test_oft_keeps_the_geometry_of_every_layer_at_every_strength(base, strength):
    attachment = moved(base, OFT(block_size=4), ROLES)
    attachment.strength = strength
    rows = movement([attachment])["weight_drift"]
    assert len(rows) == len(attachment.adapters) and all(row["relative_frobenius"] > 0.02 for row in rows)
    for row in rows:
        assert row["cosine_change"] <= 1e-6 and row["norm_change"] <= 2e-6 and abs(row["energy_change"]) <= 1e-6


@pytest.mark.parametrize("method", [LoRA(rank=2), Selective()], ids=lambda method: method.name)
def test_lora_and_full_fine_tuning_show_theirs(base, method):
    changes = geometry([moved(base, method, ROLES)])
    assert tuple(changes) == CHANGES
    assert changes["cosine_change"] > 1e-3 and changes["norm_change"] > 1e-3 and abs(changes["energy_change"]) > 1e-5


def test_a_gain_of_rescaled_oft_shows_in_the_norms_alone(base):
    changes = geometry([moved(base, OFT(block_size=4, rescale="joint"), ROLES)])
    assert changes["norm_change"] > 0.05
    assert changes["cosine_change"] <= 1e-6 and abs(changes["energy_change"]) <= 1e-6


@pytest.mark.parametrize("method", [LoRA(rank=2), OFT(block_size=4), Selective(train="bias")], ids=lambda m: m.name)
def test_nothing_learned_yet_and_biases_alone_are_changes_of_exactly_zero(base, method):
    size = 0.1 if method.name == "selective" else 0.0
    assert geometry([moved(base, method, ROLES, size)]) == dict.fromkeys(CHANGES, 0.0)


def test_textual_inversion_moves_no_weight(base):
    attachment = moved(base, Token(), None)
    assert geometry([attachment]) == {} and movement([attachment]) == {"weight_drift": [], "not_measured": []}


def test_norms_have_no_neurons(base):
    attachment = moved(base, Selective(), ["norm", "input.conv"])
    rows = {row["role"]: row for row in movement([attachment])["weight_drift"]}
    assert rows["norm"]["relative_frobenius"] > 0 and rows["norm"]["energy"] is None
    assert geometry([attachment])["norm_change"] == rows["input.conv"]["norm_change"]


def test_the_largest_change_of_any_layer_keeps_its_sign():
    rows = [dict.fromkeys(CHANGES, value) | {"energy": 9.0} for value in (0.1, -0.3, 0.2)]
    assert largest_changes([*rows, dict.fromkeys((*CHANGES, "energy"))]) == dict.fromkeys(CHANGES, -0.3)


def test_a_layer_whose_change_depends_on_the_input_is_named_and_not_measured(base):
    moving, hint = moved(base, LoRA(rank=2), ["input.*", "cross_attention.key"]), moved(base, Hint(), None)
    found = movement([moving, hint])
    reason = "its change depends on the input"
    assert found["not_measured"] == [{"layer": "unet.conv_in", "role": "input.conv", "reason": reason}]
    assert {row["role"] for row in found["weight_drift"]} == {"cross_attention.key"}


def test_stacked_attachments_are_measured_together(base):
    first = moved(base, LoRA(rank=2), ["cross_attention.key"])
    alone = geometry([first])
    second = moved(base, OFT(block_size=4), ["cross_attention.key"])
    rows = movement([first, second])["weight_drift"]
    assert len(rows) == len(first.adapters)
    assert largest_changes(rows) == pytest.approx(alone, abs=1e-6)  # the rotation adds nothing to them


def test_a_base_in_half_precision_rounds_no_rotation(base):
    base.pipeline.to(torch.bfloat16)
    assert geometry([moved(base, OFT(block_size=4), ROLES)])["cosine_change"] <= 1e-6
