"""Makes pictures from prompts, with any number of adapters.

A prompt may end in kohya's options, which win over the command line's: --n negative prompt, --w width, --h height,
--d seed, --l guidance, --s steps, --cn control signal. In a prompt file, empty lines and lines that begin with # are
passed over. Files are numbered on from what is in the folder; nothing is overwritten. The paths are printed, one a
line.
"""

import argparse
import re
from pathlib import Path

from ..errors import Refused
from ..files import at_home, filled_lines
from .arguments import adapters, add_adapters, add_base, add_bias, load, read_bias

MANY = "prompt"
SUMMARY = "make pictures from prompts"
EXAMPLES = """\
  diffadapt sample "a cat on a red background" --seed 3
  diffadapt sample "a <biscuit> cat at night" --adapter runs/biscuit:0.8 --out pictures
  diffadapt sample "a <biscuit> cat at night" "a <biscuit> cat in snow" --adapter runs/biscuit -n 4 --sheet
  diffadapt sample --prompts prompts.txt --adapter runs/biscuit --adapter runs/style:0.5
  diffadapt sample "a cat --n dog --w 64 --h 64 --d 3 --l 4 --s 20"
  diffadapt sample "a <teddy> next to a <cup>" --adapter runs/teddy --adapter runs/cup --bias "<cup>=0.5"
  diffadapt sample "a cat at night" --adapter runs/edges --control edges.png
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prompt", nargs="*", metavar="PROMPT", help="what the picture shows; one picture each")
    parser.add_argument("--prompts", metavar="FILE", help="a text file with one prompt a line")
    add_base(parser)
    add_adapters(parser)
    parser.add_argument(
        "--control", action="append", default=[], metavar="FILE",
        help="the signal that a control adapter follows, of the picture's size; once for all prompts, or once for each",
    )  # fmt: skip
    add_bias(parser)
    parser.add_argument("-n", "--number", type=int, default=1, metavar="N", help="pictures of each prompt (default 1)")
    parser.add_argument("--sheet", action="store_true", help="also write all of them on one sheet, with the prompts")
    parser.add_argument("--out", default="samples", metavar="DIR", help="where the pictures go (default: samples)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the first picture; the next has N + 1")
    parser.add_argument("--steps", type=int, metavar="N", help="denoising steps; default: the base's")
    parser.add_argument(
        "--guidance", type=float, metavar="G", help="classifier-free guidance, 1 for none; default: the base's"
    )
    parser.add_argument("--negative", default="", metavar="TEXT", help="what the picture should not show")
    parser.add_argument("--width", type=int, metavar="PIXELS", help="default: the base's")
    parser.add_argument("--height", type=int, metavar="PIXELS", help="default: the base's")
    parser.add_argument(
        "--hand-back", type=float, default=0.0, metavar="SHARE",
        help="share of the last steps that the untouched base does, such as 0.1 (default 0)",
    )  # fmt: skip
    parser.add_argument("--batch", type=int, default=8, metavar="N", help="pictures made at once (default 8)")


def run(arguments: argparse.Namespace) -> int:
    texts = [*arguments.prompt, *(read_prompts(arguments.prompts) if arguments.prompts else ())]
    if not texts:
        raise Refused("no prompt; give one in quotes, or --prompts FILE")
    for name in ("batch", "number"):
        if getattr(arguments, name) < 1:
            raise Refused(f"--{name}: expected at least 1, got {getattr(arguments, name)}")
    chosen = adapters(arguments, folders=True)
    bias = read_bias(arguments.bias)
    folder = at_home(arguments.out)
    if folder.exists() and not folder.is_dir():
        raise Refused(f"--out {folder} is a file; give a folder")
    from ..data.contact_sheet import contact_sheet
    from ..data.picture import write_png
    from ..data.prompt_check import cut_at, prompt_notes
    from ..progress import say
    from ..sampling.sample import adapted, check_lines, parse_prompt_line, repeated, sample

    number = arguments.number
    lines = repeated([parse_prompt_line(text) for text in texts], number)
    control = arguments.control[0] if len(arguments.control) == 1 else arguments.control or None
    if isinstance(control, list):
        control = [each for each in control for _ in range(number)]
    base = load(arguments)
    check_lines(base, lines)
    with adapted(base, chosen) as attached:
        prompts = [line.prompt for line in lines[::number]]
        for note in prompt_notes(base, prompts):
            say(f"note: {note}")
        for prompt in prompts:
            if cut := cut_at(base, prompt):
                say(f"note: {cut!r} is cut off, the prompt is too long for the text encoder")
        pictures = sample(
            base, lines, adapters=[(each, each.strength) for each in attached], control=control, bias=bias,
            seed=arguments.seed, steps=arguments.steps, guidance=arguments.guidance, negative=arguments.negative,
            batch=arguments.batch, width=arguments.width, height=arguments.height,
            hand_back=arguments.hand_back, progress=True,
        )  # fmt: skip
    first = next_number(folder)
    for i, picture in enumerate(pictures):
        path = folder / f"{first + i:04d}.png"
        write_png(path, picture)
        print(path)
    if arguments.sheet:
        rows = [(texts[i], pictures[i * number : (i + 1) * number]) for i in range(len(texts))]
        print(write_png(folder / f"sheet-{first:04d}.png", contact_sheet(rows)))
    return 0


def read_prompts(file: str) -> list[str]:
    """The prompts of a text file, one a line.

    Raises:
        Refused: it cannot be read, or holds no prompt.
    """
    prompts = [line for line in filled_lines(file) if not line.startswith("#")]
    if not prompts:
        raise Refused(f"{file} holds no prompt; expected one a line")
    return prompts


def next_number(folder: Path) -> int:
    """One more than the largest number that names a picture or a sheet in the folder; 0 when there is none."""
    names = (re.fullmatch(r"(?:sheet-)?([0-9]+)", path.stem) for path in folder.glob("*.[pP][nN][gG]"))
    return max((int(name[1]) + 1 for name in names if name), default=0)
