"""Shared by the transfer claims: one training on a target set, with and without Diff-Tuning, and how it is scored.

Cut to fit the budget: 240 steps of 16 rows (1,500 were planned), 128 pictures, one set for the tuning. What is decided
here is decided for short trainings.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from zlib import crc32

import torch
from torch import Generator, Tensor
from transfer_sets import TARGETS, files_of
from unit_cost import WHOLE, Cost, cost

from diffadapt.adapters import OFT, DiffFit, LoRA, Selective
from diffadapt.data.captioned import Captioned
from diffadapt.data.folder import Example
from diffadapt.data.styles import Styles
from diffadapt.evaluation.chain_of_forgetting import losses_at, near_data
from diffadapt.evidence import Contender, Context, Finished, Results, Unit, tuned
from diffadapt.metrics.bootstrap import Interval
from diffadapt.metrics.features import load_features
from diffadapt.metrics.frechet import fid
from diffadapt.metrics.student import interval_of_nested_mean
from diffadapt.recipes.retention import memory_of
from diffadapt.recipes.style import StyleConfig, train_style
from diffadapt.sampling.sample import adapted, default_line, generate
from diffadapt.training.learner import make_accelerator
from diffadapt.training.retention_config import MemoryConfig

OBJECTIVES = {"standard": "plain", "difftuning": "Diff-Tuning"}
STEPS, BATCH, MEMORY, UNSEEN = 240, 16, 2000, 128  # rows of memory that are trained on, and further ones
MADE, TESTED, MOST = 128, 512, 400  # pictures made, of the test set, and of one class to learn from
HANDED_BACK = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0)  # of full fine-tuning, for DT-1
TUNED_ON = "openmoji"  # with another seed than the test's
FAMILIES = {"full": "every weight", "lora": "LoRA", "oft": "OFT", "diff_fit": "DiffFit"}


CONTENDERS = {
    "full": Contender(method=Selective(), title="full fine-tuning", rates=(2e-5, 6e-5, 2e-4)),
    "lora": Contender(method=LoRA(rank=8), title="LoRA", rates=(5e-4, 2e-3, 8e-3)),
    "oft": Contender(method=OFT(), title="OFT", rates=(5e-4, 2e-3, 8e-3)),
    "diff_fit": Contender(method=DiffFit(), title="DiffFit", rates=(3e-4, 1e-3, 3e-3)),
}


def tuning(names: Sequence[str]) -> list[Unit]:
    """Plain trainings that choose each method's rate; Diff-Tuning takes the plain one's."""
    return [
        {"stage": "tune", "method": name, "rate": rate, "target": TUNED_ON, "objective": "standard", "seed": 100}
        for name in names
        for rate in CONTENDERS[name].rates
    ]


def tests(results: Results, names: Sequence[str], seed: int) -> list[Unit]:
    """Every target with and without, at the rate with the smallest mean logarithm of FD in `tuning`."""
    chosen = {name: tuned(results.where(stage="tune", method=name), lambda each: -log_fd(each)) for name in names}
    return [
        {"stage": "test", "method": n, "rate": chosen[n], "target": target, "objective": objective, "seed": seed}
        for n in names
        for target in TARGETS
        for objective in OBJECTIVES
    ]


def classes_of(data: Path, name: str) -> Styles:
    """The classes of a target set, a tenth of each kept back; a set without a test folder is split by its order."""
    grouped: dict[str, list[Path]] = {}
    for file, kind in files_of(data, name):
        grouped.setdefault(kind, []).append(file)
    learned, kept = {}, {}
    for kind, files in grouped.items():
        tested = [file for file in files if "test" in file.parts] or files[::5]
        known = set(tested)
        rest = [file for file in files if file not in known]
        for place, part in ((learned, rest[:MOST]), (kept, tested)):
            if part:
                place[kind] = Captioned(part[0].parent, [Example(path=file, caption=kind) for file in part], [])
    return Styles(learned, {kind: each for kind, each in kept.items() if kind in learned})


def teach(unit: Unit, context: Context) -> dict[str, Any]:
    """FD to the test pictures, with shares of the steps handed back, and the base's loss on its own pictures."""
    base, classes = context.base, classes_of(context.data, unit["target"])
    memory = MemoryConfig(latents=MEMORY, folder=str(context.shared / "memory"), condition="null")
    config = StyleConfig(
        steps=STEPS, batch_size=BATCH, learning_rate=unit["rate"], objective=unit["objective"], memory=memory,
        weight_decay=0.0, evaluation_pictures=0, sample_every=0,
    )  # fmt: skip
    all_rows = replace(config, memory=replace(memory, latents=MEMORY + UNSEEN))
    bank = memory_of(
        base, all_rows, context.folder, make_accelerator(base, config), resolution=base.resolution, quiet=True
    )
    unseen = bank.latents(range(MEMORY, MEMORY + UNSEEN))
    steps = near_data(base.noise_schedule.noise_ratio().cpu(), UNSEEN)
    before = float(losses_at(base, unseen, steps).mean())
    run = train_style(
        base, classes, method=CONTENDERS[unit["method"]].method, out=context.folder, seed=unit["seed"], config=config,
        quiet=True,
    )  # fmt: skip
    features = load_features(base.encoder or "dino:facebook/dinov2-small", device=base.device)
    tested = test_pictures(classes, base.resolution)
    reference = features.pictures(tested)
    captions = [name for _, name in zip(range(MADE), cycle(list(classes.pictures)), strict=False)]
    lines = [default_line(base, caption, seed) for seed, caption in enumerate(captions)]
    scores: dict[str, Any] = {"fd": {}, "premise": run.metrics.get("premise", {})}
    with adapted(base, [(run.adapter, 1.0)]):
        scores["forgotten"] = float(losses_at(base, unseen, steps).mean()) / before
        for share in shares_of(unit):
            made = torch.stack(generate(base, lines, batch=16, hand_back=share))
            scores["fd"][f"{share:g}"] = fid(features.pictures(made), reference)
    return scores


def shares_of(unit: Unit) -> tuple[float, ...]:
    """Which shares of the steps are handed back: the curve of DT-1 is read off the tests of full fine-tuning."""
    return HANDED_BACK if unit["stage"] == "test" and unit["method"] == "full" else (0.0,)


def cost_of(unit: Unit) -> Cost:
    """Of training and pictures; the memory is drawn once, and small beside them."""
    family = f"transfer, {FAMILIES[unit['method']]}"
    return cost(family, STEPS, MADE * len(shares_of(unit)), sampling=WHOLE)


def seconds_of(unit: Unit) -> float:
    return cost_of(unit).seconds


def cycle(names: list[str]):
    """The names again and again."""
    while True:
        yield from names


def test_pictures(classes: Styles, side: int) -> Tensor:
    """Up to `TESTED` pictures that were not trained on, (N, 3, side, side), as many of each class as it has."""
    each = max(1, TESTED // len(classes.held_out))
    return torch.cat([part.pixels(range(min(each, len(part))), side) for part in classes.held_out.values()])


def log_fd(each: Finished, share: float = 0.0) -> float:
    return math.log(max(each.scores["fd"][f"{share:g}"], 1e-9))


def gain(results: Sequence[Finished], method: str, *, level: float = 0.95) -> Interval:
    """Mean over targets of the logarithm of FD with Diff-Tuning over that without; below 0 is better."""
    runs = {
        objective: {e.unit["target"]: log_fd(e) for e in results if is_test(e, method, objective)}
        for objective in OBJECTIVES
    }
    rows = [[runs["difftuning"][target] - runs["standard"][target]] for target in TARGETS]
    return interval_of_nested_mean(torch.tensor(rows), level=level)


def is_test(each: Finished, method: str, objective: str) -> bool:
    unit = each.unit
    return unit["stage"] == "test" and unit["method"] == method and unit["objective"] == objective


def fabricated(unit: Unit, generator: Generator | None, *, better: float = 0.0) -> dict[str, Any]:
    """Scores as a training might have: targets differ by a factor, two runs of one by a tenth (assumed)."""
    place = crc32(str(unit["target"]).encode()) / 2**32
    kept = unit["objective"] == "difftuning"

    def noise() -> float:
        return 0.1 * float(torch.randn((), generator=generator)) if generator else 0.0

    of_run = noise()

    def fd(share: float) -> float:
        curve = 2.0 * max(0.0, share - 0.2) ** 2 - (2.0 * better * share if share < 0.3 else 0.0)
        return math.exp(place + of_run + 0.3 * noise() + curve - (better if kept else 0.0))

    forgotten = 1.0 + (0.05 if kept and better else 0.6) * math.exp(noise())
    return {"fd": {f"{share:g}": fd(share) for share in HANDED_BACK}, "forgotten": forgotten, "premise": {}}
