"""The copy of a UNet's encoder that a ControlNet is."""

import pytest
import torch

from diffadapt.bases.encoder_copy import EncoderCopy
from diffadapt.errors import Refused


def copy_of(base, blocks: int = 0, *, copy_weights: bool = True, seed: int = 0) -> EncoderCopy:
    return EncoderCopy(base.denoiser, channels=(4, 8), blocks=blocks, copy_weights=copy_weights, seed=seed)


def outputs(copy: EncoderCopy):
    with torch.no_grad():
        return copy(torch.randn(2, 4, 8, 8), torch.tensor([5, 9]), torch.randn(2, 16, 32), torch.rand(2, 3, 16, 16))


def moved(copy: EncoderCopy) -> EncoderCopy:
    with torch.no_grad():
        for parameter in copy.parameters():
            parameter += 0.1
    return copy


def test_it_starts_from_the_bases_weights_and_adds_nothing(tiny_base):
    copy = copy_of(tiny_base)
    own, base = dict(copy.network.named_parameters()), dict(tiny_base.denoiser.named_parameters())
    shared = own.keys() & base.keys()
    assert len(shared) > 50 and all(torch.equal(own[name], base[name]) for name in shared)
    assert all(own[name] is not base[name] and own[name].requires_grad for name in shared)
    skips, middle = outputs(copy)
    assert len(skips) == copy.skips == 4 and not any(skip.any() for skip in skips) and not middle.any()


def test_only_the_first_blocks_can_be_copied(tiny_base):
    whole, part = copy_of(tiny_base), copy_of(tiny_base, 1)
    assert sum(p.numel() for p in part.parameters()) < 0.5 * sum(p.numel() for p in whole.parameters())
    (all_skips, middle), (skips, nothing) = outputs(moved(whole)), outputs(moved(part))
    assert [skip.shape for skip in skips[:3]] == [skip.shape for skip in all_skips[:3]]
    assert all(skip.any() for skip in skips[:3]) and middle.any()
    assert len(skips) == 4 and not skips[3].any() and not nothing.any()
    assert sum(p.numel() for p in copy_of(tiny_base, 2).parameters()) == sum(p.numel() for p in whole.parameters())


def test_the_signals_encoder_depends_on_nothing_but_the_seed(tiny_base):
    torch.manual_seed(1)
    first = copy_of(tiny_base, seed=3).state_dict()
    drawn = torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(torch.rand(1), drawn)  # the generator of everybody else was not touched
    assert all(torch.equal(first[name], value) for name, value in copy_of(tiny_base, seed=3).state_dict().items())
    other = copy_of(tiny_base, seed=4).state_dict()
    assert any(not torch.equal(first[name], value) for name, value in other.items())


def test_more_blocks_than_there_are_are_refused(tiny_base):
    with pytest.raises(Refused, match="2 down blocks; 3 cannot be copied"):
        copy_of(tiny_base, 3)
