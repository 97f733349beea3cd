"""`diffadapt COMMAND ...`: finds the command, runs it, and turns the way it ends into an exit code and a sentence.

0  done
1  it went wrong (disk full, a loss that is not a number, a fault of ours: with traceback)
2  asked for the impossible (says what is possible), or a usage error
130  interrupted
"""

import argparse
import errno
import os
import shlex
import sys
import traceback
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType
from typing import NoReturn

from ..config import unknown
from ..errors import Failed, Refused
from ..threads import bound_spinning
from . import (
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
    sample,
    train,
)

COMMANDS: dict[str, ModuleType] = {
    "demo": demo,
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


class Parser(argparse.ArgumentParser):
    """argparse, but a usage error is one sentence and says which help to read."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


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
    _refuse_unknown_command(given)
    whole = parser()
    arguments = whole.parse_args(given)
    if arguments.command is None:
        whole.print_help()
        return 0
    try:
        code = COMMANDS[arguments.command].run(arguments)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        again = f"; resume with: diffadapt {shlex.join(given)}" if arguments.command in RESUMED else ""
        return _end(f"interrupted{again}", 130, debug=arguments.debug)
    except Refused as error:
        return _end(f"diffadapt {arguments.command}: {error}", 2, debug=arguments.debug)
    except Failed as error:
        return _end(f"diffadapt {arguments.command}: {error}", 1, debug=arguments.debug)
    except OSError as error:
        if error.errno not in _DISK:
            return _end(_OUR_FAULT, 1, debug=True)
        where = f" {error.filename}" if error.filename else ""
        return _end(f"diffadapt {arguments.command}: cannot write{where}: {error.strerror}", 1, debug=arguments.debug)
    except Exception as error:
        if type(error).__name__ == "OutOfMemoryError":  # torch's, which is not imported for its name alone
            sentence = "the GPU is out of memory; take a smaller batch or resolution, or gradient checkpointing"
            return _end(f"diffadapt {arguments.command}: {sentence}", 1, debug=arguments.debug)
        return _end(_OUR_FAULT, 1, debug=True)


def _end(sentence: str, code: int, *, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    print(" ".join(sentence.split()), file=sys.stderr)
    return code


def _refuse_unknown_command(given: Sequence[str]) -> None:
    if given and not given[0].startswith("-") and given[0] not in COMMANDS:
        nearest = unknown(given[0], COMMANDS).rpartition("did you mean ")[2]
        print(f"diffadapt: no command {given[0]!r}; did you mean {nearest} see diffadapt --help", file=sys.stderr)
        raise SystemExit(2)


def _version() -> str:
    try:
        return version("diffadapt")
    except PackageNotFoundError:
        return "(not installed)"
