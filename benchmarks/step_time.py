"""Time and memory of a training step: diffadapt's methods against the frozen-base floor and PEFT's LoRA.

    python benchmarks/step_time.py --out benchmarks/results/step_time-<where>.json

The floor is forward and backward through the base with only the input of the denoiser requiring a gradient: what any
adapter pays before it does anything. All contenders take turns within one run, round by round, so that a busy machine
slows all alike; the figure is the median over rounds of each contender's time divided by the floor's of that round.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

import torch

from diffadapt.adapters import LoRA, Selective, attach
from diffadapt.bases import Base, load_base
from diffadapt.files import write_json
from diffadapt.recipes.run import made_by, peak_memory_mb

ROLES = ["self_attention.*", "cross_attention.*"]


class Contender:
    """A base with something that trains on it; `step` is forward, backward and optimizer step."""

    def __init__(self, name: str, base: Base, rank: int, batch: int) -> None:
        self.name, self.base = name, base
        side, channels = base.denoiser.config.sample_size, base.denoiser.config.in_channels
        generator = torch.Generator().manual_seed(0)
        self.latents = torch.randn(batch, channels, side, side, generator=generator).to(base.device, base.dtype)
        self.target = torch.randn(batch, channels, side, side, generator=generator).to(base.device)
        self.timesteps = torch.randint(0, base.num_train_timesteps, (batch,), generator=generator).to(base.device)
        with torch.no_grad():
            self.text = base.encode_prompts(["a cat on a red background"] * batch)
        if name == "floor":
            self.latents.requires_grad_()
            parameters = []
        elif name == "diffadapt LoRA":
            parameters = list(attach(base, LoRA(rank=rank), ROLES).parameters())
        elif name == "PEFT LoRA":
            from peft import LoraConfig

            base.denoiser.add_adapter(
                LoraConfig(r=rank, lora_alpha=rank, target_modules=["to_q", "to_k", "to_v", "to_out.0"])
            )
            parameters = [p for p in base.denoiser.parameters() if p.requires_grad]
        else:
            parameters = list(attach(base, Selective()).parameters())
        self.parameters = sum(p.numel() for p in parameters)
        self.optimizer = torch.optim.AdamW(parameters, lr=1e-4) if parameters else None

    def step(self) -> float:
        """Seconds of one training step."""
        _wait()
        start = time.perf_counter()
        if self.optimizer:
            self.optimizer.zero_grad()
        elif self.latents.grad is not None:
            self.latents.grad = None
        prediction = self.base.denoise(self.latents, self.timesteps, self.text)
        (prediction.float() - self.target).square().mean().backward()
        if self.optimizer:
            self.optimizer.step()
        _wait()
        return time.perf_counter() - start


CONTENDERS = ("floor", "diffadapt LoRA", "PEFT LoRA", "diffadapt full")


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def peak_memory(name: str, args: argparse.Namespace) -> float:
    """Peak resident memory of a process that does nothing but this contender's steps, in MB."""
    command = [sys.executable, __file__, "--only", name, "--base", args.base, "--rank", str(args.rank)]
    command += ["--batch", str(args.batch), "--threads", str(args.threads)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="embedded")
    parser.add_argument("--rank", type=int, default=4)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--only", help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.only:
        only = Contender(args.only, load_base(args.base), args.rank, args.batch)
        for _ in range(3):
            only.step()
        print(peak_memory_mb())
        return
    contenders = [Contender(name, load_base(args.base), args.rank, args.batch) for name in CONTENDERS]
    times: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    for round_ in range(-3, args.rounds):
        for contender in contenders:
            seconds = contender.step()
            if round_ >= 0:
                times[contender.name].append(seconds)
    rows = []
    for contender in contenders:
        own, floor = times[contender.name], times["floor"]
        ratios = sorted(a / b for a, b in zip(own, floor, strict=True))
        rows.append(
            {
                "contender": contender.name,
                "milliseconds": round(1e3 * median(own), 2),
                "times_floor": round(median(ratios), 3),
                "times_floor_quartiles": [round(ratios[len(ratios) // 4], 3), round(ratios[3 * len(ratios) // 4], 3)],
                "trainable_parameters": contender.parameters,
                "peak_memory_mb": round(peak_memory(contender.name, args), 1),
            }
        )
        print(json.dumps(rows[-1]))
    if args.out:
        settings = {
            "base": args.base,
            "rank": args.rank,
            "batch": args.batch,
            "rounds": args.rounds,
            "threads": args.threads,
        }
        commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
        facts = {**made_by(), "commit": commit}
        write_json(args.out, {"benchmark": "step_time", "settings": settings, "made_by": facts, "rows": rows})


if __name__ == "__main__":
    main()
