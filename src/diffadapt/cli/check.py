"""Looks at a folder of pictures as a training would, before minutes are wasted: one page and a list of what to mend.

The page shows each picture as it will be cropped, its caption as it will be used, its mask, and what is cut off.
"""

import argparse

from ..errors import Refused, printable
from ..files import at_home
from .arguments import add_base, load

SUMMARY = "look at a folder of pictures before training on it"
EXAMPLES = """\
  diffadapt check photos/biscuit --noun cat
  diffadapt check photos/biscuit --noun cat --token "<biscuit>" --base stable-diffusion-v1-5/stable-diffusion-v1-5
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "folder", metavar="FOLDER", help="1 to 30 pictures of one thing, captions and masks beside them"
    )
    parser.add_argument("--noun", required=True, help="what they show one of, such as cat")
    parser.add_argument("--token", help="the new word for it; default: <NAME> with the name of the folder")
    parser.add_argument("--resolution", type=int, metavar="PIXELS", help="of the training; default: the base's")
    parser.add_argument(
        "--out", default="check.html", metavar="FILE", help="the page, a new file (default: check.html)"
    )
    add_base(parser)


def run(arguments: argparse.Namespace) -> int:
    out = at_home(arguments.out)
    if out.exists():
        raise Refused(f"{out} exists already; choose a new name with --out, nothing is overwritten")
    from ..data.concept import load_concept, photograph_notes
    from ..data.prompt_check import caption_notes
    from ..report.data_page import write_data_page

    concept = load_concept(arguments.folder, arguments.noun, token=arguments.token)
    base = load(arguments)
    base.check_noun(concept.noun)
    side = arguments.resolution or base.resolution
    if side % base.side_step or side < base.side_step:
        raise Refused(f"--resolution: expected a multiple of {base.side_step} pixels, got {side}")
    concept.pixels(side)  # whose notes say what is enlarged
    notes = [*concept.notes, *caption_notes(base, concept)]
    notes += [f"{name}: its mask is empty inside the square crop" for name in concept.empty_masks(side)]
    notes += photograph_notes(concept, base)
    write_data_page(concept, side, notes, out)
    for note in notes:
        print(printable(f"note: {note}"))
    print(out)
    return 0
