"""New words in the files of textual inversion, written and read: a tensor (vectors, D) for each word.

    emb_params         what the A1111 family writes; the word is the file's name
    clip_l, clip_g     what ComfyUI, kohya's scripts and diffusers write for the two encoders of Stable Diffusion XL
                       and 3; the same. clip_l may stand alone
    any single key     what diffusers writes; the word is the key

Written is the last form for one encoder and the second for two, which all of them read. ComfyUI calls a word by its
file: `embedding:<file name>`.
"""

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ..adapters import Attachment, Token, attach
from ..adapters.tokenizer import tokenizers_by_table
from ..errors import Refused
from ..files import save_tensors
from ..network import Network

_NAMELESS = ("emb_params", "clip_l")
_OF_TWO = ("clip_l", "clip_g")
_MOST = 16  # vectors of one word, as in Token


@torch.no_grad()
def word_files(attachment: Attachment, beside: Path) -> dict[Path, dict[str, Tensor]]:
    """Each new word as a textual inversion: {`<name>-<word>.safetensors` beside a file or folder: tensors}.

    Raises:
        Refused: one of the files is there already.
    """
    rows = [adapter.rows() for adapter in attachment.words]
    if not rows:
        return {}
    name = beside.name.removesuffix(".safetensors")
    vectors = attachment.method.vectors_per_word()
    words = list(attachment.tokens)[::vectors]  # "<t>", "<t>_1", ... stand one behind the other
    files: dict[Path, dict[str, Tensor]] = {}
    taken: set[str] = set()
    for word, *own in zip(words, *(each.split(vectors) for each in rows), strict=True):
        plain = first = re.sub(r"\W+", "-", word).strip("-") or "word"
        number = 1
        while plain.lower() in taken:  # two words that differ in signs alone, or in the case of letters
            number += 1
            plain = f"{first}-{number}"
        taken.add(plain.lower())
        keys = (word,) if len(own) == 1 else _OF_TWO
        files[beside.with_name(f"{name}-{plain}.safetensors")] = dict(zip(keys, own, strict=True))
    for path in files:
        if path.exists():
            raise Refused(f"{path}, where a new word would go, exists already; choose another name for all")
    return files


def write_words(files: Mapping[Path, Mapping[str, Tensor]]) -> list[Path]:
    """Writes what `word_files` found."""
    return [save_tensors(path, tensors, {"format": "pt"}) for path, tensors in files.items()]


def is_word(tensors: Mapping[str, Tensor]) -> bool:
    """Whether a file is textual inversion, by its tensor of one or several vectors for each encoder."""
    names = set(tensors)
    known = names == set(_OF_TWO) or (len(names) == 1 and names != {"clip_g"} and "." not in min(names))
    return known and all(tensor.ndim in (1, 2) for tensor in tensors.values())


def attach_word(base: Network, source: Path, tensors: Mapping[str, Tensor], token: str | None) -> Attachment:
    """Textual inversion of another tool on its base, as a token.

    Args:
        base: the base it was trained on.
        source: the file, whose name is the word where the file holds none.
        tensors: all of it.
        token: what the word is to be called; None: as the file says, in the signs <>.

    Raises:
        Refused: it is for another number of encoders, of another width, or longer than a token of diffadapt.
    """
    paths = list(tokenizers_by_table(base))
    keys = _OF_TWO if len(tensors) > 1 else tuple(tensors)
    if len(keys) != len(paths):
        raise Refused(
            f"{source} is textual inversion for {len(keys)} text encoder(s), and {base.name!r} has {len(paths)}; "
            "it was trained on another kind of base"
        )
    vectors = {path: torch.atleast_2d(tensors[key].float()) for path, key in zip(paths, keys, strict=True)}
    for path, rows in vectors.items():
        width = base.module(path).get_parameter("weight").shape[1]
        if rows.shape[1] != width:
            raise Refused(
                f"{source} is textual inversion of width {rows.shape[1]}, and the text encoder of {base.name!r} has "
                f"{width}; it was trained on another kind of base"
            )
    counts, key = {len(rows) for rows in vectors.values()}, keys[0]
    if len(counts) > 1 or not 1 <= min(counts) <= _MOST:
        listed = " and ".join(map(str, sorted(counts)))
        raise Refused(f"{source} has {listed} vectors; a token of diffadapt has 1 to {_MOST}, as many for each encoder")
    word = source.stem if key in _NAMELESS else key
    plain = re.sub(r"\W+", " ", word).strip()
    word = token or (word if word.startswith("<") else f"<{'-'.join(plain.split())}>")
    attachment = attach(base, Token(vectors=counts.pop()), tokens={word: plain or "a"})
    try:
        attachment.load_state_dict({f"{path}.vectors": rows for path, rows in vectors.items()})
    except Refused:
        attachment.detach()
        raise
    return attachment
