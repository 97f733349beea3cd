"""One value of a config: its type in words, its conversion from TOML or from the command line, its range."""

import math
import sys
import types
import typing
from collections.abc import Mapping
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

from .errors import Refused

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_WORDS: dict[type, str] = {int: "a whole number", float: "a number", bool: "true or false", str: "text", Path: "a path"}
_NONE = "none"  # how TOML and `key=value`, which have no null, say None


class Written(str):
    """A value as typed on the command line, not yet of a type: what `4` means depends on the option."""


def words(hint: Any) -> str:
    """A field's type for a person: "a whole number, or none"."""
    parts = union(hint)
    texts = [_words_of_one(part) for part in parts if part is not types.NoneType]
    return " or ".join(texts) + (", or none" if types.NoneType in parts else "")


def shown(value: Any) -> str:
    """A value and its type, for the end of an error message: "'many' (text)"."""
    if value is None:
        return "none"
    if isinstance(value, Written):
        return repr(str(value))
    kind = "a table" if isinstance(value, Mapping) else "a list" if isinstance(value, list | tuple) else None
    return f"{value!r} ({kind or _WORDS.get(type(value), type(value).__name__)})"


def union(hint: Any) -> tuple[Any, ...]:
    return typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)


def _words_of_one(hint: Any) -> str:
    if typing.get_origin(hint) is tuple:
        item = _words_of_one(typing.get_args(hint)[0])
        return f"a list of {item.removeprefix('a ').replace('number', 'numbers').replace('text', 'texts')}"
    return _WORDS.get(hint, getattr(hint, "__name__", str(hint)))


def convert(value: Any, hint: Any, name: str, meta: Mapping[str, Any]) -> Any:
    """The value in the type of `hint`; only what loses nothing is converted (4 -> 4.0, a list -> a tuple)."""
    parts = union(hint)
    if types.NoneType in parts and (value is None or (isinstance(value, str) and value.lower() == _NONE)):
        return None
    for part in parts:
        try:
            return _convert_to_one(value, part)
        except (TypeError, ValueError, OverflowError):
            continue
    choices = meta.get("choices")
    expected = " or ".join(map(str, choices)) if choices else words(hint)
    raise Refused(f"{name}: expected {expected}, got {shown(value)}")


def _convert_to_one(value: Any, hint: Any) -> Any:
    if hint is Any:
        return value
    if typing.get_origin(hint) is tuple:
        if isinstance(value, Written):
            parts = [Written(part.strip()) for part in value.split(",") if part.strip()]
            value = _parse(value) if value.startswith("[") else parts
        if not isinstance(value, list | tuple):
            raise TypeError
        item = typing.get_args(hint)[0]
        return tuple(_convert_to_one(each, item) for each in value)
    if isinstance(value, Written):
        if hint in (str, Path):
            return hint(_parse(value) if value[:1] in ("'", '"') else str(value))
        value = _parse(value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint is Path and isinstance(value, str):
        return Path(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise TypeError
    return value


def _parse(text: str) -> Any:
    """A value in TOML's spelling, or a number in Python's (".5")."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return float(text)


def check_range(value: Any, name: str, meta: Mapping[str, Any]) -> None:
    low, high, choices = meta.get("low"), meta.get("high"), meta.get("choices")
    if choices is not None and value not in choices:
        near = max(choices, key=lambda choice: SequenceMatcher(None, str(value), str(choice)).ratio())
        raise Refused(f"{name}: expected {' or '.join(map(str, choices))}, got {shown(value)}; did you mean {near}?")
    if isinstance(value, float) and not math.isfinite(value):
        raise Refused(f"{name}: expected a finite number, got {value}")
    if (low is not None and value < low) or (high is not None and value > high):
        limits = [
            f"at {word} {limit if isinstance(limit, int) else f'{limit:g}'}"
            for word, limit in (("least", low), ("most", high))
            if limit is not None
        ]
        raise Refused(f"{name}: expected {' and '.join(limits)}, got {value!r}")
