"""Bases whose pictures a diffusers pipeline makes from encoded prompts, with pooled text beside them or without."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..conditioning import Conditioning
from .base import Base


class PromptBase(Base):
    """A base whose pipeline takes `prompt_embeds`; unconditional rows come first."""

    def generate(
        self,
        condition: Conditioning,
        *,
        guidance: float,
        steps: int,
        width: int,
        height: int,
        generators: Sequence[torch.Generator],
    ) -> Tensor:
        count, guided = len(generators), guidance > 1
        assert condition.text is not None
        given = {"prompt_embeds": condition.text}
        if condition.pooled_text is not None:
            given["pooled_prompt_embeds"] = condition.pooled_text
        wanted = {name: rows[count:] if guided else rows for name, rows in given.items()}
        unconditional = {f"negative_{name}": rows[:count] for name, rows in given.items()} if guided else {}
        return self.pipeline(
            **wanted,
            **unconditional,
            width=width,
            height=height,
            guidance_scale=guidance,
            num_inference_steps=steps,
            generator=list(generators),
            output_type="pt",
        ).images.float()

    def encode_clip(self, tokenizer: Any, encoder: Any, prompts: Sequence[str], length: int) -> tuple[Tensor, Any]:
        """Token ids (N, length) and the output of a CLIP text encoder, hidden states included."""
        found = tokenizer(list(prompts), padding="max_length", max_length=length, truncation=True, return_tensors="pt")
        ids = found.input_ids.to(self.device)
        return ids, encoder(ids, output_hidden_states=True)
