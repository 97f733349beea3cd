"""The tokens of a sequence: drawn at random, frozen once learned, and back from a file with all that was learned."""

import pytest
import torch

from diffadapt.adapters import RANDOM_START, CLoRA, Token, attach, load_adapter
from diffadapt.adapters.token import TokenAdapter
from diffadapt.conditioning import Conditioning
from diffadapt.errors import Refused

PROMPTS = ["a <one>", "a <two> on a <one>"]


def table_of(attachment) -> TokenAdapter:
    (table,) = [each for each in attachment.adapters.values() if isinstance(each, TokenAdapter)]
    return table


def after_two_tasks(base, method=None):
    attachment = attach(base, method or CLoRA(rank=2), tokens={"<one>": RANDOM_START}, seed=1)
    shift(attachment)
    attachment.fold_({"<two>": RANDOM_START}, seed=2)
    shift(attachment)
    return attachment


def shift(attachment):
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in attachment.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)


def test_a_random_row_has_the_tables_usual_norm_and_the_seed_decides_it(base):
    rows = []
    for seed in (0, 1, 1):
        attachment = attach(base, CLoRA(rank=1), tokens={"<one>": RANDOM_START}, seed=seed)
        rows.append(table_of(attachment).initial[0].clone())
        attachment.detach()
    norms = base.text_encoder.get_input_embeddings().weight.norm(dim=1)
    assert torch.equal(rows[1], rows[2]) and not torch.equal(rows[0], rows[1])
    assert all(0.5 < row.norm() / norms.median() < 2 for row in rows)


def test_rows_of_past_tokens_stay_bit_for_bit_under_weight_decay(base):
    attachment = after_two_tasks(base)
    table = table_of(attachment)
    before = table.past.clone()
    optimizer = torch.optim.AdamW(attachment.parameters(), lr=0.1, weight_decay=0.5)
    for _ in range(3):
        optimizer.zero_grad()
        base.condition(PROMPTS).text.square().sum().backward()
        optimizer.step()
    assert torch.equal(table.past, before) and torch.equal(table.rows()[:1], before)
    assert table.vectors.shape[0] == 1 and not torch.equal(table.vectors[0], table.initial[1])
    attachment.detach()


def test_both_words_of_a_sequence_stand_in_one_prompt(base):
    attachment = after_two_tasks(base)
    ids = base.tokenizer(PROMPTS[1], add_special_tokens=False).input_ids
    assert ids.count(len(base.tokenizer) - 1) == ids.count(len(base.tokenizer) - 2) == 1
    attachment.detach()


@pytest.mark.parametrize("method", [CLoRA(rank=2), Token()])
@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_a_sequence_comes_back_from_its_file_at_every_strength(base, tmp_path, method, strength):
    attachment = after_two_tasks(base, method)
    attachment.save(tmp_path / "a.safetensors")
    state = {key: value.clone() for key, value in attachment.state_dict().items()}
    attachment.strength = strength
    expected = base.condition(PROMPTS).text
    attachment.detach()
    loaded = load_adapter(base, tmp_path / "a.safetensors")
    loaded.strength = strength
    assert torch.equal(base.condition(PROMPTS).text, expected) and list(loaded.tokens) == ["<one>", "<two>"]
    assert all(torch.equal(value, state[key]) for key, value in loaded.state_dict().items())
    assert loaded.state_dict().keys() == state.keys()
    loaded.detach()


def test_a_sequence_goes_on_from_its_file(base, tmp_path):
    attachment = after_two_tasks(base)
    attachment.save(tmp_path / "a.safetensors")
    attachment.detach()
    loaded = load_adapter(base, tmp_path / "a.safetensors")
    before = base.condition(PROMPTS).text.detach()
    loaded.fold_({"<three>": RANDOM_START}, seed=5)
    assert torch.equal(base.condition(PROMPTS).text, before) and list(loaded.tokens) == ["<one>", "<two>", "<three>"]
    assert {each.tasks for each in loaded.adapters.values() if not isinstance(each, TokenAdapter)} == {2}
    loaded.detach()


@pytest.mark.parametrize(
    ("tokens", "words"),
    [
        ({}, "expected 1 new token"),
        ({"<a>": "cat", "<b>": "dog"}, r"expected 1 new token\(s\).*got 2"),
        ({"<one>": "cat"}, "already"),
    ],
)
def test_tokens_that_do_not_continue_the_sequence_are_refused_and_change_nothing(base, tokens, words):
    attachment = attach(base, CLoRA(rank=1), tokens={"<one>": RANDOM_START})
    before = {key: value.clone() for key, value in attachment.state_dict().items()}
    with pytest.raises(Refused, match=words):
        attachment.fold_(tokens)
    after = attachment.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(after[key], before[key]) for key in before)
    attachment.detach()


def test_a_token_for_an_attachment_that_learned_none_is_refused(base):
    attachment = attach(base, CLoRA(rank=1))
    with pytest.raises(Refused, match="learned no token"):
        attachment.fold_({"<one>": RANDOM_START})
    attachment.detach()


def test_an_observing_block_leaves_no_hook_behind(base):
    attachment = attach(base, CLoRA(rank=1, importance="inputs"))
    text = base.condition(["a cat", "a dog"]).text
    side = base.denoiser.config.sample_size
    with attachment.observing():
        base.denoise(torch.zeros(2, 4, side, side), torch.tensor([5, 5]), Conditioning(text=text))
    base.denoise(torch.zeros(2, 4, side, side), torch.tensor([5, 5]), Conditioning(text=text))
    layers = list(attachment.adapters.values())
    assert all(not layer._forward_pre_hooks for layer in layers)
    rows = text.flatten(0, 1)
    torch.testing.assert_close(layers[0].seen, rows.t() @ rows, rtol=1e-4, atol=1e-4)
    attachment.detach()


def test_the_log_is_told_the_penaltys_gradient_and_the_size_of_the_change(base):
    attachment = after_two_tasks(base, CLoRA(rank=2, penalty_weight=3.0))
    penalty = attachment.penalty()
    assert penalty is not None
    penalty.backward()
    norm = torch.stack([p.grad.norm() for p in attachment.parameters() if p.grad is not None]).norm().item()
    layers = [each for each in attachment.adapters.values() if not isinstance(each, TokenAdapter)]
    change = sum((layer.up @ layer.down).abs().sum().item() for layer in layers)
    assert attachment.notes() == {"penalty_gradient": pytest.approx(norm, rel=1e-5), "change": pytest.approx(change)}
    attachment.detach()
