"""Stable Diffusion 1.x and 2.x, and whatever has its layout (the embedded base): the role table.

A UNet (`unet`) with residual blocks and transformer blocks of self-attention, cross-attention and a gated feed-forward
layer, and a CLIP text encoder (`text_encoder`). Every leaf module that owns parameters has exactly one role.
"""

import re
from typing import ClassVar

from torch import nn

from ..errors import Refused
from .base import Base

_RULES: tuple[tuple[str, str], ...] = (
    (r"unet\..*\.attn1\.to_q", "self_attention.query"),
    (r"unet\..*\.attn1\.to_k", "self_attention.key"),
    (r"unet\..*\.attn1\.to_v", "self_attention.value"),
    (r"unet\..*\.attn1\.to_out\.0", "self_attention.out"),
    (r"unet\..*\.attn2\.to_q", "cross_attention.query"),
    (r"unet\..*\.attn2\.to_k", "cross_attention.key"),
    (r"unet\..*\.attn2\.to_v", "cross_attention.value"),
    (r"unet\..*\.attn2\.to_out\.0", "cross_attention.out"),
    (r"unet\..*\.ff\.net\.0\.proj", "feed_forward.in"),
    (r"unet\..*\.ff\.net\.2", "feed_forward.out"),
    (r"unet\..*\.attentions\.\d+\.proj_in", "attention.project_in"),
    (r"unet\..*\.attentions\.\d+\.proj_out", "attention.project_out"),
    (r"unet\..*\.resnets\.\d+\.conv[12]", "residual.conv"),
    (r"unet\..*\.resnets\.\d+\.time_emb_proj", "residual.time"),
    (r"unet\..*\.resnets\.\d+\.conv_shortcut", "residual.shortcut"),
    (r"unet\..*\.(down|up)samplers\.\d+\.conv", "resample.conv"),
    (r"unet\.time_embedding\.linear_[12]", "time_embedding"),
    (r"unet\.conv_in", "input.conv"),
    (r"unet\.conv_out", "output.conv"),
    (r"unet\..*norm\w*", "norm"),
    (r"text_encoder\..*\.self_attn\.q_proj", "text.self_attention.query"),
    (r"text_encoder\..*\.self_attn\.k_proj", "text.self_attention.key"),
    (r"text_encoder\..*\.self_attn\.v_proj", "text.self_attention.value"),
    (r"text_encoder\..*\.self_attn\.out_proj", "text.self_attention.out"),
    (r"text_encoder\..*\.mlp\.fc1", "text.feed_forward.in"),
    (r"text_encoder\..*\.mlp\.fc2", "text.feed_forward.out"),
    (r"text_encoder\..*norm\w*", "text.norm"),
    (r"text_encoder\..*\.token_embedding", "text.token_embedding"),
    (r"text_encoder\..*\.position_embedding", "text.position_embedding"),
)


class StableDiffusion(Base):
    """A `StableDiffusionPipeline`: one UNet, one CLIP text encoder."""

    family: ClassVar[str] = "stable_diffusion"
    components: ClassVar[tuple[str, ...]] = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
    parts: ClassVar[tuple[str, ...]] = ("unet", "text_encoder")

    def find_roles(self) -> dict[str, tuple[str, ...]]:
        """Role -> paths of its layers, in the order of the table above; roles without a layer are left out.

        Raises:
            Refused: a layer with parameters fits no role, so that this is not a model of the family.
        """
        found: dict[str, list[str]] = {role: [] for _, role in _RULES}
        for part in self.parts:
            for name, module in getattr(self.pipeline, part).named_modules():
                if not _owns_parameters(module):
                    continue
                path = f"{part}.{name}"
                role = next((role for rule, role in _RULES if re.fullmatch(rule, path)), None)
                if role is None:
                    raise Refused(
                        f"layer {path} ({type(module).__name__}) of {self.name!r} has no role in the Stable Diffusion "
                        "1.x/2.x layout; expected a model of that layout"
                    )
                found[role].append(path)
        return {role: tuple(paths) for role, paths in found.items() if paths}


def _owns_parameters(module: nn.Module) -> bool:
    return any(True for _ in module.parameters(recurse=False))
