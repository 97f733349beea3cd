"""Time of merging OFT into all 128 attention layers of Stable Diffusion 1.5's UNet, with random weights.

python benchmarks/merge_time.py --threads 2
"""

import argparse
import time

import torch
from torch import nn

from diffadapt.adapters import OFT
from diffadapt.adapters.oft import solve_together

# width: transformer blocks of that width in the UNet; each has self-attention and cross-attention on 768 inputs
BLOCKS = {320: 5, 640: 5, 1280: 6}


def layers() -> list[nn.Linear]:
    """Query, key, value and out of both attentions of every block."""
    return [
        nn.Linear(inputs, width)
        for width, blocks in BLOCKS.items()
        for _ in range(blocks)
        for context in (width, 768)
        for inputs in (width, context, context, width)
    ]


@torch.no_grad()
def merge_seconds(method: OFT) -> float:
    """One solve of all blocks and one product for each layer."""
    generator = torch.Generator().manual_seed(0)
    adapters = [method.build(layer, "layer", generator) for layer in layers()]
    for adapter in adapters:
        adapter.q.normal_(std=0.02, generator=generator)
    start = time.perf_counter()
    solve_together(adapters)
    for adapter in adapters:
        adapter.layer.weight.copy_(adapter.weight(adapter.layer.weight))
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    torch.set_num_threads(parser.parse_args().threads)
    for method in (OFT(block_size=32), OFT(blocks=4)):
        seconds = sorted(merge_seconds(method) for _ in range(5))
        name = f"block_size={method.block_size}" if method.blocks is None else f"blocks={method.blocks}"
        print(f"OFT({name}): median {seconds[2]:.2f} s of 5, {seconds[0]:.2f} to {seconds[-1]:.2f}")


if __name__ == "__main__":
    main()
