"""Reads an adapter of another tool into an adapter file: LoRA, OFT, textual inversion.

LoRA files of kohya's scripts, LyCORIS (LoCon) and diffusers, PEFT directories of LoRA and OFT, OFT of the paper's code,
kohya's oft_v2 and OneTrainer, words of textual inversion.

The base must be the one that it was trained on. The paths of all files are printed, and on the error stream a note on
what was read and how faithful it is.
"""

import argparse

from .arguments import add_base, load

SUMMARY = "read LoRA, OFT and words of other tools"
EXAMPLES = """\
  diffadapt import downloaded-lora.safetensors theirs.safetensors --base stable-diffusion-v1-5/stable-diffusion-v1-5
  diffadapt import their-word.safetensors word.safetensors --token "<word>"
  diffadapt import their-peft-folder theirs.safetensors --base stable-diffusion-v1-5/stable-diffusion-v1-5
  diffadapt import pytorch_oft_weights.safetensors paper.safetensors --base sd15
  diffadapt sample "a dog" --adapter theirs.safetensors --base stable-diffusion-v1-5/stable-diffusion-v1-5
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SOURCE", help="a PEFT directory or a .safetensors file")
    parser.add_argument("out", metavar="OUT", help="a new adapter file (.safetensors)")
    parser.add_argument("--token", metavar="WORD", help="of textual inversion: what the new word is to be called")
    add_base(parser)


def run(arguments: argparse.Namespace) -> int:
    from ..interchange import import_adapter
    from ..progress import say

    files, note = import_adapter(load(arguments), arguments.source, arguments.out, token=arguments.token)
    for path in files:
        print(path)
    say(note)
    return 0
