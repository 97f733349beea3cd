"""A figure beside the untouched base's: what changed is told by pairs of the same prompt and seed."""

import pytest
import torch

from diffadapt.evaluation.figure import against_base, figure

PROMPTS = torch.arange(25).repeat_interleave(4)  # four pictures a prompt


def pair(fall: float, share: float, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores of the base and of an adapter, which have this much in common."""
    generator = torch.Generator().manual_seed(seed)
    common, own, other = (torch.randn(25, generator=generator).repeat_interleave(4) for _ in range(3))
    base = share**0.5 * common + (1 - share) ** 0.5 * own
    return share**0.5 * common + (1 - share) ** 0.5 * other - fall, base


def found(fall: float, share: float) -> float:
    """The share of a hundred evaluations that say that something changed."""
    rows = [against_base(*pair(fall, share, seed), groups=PROMPTS, seed=seed) for seed in range(100)]
    return sum(row["change_low"] > 0 or row["change_high"] < 0 for row in rows) / len(rows)


def test_a_base_that_did_not_change_is_seldom_said_to_have():
    assert found(0.0, share=0.0) <= 0.12 and found(0.0, share=0.9) <= 0.12  # 5 % at the least


def test_a_change_that_all_pairs_have_is_seen():
    assert found(0.3, share=0.9) >= 0.8


def test_the_change_stands_beside_value_and_base():
    values, base = pair(0.3, 0.9, 0)
    row = figure(values, base, "higher", "what", seed=0, groups=PROMPTS)
    assert row["change_low"] < row["value"] - row["base"] < row["change_high"]
    assert row["value"] - row["base"] == pytest.approx(float((values - base).mean()), abs=1e-6)
    assert "change_low" not in figure(values, None, "higher", "what", seed=0)
    assert "change_low" not in figure(values, base[:4], "higher", "what", seed=0)
