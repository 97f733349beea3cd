"""C-LoRA on sequences of small linear tasks: what the penalty does, and where it fails."""

import functools
import sys
from pathlib import Path

import pytest

from diffadapt.adapters import CLoRA

sys.path.insert(0, str(Path(__file__).parents[2] / "evidence"))

from c_lora_toy import Learned, learn

pytestmark = pytest.mark.slow


@functools.cache
def sequence(penalty: float, overlap: float = 0.0, importance: str = "abs_of_sum", count: int = 6) -> Learned:
    method = CLoRA(rank=4, penalty_weight=penalty, importance=importance)
    return learn(method, overlap=overlap, seed=0, count=count, steps=200)


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def test_some_lambda_halves_forgetting_and_still_learns():
    best = min((sequence(penalty) for penalty in (1.0, 10.0)), key=lambda each: each.forgetting)
    assert best.forgetting <= 0.5 * sequence(0.0).forgetting and mean(best.after) < 0.02


def test_the_error_at_the_end_is_u_shaped_in_lambda():
    none, some, huge = (mean(sequence(penalty).end) for penalty in (0.0, 10.0, 1e6))
    assert some < none and some < huge


def test_a_huge_lambda_leaves_new_tasks_unlearned():
    assert mean(sequence(1e6).after) > 0.5


def test_a_common_direction_of_the_prompts_makes_forgetting_worse():
    """Why the class noun is dropped: it is such a direction."""
    assert sequence(0.0, 0.9).forgetting > 2.5 * sequence(0.0).forgetting


def test_the_sum_of_abs_ends_no_worse_than_the_abs_of_the_sum():
    ends = {
        importance: min(mean(sequence(penalty, 0.0, importance).end) for penalty in (1.0, 10.0))
        for importance in ("abs_of_sum", "sum_of_abs")
    }
    assert ends["sum_of_abs"] <= ends["abs_of_sum"]


def test_weighing_by_inputs_forgets_less_than_the_papers_penalty_and_learns_as_well():
    mine, papers = sequence(1.0, 0.0, "inputs"), sequence(10.0)
    assert mine.forgetting < 0.2 * papers.forgetting and mean(mine.after) < 0.02
