"""Arguments that several commands share, and how their values are read."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import Refused
from ..files import at_home, is_there

if TYPE_CHECKING:
    from ..bases import Base


def add_base(parser: argparse.ArgumentParser) -> None:
    """--base and what goes with it."""
    parser.add_argument(
        "--base", default="embedded", metavar="NAME",
        help="embedded (default), embedded-dit, a hub id, a diffusers folder or a .safetensors file",
    )  # fmt: skip
    parser.add_argument(
        "--base-config", metavar="DIR",
        help="for a .safetensors base: a diffusers folder with its configuration and tokenizer",
    )  # fmt: skip
    parser.add_argument("--prediction-type", metavar="NAME", help="epsilon or v_prediction, for files that do not say")
    parser.add_argument("--device", metavar="NAME", help="cpu, cuda, cuda:1, mps; default: a GPU if there is one")
    parser.add_argument("--dtype", metavar="NAME", help="float32 (default), float16 or bfloat16; on a GPU")


def add_adapters(parser: argparse.ArgumentParser, *, required: bool = False) -> None:
    """--adapter, repeatable, and --strength."""
    parser.add_argument(
        "--adapter", action="append", default=[], required=required, metavar="FILE[:STRENGTH]",
        help="an adapter file or a run's folder; STRENGTH 0 is the base, 1 as trained; may be repeated",
    )  # fmt: skip
    parser.add_argument(
        "--strength", type=float, default=1.0, metavar="S", help="of the adapters given without one (default 1)"
    )


def add_bias(parser: argparse.ArgumentParser) -> None:
    """--bias, repeatable."""
    parser.add_argument(
        "--bias", action="append", default=[], metavar="WORD=B",
        help="of a perfusion concept's gate, such as '<biscuit>=0.5'; less shows more of it; may be repeated",
    )  # fmt: skip


def read_bias(texts: list[str]) -> dict[str, float]:
    """["<biscuit>=0.5"] -> {"<biscuit>": 0.5}.

    Raises:
        Refused: a text is not of this form.
    """
    result = {}
    for text in texts:
        word, _, value = text.rpartition("=")
        try:
            result[word] = float(value)
        except ValueError:
            word = ""
        if not word:
            raise Refused(f"--bias: expected WORD=NUMBER, such as '<biscuit>=0.5', got {text!r}")
    return result


def load(arguments: argparse.Namespace) -> "Base":
    """The base that --base and its companions name."""
    from ..bases import load_base

    return load_base(
        arguments.base, device=arguments.device, dtype=arguments.dtype, config=arguments.base_config,
        prediction_type=arguments.prediction_type,
    )  # fmt: skip


def adapters(arguments: argparse.Namespace, *, folders: bool = False) -> list[tuple[Path, float]]:
    """(adapter file, strength) of every --adapter.

    Args:
        arguments: with those of `add_adapters`.
        folders: leave a run's folder as it is, since it may stand for several files.

    Raises:
        Refused: there is no such file; says what was looked for.
    """
    return [split_adapter(text, arguments.strength, folders=folders) for text in arguments.adapter]


def split_adapter(text: str, strength: float = 1.0, *, folders: bool = False) -> tuple[Path, float]:
    """ "runs/biscuit:0.8" -> (runs/biscuit/adapter.safetensors, 0.8).

    Args:
        text: a file or a run's folder, with or without ":STRENGTH". A name that exists as it stands is taken whole.
        strength: when the text has none.
        folders: as in `adapters`.
    """
    path, colon, tail = text.rpartition(":")
    if is_there(text) or not colon:
        path = text
    else:
        try:
            strength = float(tail)
        except ValueError:
            path = text
    exists = is_there(path)
    found = at_home(path) if exists else Path(path)
    file = found / "adapter.safetensors" if exists and found.is_dir() else found
    if not exists or not file.is_file():
        from ..sampling.adapter_files import usable_checkpoints

        more = usable_checkpoints(found) if exists and found.is_dir() else ""
        raise Refused(f"no adapter at {file}; expected a .safetensors file or the folder of a finished run{more}")
    if not folders and found.is_dir() and (found / "hint.safetensors").is_file():
        raise Refused(
            f"{found} follows a control signal, so that only `sample` takes it; name one of its files instead"
        )
    return (found if folders else file), strength


def new_folder(text: str) -> Path:
    """A folder that does not exist yet or is empty.

    Raises:
        Refused: it holds something, which would be mixed with what comes.
    """
    folder = at_home(text)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise Refused(f"{folder} exists already; choose a new or empty folder, nothing is overwritten")
    return folder
