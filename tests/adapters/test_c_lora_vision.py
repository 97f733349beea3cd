"""C-LoRA on a vision transformer: queries, keys and values of self-attention, from task to task."""

import pytest
import torch

from diffadapt.adapters import CLoRA, attach
from diffadapt.bases import Network

ROLES = [
    (r"vit\..*\.(q_proj|query)", "self_attention.query"),
    (r"vit\..*\.(k_proj|key)", "self_attention.key"),
    (r"vit\..*\.(v_proj|value)", "self_attention.value"),
]


@pytest.fixture
def vit():
    from transformers import ViTConfig, ViTModel

    torch.manual_seed(0)
    shape = ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, image_size=16, patch_size=8
    )
    return ViTModel(shape, add_pooling_layer=False).eval()


@pytest.mark.parametrize("importance", ["abs_of_sum", "inputs", "fisher"])
def test_a_vision_transformer_learns_tasks_whose_past_is_folded(vit, importance):
    network = Network({"vit": vit}, ROLES, name="vit")
    pixels = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    before = vit(pixel_values=pixels).last_hidden_state.detach()
    attachment = attach(network, CLoRA(rank=2, importance=importance, penalty_weight=1.0))
    assert len(attachment.adapters) == 3 * 2
    optimizer = torch.optim.AdamW(attachment.parameters(), lr=0.05)
    for _ in range(3):
        optimizer.zero_grad()
        vit(pixel_values=pixels).last_hidden_state[:, 0].square().sum().backward()
        optimizer.step()
    with attachment.observing():
        vit(pixel_values=pixels).last_hidden_state[:, 0].square().sum().backward()
    learned = vit(pixel_values=pixels).last_hidden_state.detach()
    assert not torch.allclose(learned, before) and attachment.penalty() is None
    attachment.fold_(seed=1)
    torch.testing.assert_close(vit(pixel_values=pixels).last_hidden_state, learned, rtol=1e-4, atol=1e-5)
    penalty = attachment.penalty()
    assert penalty is not None and penalty.item() == 0  # the second task has changed nothing yet
    attachment.detach()
    assert torch.equal(vit(pixel_values=pixels).last_hidden_state, before)
