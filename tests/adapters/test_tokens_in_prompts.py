"""New words are found where they are meant: as words of their own, with the tokenizer's idea of capital letters."""

import pytest
import torch

from diffadapt.adapters import Token, attach, load_adapter
from diffadapt.adapters.tokenizer import tokenizers_by_table
from diffadapt.errors import Refused
from diffadapt.files import load_tensors, save_tensors


def teach(base, *tokens, vectors=1):
    attachment = attach(base, Token(vectors=vectors), tokens=dict.fromkeys(tokens, "cat"))
    with torch.no_grad():
        for parameter in attachment.parameters():
            parameter += torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    return attachment


def new_ids(base, attachment, prompt):
    first = next(iter(attachment.words)).first
    return [int(i) - first for i in base.tokenize([prompt])[0] if int(i) >= first]


def test_a_plain_word_is_not_found_inside_other_words(base):
    before = base.tokenize(["a banana", "ana", "an anabasis"])
    attachment = teach(base, "ana")
    after = base.tokenize(["a banana", "an anabasis"])
    assert torch.equal(after[0], before[0]) and torch.equal(after[1], before[2])
    assert new_ids(base, attachment, "a photo of ana, red") == [0]


def test_a_plain_word_of_several_vectors_is_spelled_out_as_a_word_only(base):
    attachment = teach(base, "ana", vectors=2)
    assert new_ids(base, attachment, "a banana") == [] and new_ids(base, attachment, "ana on red") == [0, 1]


def test_merging_keeps_the_words_apart(base, tmp_path):
    from diffadapt.bases import load_base

    teach(base, "ana").merge_()
    base.save(tmp_path / "merged")
    again = load_base(tmp_path / "merged", device="cpu")
    size = len(again.tokenizer) - 1
    assert size not in again.tokenize(["a banana"]) and size in again.tokenize(["an ana"])


@pytest.mark.parametrize("prompt", ["a <Rex> cat", "a <rex> cat", "a <REX> cat"])
def test_capital_letters_of_a_token_count_as_little_as_those_of_other_words(base, prompt):
    attachment = teach(base, "<Rex>", vectors=3)
    assert new_ids(base, attachment, prompt) == [0, 1, 2]


def test_tokens_that_differ_in_capital_letters_alone_are_refused(base):
    with pytest.raises(Refused, match="<Rex>, <rex> differ in the case of letters alone"):
        teach(base, "<Rex>", "<rex>")
    teach(base, "<Rex>")
    with pytest.raises(Refused, match="<rex> and <Rex> differ in the case of letters alone"):
        teach(base, "<rex>")
    assert len(base.attachments) == 1


def test_what_the_base_predicts_is_remembered_by_the_file(base, tmp_path):
    attachment = teach(base, "<rex>")
    path = attachment.save(tmp_path / "a.safetensors")
    attachment.detach()
    base.pipeline.scheduler.register_to_config(prediction_type="epsilon")
    with pytest.raises(
        Refused, match="predicts v_prediction, and this one was loaded to predict epsilon; load it with"
    ):
        load_adapter(base, path)
    base.pipeline.scheduler.register_to_config(prediction_type="v_prediction")
    load_adapter(base, path)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_strength_is_a_finite_number(base, value):
    attachment = teach(base, "<rex>")
    with pytest.raises(Refused, match="strength: expected a finite number"):
        attachment.strength = value
    assert attachment.strength == 1


@pytest.mark.parametrize(
    ("entry", "value"),
    [
        ("config", "[]"), ("config", "null"), ("config", "[" * 5000), ("config", '{"vectors": "2"}'),
        ("config", '{"x": 1}'),
        ("config", '{"vectors": [1]}'),
        ("roles", '{"a": 1}'), ("roles", "[1]"), ("tokens", "[]"), ("tokens", '{"a": 1}'),
        ("format_version", "one"), ("method", "\x1b[31m"),
    ],
)  # fmt: skip
def test_a_header_of_another_shape_is_one_sentence(base, tmp_path, entry, value):
    attachment = teach(base, "<rex>")
    path = attachment.save(tmp_path / "a.safetensors")
    attachment.detach()
    tensors, header = load_tensors(path)
    save_tensors(path, tensors, {**header, entry: value})
    with pytest.raises(Refused) as refused:
        load_adapter(base, path)
    assert str(path) in str(refused.value) and str(refused.value).isprintable() and not base.attachments


def test_a_header_without_an_entry_is_one_sentence(base, tmp_path):
    attachment = teach(base, "<rex>")
    path = attachment.save(tmp_path / "a.safetensors")
    attachment.detach()
    tensors, header = load_tensors(path)
    for entry in ("config", "roles", "tokens", "method", "base", "base_fingerprint", "format_version"):
        save_tensors(path, tensors, {key: each for key, each in header.items() if key != entry})
        with pytest.raises(Refused, match=f"{entry} is missing|None"):
            load_adapter(base, path)


def test_an_adapter_of_whole_numbers_or_flags_is_refused(base, tmp_path):
    attachment = teach(base, "<rex>")
    path = attachment.save(tmp_path / "a.safetensors")
    attachment.detach()
    tensors, header = load_tensors(path)
    for dtype in (torch.bool, torch.int64):
        save_tensors(path, {key: value.to(dtype) for key, value in tensors.items()}, header)
        with pytest.raises(Refused, match="no numbers of an adapter"):
            load_adapter(base, path)
    assert tokenizers_by_table(base)
