"""Stable Diffusion 1.x and 2.x, and whatever has its layout (the embedded base): the first family.

A UNet (`unet`) with residual blocks and transformer blocks of self-attention, cross-attention and a gated feed-forward
layer, and a CLIP text encoder (`text_encoder`). Every leaf module that owns parameters has exactly one role.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from ..conditioning import Conditioning
from ..errors import Refused
from ..network import Rules
from .encoder_copy import EncoderCopy
from .text_base import TextBase

RULES: Rules = (
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


class StableDiffusion(TextBase):
    """A `StableDiffusionPipeline`: one UNet, one CLIP text encoder."""

    family: ClassVar[str] = "stable_diffusion"
    rules: ClassVar[Rules] = RULES
    components: ClassVar[tuple[str, ...]] = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
    weights: ClassVar[Mapping[str, str]] = {
        "unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model"
    }  # fmt: skip
    parts: ClassVar[tuple[str, ...]] = ("unet", "text_encoder")
    prediction_types: ClassVar[tuple[str, ...]] = ("epsilon", "v_prediction")
    without: ClassVar[Mapping[str, Any]] = {
        "safety_checker": None, "feature_extractor": None, "image_encoder": None, "requires_safety_checker": False
    }  # fmt: skip

    @property
    def side_step(self) -> int:
        return math.lcm(self.downsampling, 8)  # diffusers' pipeline refuses anything else, whatever the autoencoder

    def check_parts(self) -> None:
        channels, latent = self.denoiser.config.in_channels, self.vae.config.latent_channels
        if channels != latent:  # an inpainting, depth or upscaling model, which would fail at the first denoise
            raise Refused(
                f"{self.name} is no text-to-image model: UNet with {channels} channels on latents of {latent}"
            )

    def denoiser_inputs(self, noisy: Tensor, timesteps: Tensor, condition: Conditioning) -> dict[str, Any]:
        return {"sample": noisy, "timestep": timesteps, "encoder_hidden_states": condition.text}

    def copy_encoder(self, *, channels: Sequence[int], blocks: int, copy_weights: bool, seed: int) -> nn.Module:
        return EncoderCopy(self.denoiser, channels=channels, blocks=blocks, copy_weights=copy_weights, seed=seed)

    @staticmethod
    def pipeline_class() -> Any:
        from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline

        return StableDiffusionPipeline
