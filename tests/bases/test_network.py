"""Methods on networks that are no diffusion model: what attaching needs is modules and a role table."""

import pytest
import torch
from torch import nn

from diffadapt.adapters import OFT, LoRA, Selective, attach, load_adapter
from diffadapt.bases import Network
from diffadapt.errors import Refused

RULES = [(r"vit\..*\.q_proj", "self_attention.query"), (r"vit\..*\.v_proj", "self_attention.value")]


@pytest.fixture
def network():
    """A vision transformer with random weights; most of its layers have no role."""
    from transformers import ViTConfig, ViTModel

    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, image_size=8, patch_size=4
    )
    return Network({"vit": ViTModel(config)}, RULES, name="tiny-vit")


def features(network) -> torch.Tensor:
    pixels = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return network.modules()["vit"](pixels).last_hidden_state


@pytest.mark.parametrize("method", [LoRA(rank=2), OFT(block_size=4), Selective()])
def test_a_method_trains_saves_and_leaves_a_vision_transformer_as_it_was(network, method, tmp_path):
    before, weights = features(network), {k: v.clone() for k, v in network.modules()["vit"].state_dict().items()}
    attachment = attach(network, method, ["self_attention.*"])
    assert len(attachment.adapters) == 4
    torch.testing.assert_close(features(network), before, atol=1e-6, rtol=0)
    network.modules()["vit"](torch.rand(1, 3, 8, 8)).last_hidden_state.square().mean().backward()
    with torch.no_grad():
        for name, parameter in attachment.named_parameters():
            if not name.endswith("key.bias"):
                assert parameter.grad is not None, name
            parameter += 0.1 * torch.randn(parameter.shape)
    trained = features(network)
    attachment.save(tmp_path / "a.safetensors")
    attachment.detach()
    assert torch.equal(features(network), before)
    now = network.modules()["vit"].state_dict()
    assert now.keys() == weights.keys() and all(torch.equal(now[name], value) for name, value in weights.items())
    load_adapter(network, tmp_path / "a.safetensors")
    assert not torch.equal(trained, before) and torch.equal(features(network), trained)


def test_roles_follow_the_table_and_layers_without_a_role_are_left_alone(network):
    assert {role: len(paths) for role, paths in network.roles.items()} == {
        "self_attention.query": 2, "self_attention.value": 2
    }  # fmt: skip
    with pytest.raises(Refused, match="did you mean 'self_attention.query'"):
        network.select(["self_attention.queri"])
    assert not any(parameter.requires_grad for parameter in network.modules()["vit"].parameters())


def test_a_file_of_one_network_is_refused_on_another(network, tmp_path):
    path = attach(network, LoRA(rank=1), ["self_attention.*"]).save(tmp_path / "a.safetensors")
    other = Network({"vit": nn.Linear(2, 2)}, [("vit", "whole")], name="other")
    assert other.fingerprint != network.fingerprint
    with pytest.raises(Refused, match="trained on base 'tiny-vit'"):
        load_adapter(other, path)


def test_a_new_word_needs_a_text_encoder(network):
    with pytest.raises(Refused, match="'tiny-vit' cannot learn the new token '<x>'"):
        attach(network, LoRA(rank=1), ["self_attention.*"], tokens={"<x>": "cat"})
