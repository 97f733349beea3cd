"""The cost of C-LoRA's penalty at the shapes of Stable Diffusion 1.5: 32 matrices, rank 16, at task 2 and at task 50.

    python benchmarks/c_lora_penalty.py [--importance abs_of_sum]

Prints the time of value and gradient on this machine, how busy it was (a load average above the number of cores), and
their operations beside those of one training step of the UNet at 512 pixels, batch 1, counted by torch's own counter
without computing anything.
"""

import argparse
import json
import os
import time

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from diffadapt.adapters import CLoRA
from diffadapt.adapters.c_lora import IMPORTANCE, CLoRAAdapter

WIDTHS = [320] * 5 + [640] * 5 + [1280] * 6
TEXT, RANK, TASKS, REPEATS = 768, 16, (2, 50), 5


def adapters_at(task: int, importance: str) -> list[CLoRAAdapter]:
    """Adapters of all keys and values in a given task, with small random changes in the past."""
    draw = torch.Generator().manual_seed(0)
    method = CLoRA(rank=RANK, importance=importance)
    made = []
    for width in WIDTHS * 2:
        adapter = CLoRAAdapter(nn.Linear(TEXT, width, bias=False, device="cpu"), method, "layer", draw)
        # The past of a task is a sum, whatever it is made of: two folds give the buffers of every later task, and the
        # factors are dropped where task 50 would have dropped them.
        for _ in range(min(task - 1, 2)):
            nn.init.normal_(adapter.up, std=1e-3)
            adapter.observe_(torch.randn(4, TEXT, generator=draw))
            adapter.observe_gradient_(torch.randn(1, 4, TEXT, generator=draw), torch.randn(1, 4, width, generator=draw))
            adapter.fold_(draw)
        if task > 30:
            adapter.past_up = adapter.past_down = None
        nn.init.normal_(adapter.up, std=1e-3)
        made.append(adapter)
    return made


def penalise(adapters: list[CLoRAAdapter]) -> None:
    terms = [each.penalty() for each in adapters]
    torch.stack([term for term in terms if term is not None]).sum().backward()


def step_of_the_unet() -> int:
    """Floating-point operations of one forward and backward pass through the frozen UNet."""
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        unet = UNet2DConditionModel(
            sample_size=64, cross_attention_dim=TEXT, attention_head_dim=8, block_out_channels=(320, 640, 1280, 1280)
        )
        latents, text = torch.randn(1, 4, 64, 64, requires_grad=True), torch.randn(1, 77, TEXT, requires_grad=True)
        unet.requires_grad_(False)
        with FlopCounterMode(display=False) as counter:
            unet(latents, torch.tensor(10), encoder_hidden_states=text).sample.sum().backward()
    return counter.get_total_flops()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--importance", default="abs_of_sum", choices=IMPORTANCE)
    arguments = parser.parse_args()
    found: dict[str, object] = {"importance": arguments.importance, "threads": torch.get_num_threads()}
    for task in TASKS:
        adapters = adapters_at(task, arguments.importance)
        penalise(adapters)
        times = []
        for _ in range(REPEATS):
            start = time.process_time()
            penalise(adapters)
            times.append(time.process_time() - start)
        found[f"cpu_seconds_at_task_{task}"] = round(min(times), 4)
        held = sum(buffer.numel() for each in adapters for buffer in each.buffers(recurse=False) if buffer is not None)
        found[f"megabytes_held_at_task_{task}"] = round(4 * held / 1e6, 1)
        if task == TASKS[0]:
            with FlopCounterMode(display=False) as counter:
                penalise(adapters)
            found["penalty_gflop"] = round(counter.get_total_flops() / 1e9, 3)
    found["step_gflop"] = round(step_of_the_unet() / 1e9, 1)
    found["share_of_a_step"] = round(found["penalty_gflop"] / found["step_gflop"], 5)  # pyright: ignore
    found |= {"load_average": round(os.getloadavg()[0], 1), "cores": os.cpu_count()}
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
