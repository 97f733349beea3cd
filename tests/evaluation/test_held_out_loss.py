"""The loss on pictures that were not trained on: paired by its noise, and moved by what is attached."""

import pytest
import torch

from diffadapt.adapters import LoRA, attach
from diffadapt.errors import Refused
from diffadapt.evaluation.held_out_loss import LEVELS, held_out_loss

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


def test_a_prompt_for_each_picture_is_needed(tiny_base):
    with pytest.raises(Refused, match="a prompt for each"):
        held_out_loss(tiny_base, torch.rand(2, 3, 32, 32), ["a cat"])
