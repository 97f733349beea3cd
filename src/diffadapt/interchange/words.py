"""New words in the files of textual inversion, written and read: a tensor (vectors, D) for each word.

    emb_params         what the A1111 family writes; the word is the file's name
    clip_l             what ComfyUI and kohya's scripts write for one encoder of several; the same
    any single key     what diffusers writes; the word is the key

Written is the last form, which all of them read. ComfyUI calls a word by its file: `embedding:<file name>`.
"""

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ..adapters import Attachment, Token, attach
from ..adapters.attach import TOKEN_ROLE
from ..errors import Refused
from ..files import save_tensors
from ..network import Network

_NAMELESS = ("emb_params", "clip_l")
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
    for word, own in zip(words, rows[0].split(vectors), strict=True):
        plain = first = re.sub(r"\W+", "-", word).strip("-") or "word"
        number = 1
        while plain.lower() in taken:  # two words that differ in signs alone, or in the case of letters
            number += 1
            plain = f"{first}-{number}"
        taken.add(plain.lower())
        files[beside.with_name(f"{name}-{plain}.safetensors")] = {word: own}
    for path in files:
        if path.exists():
            raise Refused(f"{path}, where a new word would go, exists already; choose another name for all")
    return files


def write_words(files: Mapping[Path, Mapping[str, Tensor]]) -> list[Path]:
    """Writes what `word_files` found."""
    return [save_tensors(path, tensors, {"format": "pt"}) for path, tensors in files.items()]


def is_word(tensors: Mapping[str, Tensor]) -> bool:
    """Whether a file is textual inversion, by its one tensor of one or several vectors."""
    own = [name for name in tensors if name not in ("clip_g",)]
    return len(own) == 1 and tensors[own[0]].ndim in (1, 2) and (own[0] in _NAMELESS or "." not in own[0])


def attach_word(base: Network, source: Path, tensors: Mapping[str, Tensor], token: str | None) -> Attachment:
    """Textual inversion of another tool on its base, as a token.

    Args:
        base: the base it was trained on.
        source: the file, whose name is the word where the file holds none.
        tensors: all of it.
        token: what the word is to be called; None: as the file says, in the signs <>.

    Raises:
        Refused: it is of SDXL, of another width, or longer than a token of diffadapt.
    """
    if len(tensors) > 1:
        raise Refused(f"{source} is textual inversion for SDXL, which has two text encoders; no such base is known")
    (key,) = tensors
    vectors = torch.atleast_2d(tensors[key].float())
    (path,) = base.roles[TOKEN_ROLE]
    width = base.module(path).get_parameter("weight").shape[1]
    if vectors.shape[1] != width:
        raise Refused(
            f"{source} is textual inversion of width {vectors.shape[1]}, and the text encoder of {base.name!r} has "
            f"{width}; it was trained on another kind of base"
        )
    if not 1 <= len(vectors) <= _MOST:
        raise Refused(f"{source} has {len(vectors)} vectors; a token of diffadapt has 1 to {_MOST}")
    word = source.stem if key in _NAMELESS else key
    plain = re.sub(r"\W+", " ", word).strip()
    word = token or (word if word.startswith("<") else f"<{'-'.join(plain.split())}>")
    attachment = attach(base, Token(vectors=len(vectors)), tokens={word: plain or "a"})
    try:
        attachment.load_state_dict({f"{path}.vectors": vectors})
    except Refused:
        attachment.detach()
        raise
    return attachment
