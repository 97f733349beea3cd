import pytest
import torch

from diffadapt.conditioning import Conditioning
from diffadapt.errors import Refused


def full(rows: int, start: int = 0) -> Conditioning:
    """Every field set, with values that say which row they are of."""
    number = torch.arange(start, start + rows)
    return Conditioning(
        token_ids=number[:, None].repeat(1, 3),
        text=number[:, None, None].expand(rows, 3, 2).float(),
        text_mask=torch.ones(rows, 3, dtype=torch.bool),
        pooled_text=number[:, None].float(),
        class_labels=number,
        image_sizes=number[:, None].repeat(1, 2),
        control={"hint": number[:, None, None, None].expand(rows, 3, 4, 4).float()},
    )


def same(a: Conditioning, b: Conditioning) -> bool:
    mine, other = dict(a._named()), dict(b._named())
    return mine.keys() == other.keys() and all(torch.equal(mine[name], other[name]) for name in mine)


def test_rows_takes_the_same_rows_of_every_field_in_the_order_asked_for():
    assert same(full(4).rows([2]), full(1, start=2))
    assert same(full(4).rows(slice(1, 3)), full(2, start=1))
    assert same(full(4).rows(torch.tensor([False, True, True, False])), full(2, start=1))
    assert full(3).rows([2, 0]).class_labels.tolist() == [2, 0]


def test_cat_puts_the_rows_of_every_field_behind_each_other():
    assert same(Conditioning.cat([full(2), full(3, start=2)]), full(5))
    assert len(Conditioning.cat([full(2), full(3)])) == 5


def test_cat_of_parts_that_do_not_have_the_same_fields_is_refused():
    with pytest.raises(Refused, match="with and without text"):
        Conditioning.cat([full(1), Conditioning(token_ids=torch.zeros(1, 3))])


def test_a_dtype_changes_floating_point_fields_only():
    half = full(2).to(dtype=torch.float16)
    assert half.text.dtype == half.pooled_text.dtype == half.control["hint"].dtype == torch.float16
    assert half.token_ids.dtype == half.class_labels.dtype == torch.int64 and half.text_mask.dtype == torch.bool


def test_detach_cuts_the_graph_of_every_field():
    text = torch.zeros(1, 2, 2, requires_grad=True)
    assert not Conditioning(text=text * 2).detach().text.requires_grad


def test_its_length_is_the_number_of_rows_and_fields_must_agree_on_it():
    assert len(full(3)) == 3
    with pytest.raises(Refused, match="token_ids 2, class_labels 3"):
        len(Conditioning(token_ids=torch.zeros(2, 1), class_labels=torch.zeros(3)))
    with pytest.raises(Refused, match="got nothing"):
        len(Conditioning())
