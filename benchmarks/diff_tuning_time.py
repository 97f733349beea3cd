"""The cost of Diff-Tuning: time of a training step beside plain training at equal batch, and memory beside the bank.

    python benchmarks/diff_tuning_time.py --out benchmarks/results/diff_tuning_time-<where>.json

Contenders take turns step by step on one base with one LoRA, so that a busy machine slows all alike, in an order that
turns each round; the figure is the mean over rounds of each contender's time over that of plain training in the same
round, with a 95 % t interval. "plain again" is plain training once more: what the instrument says of no difference. A
step is all of it: drawing and reading rows, conditions, noise, forward, backward, optimizer. The bank holds --latents
rows of random numbers, since what they show takes no time. The clock is the process's own time (--clock wall: the
wall's).

Resident memory that no file backs is read before the first step and after the last, with every row of the bank having
been read once more in between.
"""

import argparse
import json
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import torch
from torch import Tensor

from diffadapt.adapters import LoRA, SideInputs, attach
from diffadapt.bases import Base, load_base
from diffadapt.data.latent_bank import SHARD, LatentBank, LatentBankSettings
from diffadapt.files import write_json
from diffadapt.metrics import interval_of_nested_mean
from diffadapt.objectives import Denoising, MixedWithMemory, preset
from diffadapt.training.batches import Batches, Texts
from diffadapt.training.fit import AttachedBase
from diffadapt.training.run import made_by
from diffadapt.training.sources import BankLatents, Fetched, Source

OBJECTIVES = {
    "plain": "standard", "plain again": "standard", "difftuning": "difftuning", "official_code": "official_code"
}  # fmt: skip
CAPTION = "a cat on a red background"


class InMemory(Source):
    """Target pictures whose latents are kept, as those of pictures are once they were drawn."""

    def __init__(self, latents: Tensor) -> None:
        self.rows = latents

    def captions(self) -> list[str]:
        return [CAPTION]

    def pick(self, rng: np.random.Generator, size: int, place: int) -> list[tuple[int, str]]:
        return [(int(i), CAPTION) for i in rng.integers(len(self.rows), size=size)]

    def fetch(self, index: int) -> Fetched:
        return Fetched(self.rows[index])


def fill(folder: Path, base: Base, count: int) -> LatentBank:
    """A bank of random latents in the base's shape."""
    side = base.resolution // base.downsampling
    settings = LatentBankSettings(
        base_fingerprint=base.fingerprint, vae="", shape=(int(base.vae.config.latent_channels), side, side),
        sampler="", steps=1, guidance=1.0, prompts=(CAPTION,),
    )  # fmt: skip
    bank, numbers = LatentBank(folder, settings), torch.Generator().manual_seed(0)
    bank.ensure(
        count, lambda rows: (torch.randn(len(rows), *settings.shape, generator=numbers), [CAPTION] * len(rows)),
        batch=SHARD, quiet=True,
    )  # fmt: skip
    return bank


def unbacked_mb() -> float:
    """Resident memory of this process that no file backs, MB."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return int(next(line for line in lines if line.startswith("RssAnon")).split()[1]) / 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="embedded")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rank", type=int, default=4)
    parser.add_argument("--latents", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--clock", choices=("cpu", "wall"), default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, help="JSON file to write")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    clock = time.process_time if args.clock == "cpu" else time.perf_counter
    base = load_base(args.base)
    with tempfile.TemporaryDirectory() as place:
        bank = fill(Path(place), base, args.latents)
        size = sum(path.stat().st_size for path in Path(place).iterdir()) / 1e6
        attachment = attach(base, LoRA(rank=args.rank))
        model, optimizer = AttachedBase(base, {"adapter": attachment}), torch.optim.AdamW(attachment.parameters())
        sources = {"target": InMemory(torch.randn(64, *bank.settings.shape)), "memory": BankLatents(bank, "")}
        texts, ratio = Texts(base, [CAPTION, ""]), base.noise_schedule.noise_ratio().cpu()

        def stepping(name: str) -> Callable[[int], float]:
            objective = Denoising(base.noise_schedule)
            mixed = MixedWithMemory(objective, preset(OBJECTIVES[name]), ratio)
            used = objective if mixed.plain else mixed
            batches = Batches(base, used, sources, texts, batch_size=args.batch, parts=1, seed=0, process=0)

            def step(number: int) -> float:
                start = clock()
                batch = batches.batch(number, 0)
                optimizer.zero_grad()
                attachment.begin(SideInputs.of(batch.condition, timesteps=batch.timesteps))
                used.reduce(used.losses(model, batch), batch).backward()
                optimizer.step()
                return clock() - start

            return step

        steps = {name: stepping(name) for name in OBJECTIVES}
        names, seconds, before = list(steps), {name: [] for name in steps}, 0.0
        for number in range(-3, args.rounds):
            if number == 0:
                before = unbacked_mb()
            turn = number % len(names)
            for name in names[turn:] + names[:turn]:
                taken = steps[name](number + 3)
                if number >= 0:
                    seconds[name].append(taken)
        for first in range(0, len(bank), SHARD):
            bank.latents(range(first, min(first + SHARD, len(bank))))
        grown = unbacked_mb() - before
    rows = []
    for name in names:
        each = torch.tensor([[a / b] for a, b in zip(seconds[name], seconds["plain"], strict=True)])
        interval = interval_of_nested_mean(each) if name != "plain" else None
        times = [round(v, 4) for v in (interval.value, interval.low, interval.high)] if interval else None
        rows.append({"contender": name, "milliseconds": round(1e3 * median(seconds[name]), 2), "times_plain": times})
        print(json.dumps(rows[-1]), flush=True)
    memory = {"bank_mb_on_disk": round(size, 1), "resident_memory_grown_mb": round(grown, 1)}
    print(json.dumps(memory), flush=True)
    if args.out:
        commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
        settings = {key: value for key, value in vars(args).items() if key != "out"}
        facts = {**made_by(), "commit": commit}
        write_json(
            args.out,
            {"benchmark": "diff_tuning_time", "settings": settings, "made_by": facts, "rows": rows, "memory": memory},
        )


if __name__ == "__main__":
    main()
