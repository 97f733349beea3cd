"""The tokenizers and embedding tables of a base, as the new tokens of its attachments need them.

A base with several text encoders learns each word in all of them: a row in each table, under the same name.
"""

import copy
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import Refused
from .adapter import Adapter
from .token import TokenAdapter

_TWINS = "the tokens {} differ in the case of letters alone, which the tokenizer of {!r} does not see; rename one"
RANDOM_START = "<random>"  # as the text that a new token starts from: none, a random vector


def tokenizers_by_table(base: Any) -> dict[str, Any]:
    """Path of each embedding table that learns new words -> the tokenizer that makes its identities."""
    return {
        path: getattr(base.pipeline, name)
        for role, name in base.word_tables.items()
        for path in base.roles.get(role, ())
    }  # fmt: skip


def expand_vectors(base: Any, tokens: Mapping[str, str], vectors: int) -> dict[str, str]:
    """{token: init} -> one entry per vector, named as diffusers does: "<t>", "<t>_1", "<t>_2", ...

    Raises:
        Refused: a token is in the tokenizer already, is empty or holds a space.
    """
    known = base.tokenizer.get_vocab()
    result = {}
    if twins := [token for token in tokens if sum(same_word(base.tokenizer, token, other) for other in tokens) > 1]:
        raise Refused(_TWINS.format(", ".join(twins), base.name))
    taught = [token for attachment in base.attachments for token in attachment.tokens]
    for token, text in tokens.items():
        twins = [other for other in taught if other != token and same_word(base.tokenizer, token, other)]
        if twins:
            raise Refused(_TWINS.format(f"{token} and {twins[0]}", base.name))
        if not token or token.split() != [token]:
            raise Refused(f"a token is one word without spaces, such as '<biscuit>'; got {token!r}")
        if token in known or token.lower() + "</w>" in known:
            raise Refused(f"token {token!r} is in the base's tokenizer already; choose a new one, such as '<{token}>'")
        taken = [f"{token}_{i}" for i in range(1, vectors) if f"{token}_{i}" in known]
        if taken:
            raise Refused(f"token {taken[0]!r} is in the base's tokenizer already; choose another name than {token!r}")
        result |= {token if i == 0 else f"{token}_{i}": text for i in range(vectors)}
    return result


def folds_case(tokenizer: Any) -> bool:
    """Whether a tokenizer reads capital letters as small ones, as CLIP's does."""
    return tokenizer("A", add_special_tokens=False).input_ids == tokenizer("a", add_special_tokens=False).input_ids


def same_word(tokenizer: Any, one: str, other: str) -> bool:
    """Whether a tokenizer takes two tokens for one."""
    return one == other or (one.lower() == other.lower() and folds_case(tokenizer))


def _added(token: str) -> Any:
    """A token as it is found in a prompt: one that begins or ends in a letter, "ana", not inside a word ("banana")."""
    from tokenizers import AddedToken

    return AddedToken(token, single_word=is_plain(token), normalized=True)


def is_plain(token: str) -> bool:
    """Whether a token begins or ends in a letter, digit or _, so that a longer word may hold it: "sks", not "<sks>"."""
    return re.match(r"\w", token) is not None or re.search(r"\w$", token) is not None


def only_identity(base: Any, noun: str) -> int:
    """The identity of a noun that is one token.

    Raises:
        Refused: it is several, or none that the tokenizer knows.
    """
    ids = base.tokenizer(noun, add_special_tokens=False).input_ids
    if len(ids) != 1:
        raise Refused(
            f"the super-category {noun!r} is {len(ids)} tokens of the base {base.name!r}; expected a common word "
            "of one token, such as 'cat' for 'tabby cat'"
        )
    return ids[0]


def initial_vectors(base: Any, path: str, tokens: Mapping[str, str], generator: torch.Generator) -> Tensor:
    """The rows (n, D) where new tokens start: the mean embedding of each one's initial text.

    Of `RANDOM_START` a random one: each dimension normal with the mean and deviation that it has in the table, then
    scaled to the table's median norm.
    """
    table, words = innermost(base.module(path)).get_parameter("weight").detach(), base.module(path)
    tokenizer = tokenizers_by_table(base)[path]
    rows = []
    for token, text in tokens.items():
        if text == RANDOM_START:
            held = table.float()
            drawn = torch.randn(held.shape[1], generator=generator).to(held.device)
            row = held.mean(0) + held.std(0) * drawn
            rows.append(row * (held.norm(dim=1).median() / row.norm()))
            continue
        ids = tokenizer(text, add_special_tokens=False).input_ids
        if not ids:
            raise Refused(f"token {token!r} cannot start from {text!r}: the tokenizer knows no word of it")
        with torch.no_grad():  # by the layer, not by its table: it may start from a word of another attachment
            rows.append(words(torch.tensor(ids, device=table.device)).float().mean(0))
    return torch.stack(rows)


def token_adapters(base: Any, tokens: Mapping[str, str], generator: torch.Generator) -> dict[str, Adapter]:
    """Path of each embedding table -> an adapter with a new row for every token, where it starts."""
    # What a word starts from that is drawn, or that another attachment teaches, is not there again for its file.
    passing = [RANDOM_START, *(word for attachment in base.attachments for word in attachment.tokens)]
    drawn = any(each in text for text in tokens.values() for each in passing)
    return {
        path: TokenAdapter(base.module(path), initial_vectors(base, path, tokens, generator), drawn=drawn)
        for path in tokenizers_by_table(base)
    }


def renew_tokenizer(base: Any) -> None:
    """Gives the base tokenizers that know the tokens of all its attachments, and each adapter its identities."""
    for role, name in base.word_tables.items():
        setattr(base.pipeline, name, _renewed(base, getattr(base.pipeline, name), base.roles.get(role, ())))


def _renewed(base: Any, tokenizer: Any, paths: Sequence[str]) -> Any:
    """One of a base's tokenizers, which serves the embedding tables at these paths."""
    original = getattr(tokenizer, "diffadapt_original", tokenizer)
    if not any(attachment.tokens for attachment in base.attachments):
        return original
    tokenizer = copy.deepcopy(original)
    for attachment in base.attachments:
        if not attachment.tokens:
            continue
        before = len(tokenizer)
        names = list(attachment.tokens)
        if tokenizer.add_tokens([_added(name) for name in names]) != len(names):
            raise Refused(
                f"one of the tokens {', '.join(names)} is taught by another attachment already; detach it first"
            )
        for path in paths:
            if isinstance(adapter := attachment.adapters.get(path), TokenAdapter):
                adapter.first = before
    tokenizer.diffadapt_original = original
    return tokenizer


def table_with_rows(layer: nn.Module, rows: Tensor) -> nn.Embedding:
    weight = layer.get_parameter("weight")
    merged = nn.Embedding(len(weight) + len(rows), weight.shape[1], device=weight.device, dtype=weight.dtype)
    merged.weight.copy_(torch.cat([weight, rows.to(weight)]))
    return merged.requires_grad_(False)


def innermost(layer: nn.Module) -> nn.Module:
    return layer.innermost() if isinstance(layer, Adapter) else layer
