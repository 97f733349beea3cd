"""Sets finished runs of one subject side by side on one page: pictures, figures, costs, and how the neurons changed.

They must have been shown the same pictures on the same base, and sampled with the same prompts and seeds.
"""

import argparse

from ..errors import Refused
from ..files import at_home

MANY = "runs"
SUMMARY = "set finished runs of one subject side by side"
EXAMPLES = """\
  diffadapt compare runs/demo/run runs/demo/lora --out side-by-side.html
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folders of finished runs, two or more")
    parser.add_argument("--out", default="comparison.html", metavar="FILE", help="the page (default: comparison.html)")


def run(arguments: argparse.Namespace) -> int:
    out = at_home(arguments.out)
    if out.exists():
        raise Refused(f"{out} exists already; choose another --out, nothing is overwritten")
    from ..report import compare

    print(compare(arguments.runs, out))
    return 0
