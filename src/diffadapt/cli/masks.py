"""Writes a soft mask, NAME-masklabel.png, beside every picture of a folder that has none: white where the noun is.

CLIPSeg finds it. With the masks, `train.masked=true` counts the loss where the subject is. Look at them, and paint over
what is wrong.
"""

import argparse

from ..errors import Refused
from ..files import at_home

SUMMARY = "find the subject in pictures and write masks"
EXAMPLES = """\
  diffadapt masks photos/biscuit --noun cat
  diffadapt masks photos/biscuit --noun cat --model models/clipseg-rd64-refined
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="FOLDER", help="of pictures")
    parser.add_argument("--noun", required=True, metavar="NOUN", help="what they show one of, such as cat")
    parser.add_argument("--model", metavar="NAME", help="hub id or folder of a CLIPSeg model; default: the refined one")
    parser.add_argument("--device", default="cpu", metavar="NAME", help="cpu (default) or cuda")


def run(arguments: argparse.Namespace) -> int:
    folder = at_home(arguments.folder)
    if not folder.is_dir():
        raise Refused(f"no folder at {folder}; give the folder of pictures")
    from ..controls.clipseg import MODEL, ClipSeg
    from ..data.masks import write_masks

    model = ClipSeg(arguments.model or MODEL, device=arguments.device)
    for path in write_masks(folder, arguments.noun, model, progress=True):
        print(path)
    return 0
