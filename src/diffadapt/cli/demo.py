"""Draws a character of our own, teaches it to the embedded base, and writes a report: the whole way in one command.

Needs no pictures, no GPU and no network.
"""

import argparse
from pathlib import Path
from typing import Any

SUMMARY = "teach the embedded base a character, from drawing to report"
EXAMPLES = """\
  diffadapt demo
  diffadapt demo --out /tmp/demo
  diffadapt demo method.rank=8 train.steps=200
"""
# What the demo trains with, beside the defaults: the character is unlike anything the base knows, so that attention
# alone learns its colours and not its shape. Ends within two minutes on two CPU cores.
SETTINGS: dict[str, dict[str, Any]] = {
    "method": {"name": "lora", "rank": 8},
    "train": {
        "steps": 400,
        "roles": ["self_attention.*", "cross_attention.*", "feed_forward.*", "residual.conv"],
        "sample_every": 200,
        "evaluation_prompts": 8,
        "evaluation_pictures": 2,
    },
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("settings", nargs="*", metavar="key=value", help="options of the training, as for `train`")
    parser.add_argument("--out", metavar="DIR", help="where it goes (default: runs/demo, then runs/demo-2, ...)")


def run(arguments: argparse.Namespace) -> int:
    folder = Path(arguments.out).expanduser() if arguments.out else unfinished(Path("runs"))
    from ..config import override
    from ..data.demo_subject import NOUN, draw_demo_subject
    from ..recipes.job import read_job

    photos = draw_demo_subject(folder)
    table = {"out": str(folder / "run"), "concept": {"folder": str(photos), "noun": NOUN}, **SETTINGS}
    print(read_job(override(table, arguments.settings)).run().report)
    return 0


def unfinished(runs: Path) -> Path:
    """The first of runs/demo, runs/demo-2, ... whose report is not there yet: a demo starts anew or goes on."""
    number, folder = 1, runs / "demo"
    while (folder / "run" / "report.html").exists():
        number += 1
        folder = runs / f"demo-{number}"
    return folder
