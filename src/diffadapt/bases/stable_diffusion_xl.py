"""Stable Diffusion XL: a UNet on the text of two CLIP encoders, with pooled text and the picture's size beside it.

    text    the hidden states before the last layer of both encoders, side by side
    pooled  the projected end token of the second
    sizes   (height, width, top, left, height, width) in pixels: original size, crop, wanted size

(Podell et al. 2023, arXiv:2307.01952, section 2.2.) Pictures are trained on as they are: their size is that of the
latents, and nothing is cropped. The base of version 1.0 reads the empty prompt as zeros, which its pipeline's
`force_zeros_for_empty_prompt` says. A new word is learned in both encoders together.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..conditioning import Conditioning
from ..errors import Refused
from ..network import Rules
from .autoencoder import overflows, precise
from .original_layout import unet_layout, unet_name
from .prompt_base import TWO_CLIPS, PromptBase
from .stable_diffusion import RULES as STABLE_DIFFUSION

RULES: Rules = (
    *STABLE_DIFFUSION,
    (r"unet\.add_embedding\.linear_[12]", "size_embedding"),
    *(
        (rule.replace("text_encoder", "text_encoder_2"), role.replace("text.", "text_2."))
        for rule, role in STABLE_DIFFUSION
        if role.startswith("text.")
    ),
    (r"text_encoder_2\.text_projection", "text_2.projection"),
)


class StableDiffusionXL(PromptBase):
    """A `StableDiffusionXLPipeline`: one UNet, two CLIP text encoders."""

    family: ClassVar[str] = "stable_diffusion_xl"
    rules: ClassVar[Rules] = RULES
    components: ClassVar[tuple[str, ...]] = (
        "unet", "vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "scheduler"
    )  # fmt: skip
    weights: ClassVar[Mapping[str, str]] = {
        "unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model",
        "text_encoder_2": "model",
    }  # fmt: skip
    parts: ClassVar[tuple[str, ...]] = ("unet", "text_encoder", "text_encoder_2")
    prediction_types: ClassVar[tuple[str, ...]] = ("epsilon", "v_prediction")
    without: ClassVar[Mapping[str, Any]] = {"feature_extractor": None, "image_encoder": None, "add_watermarker": False}
    word_tables = TWO_CLIPS
    upcasts: ClassVar[bool] = True

    @property
    def side_step(self) -> int:
        return math.lcm(self.downsampling, 8)  # diffusers' pipeline refuses anything else

    def check_parts(self) -> None:
        super().check_parts()
        if self.denoiser.config.addition_embed_type != "text_time":
            raise Refused(f"{self.name} is no text-to-image model of SDXL: its UNet takes no pooled text and sizes")

    def condition(self, prompts: Sequence[str]) -> Conditioning:
        """N prompts -> `token_ids` (N, L) of the first tokenizer, `text` (N, L, D1 + D2), `pooled_text` (N, P)."""
        pipeline, states, ids, pooled = self.pipeline, [], [], None
        for tokenizer, encoder in self._encoders():
            length = min(tokenizer.model_max_length, encoder.config.max_position_embeddings)
            found, output = self.encode_clip(tokenizer, encoder, prompts, length)
            ids.append(found)
            states.append(output.hidden_states[-2])
            pooled = getattr(output, "text_embeds", None)  # of the second, which projects it
        text = torch.cat(states, -1)
        if pipeline.config.force_zeros_for_empty_prompt:
            given = torch.tensor([[prompt != ""] for prompt in prompts], device=self.device)  # (N, 1)
            text, pooled = text * given[..., None], None if pooled is None else pooled * given
        return Conditioning(token_ids=ids[0], text=text, pooled_text=pooled)

    def denoiser_inputs(self, noisy: Tensor, timesteps: Tensor, condition: Conditioning) -> dict[str, Any]:
        sizes = condition.image_sizes
        if sizes is None:
            height, width = (side * self.downsampling for side in noisy.shape[-2:])
            sizes = noisy.new_tensor([height, width, 0, 0, height, width]).expand(len(noisy), -1)
        added = {"text_embeds": condition.pooled_text, "time_ids": sizes}
        return {
            "sample": noisy, "timestep": timesteps, "encoder_hidden_states": condition.text,
            "added_cond_kwargs": added,
        }  # fmt: skip

    def generate(self, condition: Conditioning, **settings: Any) -> Tensor:
        if not overflows(self):
            return super().generate(condition, **settings)
        decode = self.vae.decode
        with precise(self, autocast=True) as dtype:  # the denoiser's adapters need it, and the decoder must not

            def outside_autocast(latents: Tensor, *args: Any, **kwargs: Any) -> Any:
                with torch.autocast(self.device.type, enabled=False):
                    return decode(latents.to(dtype), *args, **kwargs)

            self.vae.decode = outside_autocast
            try:
                return super().generate(condition, **settings)
            finally:
                del self.vae.decode

    def original_names(self) -> dict[str, str]:
        layout = unet_layout(self.denoiser.config)
        paths = (path for paths in self.roles.values() for path in paths if path.startswith("unet."))
        named = {path: unet_name(f"{path.removeprefix('unet.')}.weight", *layout) for path in paths}
        return {path: name.removesuffix(".weight") for path, name in named.items()}

    @staticmethod
    def pipeline_class() -> Any:
        from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import StableDiffusionXLPipeline

        return StableDiffusionXLPipeline
