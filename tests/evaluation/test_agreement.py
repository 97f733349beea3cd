"""Whether two judges see the same."""

import pytest
import torch

from diffadapt.evaluation.agreement import agreement, correlation


def test_the_correlation_of_two_judges_is_pearsons():
    rows = torch.tensor([[0.1, 0.3], [0.5, 0.2], [0.9, 0.8], [0.4, 0.6]], dtype=torch.float64)
    assert correlation(rows) == pytest.approx(float(torch.corrcoef(rows.T)[0, 1]))
    assert correlation(rows * torch.tensor([1.0, 0.0])) == 0.0  # a judge that always says the same agrees with nobody


class Likeness:
    """A judge of pictures whose likeness by an encoder is the mean of the colour channel that the encoder looks at."""

    def fidelity(self, encoder, pictures):
        return pictures[:, encoder.channel].mean((1, 2))


class Looks:
    def __init__(self, name: str, channel: int):
        self.name, self.channel = name, channel


def test_judges_that_see_the_same_agree_wholly_and_others_do_not():
    drawn = [torch.rand(12, 3, 4, 4, generator=torch.Generator().manual_seed(i)) for i in range(2)]
    same = agreement(Likeness(), Looks("probe", 0), Looks("second", 0), drawn, seed=0)
    other = agreement(Likeness(), Looks("probe", 0), Looks("second", 1), drawn, seed=0)
    assert same["value"] == pytest.approx(1) and same["n"] == 24
    assert other["low"] < other["value"] < other["high"] and abs(other["value"]) < 0.6
    assert "probe and second" in same["meaning"]
