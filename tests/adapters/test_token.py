import pytest
import torch

from diffadapt.adapters import LoRA, Token, attach
from diffadapt.errors import Refused


def test_a_new_token_starts_as_its_initial_text(base):
    with torch.no_grad():
        expected = base.condition(["a cat on a red background"]).text
    attachment = attach(base, Token(), tokens={"<biscuit>": "cat"})
    with torch.no_grad():
        torch.testing.assert_close(base.condition(["a <biscuit> on a red background"]).text, expected)
    attachment.detach()


def test_prompts_without_the_token_stay_bit_for_bit(base):
    with torch.no_grad():
        expected = base.condition(["a dog", ""]).text
    attachment = attach(base, Token(vectors=3), tokens={"<biscuit>": "cat"})
    with torch.no_grad():
        for parameter in attachment.parameters():
            parameter += 1
        assert torch.equal(base.condition(["a dog", ""]).text, expected)
    attachment.detach()


def test_several_vectors_take_several_places_of_the_prompt(base):
    attachment = attach(base, Token(vectors=3), tokens={"<biscuit>": "cat"})
    assert list(attachment.tokens) == ["<biscuit>", "<biscuit>_1", "<biscuit>_2"]
    first = next(a for a in attachment.adapters.values()).first
    ids = base.tokenize(["a <biscuit> on a red background"])[0].tolist()
    assert [first, first + 1, first + 2] == [i for i in ids if first <= i < first + 3]
    attachment.detach()


def test_strength_moves_the_vector_on_a_straight_line(base):
    attachment = attach(base, Token(), tokens={"<biscuit>": "cat"})
    adapter = next(iter(attachment.adapters.values()))
    with torch.no_grad():
        adapter.vectors += 1
    attachment.strength = 0.25
    torch.testing.assert_close(adapter.rows(), adapter.initial + 0.25)
    attachment.detach()


@pytest.mark.parametrize(
    ("token", "text", "says"),
    [
        ("cat", "dog", "in the base's tokenizer already"),
        ("two words", "cat", "one word without spaces"),
        ("", "cat", "one word without spaces"),
        ("<new>", "", "knows no word"),
    ],
)
def test_impossible_tokens_are_refused(base, token, text, says):
    with pytest.raises(Refused, match=says):
        attach(base, Token(), tokens={token: text})
    assert not base.attachments


def test_two_attachments_cannot_teach_one_token(base):
    first = attach(base, Token(), tokens={"<biscuit>": "cat"})
    with pytest.raises(Refused, match="already"):
        attach(base, LoRA(), tokens={"<biscuit>": "dog"})
    first.detach()


def test_textual_inversion_needs_a_token(base):
    with pytest.raises(Refused, match="at least one new token"):
        attach(base, Token())
