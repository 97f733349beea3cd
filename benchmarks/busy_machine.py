"""Time of a training step for several bounds on OpenMP's spinning, on a quiet and on a busy machine.

    python benchmarks/busy_machine.py --busy 0 --out benchmarks/results/busy_machine-0-<where>.json
    python benchmarks/busy_machine.py --busy 1 --out benchmarks/results/busy_machine-1-<where>.json

Each bound is a process of its own, since OpenMP reads it once; all take turns, round by round, so that whatever else
the machine does slows all alike. Beside them run --busy processes that do nothing but take time. "own" is OpenMP's
own choice, 300,000 spins; one thread alone stands beside them.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

SETTINGS = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
SPINS = ("0", "1000", "3000", "10000", "own")


def step_seconds(steps: int) -> list[float]:
    """Seconds of each of `steps` steps of LoRA on the embedded base, after two that are not counted."""
    import torch

    from diffadapt.adapters import LoRA, attach
    from diffadapt.bases import load_base

    base = load_base("embedded", device="cpu")
    attachment = attach(base, LoRA(rank=4))
    optimizer = torch.optim.AdamW(attachment.parameters(), lr=1e-4)
    side, channels = base.denoiser.config.sample_size, base.denoiser.config.in_channels
    latents, timesteps = torch.randn(8, channels, side, side), torch.randint(0, 1000, (8,))
    condition = base.condition(["a photo"] * 8).detach()
    seconds = []
    for _ in range(2 + steps):
        start = time.perf_counter()
        optimizer.zero_grad()
        base.denoise(latents, timesteps, condition).square().mean().backward()
        optimizer.step()
        seconds.append(time.perf_counter() - start)
    return seconds[2:]


def in_a_process(spins: str, threads: int, steps: int) -> list[float]:
    environment = {name: value for name, value in os.environ.items() if name not in SETTINGS}
    environment["OMP_NUM_THREADS"] = str(threads)
    if spins != "own":
        environment["GOMP_SPINCOUNT"] = spins
    command = [sys.executable, "-W", "ignore", __file__, "--only", str(steps)]
    return json.loads(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--busy", type=int, default=0, help="processes that take time beside it")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=5, help="in each round")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--only", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.only:
        print(json.dumps(step_seconds(args.only)))
        return
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(args.busy)]
    times: dict[tuple[str, int], list[float]] = {(spins, args.threads): [] for spins in SPINS} | {("own", 1): []}
    try:
        for _ in range(args.rounds):
            for (spins, threads), seconds in times.items():
                seconds += in_a_process(spins, threads, args.steps)
    finally:
        for other in others:
            other.kill()
    rows = [
        {"spins": spins, "threads": threads, "seconds": round(median(seconds), 3), "slowest": round(max(seconds), 3)}
        for (spins, threads), seconds in times.items()
    ]
    print(*(json.dumps(row) for row in rows), sep="\n")
    if args.out:
        from diffadapt.files import write_json
        from diffadapt.training.run import made_by

        commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
        settings = {key: getattr(args, key) for key in ("busy", "threads", "rounds", "steps")}
        facts = {**made_by(), "commit": commit}
        write_json(args.out, {"benchmark": "busy_machine", "settings": settings, "made_by": facts, "rows": rows})


if __name__ == "__main__":
    main()
