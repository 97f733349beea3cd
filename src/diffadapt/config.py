"""Settings as frozen dataclasses: read strictly from TOML and `key=value`, checked, described and written back.

A config declares each field once, with its meaning, unit and range; help texts, documentation and error messages are
made from that:

    @dataclass(frozen=True, kw_only=True)
    class LoRA:
        rank: int = option(4, "rank of the update, 1 and more", low=1)

Field types: int, float, bool, str, Path, `tuple[X, ...]`, any of these `| None`, and config dataclasses (a table). The
standard library does it: a validation library would still leave the messages, the overrides and the listing to us.
"""

import dataclasses
import inspect
import json
import sys
import textwrap
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from .config_values import Written, check_range, convert, shown, union, words
from .errors import Refused
from .files import at_home

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

T = TypeVar("T")
REQUIRED: Any = MISSING  # the default of an option that has none


class Option(NamedTuple):
    """One line of the list of options."""

    name: str  # dotted: "train.learning_rate"
    type: str  # in words: "a whole number, or none"
    default: Any  # REQUIRED when there is none
    doc: str
    low: float | None = None
    high: float | None = None
    choices: tuple[Any, ...] | None = None
    path: bool = False  # whether it names a file or folder

    @property
    def default_text(self) -> str:
        """The default as it is written in TOML, "none" or "(required)"."""
        if self.default is REQUIRED:
            return "(required)"
        return "none" if self.default is None else json.dumps(self.default, default=str)

    @property
    def limits(self) -> str:
        """The allowed values: "a whole number, >= 1" or "constant | cosine"."""
        if self.choices:
            return " | ".join(map(str, self.choices))
        limits = [f"{sign} {limit:g}" for sign, limit in ((">=", self.low), ("<=", self.high)) if limit is not None]
        return ", ".join([self.type, *limits])


def option(
    default: Any,
    doc: str,
    *,
    low: float | None = None,
    high: float | None = None,
    choices: Iterable[Any] | None = None,
    path: bool = False,
) -> Any:
    """Declares a field of a config dataclass.

    Args:
        default: its value when nobody says otherwise; `REQUIRED` when somebody must.
        doc: what it is, with unit and range, as a phrase that fits in a table.
        low, high: the smallest and largest value allowed, both included; of a tuple, for each element.
        choices: the only values allowed; of a tuple, for each element.
        path: whether it names a file or folder: "~" at its beginning is the user's home, once and for all.
    """
    allowed = None if choices is None else tuple(choices)
    metadata = {"doc": doc, "low": low, "high": high, "choices": allowed, "path": path}
    if default is REQUIRED:
        return dataclasses.field(metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


class Settings:
    """A config dataclass that is checked where it is made, and whose wrong names get the nearest right one.

        LoRA(rnk=8)      Refused: unknown option rnk; did you mean rank?
        LoRA(rank=0)     Refused: rank: expected at least 1, got 0
        help(LoRA)       says what each option is, made from the same declarations

    To be the first base of a frozen, keyword-only dataclass.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        declared = {field.name: field for base in cls.__mro__[:0:-1] if is_dataclass(base) for field in fields(base)}
        declared |= {name: value for name, value in vars(cls).items() if isinstance(value, dataclasses.Field)}
        if cls.__doc__ and declared:
            cls.__doc__ = f"{inspect.cleandoc(cls.__doc__)}\n\nArgs:\n{_described(cls, declared)}"

    def __new__(cls, *_: Any, **values: Any) -> "Settings":
        names = [field.name for field in fields(cls)]  # pyright: ignore[reportArgumentType]
        for name in values:
            if name not in names:
                raise Refused(unknown(name, names))
        return super().__new__(cls)

    def __post_init__(self) -> None:
        check(self)


def check(config: Any, table: str = "") -> None:
    """Holds every value of a config, and of the configs in it, against its type, range and choices.

    Args:
        config: a dataclass instance.
        table: the name of its table, which comes before the field's in messages ("train").

    Raises:
        Refused: the first value that does not fit; says what was expected and what it got.
    """
    hints = typing.get_type_hints(type(config))
    for field in fields(config):
        name, value = _dotted(table, field.name), getattr(config, field.name)
        if is_dataclass(value):
            check(value, name)
            continue
        convert(value, hints[field.name], name, field.metadata)
        if value is None:
            continue
        for item in value if isinstance(value, tuple | list) else [value]:
            check_range(item, name, field.metadata)


def build(config_class: type[T], table: Mapping[str, Any], *, name: str = "", known: Sequence[str] = ()) -> T:
    """Makes a config of a TOML table; nothing is ignored and nothing is guessed.

    Args:
        config_class: a config dataclass.
        table: option name -> value; inner tables are mappings; a `Written` value takes the option's type.
        name: the table's own name, for messages.
        known: dotted names of options elsewhere, so that a key in the wrong table is recognised.

    Raises:
        Refused: an unknown key (names the nearest known one), a missing one, a wrong type or a value out of range.
    """
    by_name = {field.name: field for field in fields(config_class) if field.init}  # pyright: ignore[reportArgumentType]
    hints = typing.get_type_hints(config_class)
    names = [each.name for each in options(config_class, name)]
    values = {}
    for key, value in table.items():
        dotted = _dotted(name, key)
        if key not in by_name:
            raise Refused(unknown(dotted, [*names, *known]))
        inner = _table_class(hints[key])
        if inner is None:
            values[key] = convert(value, hints[key], dotted, by_name[key].metadata)
            if by_name[key].metadata.get("path"):
                values[key] = _at_home(values[key])
        elif isinstance(value, Mapping):
            values[key] = build(inner, value, name=dotted, known=[*names, *known])
        else:
            example = options(inner, dotted)[0].name
            raise Refused(f"{dotted} is a table: expected options such as {example}, got {shown(value)}")
    for key, field in by_name.items():
        if key not in values and field.default is MISSING and field.default_factory is MISSING:
            doc = field.metadata.get("doc", "")
            raise Refused(f"{_dotted(name, key)} is missing{f' ({doc})' if doc else ''}; add {_dotted(name, key)}=...")
    for key, value in values.items():  # here, since only here the names of the tables are known
        for item in value if isinstance(value, tuple | list) else [value]:
            if item is not None and not is_dataclass(item):
                check_range(item, _dotted(name, key), by_name[key].metadata)
    config = config_class(**values)
    check(config, name)
    return config


def _at_home(value: Any) -> Any:
    """A path as it was given, but for the user's home in place of "~"; of a tuple, each."""
    if isinstance(value, tuple):
        return tuple(_at_home(each) for each in value)
    return str(at_home(value)) if isinstance(value, str) and value.startswith("~") else value


def with_overrides(config: T, overrides: Mapping[str, Any]) -> T:
    """A copy of a config with some fields replaced, checked.

    Raises:
        Refused: an unknown name (names the nearest known one), a wrong type or a value out of range.
    """
    names = [field.name for field in fields(config)]  # pyright: ignore[reportArgumentType]
    for name in overrides:
        if name not in names:
            raise Refused(unknown(name, names))
    changed = dataclasses.replace(config, **overrides)  # pyright: ignore[reportArgumentType]
    check(changed)
    return changed


def options(config_class: type, name: str = "") -> list[Option]:
    """Every option of a config and of the tables in it, in the order of declaration."""
    hints = typing.get_type_hints(config_class)
    found: list[Option] = []
    for field in fields(config_class):
        dotted, inner = _dotted(name, field.name), _table_class(hints[field.name])
        found += options(inner, dotted) if inner is not None else [_option_of(field, hints[field.name], dotted)]
    return found


def _option_of(field: "dataclasses.Field[Any]", hint: Any, name: str) -> Option:
    default, meta = field.default, field.metadata
    if default is MISSING and field.default_factory is not MISSING:
        default = field.default_factory()
    return Option(
        name, words(hint), default, meta.get("doc", ""), meta.get("low"), meta.get("high"), meta.get("choices"),
        meta.get("path", False),
    )  # fmt: skip


def _described(config_class: type, declared: Mapping[str, "dataclasses.Field[Any]"]) -> str:
    """One paragraph of a docstring for each field."""
    hints, lines = typing.get_type_hints(config_class), []
    for name, field in declared.items():
        if (inner := _table_class(hints[name])) is not None:
            entry = f"{name} ({inner.__name__}): {field.metadata.get('doc') or 'a table of its own'}"
        else:
            each = _option_of(field, hints[name], name)
            given = each.default_text.strip("()") if each.default is REQUIRED else f"default {each.default_text}"
            entry = f"{name} ({given}): {each.doc} [{each.limits}]"
        lines.append(textwrap.fill(entry, 116, initial_indent="    ", subsequent_indent="        "))
    return "\n".join(lines)


def read_toml(path: str | Path) -> dict[str, Any]:
    """Reads a TOML file.

    Raises:
        Refused: there is none, it cannot be read, or it is not TOML (says where).
    """
    path = Path(path)
    try:
        return tomllib.loads(path.read_bytes().decode("utf-8-sig"))
    except OSError as error:
        raise Refused(f"cannot read the config {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise Refused(f"{path} is not UTF-8 text, which TOML files are; save it as UTF-8") from error
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise Refused(f"{path} is not TOML: {error}") from error


def override(table: Mapping[str, Any], assignments: Iterable[str]) -> dict[str, Any]:
    """A copy of `table` with `a.b=c` assignments applied in order; the values stay `Written` until `build`.

    Raises:
        Refused: an assignment without "=", without a key, or through something that is not a table.
    """
    result = {key: override(value, ()) if isinstance(value, Mapping) else value for key, value in table.items()}
    for assignment in assignments:
        key, equals, value = assignment.partition("=")
        parts = [part.strip() for part in key.split(".")]
        if not equals or not all(parts):
            raise Refused(f"expected an option as key=value, such as train.steps=200, got {assignment!r}")
        inner = result
        for i, part in enumerate(parts[:-1]):
            inner = inner.setdefault(part, {})
            if not isinstance(inner, dict):
                raise Refused(f"{'.'.join(parts[: i + 1])} is a value and not a table, so {key.strip()} cannot be set")
        inner[parts[-1]] = Written(value.strip())
    return result


def dump_toml(config: Any) -> str:
    """A config, or a mapping of names to values and configs, as TOML text that `build` reads back to the same."""
    import tomli_w

    return tomli_w.dumps(_plain_table(config))


def unknown(name: str, known: Iterable[str]) -> str:
    """The sentence about an option that does not exist: names the nearest one that does."""

    def likeness(candidate: str) -> float:
        pairs = ((name, candidate), (name.rpartition(".")[2], candidate.rpartition(".")[2]))
        return sum(SequenceMatcher(None, a.lower(), b.lower()).ratio() for a, b in pairs)

    candidates = list(known)
    if not candidates:
        return f"unknown option {name}; there are none here"
    return f"unknown option {name}; did you mean {max(candidates, key=likeness)}?"


def _dotted(table: str, key: str) -> str:
    return f"{table}.{key}" if table else key


def _table_class(hint: Any) -> type | None:
    return next((part for part in union(hint) if isinstance(part, type) and is_dataclass(part)), None)


def _plain_table(config: Any) -> dict[str, Any]:
    if isinstance(config, Mapping):
        return {str(key): _plain(value) for key, value in config.items() if value is not None}
    table = {}
    for field in fields(config):
        value = getattr(config, field.name)
        if value is not None:
            table[field.name] = _plain(value)
        elif field.default is not None:
            table[field.name] = "none"  # None is not the default, so leaving it out would change it
    return table


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping) or is_dataclass(value):
        return _plain_table(value)
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value
