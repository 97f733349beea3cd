"""Custom Diffusion (Kumari et al. 2022, arXiv:2212.04488): several concepts, trained apart, in one set of weights.

A concept is trained with `train_subject` and `Selective()` on the roles below, beside its new word. The merge is the
paper's closed form: of all weights that map the words of every concept's prompt as its own training does, the one that
changes ordinary text least,

    min || (W - W0) C_reg^T ||    such that    W c = W_j c    for every token c of concept j's prompt,

    W = W0 + v^T d,    d = C (C_reg^T C_reg)^-1,    v^T = (V - W0 C^T)(d C^T)^-1

C_reg^T C_reg is the text encoder's second moment, `base.covariance()`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import Refused
from .adapter import effective_weight
from .adapter_file import load_adapter, read_adapter
from .attach import Attachment, attach
from .selective import Selective, SelectiveAdapter

ROLES = ("cross_attention.key", "cross_attention.value")
RIDGE = 1e-6  # of the concepts' Gram matrix, against words that prompts share


@torch.no_grad()
def merge_custom_diffusion(base: Any, files: Sequence[str | Path], out: str | Path) -> Path:
    """Merges the files of separately trained concepts into one adapter file that knows all their words.

    Args:
        base: the untouched base that they were trained on.
        files: adapter files of `Selective()` on cross-attention keys and values, each with its word.
        out: the file to write.

    Raises:
        Refused: fewer than two files, or one of another method, of other layers, or without a word of its own.
    """
    if len(files) < 2:
        raise Refused(f"merging takes two files or more, got {len(files)}")
    if base.attachments:
        raise Refused("merging starts from the untouched base; detach what is attached first")
    parts = [_Part(base, Path(file)) for file in files]
    tokens = {word: noun for part in parts for word, noun in part.tokens.items()}
    if len(tokens) < len(parts):
        raise Refused(f"two files teach the same word; they know {', '.join(tokens)}")
    whole = attach(base, Selective(), list(ROLES), tokens=tokens)
    try:
        _copy_words(whole, parts)
        for path in parts[0].weights:
            adapter = whole.adapters[path]
            assert isinstance(adapter, SelectiveAdapter)
            wanted = [(part.text, part.text @ part.weights[path].T) for part in parts]
            changed = constrained(adapter.layer.get_parameter("weight"), wanted, base.covariance())
            adapter.values.get_parameter("weight").copy_(changed)
        return whole.save(out, {"merged": ", ".join(tokens)})
    finally:
        whole.detach()


def constrained(w0: Tensor, wanted: Sequence[tuple[Tensor, Tensor]], covariance: Any) -> Tensor:
    """The weight nearest to w0 on ordinary text that maps given inputs to given outputs.

    Args:
        w0: (out, in).
        wanted: (inputs (T, in), outputs (T, out)) of each concept.
        covariance: of ordinary text; measures "nearest".
    """
    # On the CPU, where the covariance is solved and every machine has float64.
    inputs = torch.cat([each for each, _ in wanted]).to("cpu", torch.float64)
    outputs = torch.cat([each for _, each in wanted]).to("cpu", torch.float64)
    before = w0.to("cpu", torch.float64)
    d = covariance.solve(inputs)
    gram = d @ inputs.T
    gram += RIDGE * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
    missing = outputs - inputs @ before.T
    return (before + torch.linalg.solve(gram, missing).T @ d).to(w0)


class _Part:
    """One concept's file: its word, the encoding of its prompt, and its weights."""

    def __init__(self, base: Any, file: Path) -> None:
        method, roles, tokens, _, _ = read_adapter(file)
        if not isinstance(method, Selective) or method.train != "full" or not tokens:
            raise Refused(f"{file} is no concept of Custom Diffusion: expected selective (full) with a word of its own")
        attachment = load_adapter(base, file)
        try:
            paths = [path for role in ROLES for path in base.roles[role]]
            if sorted(attachment.layers) != sorted(paths):
                raise Refused(f"{file} changes {', '.join(roles)}; expected {' and '.join(ROLES)}")
            self.tokens = attachment.tokens
            self.vectors = [each.vectors for each in attachment.words]
            self.weights = {path: effective_weight(base.module(path)).clone() for path in paths}
            prompt = " ".join(f"{word} {noun}" for word, noun in self.tokens.items())
            ids = base.tokenize([f"photo of a {prompt}" if base.world is None else f"a {prompt}"])
            length = int((ids[0] == base.tokenizer.eos_token_id).long().argmax())
            self.text = base.encode_ids(ids)[0, 1:length].float()
        finally:
            attachment.detach()


def _copy_words(whole: Attachment, parts: Sequence[_Part]) -> None:
    for index, adapter in enumerate(whole.words):
        adapter.vectors.copy_(torch.cat([part.vectors[index] for part in parts]))
