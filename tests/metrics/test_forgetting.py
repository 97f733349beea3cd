import pytest
import torch

from diffadapt.errors import Refused
from diffadapt.metrics import a_mmd, f_mmd, kept
from diffadapt.metrics.kernel_distance import mmd_squared


def rows(seed: int, count: int = 12, shift: float = 0.0) -> torch.Tensor:
    drawn = torch.randn(count, 8, generator=torch.Generator().manual_seed(seed)) + shift
    return torch.nn.functional.normalize(drawn, dim=1)


def test_the_worked_example_of_average_and_of_both_kinds_of_forgetting():
    scores = torch.tensor([[90.0, 0, 0], [84, 80, 0], [81, 74, 70]])
    found = kept(scores)
    assert found.average == pytest.approx(75.0, abs=1e-9) and found.forgetting == pytest.approx(5.25, abs=1e-9)
    assert found.forgetting_from_best == pytest.approx(7.5, abs=1e-9)


def test_the_best_may_come_later_than_learning():
    found = kept(torch.tensor([[50.0, 0, 0], [70, 80, 0], [60, 80, 70]]))
    assert found.forgetting_from_best == pytest.approx((10 + 0) / 2)


def test_what_is_above_the_diagonal_is_not_read_and_one_task_forgets_nothing():
    assert kept(torch.tensor([[1.0, 9], [2, 3]])) == kept(torch.tensor([[1.0, 0], [2, 3]]))
    assert kept(torch.tensor([[0.4]])).forgetting == kept(torch.tensor([[0.4]])).forgetting_from_best == 0


@pytest.mark.parametrize("scores", [torch.zeros(2, 3), torch.tensor([[1.0, 0], [float("nan"), 1]]), torch.zeros(0, 0)])
def test_scores_that_are_no_sequence_are_refused(scores):
    with pytest.raises(Refused, match="scores"):
        kept(scores)


def test_the_mmd_agrees_with_a_loop_over_pairs_is_symmetric_and_blind_to_order():
    x, y = rows(0).double(), rows(1, shift=0.5).double()

    def k(a, b):
        return (float(a @ b) / 8 + 1) ** 3

    def within(z):
        return sum(k(z[i], z[j]) for i in range(12) for j in range(12) if i != j) / (12 * 11)

    expected = within(x) + within(y) - 2 * sum(k(a, b) for a in x for b in y) / 144
    assert mmd_squared(x, y) == pytest.approx(expected, rel=1e-6)
    assert mmd_squared(y, x) == pytest.approx(expected, rel=1e-6)
    assert mmd_squared(x.flip(0), y) == pytest.approx(expected, rel=1e-6)


def test_the_biased_mmd_is_a_loop_over_all_pairs_zero_for_a_set_and_itself_in_any_order_and_never_below_zero():
    x, y = rows(0).double(), rows(1, shift=0.5).double()

    def k(a, b):
        return sum((float(p @ q) / 8 + 1) ** 3 for p in a for q in b) / 144

    assert mmd_squared(x, y, biased=True) == pytest.approx(k(x, x) + k(y, y) - 2 * k(x, y), rel=1e-6)
    assert mmd_squared(y, x, biased=True) == pytest.approx(mmd_squared(x, y, biased=True), rel=1e-9)
    assert mmd_squared(x, x, biased=True) == 0.0
    assert abs(mmd_squared(x, x.flip(0), biased=True)) < 1e-12 and mmd_squared(x, x) < 0
    assert all(mmd_squared(rows(i), rows(i + 50), biased=True) > 0 for i in range(20))


def test_a_mmd_means_over_all_tasks_and_f_mmd_over_all_but_the_last():
    real, learned, end = ([rows(10 * k + j, shift=0.3 * k) for j in range(3)] for k in range(3))
    assert a_mmd(real, end) == pytest.approx(sum(mmd_squared(a, b) for a, b in zip(real, end, strict=True)) / 3)
    assert f_mmd(learned, end) == pytest.approx(sum(mmd_squared(learned[j], end[j]) for j in range(2)) / 2)


def test_f_mmd_is_exactly_zero_where_no_picture_changed():
    learned = [rows(j) for j in range(3)]
    assert f_mmd(learned, [each.clone() for each in learned]) == 0.0
    assert f_mmd(learned[:1], [rows(9)]) == 0.0


def test_sequences_of_different_length_are_refused():
    with pytest.raises(Refused, match="real has 2 and at_end has 1"):
        a_mmd([rows(0), rows(1)], [rows(0)])
