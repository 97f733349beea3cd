"""Perfusion: several concepts, trained apart, in one prompt; and hundreds that are not in it."""

import itertools

import pytest
import torch
from perfusion_cases import concept, exact, given, prepared, projections

from diffadapt.adapters import LoRA, Perfusion, attach
from diffadapt.adapters.anchors import shares
from diffadapt.errors import Refused

NOUNS = ("cat", "dog", "apple")
PROMPTS = ["a <0> on the red background", "the <1> of a <0>", "a dog", "<2> <1> <0>", "", "a <2>"]


@pytest.fixture
def base(tiny_base):
    return exact(tiny_base)


def company(base, count: int = 3, **settings):
    return [concept(base, Perfusion(**settings), f"<{i}>", NOUNS[i % 3], seed=i) for i in range(count)]


def values(base, text):
    return [base.module(path)(text) for path in base.roles["cross_attention.value"]]


def by_cholesky(text, anchors, c):
    """The paper's appendix B: whiten with C^-1 = L L^T, orthonormalise, and take that part out."""
    low = torch.linalg.cholesky(torch.linalg.inv(c.matrix + c.ridge * torch.eye(len(c.matrix)).double()))
    q, _ = torch.linalg.qr((anchors @ low).T)
    white = text @ low
    return torch.linalg.solve(low.T, (white - white @ q @ q.T).transpose(-1, -2)).transpose(-1, -2)


def test_10_the_gram_solve_is_the_papers_projection(base):
    attachments = company(base, prompt_gate=False, edit_start=True)
    text = given(base, PROMPTS)
    left = text + sum(attachment.shared.shift for attachment in attachments)
    expected = by_cholesky(text, torch.stack([a.shared.anchor for a in attachments]), base.covariance())
    torch.testing.assert_close(left, expected, atol=1e-9, rtol=0)


def test_10_what_is_left_has_nothing_of_any_anchor(base):
    attachments = company(base, prompt_gate=False, edit_start=True)
    text = given(base, PROMPTS)
    left = text + sum(attachment.shared.shift for attachment in attachments)
    for attachment in attachments:
        anchor, direction = attachment.shared.anchor, attachment.shared.direction()
        assert (left @ direction / (anchor @ direction)).abs().max() < 1e-10


def test_10_the_order_does_not_matter(base):
    results = []
    for order in itertools.permutations(range(3)):
        attachments = [concept(base, Perfusion(), f"<{i}>", NOUNS[i], seed=i) for i in order]
        results.append(values(base, given(base, PROMPTS)))
        for attachment in attachments:
            attachment.detach()
    for result in results[1:]:
        for one, other in zip(results[0], result, strict=True):
            torch.testing.assert_close(one, other, atol=1e-10, rtol=0)


LOCKS = {
    "local and global": [{}, {"key_lock": "global"}],
    "trained and global": [{"key_lock": "trained"}, {"key_lock": "global"}],
    "edited": [{"key_lock": "global", "global_key": "edited"}] * 2,
    "edited and plain": [{"key_lock": "global", "global_key": "edited"}, {"key_lock": "global"}],
}


@pytest.mark.filterwarnings("ignore:the anchors of")
@pytest.mark.parametrize("locks", LOCKS)
def test_10_the_order_does_not_matter_where_the_keys_of_a_whole_prompt_are_locked(base, locks):
    results = []
    for order in ((0, 1), (1, 0)):
        attachments = [concept(base, Perfusion(**LOCKS[locks][i]), f"<{i}>", NOUNS[i], seed=i) for i in order]
        attachments[order.index(0)].strength = 0.7
        text = given(base, PROMPTS[:4])
        keys = [base.module(path)(text) for path in base.roles["cross_attention.key"]]
        results.append([*keys, *values(base, text)])
        for attachment in attachments:
            attachment.detach()
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, atol=1e-10, rtol=0)


def test_10_one_concept_is_the_same_alone_and_by_the_joint_solve(base):
    (attachment,) = company(base, 1)
    text = given(base, PROMPTS)
    edit, everywhere = attachment.shared, torch.ones(len(PROMPTS), 16, dtype=torch.bool)
    alone, _ = shares(text, [edit], [everywhere])
    beside, _ = shares(text, [edit, company_of_nothing(edit)], [everywhere, ~everywhere])
    torch.testing.assert_close(alone, beside, atol=1e-12, rtol=0)


def company_of_nothing(edit):
    """Another concept, which edits no place."""
    import copy

    other = copy.copy(edit)
    other._buffers = {**edit._buffers, "anchor": edit.anchor.roll(5) + 0.1}
    other._solved = None
    return other


def test_10_anchors_that_are_the_same_are_refused_and_alike_ones_warned_of(base):
    first, second, _ = company(base)
    first.shared.anchor.copy_(second.shared.anchor)
    with pytest.raises(Refused, match=r"anchors of .* are the same .* one of them at a time"):
        given(base, ["a <0> and a <1>"])
    given(base, ["a <0>", "a <1>"])  # they may be on the base together
    direction = second.shared.direction()
    away = torch.randn(32, generator=torch.Generator().manual_seed(0)).double()
    away -= (away @ direction) / (second.shared.anchor @ direction) * second.shared.anchor
    solve = base.covariance().solve
    away *= ((second.shared.anchor @ direction) / (away @ solve(away))).sqrt()
    first.shared.anchor.copy_(0.99 * second.shared.anchor + (1 - 0.99**2) ** 0.5 * away)
    with pytest.warns(UserWarning, match="much alike"):
        text = given(base, ["a <0> and a <1>"])
    assert all(torch.isfinite(value).all() for value in values(base, text))


def test_11_orthogonal_concepts_do_not_touch_each_other(base):
    first, second = company(base, 2, prompt_gate=False, edit_start=True)
    a, b = first.shared, second.shared
    b.anchor -= (b.anchor @ a.direction()) / (a.anchor @ a.direction()) * a.anchor
    second.shared.bias = 3.0  # its gate at similarity 0 is what is left of it
    second.shared.temperature = 1e-3
    text = a.anchor.expand(1, 16, -1)
    joint = values(base, given(base, ["a <0>"], text))
    second.enabled = False
    alone = values(base, given(base, ["a <0>"], text))
    for one, other in zip(joint, alone, strict=True):
        torch.testing.assert_close(one, other, atol=1e-9, rtol=0)


def test_17_a_batch_of_prompts_with_none_to_three_concepts_is_each_prompt_by_itself(tiny_base):
    base = prepared(tiny_base)
    company(base)
    text = base.condition(PROMPTS).text.detach()
    given(base, PROMPTS, text)
    together = values(base, text)
    for i, prompt in enumerate(PROMPTS):
        given(base, [prompt], text[i : i + 1])
        for one, other in zip(values(base, text[i : i + 1]), together, strict=True):
            torch.testing.assert_close(one[0], other[i], atol=1e-5, rtol=1e-5)


def test_17_concepts_that_are_not_in_the_prompt_change_nothing(tiny_base):
    base = prepared(tiny_base)
    company(base)
    text = base.condition(PROMPTS).text.detach()
    given(base, PROMPTS, text)
    before = values(base, text)
    for i in range(3, 40):
        concept(base, Perfusion(), f"<{i}>", NOUNS[i % 3], seed=i)
    given(base, PROMPTS, text)
    for one, other in zip(before, values(base, text), strict=True):
        assert torch.equal(one, other)


def test_each_concept_has_a_strength_and_a_bias_of_its_own(base):
    first, second, _ = company(base)
    text = given(base, ["a <0> and a <1>"])
    before = [attachment.shared.opened.clone() for attachment in (first, second)]
    second.shared.bias = 0.3
    given(base, ["a <0> and a <1>"], text)
    assert torch.equal(first.shared.opened, before[0])
    assert (second.shared.opened >= before[1]).all() and (second.shared.opened > before[1]).any()
    second.strength = 0.5
    given(base, ["a <0> and a <1>"], text)
    assert torch.equal(first.shared.opened, before[0])
    second.strength = 0
    given(base, ["a <0> and a <1>"], text)
    alone = values(base, text)
    second.detach()
    given(base, ["a <0> and a <1>"], text)
    assert all(torch.equal(one, other) for one, other in zip(alone, values(base, text), strict=True))


def test_a_concept_stands_on_lora_and_uses_the_adapted_projections(base):
    lora = attach(base, LoRA(rank=2), ["cross_attention.*"])
    with torch.no_grad():
        for parameter in lora.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2))
    attachment = concept(base)
    text = given(base, ["the <x>"])
    edit = attachment.shared
    for path, adapter in projections(attachment, "key"):
        expected = lora.adapters[path](text + edit.key_shift)
        torch.testing.assert_close(adapter(text), expected, atol=1e-10, rtol=0)


def test_two_concepts_with_one_word_are_refused(base):
    concept(base)
    with pytest.raises(Refused, match="'<x>' is in the base's tokenizer already"):
        concept(base)
