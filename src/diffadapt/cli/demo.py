"""Draws a character of our own, teaches it to the embedded base with OFT and with LoRA, and sets both side by side.

The whole way in one command, without pictures, GPU or network. What is set on the command line is for both trainings,
except for what belongs to a method: `method.*` and `train.learning_rate` are for OFT's, and replace OFT if need be.
Interrupt at any time; the same command goes on.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import Refused
from ..files import at_home
from ..run_layout import RunLayout

MANY = "settings"
SUMMARY = "teach the embedded base a character with OFT and LoRA, from drawing to comparison"
EXAMPLES = """\
  diffadapt demo
  diffadapt demo --out /tmp/demo
  diffadapt demo train.steps=400 method.constraint=angle method.radius=40
"""
# The demo trains by the preset "quick", with samples on the way. On an earlier base, after 110 steps with seed 0, OFT
# had a fidelity of 0.45 at 2e-3 and 0.47 at 4e-3, the preset's rate (perfect renderings 0.52), followed prompts in
# 0.96 and 0.93, and by eye the second was the better likeness.
PRESET, SAMPLE_EVERY = "quick", 60
RUNS = {"run": "oft", "lora": "lora"}  # folder -> method
# options of the first training alone; all others are of both
FIRST_ALONE = ("out=", "method.", "train.learning_rate=")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("settings", nargs="*", metavar="key=value", help="options of the training, as for `train`")
    parser.add_argument("--out", metavar="DIR", help="where it goes (default: runs/demo, then runs/demo-2, ...)")


def run(arguments: argparse.Namespace) -> int:
    folder = at_home(arguments.out) if arguments.out else unfinished(Path("runs"))
    from ..data.demo_subject import draw_demo_subject
    from ..recipes.job import read_job
    from ..report import compare

    page = folder / "comparison.html"
    if page.exists() and not all(RunLayout(folder / name).adapter.is_file() for name in RUNS):
        raise Refused(f"{page} exists already and is no demo's; choose another --out, nothing is overwritten")
    photos = draw_demo_subject(folder)
    jobs = [read_job(table) for table in tables(folder, photos, arguments.settings)]  # a mistake is refused before work
    done = [job.run() for job in jobs]
    compare([each.folder for each in done], page)
    print(f"pictures: {photos}")
    for job, each in zip(jobs, done, strict=True):
        print(f"report of {type(job.method).__name__}: {each.report}")
    print(f"side by side: {page}")
    return 0


def tables(folder: Path, photos: Path, settings: Sequence[str]) -> list[dict[str, Any]]:
    """The demo's trainings, as `read_job` takes them."""
    from ..config import override
    from ..data.demo_subject import NOUN
    from ..recipes.own_settings import own_options, own_settings

    found = []
    for name, method in RUNS.items():
        table = {
            "out": str(folder / name),
            "concept": {"folder": str(photos), "noun": NOUN},
            "method": {"name": method, **own_options("embedded", method, PRESET)},
            "train": {**own_settings("embedded", method, PRESET), "sample_every": SAMPLE_EVERY},
        }
        overrides = [each for each in settings if name == "run" or not each.startswith(FIRST_ALONE)]
        found.append(override(table, overrides))
    return found


def unfinished(runs: Path) -> Path:
    """The first of runs/demo, runs/demo-2, ... without a comparison yet: a demo starts anew or goes on."""
    number, folder = 1, runs / "demo"
    while (folder / "comparison.html").exists():
        number += 1
        folder = runs / f"demo-{number}"
    return folder
