"""Writes an adapter in the format of another tool: LoRA in one file (the default), a PEFT directory, or differences.

New words that the adapter learned go beside it as textual inversion. The paths of all files are printed, and on the
error stream what the other tool will not read or what was lost.
"""

import argparse

from .arguments import add_base, load, split_adapter

SUMMARY = "write an adapter for ComfyUI, A1111, sd-scripts, diffusers, PEFT"
EXAMPLES = """\
  diffadapt export runs/biscuit biscuit.safetensors
  diffadapt export runs/oft-biscuit biscuit.safetensors --rank 32
  diffadapt export runs/biscuit --to peft biscuit-peft
  diffadapt export runs/biscuit --to diff biscuit.safetensors --strength 0.8
  diffadapt export a.safetensors --to diff a-diff.safetensors --base stable-diffusion-v1-5/stable-diffusion-v1-5
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("adapter", metavar="ADAPTER", help="an adapter file or a run's folder")
    parser.add_argument("out", metavar="OUT", help="a new .safetensors file; for peft a new folder")
    parser.add_argument(
        "--to", default="lora", metavar="FORMAT",
        help="lora (default), peft (lora, oft) or diff (any method that can be merged)",
    )  # fmt: skip
    parser.add_argument(
        "--rank", type=int, metavar="R", help="of lora, for other methods: the rank that the change is brought to"
    )
    parser.add_argument(
        "--strength", type=float, default=1.0, metavar="S", help="at which it is written (default 1, as trained)"
    )
    parser.add_argument("--float32", action="store_true", help="lora and diff in float32; default: float16")
    add_base(parser)


def run(arguments: argparse.Namespace) -> int:
    adapter, strength = split_adapter(arguments.adapter, arguments.strength)
    import torch

    from ..interchange import export_adapter
    from ..progress import say

    files, note = export_adapter(
        load(arguments), adapter, arguments.out, to=arguments.to, strength=strength, rank=arguments.rank,
        dtype=torch.float32 if arguments.float32 else torch.float16, progress=True,
    )  # fmt: skip
    for path in files:
        print(path)
    if note:
        say(note)
    return 0
