"""Writes an adapter in the format of another tool: a PEFT directory, or weight differences for ComfyUI and A1111.

New words that the adapter learned go beside it as textual inversion. The paths of all files are printed.
"""

import argparse

from .arguments import add_base, load, split_adapter

SUMMARY = "write an adapter for PEFT, ComfyUI, A1111"
EXAMPLES = """\
  diffadapt export runs/biscuit --to peft biscuit-peft
  diffadapt export runs/biscuit --to diff biscuit.safetensors --strength 0.8
  diffadapt export a.safetensors --to diff a-diff.safetensors --base stable-diffusion-v1-5/stable-diffusion-v1-5
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("adapter", metavar="ADAPTER", help="an adapter file or a run's folder")
    parser.add_argument("out", metavar="OUT", help="a new folder for peft, a new .safetensors file for diff")
    parser.add_argument("--to", required=True, metavar="FORMAT", help="peft (OFT) or diff (any method)")
    parser.add_argument(
        "--strength", type=float, default=1.0, metavar="S", help="at which it is written (default 1, as trained)"
    )
    parser.add_argument("--float32", action="store_true", help="diff in float32; default: float16, half the size")
    add_base(parser)


def run(arguments: argparse.Namespace) -> int:
    adapter, strength = split_adapter(arguments.adapter, arguments.strength)
    import torch

    from ..interchange import export_adapter

    dtype = torch.float32 if arguments.float32 else torch.float16
    for path in export_adapter(
        load(arguments), adapter, arguments.out, to=arguments.to, strength=strength, dtype=dtype
    ):
        print(path)
    return 0
