"""Bases whose pictures a diffusers pipeline makes from encoded prompts, with pooled text beside them or without."""

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..conditioning import Conditioning
from ..errors import Refused
from .base import Base
from .local_folder import open_pipeline
from .single_file import open_single_file

TWO_CLIPS = MappingProxyType({"text.token_embedding": "tokenizer", "text_2.token_embedding": "tokenizer_2"})


class PromptBase(Base):
    """A base whose pipeline takes `prompt_embeds`; unconditional rows come first.

    New words are learned in its CLIP text encoders, in all of them together.
    """

    without: ClassVar[Mapping[str, Any]] = {}  # what its pipeline is opened with: components left out, and the like
    word_tables: Mapping[str, str] = MappingProxyType({"text.token_embedding": "tokenizer"})

    @property
    def tokenizer(self) -> Any:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The first text encoder's."""
        return self.pipeline.tokenizer

    def check_parts(self) -> None:
        for tokenizer, encoder in self._encoders():
            # CLIP's pooled text is that of the end token. Files of before transformers 4.30 say 2 for it, which is read
            # as "the largest identity": a new word's would be taken for the end.
            if encoder.config.eos_token_id == 2 != tokenizer.eos_token_id:
                encoder.config.eos_token_id = tokenizer.eos_token_id
                for module in encoder.modules():
                    if getattr(module, "eos_token_id", None) == 2:
                        module.eos_token_id = tokenizer.eos_token_id

    def _encoders(self) -> Iterable[tuple[Any, Any]]:
        """The tokenizer and the text encoder of each table of words."""
        for name in self.word_tables.values():
            yield getattr(self.pipeline, name), getattr(self.pipeline, name.replace("tokenizer", "text_encoder"))

    # --- prompts ------------------------------------------------------------------------------------------------------

    def spelled(self, prompt: str) -> str:
        """A token of several vectors becomes "<t> <t>_1 <t>_2", as diffusers' own pipeline does."""
        added = self.tokenizer.added_tokens_encoder
        for token in [token for token in added if f"{token}_1" in added]:
            first = re.compile(_as_a_word(token), re.IGNORECASE)  # as the tokenizer finds it
            if re.search(_as_a_word(f"{token}_1"), prompt, re.IGNORECASE):
                continue
            further = itertools.takewhile(added.__contains__, (f"{token}_{i}" for i in itertools.count(1)))
            whole = " ".join([token, *further])
            prompt = first.sub(lambda _, whole=whole: whole, prompt)
        return prompt

    def without_new_words(self, prompt: str) -> str:
        """A prompt as an encoder reads it that learns none: "a <biscuit> cat" becomes "a cat"."""
        added = [str(token) for token in self.tokenizer.added_tokens_decoder.values() if not token.special]
        for token in sorted(added, key=len, reverse=True):  # "<t>_1" before "<t>"
            prompt = re.sub(_as_a_word(token) + r"\s*", "", prompt, flags=re.IGNORECASE)
        return prompt.strip()

    def identities(self, tokenizer: Any, prompts: Sequence[str], length: int) -> Tensor:
        """N prompts -> token ids (N, length); a token of several vectors is spelled out, a long prompt is cut."""
        spelled = [self.spelled(prompt) for prompt in prompts]
        found = tokenizer(spelled, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
        return found.input_ids.to(self.device)

    def encode_clip(self, tokenizer: Any, encoder: Any, prompts: Sequence[str], length: int) -> tuple[Tensor, Any]:
        """Token ids (N, length) and the output of a CLIP text encoder, hidden states included."""
        ids = self.identities(tokenizer, prompts, length)
        return ids, encoder(ids, output_hidden_states=True)

    def check_noun(self, noun: str) -> None:
        """Raises Refused when the base cannot know a class noun."""
        ids = self.tokenizer(noun, add_special_tokens=False).input_ids
        unknown = getattr(self.tokenizer, "unk_token_id", None)
        special = self.tokenizer.eos_token_id
        if not ids or (unknown is not None and unknown != special and unknown in ids):
            raise Refused(f"class noun {noun!r} has no word in the tokenizer of {self.name!r}; use a plain word: 'dog'")

    # --- pictures and files -------------------------------------------------------------------------------------------

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

    @staticmethod
    def pipeline_class() -> Any:
        """The class of its pipeline; imported here, since diffusers takes seconds."""
        raise NotImplementedError

    @classmethod
    def open_(cls, folder: Path, dtype: torch.dtype) -> Any:
        return open_pipeline(cls.pipeline_class(), folder, dtype, cls.weights, **cls.without)

    @classmethod
    def open_file(cls, path: Path, configuration: Path, dtype: torch.dtype) -> Any:
        return open_single_file(cls.pipeline_class(), path, configuration, dtype, cls.weights, **cls.without)

    def save_pipeline(self, folder: Path) -> None:
        for _, encoder in self._encoders():
            encoder.config.vocab_size = encoder.get_input_embeddings().weight.shape[0]
        super().save_pipeline(folder)


def _as_a_word(token: str) -> str:
    """The pattern of a token where it stands by itself: one that begins or ends in a letter is no part of a word."""
    before = r"(?<!\w)" if re.match(r"\w", token) else ""
    return before + re.escape(token) + (r"(?!\w)" if re.search(r"\w$", token) else "")
