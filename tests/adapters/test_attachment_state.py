"""What an attachment is after a request: as it was where the request is refused, and the base its own in any order."""

import pytest
import torch
from test_contract import move, weights

from diffadapt.adapters import DiffFit, LoRA, Selective, Token, attach, load_adapter
from diffadapt.adapters.adapter_file import copy_values
from diffadapt.bases import load_classifier
from diffadapt.errors import Refused


def outputs_of_words(base, *words: str) -> list[torch.Tensor]:
    with torch.no_grad():
        return [base.encode_ids(base.tokenize([f"a {word}"])) for word in words]


def test_what_was_merged_first_comes_off_last(base):
    before, layers = weights(base), ["cross_attention.key"]
    first = attach(base, LoRA(rank=1), layers, tokens={"<a>": "cat"})
    move(first)
    first.merge_()
    second = attach(base, LoRA(rank=1), layers, tokens={"<b>": "dog"})
    move(second, 1)
    second.merge_()
    for take_off in (first.detach, first.unmerge_):
        with pytest.raises(Refused, match="merged into .* after this one"):
            take_off()
    assert first.is_merged and second.is_merged and len(outputs_of_words(base, "<a>", "<b>")) == 2
    second.detach()
    first.detach()
    assert not base.attachments and all(torch.equal(before[key], value) for key, value in weights(base).items())


def test_merged_elsewhere_each_comes_off_alone(base):
    before = weights(base)
    first, second = attach(base, LoRA(rank=1), ["cross_attention.key"]), attach(base, LoRA(rank=1), ["residual.*"])
    for each in (first, second):
        move(each)
        each.merge_()
    first.detach()
    assert second.is_merged
    second.detach()
    assert all(torch.equal(before[key], value) for key, value in weights(base).items())


def test_a_merged_attachment_keeps_strength_and_switch_when_it_refuses_others(base):
    attachment = attach(base, LoRA(rank=1))
    attachment.merge_()
    with pytest.raises(Refused, match="strength of a merged"):
        attachment.strength = 0.5
    with pytest.raises(Refused, match="strength of a merged"):
        attachment.enabled = False
    assert attachment.strength == 1 and attachment.enabled and attachment.live


def test_values_that_do_not_fit_leave_those_of_before(base):
    from diffadapt.adapters import CLoRA

    attachment = attach(base, CLoRA(rank=1), ["cross_attention.key"], tokens={"<a>": "cat"})
    move(attachment)
    attachment.fold_({"<b>": "dog"})
    before = {name: tensor.clone() for name, tensor in attachment.state_dict().items()}
    assert any(name.endswith("past_up") for name in before)
    with pytest.raises(Refused, match="lacks"):
        attachment.load_state_dict({})
    after = attachment.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(before[name], value) for name, value in after.items())


def test_a_word_that_is_taken_leaves_the_base_as_it_was(base):
    first = attach(base, Token(), tokens={"<a>": "cat"})
    second = attach(base, Token(), tokens={"<b>": "dog"})
    second.detach()
    second.tokens = {"<a>": "dog"}
    with pytest.raises(Refused, match="taught by another attachment"):
        second.attach_()
    assert base.attachments == [first] and not second.live
    second.tokens = {"<b>": "dog"}
    second.attach_()
    assert len(outputs_of_words(base, "<a>", "<b>")) == 2


def test_what_must_stand_lowest_is_refused_above_others(base):
    lowest = attach(base, Selective(), ["cross_attention.key"])
    lowest.detach()
    other = attach(base, LoRA(rank=1), ["cross_attention.key"])
    with pytest.raises(Refused, match="must be the first attachment"):
        lowest.attach_()
    assert base.attachments == [other]
    other.detach()
    lowest.attach_()
    assert base.attachments == [lowest]


def test_an_adapter_that_is_trained_goes_on_when_others_come_and_merge_and_leave(base):
    attachment = attach(base, LoRA(rank=1, dropout=0.5))
    attachment.train()
    other = attach(base, LoRA(rank=1, dropout=0.5))
    assert all(each.training for each in attachment.layers.values())
    assert not any(each.training for each in other.layers.values())
    attachment.merge_()
    attachment.unmerge_()
    assert all(each.training for each in attachment.layers.values())


def test_a_role_may_stand_alone_and_words_say_what_they_start_from(base):
    attachment = attach(base, LoRA(rank=1), "cross_attention.key")
    assert attachment.roles == ["cross_attention.key"]
    for words in ("<biscuit>", ["<biscuit>"]):
        with pytest.raises(Refused, match="each new word with what it starts from"):
            attach(base, LoRA(rank=1), tokens=words)


@pytest.mark.parametrize("method", [Selective(), DiffFit()])
def test_what_makes_tokens_of_a_picture_is_passed_over(method):
    network = load_classifier("embedded", 5)
    assert "input.tokens" in network.roles
    attachment = attach(network, method)
    with torch.no_grad():
        assert network(torch.rand(2, 3, 64, 64)).shape == (2, 5)
    assert not attachment.layers.keys() & set(network.roles["input.tokens"])


def test_a_word_may_start_from_another_attachments_and_its_file_needs_it_no_more(base, tmp_path):
    taught = attach(base, Token(), tokens={"<a>": "cat"})
    move(taught)
    second = attach(base, Token(), tokens={"<b>": "<a>"})
    one, other = outputs_of_words(base, "<a>", "<b>")
    torch.testing.assert_close(one, other)
    second.save(tmp_path / "b.safetensors")
    second.detach()
    taught.detach()
    load_adapter(base, tmp_path / "b.safetensors").strength = 0.5
    torch.testing.assert_close(outputs_of_words(base, "<b>")[0], other)


def test_layers_with_ranks_of_their_own_must_be_there(base):
    for wrong in ({"ranks": ("unet.mid_blok.*=8",)}, {"alphas": ("nothing=3",)}):
        with pytest.raises(Refused, match="fits none of the layers that are adapted; the nearest is"):
            attach(base, LoRA(**wrong))
    assert not base.attachments


def test_training_goes_on_from_values_that_mean_the_same(base, tmp_path):
    saved = attach(base, LoRA(rank=4, alpha=16), ["cross_attention.key"])
    saved.save(tmp_path / "a.safetensors")
    saved.detach()
    with pytest.raises(Refused, match=r"alpha / rank = 4.0 at .*, this training has 1.0"):
        copy_values(attach(base, LoRA(rank=4), ["cross_attention.key"]), tmp_path / "a.safetensors")
    copy_values(attach(base, LoRA(rank=4, alpha=16, dropout=0.1), ["cross_attention.key"]), tmp_path / "a.safetensors")
