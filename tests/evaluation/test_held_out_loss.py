"""The loss on pictures that were not trained on: paired by its noise, and moved by what is attached."""

import pytest
import torch

from diffadapt.adapters import LoRA, attach
from diffadapt.errors import Refused
from diffadapt.evaluation import held_out_loss as module
from diffadapt.evaluation.held_out_loss import LEVELS, LossSet, held_out_loss, loss_by_level, loss_figures, losses

PROMPTS = ["a cat", "a red dog"]


def test_the_noise_is_paired_and_the_adapter_alone_makes_the_difference(tiny_base):
    pictures = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    before = held_out_loss(tiny_base, pictures, PROMPTS)
    assert before.shape == (len(LEVELS), 2) and torch.equal(before, held_out_loss(tiny_base, pictures, PROMPTS))
    assert not torch.equal(before, held_out_loss(tiny_base, pictures, PROMPTS, seed=1))
    attachment = attach(tiny_base, LoRA(rank=2))
    assert torch.equal(before, held_out_loss(tiny_base, pictures, PROMPTS))  # it starts at the base
    with torch.no_grad():
        for parameter in attachment.parameters():
            parameter += 0.1
    assert not torch.equal(before, held_out_loss(tiny_base, pictures, PROMPTS))
    attachment.detach()
    assert torch.equal(before, held_out_loss(tiny_base, pictures, PROMPTS))


def test_the_loss_of_a_base_that_predicts_nothing_is_the_mean_square_of_the_noise(tiny_base):
    with torch.no_grad():
        for parameter in tiny_base.denoiser.conv_out.parameters():
            parameter.zero_()
    pictures = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    found = held_out_loss(tiny_base, pictures, PROMPTS, seed=5)
    generator, shape = torch.Generator().manual_seed(5), tiny_base.encode_pictures(pictures).shape
    by_hand = torch.stack([torch.randn(shape, generator=generator).square().mean((1, 2, 3)) for _ in LEVELS])
    torch.testing.assert_close(found, by_hand)  # the target of this base is the noise


def test_rows_that_do_not_fit_into_one_pass_have_the_same_loss(tiny_v_base, monkeypatch):
    pictures = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    whole = held_out_loss(tiny_v_base, pictures, [*PROMPTS, "a bird"])
    monkeypatch.setattr(module, "AT_ONCE", 2)
    torch.testing.assert_close(held_out_loss(tiny_v_base, pictures, [*PROMPTS, "a bird"]), whole)


def test_a_figure_is_the_mean_rise_over_levels_and_pictures_and_what_did_not_change_rises_by_exactly_nothing(tiny_base):
    sets = {"own": LossSet(torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)), PROMPTS, "on two")}
    before = losses(tiny_base, sets, seed=3)
    assert loss_figures(sets, losses(tiny_base, sets, seed=3), before, seed=0)["loss_own"]["value"] == 0
    rise = torch.tensor([[1.0, 3.0]] * 4 + [[6.0, 8.0]])  # (levels, pictures)
    [(name, row)] = loss_figures(sets, {"own": before["own"] + rise}, before, seed=0).items()
    assert name == "loss_own" and row["value"] == pytest.approx(3.0, abs=1e-5) and row["n"] == 2
    assert "on two, same noise" in row["meaning"] and row["kind"] == "drift" and row["base"] is None
    told = loss_by_level({"own": before["own"] + rise}, before)["own"]
    assert [a - b for a, b in zip(told["adapted"], told["base"], strict=True)] == pytest.approx(
        [2, 2, 2, 2, 7], abs=1e-5
    )


def test_a_prompt_for_each_picture_is_needed(tiny_base):
    with pytest.raises(Refused, match="a prompt for each"):
        held_out_loss(tiny_base, torch.rand(2, 3, 32, 32), ["a cat"])
