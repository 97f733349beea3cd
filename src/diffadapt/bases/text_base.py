"""Bases with one CLIP text encoder: prompts, tokens, class nouns and the second moment of the encodings."""

import difflib
import os
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from ..conditioning import Conditioning
from ..errors import Refused
from ..files import at_home
from .covariance import Covariance, load_covariance
from .prompt_base import PromptBase


class TextBase(PromptBase):
    """A base whose pipeline has a `tokenizer` and a `text_encoder`; its conditioning is `token_ids` and `text`."""

    _covariance: Covariance | None = None

    # --- prompts ------------------------------------------------------------------------------------------------------

    def tokenize(self, prompts: Sequence[str]) -> Tensor:
        """N prompts -> identities (N, L); a token of several vectors is spelled out, a long prompt is cut."""
        length = min(self.tokenizer.model_max_length, self.text_encoder.config.max_position_embeddings)
        return self.identities(self.tokenizer, prompts, length)

    def encode_ids(self, ids: Tensor) -> Tensor:
        """Identities (N, L) -> text (N, L, D), with gradient where it is enabled."""
        return self.text_encoder(ids).last_hidden_state

    def condition(self, prompts: Sequence[str]) -> Conditioning:
        """N prompts -> `token_ids` (N, L) and `text` (N, L, D), with gradient where it is enabled."""
        ids = self.tokenize(prompts)
        return Conditioning(token_ids=ids, text=self.encode_ids(ids))

    def check_noun(self, noun: str) -> None:
        """Raises Refused when the base cannot know a class noun."""
        if self.world:
            kinds, nouns = self.world.get("kinds", ()), self.world.get("nouns", ())
            if noun not in (*kinds, *nouns):
                near = difflib.get_close_matches(noun, [*kinds, *nouns], n=1, cutoff=0.8)  # a slip of the keys
                advice = f"did you mean {near[0]!r}? " if near else "take the kind that it is one of. "
                raise Refused(
                    f"class noun {noun!r} is no word that base {self.name!r} was trained on; {advice}"
                    f"It knows the kinds {', '.join(kinds)} and the nouns {', '.join(nouns)}"
                )
            return
        super().check_noun(noun)

    # --- the text encoder's second moment -----------------------------------------------------------------------------

    @property
    def covariance_file(self) -> Path:
        """Where the second moment of its text encoder is: beside the base's own files, else in the user's cache."""
        if self.folder and (self.folder / "covariance.safetensors").is_file():
            return self.folder / "covariance.safetensors"
        cache = at_home(os.environ.get("DIFFADAPT_CACHE", "~/.cache/diffadapt"))
        return cache / "covariance" / f"{self.text_fingerprint.split(':')[-1]}.safetensors"

    def covariance(self) -> Covariance:
        """The second moment of its text encoder's outputs; read once.

        Raises:
            Refused: it was not measured yet, or on another text encoder; says how to.
        """
        if self._covariance is None:
            file = self.covariance_file
            if not file.is_file():
                raise Refused(
                    f"the text encoder of {self.name!r} has no covariance yet, expected at {file}; measure it once: "
                    f"diffadapt covariance --base {self.name} --captions CAPTIONS.txt"
                )
            found = load_covariance(file)
            if found.facts.get("encoder") != self.text_fingerprint:
                raise Refused(
                    f"{file} was measured on another text encoder ({found.facts.get('encoder')}), {self.name!r} has "
                    f"{self.text_fingerprint}; measure it again: diffadapt covariance --base {self.name} ..."
                )
            self._covariance = found
        return self._covariance
