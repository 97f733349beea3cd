"""Checks of prompts and captions before anything is computed: words a base cannot know, words cut off."""

import re
from bisect import bisect_right
from collections.abc import Sequence
from typing import Any

from ..errors import Refused
from .concept import Concept, whole_word


def prompt_notes(base: Any, prompts: Sequence[str]) -> list[str]:
    """One sentence for each word in the prompts that the base cannot know; empty where all is known or nothing is told.

    Args:
        base: a loaded base, with what is attached to it now.
        prompts: as they are sampled.
    """
    if base.tokenizer is None:  # prompts are names of classes, and others are refused
        return []
    taught = {token.lower() for token in base.tokenizer.added_tokens_encoder}
    unknown = {
        word
        for prompt in prompts
        for word in re.findall(r"<[^<>\s]+>", prompt)
        if word.lower() not in taught
    }  # fmt: skip
    notes = [f"{word} is no word that was taught; add the adapter that knows it" for word in sorted(unknown)]
    if base.world:  # whose tokenizer was made of the words that it was shown: each of them is one token
        plain = re.sub(r"<[^<>\s]+>", " ", " ".join(prompts)).lower()
        words = [word for word in dict.fromkeys(re.findall(r"[^\W\d_]+", plain)) if word not in taught]
        strange = [word for word in words if len(base.tokenizer.tokenize(word)) > 1]
        if strange:
            notes.append(
                f"base {base.name!r} was never shown {', '.join(strange)}, so that the picture will not show it; its "
                "words: diffadapt list bases"
            )
    return notes


def cut_at(base: Any, prompt: str) -> str:
    """The end of a prompt that is cut, since the text encoder takes a fixed number of tokens; "" where all fits."""
    if base.tokenizer is None:
        return ""
    length, words = _length(base), re.findall(r"\S+\s*", prompt)

    def tokens(kept: int) -> int:
        return _count(base, "".join(words[:kept]))

    most = 1
    while most < len(words) and tokens(most) <= length:  # the encoder takes few words, however many there are
        most *= 2
    kept = bisect_right(range(1, min(most, len(words)) + 1), length, key=tokens)
    return "".join(words[kept:]).strip()


def caption_notes(base: Any, concept: Concept) -> list[str]:
    """One sentence for each caption that is cut.

    Raises:
        Refused: it is cut before the concept's word, so that the picture would teach nothing.
    """
    notes = []
    for index, example in enumerate(concept.examples):
        caption = concept.caption(index)
        token = next((each for each in concept.tokens if whole_word(each).search(caption)), concept.token)
        word = whole_word(token)
        cut = cut_at(base, word.sub("a", caption))  # it counts as one token, whether it was taught already or not
        if not cut:
            continue
        found = word.search(caption)
        if found is None or _count(base, word.sub("a", caption[: found.end()])) > _length(base):
            raise Refused(
                f"the caption of {example.path.name} is cut before {token}: the text encoder of {base.name!r} takes "
                f"{_length(base)} tokens, so that the picture would teach nothing; shorten it"
            )
        notes.append(f"{example.path.name}: its caption is too long, and {cut!r} is cut off")
    return notes


def _length(base: Any) -> int:
    return min(base.tokenizer.model_max_length, base.text_encoder.config.max_position_embeddings)


def _count(base: Any, text: str) -> int:
    """Tokens of a text, those for its start and end included."""
    return len(base.tokenizer(text, verbose=False).input_ids)
