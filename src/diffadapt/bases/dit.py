"""DiT (Peebles and Xie 2022, arXiv:2212.09748): a transformer on latents, conditioned on a class: a `DiTPipeline`.

The prompts of such a base are the names of its classes, and "" is the null class, the last row of its label table.
`attach(..., classes=[...])` brings new ones.
In files every block has its own copy of the embedding of time and label; where the copies are equal, as published
checkpoints have them, they are one again here. The noise is predicted and a variance beside it.
"""

import copy
import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..conditioning import Conditioning
from ..errors import Refused
from ..network import Rules
from .base import Base
from .local_folder import open_pipeline

RULES: Rules = (
    (r"transformer\..*\.attn1\.to_q", "self_attention.query"),
    (r"transformer\..*\.attn1\.to_k", "self_attention.key"),
    (r"transformer\..*\.attn1\.to_v", "self_attention.value"),
    (r"transformer\..*\.attn1\.to_out\.0", "self_attention.out"),
    (r"transformer\..*\.ff\.net\.0\.proj", "feed_forward.in"),
    (r"transformer\..*\.ff\.net\.2", "feed_forward.out"),
    (r"transformer\..*\.norm1\.linear", "modulation"),
    (r"transformer\..*\.norm1\.emb\.timestep_embedder\.linear_[12]", "time_embedding"),
    (r"transformer\..*\.norm1\.emb\.class_embedder\.embedding_table", "class_embedding"),
    (r"transformer\.pos_embed\.proj", "input.conv"),
    (r"transformer\.proj_out_1", "output.modulation"),
    (r"transformer\.proj_out_2", "output.linear"),
)


class DiT(Base):
    """A `DiTPipeline`: one transformer with adaptive norms, conditioned on a class."""

    family: ClassVar[str] = "dit"
    rules: ClassVar[Rules] = RULES
    components: ClassVar[tuple[str, ...]] = ("transformer", "vae", "scheduler")
    weights: ClassVar[Mapping[str, str]] = {
        "transformer": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model"
    }  # fmt: skip
    parts: ClassVar[tuple[str, ...]] = ("transformer",)
    prediction_types: ClassVar[tuple[str, ...]] = ("epsilon",)
    learned_sigma: ClassVar[bool] = True
    unconditional_first: ClassVar[bool] = False

    def check_parts(self) -> None:
        channels = self.denoiser.config.in_channels
        out = self.denoiser.config.out_channels or channels
        if out != 2 * channels:
            raise Refused(f"{self.name} predicts {out} channels for latents of {channels}; expected noise and variance")
        self.own_classes = self._named_classes()

    def _named_classes(self) -> tuple[str, ...]:
        """Names in the order of the table's rows; a class without a name is called by its number."""
        table = self.denoiser.transformer_blocks[0].norm1.emb.class_embedder.embedding_table.weight
        names = [str(i) for i in range(len(table) - 1)]
        for name, label in getattr(self.pipeline, "labels", {}).items():
            if label < len(names) and names[label] == str(label):  # the first of several names
                names[label] = name
        return tuple(names)

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of its classes, those that attachments have brought at the end."""
        return (*self.own_classes, *(name for each in self.attachments for name in each.classes))

    def _places(self) -> dict[str, int]:
        """Prompt -> label. A name that an attachment brings is its class while it is on, and the base's own else."""
        own = {**getattr(self.pipeline, "labels", {}), **{name: i for i, name in enumerate(self.own_classes)}}
        null = len(self.own_classes)
        brought = {name: i for each in self.attachments for i, name in enumerate(each.classes, start=null + 1)}
        on = any(each.classes and each.live for each in self.attachments)
        return {**(own | brought if on else brought | own), "": null}

    # --- condition, denoise -------------------------------------------------------------------------------------------

    def condition(self, prompts: Sequence[str]) -> Conditioning:
        places = self._places()
        for prompt in prompts:
            if prompt not in places:
                near = difflib.get_close_matches(prompt, self.classes, n=1, cutoff=0.0)
                raise Refused(
                    f"{prompt!r} is no class of {self.name!r}; did you mean {near[0]!r}? The prompts of a "
                    "class-conditional base are the names of its classes"
                )
        labels = torch.tensor([places[prompt] for prompt in prompts], device=self.device)
        return Conditioning(class_labels=labels)

    def denoiser_inputs(self, noisy: Tensor, timesteps: Tensor, condition: Conditioning) -> dict[str, Any]:
        return {"hidden_states": noisy, "timestep": timesteps, "class_labels": condition.class_labels}

    @property
    def downsampling(self) -> int:
        return 2 ** (len(self.vae.config.get("block_out_channels") or self.vae.config.decoder_block_out_channels) - 1)

    def check_size(self, width: int, height: int) -> None:
        if (width, height) != (self.resolution, self.resolution):
            raise Refused(f"{self.name!r} makes pictures of {self.resolution}x{self.resolution}, not {width}x{height}")

    @torch.no_grad()
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
        """DiT's own pipeline knows the null class as number 1000 only, so the loop is here."""
        config, scheduler = self.denoiser.config, self.pipeline.scheduler
        shape = (int(config.in_channels), int(config.sample_size), int(config.sample_size))
        x = torch.stack([torch.randn(shape, generator=generator) for generator in generators]).to(self.device)
        scheduler.set_timesteps(steps)
        for t in scheduler.timesteps:
            both = torch.cat([x, x]) if guidance > 1 else x
            scaled = scheduler.scale_model_input(both, t)
            predicted = self.denoise(scaled, t.to(self.device).expand(len(both)), condition).float()
            if guidance > 1:
                wanted, null = predicted.chunk(2)
                predicted = null + guidance * (wanted - null)
            x = scheduler.step(predicted, t, x).prev_sample
        return self.decode_latents(x)

    # --- files --------------------------------------------------------------------------------------------------------

    @classmethod
    def open_(cls, folder: Path, dtype: torch.dtype) -> Any:
        from diffusers.pipelines.dit.pipeline_dit import DiTPipeline

        pipeline = open_pipeline(DiTPipeline, folder, dtype, cls.weights)
        _share_embeddings(pipeline.transformer)
        return pipeline

    def save_pipeline(self, folder: Path) -> None:
        """In the published layout: a copy of the embedding in each block, the null class last."""
        self.pipeline.register_to_config(id2label={str(i): name for i, name in enumerate(self.classes)})
        first, *others = self.denoiser.transformer_blocks
        shared = [block for block in others if block.norm1.emb is first.norm1.emb]
        embedder = first.norm1.emb.class_embedder
        table, null, count = embedder.embedding_table, len(self.own_classes), len(self.classes)
        if count > null:  # merged with the rows of new classes, which stand behind the null class
            order = [*range(null), *range(null + 1, count + 1), null]
            embedder.embedding_table = nn.Embedding.from_pretrained(table.weight[order])
            self.denoiser.register_to_config(num_embeds_ada_norm=count)
        for block in shared:
            block.norm1.emb = copy.deepcopy(first.norm1.emb)
        try:
            super().save_pipeline(folder)
        finally:
            embedder.embedding_table = table
            self.denoiser.register_to_config(num_embeds_ada_norm=null)
            for block in shared:
                block.norm1.emb = first.norm1.emb


def _share_embeddings(transformer: Any) -> None:
    """Equal copies of the embedding of time and label become one module, as in DiT itself."""
    first, *others = transformer.transformer_blocks
    own = first.norm1.emb.state_dict()
    if all(_equal(own, block.norm1.emb.state_dict()) for block in others):
        for block in others:
            block.norm1.emb = first.norm1.emb


def _equal(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
