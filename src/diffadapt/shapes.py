"""The shapes of all files that diffadapt reads, in one place, and the check of a value against its shape.

A shape is written in Python's own terms:

    str, bool, dict, ...       a value of that type; float also takes whole numbers, and none takes nan or infinity
    (str, None)                one of several
    [shape]                    a list of such values
    {"key": shape}             a table with at least this key; Maybe(shape) is a key that may be missing
    {str: shape}               a table with any keys, all of whose values are such

Twenty lines hold a value against that. A validation library (pydantic, msgspec) would do the same with a compiled
dependency and messages for programmers; what people need to read is which file, which entry, what was expected.
"""

import math
from dataclasses import dataclass
from typing import Any

from .errors import Refused

DEEPEST = 40  # tables in tables; more is no file of ours


@dataclass(frozen=True)
class Maybe:
    """A key of a table that may be missing."""

    shape: Any


NUMBER = (int, float)
TEXTS = {str: str}

# --- our own files ----------------------------------------------------------------------------------------------------
ADAPTER_HEADER = {
    "format_version": str, "method": str, "config": str, "roles": str, "tokens": str, "base": str,
    "base_fingerprint": str,
}  # fmt: skip
ADAPTER_CLASSES = [str]
ADAPTER_ROLES = [str]
ADAPTER_TOKENS = TEXTS
BANK = {
    "settings": {
        "base_fingerprint": str, "resolution": int, "guidance": NUMBER, "steps": int, "seed": int,
    },
    "pictures": [{"file": str, "prompt": str, "seed": int, "sha256": str}],
}  # fmt: skip
BASE_DEFAULTS = {
    "format_version": Maybe(int), "default_guidance": Maybe(NUMBER), "default_steps": Maybe(int), "encoder": Maybe(str),
    "world": Maybe((None, {str: [str]})),
}  # fmt: skip
FOLLOWED = {str: NUMBER}
CHECKPOINT = {"step": int, "of": Maybe(int), "sha256": {"state.safetensors": str, str: str}}
LOG_LINE = {"step": int, "loss": Maybe((int, float, None)), "seconds": Maybe(NUMBER)}
METRICS = {
    "values": Maybe({str: {"value": (int, float, None)}}), "features": Maybe((str, None)),
    "protocol": Maybe((str, dict)), "weight_drift": Maybe([dict]), "not_measured": Maybe([dict]),
}  # fmt: skip
SELECTION = {"steps": [dict]}

# --- those of others --------------------------------------------------------------------------------------------------
MODEL_INDEX = {"_class_name": str}
_WHOLE, _REAL, _FLAG = Maybe((int, None)), Maybe((int, float, None)), Maybe((bool, None))
PEFT_CONFIG = {
    "peft_type": str, "r": _WHOLE, "lora_alpha": _REAL, "alpha_pattern": Maybe((None, {str: NUMBER})),
    "rank_pattern": Maybe((None, {str: int})), "use_rslora": _FLAG, "use_dora": _FLAG, "lora_dropout": _REAL,
    "oft_block_size": _WHOLE, "block_share": _FLAG, "module_dropout": _REAL, "coft": _FLAG, "eps": _REAL,
    "use_cayley_neumann": _FLAG, "num_cayley_neumann_terms": _WHOLE,
}  # fmt: skip
METADATA_ROW = {"file_name": str}


def hold(value: Any, shape: Any, place: str) -> Any:
    """The value, when it has the shape.

    Args:
        value: what a JSON or TOML file held, or a part of it.
        shape: see the top of this file.
        place: the file, and the entry in it, for the message.

    Raises:
        Refused: it has another shape; says which entry, what was expected and what is there.
    """
    _hold(value, shape, place, 0)
    return value


def _hold(value: Any, shape: Any, place: str, depth: int) -> None:
    if depth > DEEPEST:
        raise Refused(f"{place}: tables lie more than {DEEPEST} deep in each other")
    if isinstance(shape, tuple):
        if not any(_fits(value, each, place, depth) for each in shape):
            raise Refused(f"{place}: expected {words(shape)}, got {shown(value)}")
    elif isinstance(shape, list):
        if not isinstance(value, list):
            raise Refused(f"{place}: expected {words(shape)}, got {shown(value)}")
        for i, each in enumerate(value):
            _hold(each, shape[0], f"{place}[{i}]", depth + 1)
    elif isinstance(shape, dict):
        if not isinstance(value, dict):
            raise Refused(f"{place}: expected {words(shape)}, got {shown(value)}")
        any_key = shape.get(str)
        for key in value if any_key is not None else ():
            _hold(value[key], any_key, f"{place}: {key}", depth + 1)
        for key, inner in shape.items():
            if key is str:
                continue
            if key not in value:
                if not isinstance(inner, Maybe):
                    raise Refused(f"{place}: {key} is missing, expected {words(inner)}")
                continue
            _hold(value[key], inner.shape if isinstance(inner, Maybe) else inner, f"{place}: {key}", depth + 1)
    elif not _is(value, shape):
        raise Refused(f"{place}: expected {words(shape)}, got {shown(value)}")


def _fits(value: Any, shape: Any, place: str, depth: int) -> bool:
    try:
        _hold(value, shape, place, depth)
    except Refused:
        return False
    return True


def _is(value: Any, shape: Any) -> bool:
    if shape is None:
        return value is None
    if shape in (int, float) and isinstance(value, bool):
        return False
    if shape is float:
        return isinstance(value, int | float) and math.isfinite(value)
    return isinstance(value, shape)


def words(shape: Any) -> str:
    """A shape for a person."""
    if isinstance(shape, tuple):
        parts = list(dict.fromkeys(words(each) for each in shape if each is not int or float not in shape))
        return " or ".join(parts)
    if isinstance(shape, list):
        return "a list"
    if isinstance(shape, dict):
        return "a table"
    names = {None: "nothing", str: "text", int: "a whole number", float: "a number", bool: "true or false"}
    return names.get(shape, "a table" if shape is dict else str(shape))


def shown(value: Any) -> str:
    """A value and its kind, short enough for a sentence."""
    kinds = {
        dict: "a table", list: "a list", str: "text", bool: "true or false", int: "a whole number", float: "a number",
    }  # fmt: skip
    if value is None:
        return "nothing (null)"
    text = repr(value)
    return f"{text[:60]}{'...' if len(text) > 60 else ''} ({kinds.get(type(value), type(value).__name__)})"
