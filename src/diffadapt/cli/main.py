"""`diffadapt COMMAND ...`: finds the command, runs it, and turns the way it ends into an exit code and a sentence.

0  done
1  it went wrong (disk full, a loss that is not a number, a fault of ours: with traceback)
2  asked for the impossible (says what is possible), or a usage error
130  interrupted; 143 and 129 when a SIGTERM or SIGHUP did it (a cluster, docker, a closed terminal)
"""

import argparse
import contextlib
import errno
import io
import os
import shlex
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType
from typing import NoReturn

from ..config import unknown
from ..errors import Failed, Refused, printable
from ..threads import bound_spinning
from . import (
    check,
    compare,
    covariance,
    demo,
    evaluate,
    evidence,
    export_adapter,
    import_adapter,
    inspect,
    list,
    masks,
    merge,
    plan,
    sample,
    train,
)

COMMANDS: dict[str, ModuleType] = {
    "demo": demo,
    "check": check,
    "plan": plan,
    "train": train,
    "sample": sample,
    "evaluate": evaluate,
    "compare": compare,
    "merge": merge,
    "masks": masks,
    "covariance": covariance,
    "export": export_adapter,
    "import": import_adapter,
    "inspect": inspect,
    "evidence": evidence,
    "list": list,
}

RESUMED = ("train", "demo", "evidence")  # the same command goes on with what was interrupted

EXAMPLES = """\
examples:
  diffadapt demo
  diffadapt train concept.folder=photos/biscuit concept.noun=cat out=runs/biscuit
  diffadapt sample "a <biscuit> cat on a red background" --adapter runs/biscuit
"""
_OUR_FAULT = "this is a fault of diffadapt; please report it with the lines above"
# Faults of the disk, not of the program: one sentence is all that helps.
_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM}

_NO_PATH = {errno.ENAMETOOLONG, errno.ELOOP}  # a text that was taken for a path


class Stopped(KeyboardInterrupt):
    """A signal that ends the process was received; handled as an interrupt is."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class Parser(argparse.ArgumentParser):
    """argparse, but a usage error is one sentence and says which help to read."""

    def error(self, message: str) -> NoReturn:
        raise SystemExit(_end(f"{self.prog}: {printable(message)}; see {self.prog} --help", 2, debug=False))


def parser() -> Parser:
    """The whole command line; every help text ends in examples."""
    whole = Parser(
        prog="diffadapt",
        description="Adapts diffusion models to a few pictures, and measures what was learned and what was forgotten.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    whole.add_argument("--version", action="version", version=f"diffadapt {_version()}")
    commands = whole.add_subparsers(dest="command", metavar="COMMAND", parser_class=Parser)
    for name, command in COMMANDS.items():
        one = commands.add_parser(
            name,
            help=command.SUMMARY,
            description=command.__doc__,
            epilog=f"examples:\n{command.EXAMPLES}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.add_arguments(one)
        one.add_argument("--debug", action="store_true", help="show the traceback of every error")
    return whole


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        argv: what follows the program's name; None means the process's own.

    Returns:
        the exit code
    """
    bound_spinning()  # before torch is imported
    given = [*(sys.argv[1:] if argv is None else argv)]
    _speak_plainly()
    _refuse_unknown_command(given)
    whole = parser()
    arguments = read_arguments(whole, given)
    if arguments.command is None:
        whole.print_help()
        return 0
    try:
        with stopped_by_signals():
            code = COMMANDS[arguments.command].run(arguments)
            sys.stdout.flush()
            return code
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt as error:
        advice = f"; resume with: diffadapt {shlex.join(given)}" if arguments.command in RESUMED else ""
        number = error.number if isinstance(error, Stopped) else signal.SIGINT
        ending = "interrupted" if number == signal.SIGINT else f"stopped by {signal.Signals(number).name}"
        return _end(f"{ending}{advice}", 128 + number, debug=arguments.debug)
    except Refused as error:
        return _end(f"diffadapt {arguments.command}: {error}", 2, debug=arguments.debug)
    except Failed as error:
        return _end(f"diffadapt {arguments.command}: {error}", 1, debug=arguments.debug)
    except OSError as error:
        if error.errno in _NO_PATH:
            sentence = (
                f"{printable(str(error.filename))[:200]!r} can name no file ({error.strerror}); check what is given"
            )
            return _end(f"diffadapt {arguments.command}: {sentence}", 2, debug=arguments.debug)
        if error.errno not in _DISK:
            return _end(_OUR_FAULT, 1, debug=True)
        file = f" {error.filename}" if error.filename else ""
        return _end(f"diffadapt {arguments.command}: cannot write{file}: {error.strerror}", 1, debug=arguments.debug)
    except Exception as error:
        if place := _out_of_memory(error):
            sentence = f"{place} is out of memory; take a smaller batch or resolution, or gradient checkpointing"
            return _end(f"diffadapt {arguments.command}: {sentence}", 1, debug=arguments.debug)
        return _end(_OUR_FAULT, 1, debug=True)


def _end(sentence: str, code: int, *, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    print(printable(" ".join(sentence.split())), file=sys.stderr)
    return code


def read_arguments(whole: argparse.ArgumentParser, given: Sequence[str]) -> argparse.Namespace:
    """The arguments; what stands behind a flag counts as well as what stands before it (`train A --dry-run seed=1`)."""
    arguments, behind = whole.parse_known_args(given)
    if not behind:
        return arguments
    many = getattr(COMMANDS.get(arguments.command or ""), "MANY", None)
    if many is None or any(text.startswith("-") for text in behind):
        return whole.parse_args(given)  # which says what is wrong
    setattr(arguments, many, [*getattr(arguments, many), *behind])
    return arguments


@contextlib.contextmanager
def stopped_by_signals() -> Iterator[None]:
    """Within the block SIGTERM and SIGHUP end the work as an interrupt does; only the first thread can say so."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, _: object) -> NoReturn:
        raise Stopped(number)

    numbers = [signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]
    handled = [number for number in numbers if signal.getsignal(number) != signal.SIG_IGN]  # nohup means it
    before = {number: signal.signal(number, stop) for number in handled}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _speak_plainly() -> None:
    """Paths and words that the terminal's encoding lacks are spelled out and no error."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _out_of_memory(error: Exception) -> str | None:
    """Whose memory was too small, or None when it is another error."""
    if type(error).__name__ == "OutOfMemoryError":  # torch's, which is not imported for its name alone
        return "the GPU"
    small = ("can't allocate memory", "not enough memory", "Storage size calculation overflowed")
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and any(s in str(error) for s in small)):
        return "this machine"
    return None


def _refuse_unknown_command(given: Sequence[str]) -> None:
    if given and not given[0].startswith("-") and given[0] not in COMMANDS:
        nearest = unknown(given[0][:200], COMMANDS).rpartition("did you mean ")[2]
        sentence = f"diffadapt: no command {given[0][:200]!r}; did you mean {nearest} see diffadapt --help"
        raise SystemExit(_end(sentence, 2, debug=False))


def _version() -> str:
    try:
        return version("diffadapt")
    except PackageNotFoundError:
        return "(not installed)"
