"""Roles name every layer once; paths stay valid under what is attached."""

import re
from collections import Counter

import pytest
import torch
from torch import nn

from diffadapt.adapters import LoRA, attach
from diffadapt.bases.stable_diffusion import StableDiffusion
from diffadapt.errors import Refused
from diffadapt.network import find_roles

ROLES = {
    *(f"{kind}_attention.{end}" for kind in ("self", "cross", "text.self") for end in ("query", "key", "value", "out")),
    "feed_forward.in", "feed_forward.out", "attention.project_in", "attention.project_out",
    "residual.conv", "residual.time", "residual.shortcut", "resample.conv",
    "time_embedding", "input.conv", "output.conv", "norm",
    "text.feed_forward.in", "text.feed_forward.out", "text.norm", "text.token_embedding", "text.position_embedding",
}  # fmt: skip


class Wrapper(nn.Module):
    """Stands for an adapter: same calls, the wrapped layer under `layer`."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer
        self.gain = nn.Parameter(torch.tensor(1.0))

    def forward(self, *args, **kwargs):
        return self.layer(*args, **kwargs)


def owners(base):
    for root, part in (("unet", base.denoiser), ("text_encoder", base.text_encoder)):
        for name, module in part.named_modules():
            if any(True for _ in module.parameters(recurse=False)):
                yield f"{root}.{name.removeprefix('text_model.')}"


@pytest.mark.parametrize("fixture", ["tiny_base", "tiny_v_base"])
def test_every_leaf_with_parameters_is_in_exactly_one_role(fixture, request):
    base = request.getfixturevalue(fixture)
    counted = Counter(path for paths in base.roles.values() for path in paths)
    assert counted == Counter(owners(base))
    assert set(base.roles) == ROLES  # the tiny bases have every role there is


def test_a_role_holds_the_layers_that_its_name_says(tiny_base):
    text_width = tiny_base.text_encoder.config.hidden_size
    assert all(tiny_base.module(path).in_features == text_width for path in tiny_base.roles["cross_attention.key"])
    assert all(isinstance(tiny_base.module(path), nn.Conv2d) for path in tiny_base.roles["residual.conv"])
    assert tiny_base.roles["text.token_embedding"] == ("text_encoder.embeddings.token_embedding",)


def test_stable_diffusion_1_and_2_have_a_role_for_every_layer():
    """The real shapes, without their values: 1.5 (convolutions around attention), 2.1 (linear layers, wider text)."""
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    for width, heads, linear in ((768, 8, False), (1024, (5, 10, 20, 20), True)):
        with torch.device("meta"):
            unet = UNet2DConditionModel(
                sample_size=64, cross_attention_dim=width, attention_head_dim=heads, use_linear_projection=linear
            )
            encoder = CLIPTextModel(CLIPTextConfig(hidden_size=width, num_attention_heads=16, num_hidden_layers=2))
        roles = find_roles({"unet": unet, "text_encoder": encoder}, StableDiffusion.rules)
        assert len(roles["cross_attention.key"]) == 16
        assert set(roles) == ROLES


def test_select_takes_names_and_patterns(tiny_base):
    keys = tiny_base.select(["cross_attention.key"])
    assert tuple(keys) == tiny_base.roles["cross_attention.key"] and set(keys.values()) == {"cross_attention.key"}
    both = ["cross_attention.value", "cross_attention.key"]
    assert list(tiny_base.select(both)) == list(tiny_base.select(both[::-1]))  # the order does not depend on the asking
    assert set(tiny_base.select(["cross_attention.*"]).values()) == {
        f"cross_attention.{part}" for part in ("query", "key", "value", "out")
    }
    assert len(tiny_base.select(["*"])) == len(set(owners(tiny_base)))


@pytest.mark.parametrize(
    ("pattern", "nearest"), [("cross_atention.key", "cross_attention.key"), ("cross_attention", "cross_attention.")]
)
def test_an_unknown_role_is_refused_with_the_nearest_and_the_list(tiny_base, pattern, nearest):
    with pytest.raises(Refused, match=re.escape(f"did you mean '{nearest}")) as caught:
        tiny_base.select(["norm", pattern])
    assert all(role in str(caught.value) for role in tiny_base.roles)


def test_no_role_at_all_is_refused(tiny_base):
    with pytest.raises(Refused, match="no role"):
        tiny_base.select([])


@pytest.mark.parametrize("path", ["unet.mid_block.attentions.7", "vae.encoder", "unet.conv_im", "unet..conv_in"])
def test_an_unknown_path_is_refused(tiny_base, path):
    with pytest.raises(Refused, match="nearest|no part"):
        tiny_base.module(path)


def test_paths_stay_valid_under_wrappers_on_leaves_and_on_blocks(tiny_base):
    inner = "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
    layer, block = tiny_base.module(inner), tiny_base.module("unet.mid_block.attentions.0")
    tiny_base.replace_(inner, Wrapper(layer))
    tiny_base.replace_("unet.mid_block.attentions.0", Wrapper(block))
    assert tiny_base.module("unet.mid_block.attentions.0").layer is block
    assert tiny_base.module(inner).layer is layer
    tiny_base.replace_(inner, layer)
    tiny_base.replace_("unet.mid_block.attentions.0", block)
    assert tiny_base.module(inner) is layer and tiny_base.module("unet.mid_block.attentions.0") is block


@pytest.mark.parametrize(
    "pattern", ["cross_attention.out", "feed_forward.out", "text.self_attention.query", "resample.conv"]
)
def test_what_is_replaced_is_what_runs(tiny_base, pattern):
    latents, text = torch.randn(1, 4, 8, 8), ["a cat"]
    with torch.no_grad():
        before = tiny_base.denoise(latents, torch.tensor([500]), tiny_base.condition(text))
        for path in tiny_base.select([pattern]):
            tiny_base.replace_(path, nn.Sequential(tiny_base.module(path), nn.Dropout(1.0)).train())
        after = tiny_base.denoise(latents, torch.tensor([500]), tiny_base.condition(text))
    assert not torch.equal(before, after)


def test_freezing_again_leaves_what_was_attached_trainable(tiny_base):
    wrapper = Wrapper(tiny_base.module("unet.conv_in"))
    tiny_base.replace_("unet.conv_in", wrapper)
    tiny_base.freeze_()
    assert wrapper.gain.requires_grad and not wrapper.layer.weight.requires_grad


def test_saving_with_something_attached_is_refused(tiny_base, tmp_path):
    attachment = attach(tiny_base, LoRA(rank=1), ["input.conv"])
    with pytest.raises(Refused, match="merge_"):
        tiny_base.save(tmp_path / "base")
    assert not list(tmp_path.iterdir())
    attachment.merge_()
    tiny_base.save(tmp_path / "base")
    assert (tmp_path / "base" / "model_index.json").is_file()


def test_a_second_attachment_leaves_the_first_trainable(tiny_base):
    first = attach(tiny_base, LoRA(rank=1), ["input.conv"])
    attach(tiny_base, LoRA(rank=1), ["input.conv", "output.conv"])
    assert all(parameter.requires_grad for parameter in first.parameters())
