"""Measures the second moment of a base's text encoder, once for every base; perfusion needs it."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from ..errors import Refused
from ..fingerprint import short_hash
from ..progress import Steps
from .base import Base
from .covariance import POOLED, Covariance, SecondMoment


@torch.no_grad()
def measure_covariance(base: Base, captions: Sequence[str], *, batch: int = 64, progress: bool = False) -> Covariance:
    """C over the start token, words and end token of each caption, accumulated in float64.

    Args:
        base: without attachments.
        captions: 50 tokens for every dimension of the text encoder, some 4,000 captions for 768, put r within 0.005.
        batch: captions encoded at once.
        progress: show progress on stderr.

    Raises:
        Refused: something is attached, or too few captions to invert C.
    """
    if base.attachments:
        raise Refused("the covariance is of the untouched base; detach what is attached first")
    captions = [line for line in captions if line.strip()]
    moment = SecondMoment(int(base.text_encoder.config.hidden_size))
    with Steps("covariance", len(captions), quiet=not progress) as bar:
        for start in range(0, len(captions), batch):
            part = captions[start : start + batch]
            ids = base.tokenize(part)
            moment.add(base.encode_ids(ids).float(), without_padding(ids, base.tokenizer.eos_token_id))
            bar.advance(by=len(part))
    facts = {
        "encoder": base.text_fingerprint,
        "corpus": corpus_hash(captions),
        "captions": len(captions),
        "tokens": moment.tokens,
        "pooled": POOLED,
    }
    return Covariance(matrix=moment.matrix(), facts=facts)


def without_padding(ids: Tensor, end: int) -> Tensor:
    """(N, L) bool: everything up to the first end token, it included."""
    ends = (ids == end).long()
    return ends.cumsum(1) - ends == 0


def corpus_hash(captions: Iterable[str]) -> str:
    return short_hash("\n".join(captions).encode())
