"""Measures the second moment of a base's text encoder, which perfusion compares words by. Once for every base.

For an ordinary base the captions come from a text file, one a line: some thousands of what people write about pictures
(the paper took 100,000 of LAION). A base with a small vocabulary brings its own. The file is written to where
`diffadapt train` looks for it, and its path is printed; concepts work under the covariance that they were learned
under, so give it to whoever gets your concepts.
"""

import argparse

from ..errors import Refused
from ..files import at_home
from .arguments import add_base, load

SUMMARY = "measure what perfusion has to know of a base's text encoder"
EXAMPLES = """\
  diffadapt covariance --base stable-diffusion-v1-5/stable-diffusion-v1-5 --captions captions.txt
  diffadapt covariance --base embedded --out covariance.safetensors
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_base(parser)
    parser.add_argument("--captions", metavar="FILE", help="a text file with one caption a line")
    parser.add_argument("--out", metavar="FILE", help="where to write it; default: where the base looks for it")


def run(arguments: argparse.Namespace) -> int:
    from ..bases.measure_covariance import measure_covariance
    from ..bases.text_base import TextBase
    from ..data.prompts import world_captions
    from .sample import read_prompts

    captions = read_prompts(arguments.captions) if arguments.captions else None
    base = load(arguments)
    if not isinstance(base, TextBase):
        raise Refused(f"{base.name!r} has no text encoder whose second moment could be measured")
    place = at_home(arguments.out) if arguments.out else base.covariance_file
    if place.exists():
        raise Refused(f"{place} exists already, and concepts may have been learned under it; move it away first")
    found = measure_covariance(base, captions or world_captions(base), progress=True)
    found.save(place)
    print(place)
    return 0
