"""Batches for learning a concept beside its class: latents and text, each encoded once."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..adapters import Attachment
from ..bases import Base
from ..data.cache import TensorCache
from ..data.concept import Concept
from ..data.memory_bank import MemoryBank
from . import seeds
from .draws import encoded, shuffled, spread_timesteps


@dataclass(frozen=True)
class Batch:
    """Concept rows first, class rows (if any) behind them.

    Shapes: latents, noise (N, C, h, w); timesteps (N,); token_ids (N, L); text (N, L, D); mask (N, 1, h, w) or None.
    """

    latents: Tensor
    noise: Tensor
    timesteps: Tensor
    token_ids: Tensor
    text: Tensor
    mask: Tensor | None
    concept_rows: int


class ConceptBatches:
    """Draws batches as a function of (seed, process, step, part), so that a resumed run sees the same ones.

    Args:
        base: the untouched base; latents are encoded here.
        concept: pictures and captions.
        bank: class pictures, or None without prior preservation.
        resolution: side of the training pictures, in pixels.
        batch_size: concept rows of a batch; class rows come on top, as many again.
        masked: weigh places by the concept's masks.
        caption_dropout: share of concept captions replaced by the empty prompt.
        templates: what pictures without a caption are learned with, one drawn at random; "{}" is the concept.
        parts: batches in a step (gradient accumulation).
        seed, process: what the draws depend on, beside the step.
        cache: keeps latents between runs of one folder.
    """

    def __init__(
        self,
        base: Base,
        concept: Concept,
        bank: MemoryBank | None,
        *,
        resolution: int,
        batch_size: int,
        masked: bool,
        caption_dropout: float,
        templates: Sequence[str],
        parts: int,
        seed: int,
        process: int,
        cache: TensorCache,
    ) -> None:
        self.base, self.batch_size, self.caption_dropout = base, batch_size, caption_dropout
        self.seed, self.process, self.parts = seed, process, parts
        self.captions = concept.captions()
        self.plain = [example.caption is None for example in concept.examples]
        self.templates = [template.replace("{}", concept.phrase) for template in templates]
        self.class_captions = bank.prompts if bank else []
        self.latents = _encoded(base, concept.pixels(resolution), concept.contents, cache)  # (P, C, h, w)
        self.class_latents = _encoded(base, bank.pixels(), bank.contents, cache) if bank else None
        masks = concept.masks(resolution) if masked else None
        self.masks = None if masks is None else F.interpolate(masks, self.latents.shape[-2:], mode="area")
        self._texts: dict[str, tuple[Tensor, Tensor]] = {}
        self._live = False

    def encode_text(self, attachment: Attachment) -> None:
        """Encodes every caption once, unless the attachment changes the text encoder, which then runs every step."""
        self._live = any(path.startswith("text_encoder") for path in attachment.adapters)
        captions = sorted({*self.captions, *self.class_captions, *self.templates, ""})
        ids = self.base.tokenize(captions)
        with torch.no_grad():
            text = self.base.encode_prompts(captions)
        self._texts = {caption: (ids[i], text[i]) for i, caption in enumerate(captions)}

    @property
    def rows(self) -> int:
        """Pictures in a batch, class pictures included."""
        return self.batch_size * (1 if self.class_latents is None else 2)

    def batch(self, step: int, part: int) -> Batch:
        """The batch of one accumulation part of one step."""
        rng = seeds.rng(self.seed, self.process, step, part)
        size = self.batch_size
        place = (step * self.parts + part) * size
        chosen = shuffled(len(self.captions), size, first=place, seed=self.seed, process=self.process)
        captions = ["" if rng.random() < self.caption_dropout else self._caption(i, rng) for i in chosen]
        latents = self.latents[chosen]
        mask = None if self.masks is None else self.masks[chosen]
        if self.class_latents is not None:
            others = rng.integers(len(self.class_captions), size=size)
            captions += [self.class_captions[i] for i in others]
            latents = torch.cat([latents, self.class_latents[others]])
            if mask is not None:
                mask = torch.cat([mask, torch.ones_like(mask)])
        noise = seeds.normal(tuple(latents.shape), rng)
        # Concept and class rows alike are spread over the range.
        length = self.base.num_train_timesteps
        timesteps = torch.cat([spread_timesteps(rng, size, length) for _ in range(self.rows // size)])
        ids, text = self._text(captions)
        device = self.base.device
        return Batch(
            latents=latents.to(device),
            noise=noise.to(device),
            timesteps=timesteps.to(device),
            token_ids=ids,
            text=text,
            mask=None if mask is None else mask.to(device),
            concept_rows=size,
        )

    def _caption(self, index: int, rng: np.random.Generator) -> str:
        if self.templates and self.plain[index]:
            return self.templates[int(rng.integers(len(self.templates)))]
        return self.captions[index]

    def _text(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        ids = torch.stack([self._texts[caption][0] for caption in captions])
        if not self._live:
            return ids, torch.stack([self._texts[caption][1] for caption in captions])
        distinct = sorted(set(captions))  # a few captions fill a batch: encode each once
        text = self.base.encode_prompts(distinct)
        return ids, text[[distinct.index(caption) for caption in captions]]


def _encoded(base: Base, pixels: Tensor, contents: Sequence[str], cache: TensorCache) -> Tensor:
    """Latents (N, C, h, w) on the CPU, one cache entry per picture."""
    return torch.stack([encoded(base, row, content, cache) for row, content in zip(pixels, contents, strict=True)])
