"""Writes adapters into the weights of a base and saves it: as a diffusers folder, or as one file.

Sampling then costs nothing more than the base. --out NAME.safetensors writes one file in the layout of the original
Stable Diffusion 1.x checkpoints, as ComfyUI and A1111 open it, with new words beside it as textual inversion; any other
name is a folder, with the new words in its tokenizer. Adapters whose effect depends on the input cannot be merged and
are refused.
"""

import argparse

from ..errors import Refused
from ..files import at_home
from .arguments import adapters, add_adapters, add_base, load, new_folder

SUMMARY = "write adapters into the weights of a base"
EXAMPLES = """\
  diffadapt merge --adapter runs/biscuit --out merged
  diffadapt merge --adapter runs/biscuit:0.8 --adapter runs/style:0.5 --out merged
  diffadapt merge --adapter a.safetensors --base stable-diffusion-v1-5/stable-diffusion-v1-5 --out merged.safetensors
  diffadapt sample "a <biscuit> cat" --base merged
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_base(parser)
    add_adapters(parser, required=True)
    parser.add_argument("--out", required=True, metavar="PLACE", help="a new folder, or a new .safetensors file")


def run(arguments: argparse.Namespace) -> int:
    chosen = adapters(arguments)
    out = at_home(arguments.out)
    single = out.suffix == ".safetensors"
    if single and out.exists():
        raise Refused(f"{out} exists already; choose a new name, nothing is overwritten")
    if not single:
        out = new_folder(arguments.out)
    from ..adapters import load_adapter
    from ..bases.original_layout import save_single_file
    from ..interchange import word_files, write_words

    base, words = load(arguments), {}
    for path, strength in chosen:
        attachment = load_adapter(base, path)
        attachment.strength = strength
        own = word_files(attachment, out) if single else {}
        if taken := sorted(words.keys() & own.keys()):
            raise Refused(
                f"two of the adapters' words would go to {taken[0]}; merge one, then the other into the result"
            )
        words |= own
        attachment.merge_()
    written = [save_single_file(base, out), *write_words(words)] if single else [base.save(out)]
    for path in written:
        print(path)
    return 0
