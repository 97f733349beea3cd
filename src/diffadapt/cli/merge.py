"""Writes adapters into the weights of a base and saves it as a diffusers folder, which any program for them opens.

Sampling then costs nothing more than the base. Adapters whose effect depends on the input cannot be merged and are
refused.
"""

import argparse

from .arguments import adapters, add_adapters, add_base, load, new_folder

SUMMARY = "write adapters into the weights of a base"
EXAMPLES = """\
  diffadapt merge --adapter runs/biscuit --out merged
  diffadapt merge --adapter runs/biscuit:0.8 --adapter runs/style:0.5 --out merged
  diffadapt sample "a <biscuit> cat" --base merged
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_base(parser)
    add_adapters(parser, required=True)
    parser.add_argument("--out", required=True, metavar="DIR", help="a new folder for the merged base")


def run(arguments: argparse.Namespace) -> int:
    chosen = adapters(arguments)
    out = new_folder(arguments.out)
    from ..adapters import load_adapter

    base = load(arguments)
    for path, strength in chosen:
        attachment = load_adapter(base, path)
        attachment.strength = strength
        attachment.merge_()
    base.save(out)
    print(out)
    return 0
