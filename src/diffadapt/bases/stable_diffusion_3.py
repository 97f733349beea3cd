"""Stable Diffusion 3 and 3.5: a transformer of two streams that flow matching trained, on the text of three encoders.

    text    the hidden states before the last layer of both CLIP encoders, side by side and filled up with zeros to the
            width of T5's; behind them T5's own
    pooled  the projected end tokens of both CLIP encoders, side by side

(Esser et al. 2024, arXiv:2403.03206, section 4 and figure 2; flow matching: Lipman et al. 2022, arXiv:2210.02747.) A
block has one stream of picture patches and one of text, which attend to both together. Its layers have the roles of
other families where they do the same: keys and values of the text stream bring the text to the picture, so they are
`cross_attention.key` and `.value`; the text's own way through the block is `context.*`. The T5 encoder may be missing,
as its pipeline allows: its places are then zeros. A new word is learned in both CLIP encoders together; T5 reads the
prompt without it.

The denoiser's time is T times the noise's share s, so training step t stands for s = t / T, and steps are drawn evenly.
The scheduler's shift moves the steps of sampling towards the noise; `generate` leaves that to the pipeline.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..conditioning import Conditioning
from ..errors import Refused
from ..files import read_json
from ..network import Rules
from ..shapes import MODEL_INDEX
from .local_folder import INDEX, check_components, open_pipeline
from .prompt_base import TWO_CLIPS, PromptBase
from .stable_diffusion import RULES as STABLE_DIFFUSION

BLOCK = r"transformer\.transformer_blocks\.\d+\."
T5 = r"text_encoder_3\.encoder\.block\.\d+\.layer\.\d\."
T5_PLACES = 256  # the pipeline's own default, which its transformers were trained with
RULES: Rules = (
    (BLOCK + r"attn2?\.to_q", "self_attention.query"),
    (BLOCK + r"attn2?\.to_k", "self_attention.key"),
    (BLOCK + r"attn2?\.to_v", "self_attention.value"),
    (BLOCK + r"attn2?\.to_out\.0", "self_attention.out"),
    (BLOCK + r"attn\.add_k_proj", "cross_attention.key"),
    (BLOCK + r"attn\.add_v_proj", "cross_attention.value"),
    (BLOCK + r"attn\.add_q_proj", "context.query"),
    (BLOCK + r"attn\.to_add_out", "context.out"),
    (BLOCK + r"ff\.net\.0\.proj", "feed_forward.in"),
    (BLOCK + r"ff\.net\.2", "feed_forward.out"),
    (BLOCK + r"ff_context\.net\.0\.proj", "context.feed_forward.in"),
    (BLOCK + r"ff_context\.net\.2", "context.feed_forward.out"),
    (BLOCK + r"attn2?\.norm_(added_)?[qk]", "norm"),
    (BLOCK + r"norm1\.linear", "modulation"),
    (BLOCK + r"norm1_context\.linear", "context.modulation"),
    (r"transformer\.time_text_embed\.timestep_embedder\.linear_[12]", "time_embedding"),
    (r"transformer\.time_text_embed\.text_embedder\.linear_[12]", "pooled_embedding"),
    (r"transformer\.context_embedder", "context.in"),
    (r"transformer\.pos_embed\.proj", "input.conv"),
    (r"transformer\.norm_out\.linear", "output.modulation"),
    (r"transformer\.proj_out", "output.linear"),
    *(
        (rule.replace("text_encoder", encoder), role.replace("text.", prefix))
        for encoder, prefix in (("text_encoder", "text."), ("text_encoder_2", "text_2."))
        for rule, role in STABLE_DIFFUSION
        if role.startswith("text.")
    ),
    (r"text_encoder\.text_projection", "text.projection"),
    (r"text_encoder_2\.text_projection", "text_2.projection"),
    (T5 + r"SelfAttention\.q", "text_3.self_attention.query"),
    (T5 + r"SelfAttention\.k", "text_3.self_attention.key"),
    (T5 + r"SelfAttention\.v", "text_3.self_attention.value"),
    (T5 + r"SelfAttention\.o", "text_3.self_attention.out"),
    (T5 + r"SelfAttention\.relative_attention_bias", "text_3.position_embedding"),
    (T5 + r"DenseReluDense\.wi(_[01])?", "text_3.feed_forward.in"),
    (T5 + r"DenseReluDense\.wo", "text_3.feed_forward.out"),
    (r"text_encoder_3\..*norm", "text_3.norm"),
    (r"text_encoder_3\.(shared|encoder\.embed_tokens)", "text_3.token_embedding"),
)


class StableDiffusion3(PromptBase):
    """A `StableDiffusion3Pipeline`: one transformer of two streams, two CLIP text encoders and a T5 encoder or none."""

    family: ClassVar[str] = "stable_diffusion_3"
    rules: ClassVar[Rules] = RULES
    components: ClassVar[tuple[str, ...]] = (
        "transformer", "vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "scheduler"
    )  # fmt: skip
    weights: ClassVar[Mapping[str, str]] = {
        "transformer": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model",
        "text_encoder_2": "model",
    }  # fmt: skip
    parts: ClassVar[tuple[str, ...]] = ("transformer", "text_encoder", "text_encoder_2")
    prediction_types: ClassVar[tuple[str, ...]] = ("flow",)
    word_tables = TWO_CLIPS

    def modules(self) -> Mapping[str, nn.Module]:
        third = self.pipeline.text_encoder_3
        return {**super().modules(), **({} if third is None else {"text_encoder_3": third})}

    @property
    def side_step(self) -> int:
        return self.downsampling * int(self.denoiser.config.patch_size)

    # --- condition, denoise -------------------------------------------------------------------------------------------

    def condition(self, prompts: Sequence[str]) -> Conditioning:
        """N prompts -> `token_ids` (N, L) of the first tokenizer, `text` (N, L + L3, D), `pooled_text` (N, P1 + P2)."""
        pipeline, length = self.pipeline, self.pipeline.tokenizer_max_length  # the first tokenizer's, for both
        ids, first = self.encode_clip(pipeline.tokenizer, pipeline.text_encoder, prompts, length)
        _, second = self.encode_clip(pipeline.tokenizer_2, pipeline.text_encoder_2, prompts, length)
        clip = torch.cat([first.hidden_states[-2], second.hidden_states[-2]], -1)
        t5 = self._t5(prompts)
        if t5 is None:
            t5 = clip.new_zeros(len(prompts), T5_PLACES, int(self.denoiser.config.joint_attention_dim))
        clip = F.pad(clip, (0, t5.shape[-1] - clip.shape[-1]))
        return Conditioning(
            token_ids=ids,
            text=torch.cat([clip, t5], 1),
            pooled_text=torch.cat([first.text_embeds, second.text_embeds], -1),
        )

    def _t5(self, prompts: Sequence[str]) -> Tensor | None:
        """T5's last hidden states (N, L3, D), padding included; None without T5."""
        if self.pipeline.text_encoder_3 is None:
            return None
        found = self.pipeline.tokenizer_3(
            [self.without_new_words(prompt) for prompt in prompts],
            padding="max_length",
            max_length=T5_PLACES,
            truncation=True,
            return_tensors="pt",
        )
        return self.pipeline.text_encoder_3(found.input_ids.to(self.device)).last_hidden_state

    def denoiser_inputs(self, noisy: Tensor, timesteps: Tensor, condition: Conditioning) -> dict[str, Any]:
        return {
            "hidden_states": noisy, "timestep": timesteps, "encoder_hidden_states": condition.text,
            "pooled_projections": condition.pooled_text,
        }  # fmt: skip

    def check_size(self, width: int, height: int) -> None:
        largest = self.side_step * int(self.denoiser.config.pos_embed_max_size)
        if max(width, height) > largest:
            raise Refused(f"{self.name!r} knows places in pictures of up to {largest} px a side, not {width}x{height}")

    # --- files --------------------------------------------------------------------------------------------------------

    @staticmethod
    def pipeline_class() -> Any:
        from diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3 import StableDiffusion3Pipeline

        return StableDiffusion3Pipeline

    @classmethod
    def open_(cls, folder: Path, dtype: torch.dtype) -> Any:
        weights, without = dict(cls.weights), dict.fromkeys(("image_encoder", "feature_extractor"))
        third = read_json(folder / INDEX, MODEL_INDEX).get("text_encoder_3")
        if isinstance(third, list) and third and third[0] is not None:
            weights["text_encoder_3"] = "model"
            check_components(folder, ("text_encoder_3", "tokenizer_3"), weights)
        else:
            without |= dict.fromkeys(("text_encoder_3", "tokenizer_3"))
        return open_pipeline(cls.pipeline_class(), folder, dtype, weights, **without)
