"""Trains an adapter: a TOML file, key=value options, or both; the options win.

Interrupt at any time: the same command resumes where the last checkpoint was written. `diffadapt list options METHOD`
prints every option with its meaning, range and default.
"""

import argparse
from pathlib import Path
from typing import Any

from ..config import override, read_toml
from ..errors import Refused
from ..files import at_home, is_there

MANY = "settings"  # the argument that takes whatever stands behind a flag, too
SUMMARY = "train an adapter on a few pictures, or on pictures with control signals"
EXAMPLES = """\
  diffadapt train concept.folder=photos/biscuit concept.noun=cat out=runs/biscuit
  diffadapt train configs/embedded-subject-lora.toml concept.folder=photos/biscuit concept.noun=cat
  diffadapt train configs/embedded-subject-lora.toml method.rank=8 train.steps=200 seed=1 out=runs/rank-8
  diffadapt train recipe=control pairs.folder=photos pairs.signals=canny method.name=oft method.blocks=4 out=runs/edges
  diffadapt train runs/biscuit                   # go on with the run in this folder
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "settings", nargs="*", metavar="CONFIG.toml | key=value",
        help="a config file or the folder of a run, then options such as train.steps=200",
    )  # fmt: skip
    parser.add_argument("--device", metavar="NAME", help="cpu, cuda, cuda:1, mps; default: a GPU if there is one")
    start = parser.add_mutually_exclusive_group()
    start.add_argument("--resume", action="store_true", help="go on with a run; refuse to start one")
    start.add_argument("--fresh", action="store_true", help="start a run in a new folder; refuse to go on with one")
    parser.add_argument("--dry-run", action="store_true", help="print the resolved config and stop")


def run(arguments: argparse.Namespace) -> int:
    table = read_settings(arguments.settings)
    from ..config import dump_toml
    from ..recipes.job import read_job

    job = read_job(table)
    check_folder(job.out, resume=arguments.resume, fresh=arguments.fresh)
    if arguments.dry_run:
        print(dump_toml(job.table()), end="")
        return 0
    result = job.run(arguments.device)
    print(result.adapter)
    print(result.report)
    return 0


def read_settings(settings: list[str]) -> dict[str, Any]:
    """The table of a config file, if one is given, with the key=value options applied.

    Raises:
        Refused: more than one file, no such file, not TOML, nothing at all.
    """
    files = [text for text in settings if "=" not in text or is_there(text)]
    assignments = [text for text in settings if text not in files]
    if len(files) > 1:
        raise Refused(f"expected one config file, got {' and '.join(files)}; options are written key=value")
    if not settings:
        raise Refused("nothing to train; give a config file, or concept.folder=FOLDER concept.noun=NOUN")
    table: dict[str, Any] = {}
    if files:
        if not is_there(files[0]):
            raise Refused(f"no config file or run at {files[0]!r}; give one, or options written key=value")
        path = at_home(files[0])
        table = read_toml(path / "run.toml" if path.is_dir() else path)
        if (path / "settings.toml").is_file():  # the run that is here, wherever it was begun
            table["out"] = str(path)
    return override(table, assignments)


def check_folder(out: Path, *, resume: bool, fresh: bool) -> None:
    """Holds --resume and --fresh against what is in the run's folder; nothing is ever deleted."""
    started = (out / "run.toml").is_file()
    if resume and not started:
        raise Refused(f"--resume: there is no run in {out}; leave --resume out to start one")
    if fresh and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise Refused(f"--fresh: {out} is not empty; choose a new folder with out=..., nothing is deleted")
