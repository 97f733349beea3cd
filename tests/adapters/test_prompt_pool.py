"""L2P: what each picture is given, what trains, and the term that draws keys to pictures."""

import pytest
import torch
import torch.nn.functional as F

from diffadapt.adapters import PromptPool, SideInputs, attach, load_adapter
from diffadapt.bases import Classifier
from diffadapt.errors import Refused

METHOD = PromptPool(pool=4, chosen=2, length=3)


@pytest.fixture
def network():
    from transformers import ViTConfig, ViTModel

    torch.manual_seed(0)
    shape = ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, image_size=16, patch_size=8
    )
    half = torch.full((3,), 0.5)
    return Classifier(ViTModel(shape, add_pooling_layer=False).eval(), 2, mean=half, std=half, name="vit")


@pytest.fixture
def pictures():
    return torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def begin(network, attachment, pictures):
    attachment.begin(SideInputs.of(network.condition(pictures, torch.zeros(len(pictures), dtype=torch.long))))


def test_each_picture_gets_the_prompts_whose_keys_are_nearest_to_what_the_untouched_network_sees(network, pictures):
    seen = F.normalize(network.features(pictures), dim=1)
    attachment = attach(network, METHOD)
    (adapter,) = attachment.adapters.values()
    begin(network, attachment, pictures)
    nearest = (seen @ F.normalize(adapter.keys, dim=1).T).argsort(dim=1, descending=True)[:, :2]
    assert torch.equal(adapter.choice(), nearest)
    tokens = network.module("vit.embeddings")(pictures)
    assert tokens.shape == (3, 1 + 4 + 2 * 3, 16)
    torch.testing.assert_close(tokens[:, 5:8], adapter.prompts[nearest[:, 0]])
    torch.testing.assert_close(tokens[:, 8:], adapter.prompts[nearest[:, 1]])


def test_the_pull_is_the_sum_over_the_chosen_of_one_minus_the_cosine_mean_over_pictures(network, pictures):
    attachment = attach(network, METHOD)
    (adapter,) = attachment.adapters.values()
    assert attachment.penalty() is None  # no picture yet
    begin(network, attachment, pictures)
    cosines = F.cosine_similarity(adapter.query[:, None], adapter.keys[None], dim=2)
    expected = 0.5 * (1 - cosines.topk(2, dim=1).values).sum(1).mean()
    torch.testing.assert_close(attachment.penalty(), expected)


def test_prompts_learn_from_the_loss_keys_from_the_pull_and_the_network_not_at_all(network, pictures):
    attachment = attach(network, METHOD)
    (adapter,) = attachment.adapters.values()
    begin(network, attachment, pictures)
    network.features(pictures).sum().backward()
    used = adapter.choice().unique()
    assert adapter.keys.grad is None and adapter.prompts.grad[used].abs().sum() > 0
    unused = [i for i in range(4) if i not in used]
    assert not adapter.prompts.grad[unused].any()
    attachment.penalty().backward()
    assert adapter.keys.grad[used].abs().sum() > 0
    assert all(parameter.grad is None for parameter in network._own)


def test_at_strength_zero_and_after_detaching_the_network_is_bit_for_bit_what_it_was(network, pictures):
    before = network.features(pictures)
    attachment = attach(network, METHOD)
    begin(network, attachment, pictures)
    assert not torch.equal(network.features(pictures), before)
    attachment.strength = 0.0
    assert torch.equal(network.features(pictures), before)
    attachment.detach()
    assert torch.equal(network.features(pictures), before)


def test_a_saved_pool_gives_the_same_answers_when_it_is_loaded(network, pictures, tmp_path):
    attachment = attach(network, METHOD, seed=3)
    begin(network, attachment, pictures)
    expected = network.features(pictures)
    attachment.save(tmp_path / "pool.safetensors")
    attachment.detach()
    loaded = load_adapter(network, tmp_path / "pool.safetensors")
    begin(network, loaded, pictures)
    assert loaded.method == METHOD and torch.equal(network.features(pictures), expected)


def test_what_cannot_have_prompts_is_refused_in_a_sentence(network, pictures, base):
    with pytest.raises(Refused, match="method.chosen is 5, but the pool has 4 prompts"):
        attach(network, PromptPool(pool=4, chosen=5))
    with pytest.raises(Refused, match="'input.tokens' matches nothing"):
        attach(base, METHOD)
    attachment = attach(network, METHOD)
    with pytest.raises(Refused, match="needs control"):
        attachment.begin(SideInputs())
    with pytest.raises(Refused, match="begin"):
        network.features(pictures)
    begin(network, attachment, pictures)
    with pytest.raises(Refused, match="chose prompts for 3 pictures and got 2"):
        network.features(pictures[:2])
    attachment.detach()
