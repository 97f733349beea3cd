"""From one task of a sequence to the next: what an attachment learned is frozen, and training starts anew beside it."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from ..errors import Refused
from .adapter import Adapter, Attached
from .token import TokenAdapter
from .tokenizer import RANDOM_START, expand_vectors, initial_vectors, renew_tokenizer


@contextmanager
def observing(attachment: Attached) -> Iterator[None]:
    """Within the block the adapters take in what their layers receive, and the gradients that come back, if any.

    For methods that keep statistics of a task; a backward pass of the sum of per-row losses gives per-row gradients.
    """

    def look(adapter: Adapter, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        adapter.observe_(inputs[0])
        if output.requires_grad:
            output.register_hook(lambda gradient: adapter.observe_gradient_(inputs[0], gradient))

    hooks = [adapter.register_forward_hook(look) for adapter in attachment.adapters.values()]  # pyright: ignore
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def fold_(attachment: Attached, tokens: Mapping[str, str], seed: int) -> None:
    """Ends a task of a sequence.

    Methods that keep tasks apart (C-LoRA) freeze what was learned and start anew beside it; others go on from where
    they are. The vectors of learned tokens are frozen in any case. The optimizer's state belongs to the task that
    ended: make a new optimizer.

    Args:
        attachment: on its base.
        tokens: the next task's new tokens, as many as this one's, each with the text that it starts from, or
            `RANDOM_START`.
        seed: of what the next task starts from.

    Raises:
        Refused: merged, tokens that do not fit, or a method that has not seen what it needs; nothing is changed then.
    """
    if attachment.is_merged:
        raise Refused("a merged attachment cannot go on to the next task; call unmerge_() first")
    base = attachment.base
    generator = torch.Generator().manual_seed(seed)
    tables = {path: each for path, each in attachment.adapters.items() if isinstance(each, TokenAdapter)}
    vectors = attachment.method.vectors_per_word()
    if tokens and not tables:
        raise Refused("this attachment learned no token, so the next task cannot bring one; attach with tokens=...")
    new = expand_vectors(base, tokens, vectors) if tokens else {}
    for table in tables.values():
        if len(new) != len(table.vectors):
            expected = len(table.vectors) // vectors
            raise Refused(f"expected {expected} new token(s) for the next task, as many as before; got {len(tokens)}")
    starts = {path: initial_vectors(base, path, new, generator) for path in tables}
    for adapter in attachment.adapters.values():
        adapter.fold_(generator)
    for path, table in tables.items():
        table.next_(starts[path], drawn=RANDOM_START in new.values())
    attachment.tokens |= new
    renew_tokenizer(base)
