"""CL-3: classes learned task after task without past pictures. A hundred emoji by six artists, tested on two others."""

from typing import Any
from zlib import crc32

import torch
from torch import Tensor

from diffadapt.adapters import CLoRA, LoRA, Method, PromptPool, Selective
from diffadapt.bases import load_classifier
from diffadapt.data.class_record import ClassRecord
from diffadapt.data.class_tasks import split_classes
from diffadapt.data.emoji_classes import CLASSES, TESTED_ON, emoji_classes
from diffadapt.evidence import (
    Claim,
    Comparison,
    Context,
    Design,
    Finished,
    Results,
    Settings,
    Table,
    Unit,
    Verdict,
    tuned,
)
from diffadapt.metrics.crossed import interval_of_crossed_mean
from diffadapt.recipes.classify import train_classify
from diffadapt.report.finding import claimed_better, goal, in_a_sentence, within

# STEPS: of all tasks together. Five tasks, of which the goal says nothing, were cut to fit the budget.
COUNTS, MIDDLE, SHORT, TUNING_SEED, STEPS = (10, 20), 10, 3, 100, 600
RANK, RATE, MARGIN, WANTED = 16, 1e-3, 0.02, 0.05
PROJECTIONS = ("self_attention.query", "self_attention.key", "self_attention.value")
# name -> title, what is tuned and its values; all have as many trials. At first there were three each, and for most the
# best lay at an end: lambdas below .1 leave no trace of the penalty. They were extended before anything was judged.
LAMBDAS = (1e-3, 1e-2, 1e-1, 1.0, 10.0)
LOW_RANK_RATES, RATES = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2), (1e-5, 3e-5, 1e-4, 3e-4, 1e-3)
CONTENDERS: dict[str, tuple[str, str, tuple[float, ...]]] = {
    "c_lora": ("C-LoRA", "lambda", LAMBDAS),
    "merge": ("LoRA without penalty", "rate", LOW_RANK_RATES),
    "lora": ("LoRA, the same factors on and on", "rate", LOW_RANK_RATES),
    "ewc": ("EWC", "lambda", LAMBDAS),
    "prompts": ("L2P", "rate", LOW_RANK_RATES),
    "masked": ("sequential, masked", "rate", RATES),
    "sequential": ("sequential", "rate", RATES),
}


def method(name: str, value: float) -> tuple[Method, dict[str, Any]]:
    """(method, settings of the recipe) of a contender at the tuned value."""
    if name in ("c_lora", "ewc"):
        importance = "abs_of_sum" if name == "c_lora" else "fisher"
        whole = CLoRA(rank=RANK, penalty_weight=value, penalty_scale="normalised", importance=importance)
        return whole, {"learning_rate": RATE}
    settings: dict[str, Any] = {"learning_rate": value, "mask_past": name != "sequential"}
    if name == "merge":
        return CLoRA(rank=RANK, penalty_weight=0.0), settings
    if name == "lora":
        return LoRA(rank=RANK), settings | {"roles": PROJECTIONS}
    if name == "prompts":
        return PromptPool(), settings
    return Selective(), settings | {"roles": PROJECTIONS}


def units(results: Results, settings: Settings) -> list[Unit]:
    tuning: list[Unit] = [
        {"stage": "tune", "contender": name, "value": value, "tasks": MIDDLE, "seed": TUNING_SEED}
        for name, (_, _, values) in CONTENDERS.items()
        for value in values
    ]
    if len(results) < len(tuning):
        return tuning
    best = {
        name: tuned(results.where(stage="tune", contender=name), lambda each: each.scores["average"], setting="value")
        for name in CONTENDERS
    }
    return tuning + [
        {"stage": "test", "contender": name, "value": best[name], "tasks": count, "seed": seed}
        for count in COUNTS
        for seed in settings.seeds
        for name in CONTENDERS
    ]


def run(unit: Unit, context: Context) -> dict[str, Any]:
    folders = emoji_classes(context.data / "emoji")
    tasks = split_classes(folders, unit["tasks"], seed=unit["seed"] + 1)  # 0 would be the order of the alphabet
    if unit["stage"] == "tune":  # as a user would who may not see the whole sequence
        tasks = tasks[:SHORT]
    network = load_classifier("embedded", tasks[-1].last)
    chosen, settings = method(unit["contender"], unit["value"])
    run = train_classify(
        network, tasks, method=chosen, out=context.folder, seed=unit["seed"], steps=STEPS // unit["tasks"], quiet=True,
        **settings,
    )  # fmt: skip
    found = run.metrics["classify"]
    right = {
        name: sum(these) / len(these)
        for task, answers in zip(tasks, ClassRecord.read(run.folder).answers[-1], strict=True)
        for name, these in zip(task.classes, chunks(answers, len(TESTED_ON)), strict=True)
    }
    names = ("scores", "average", "forgetting", "forgetting_from_best", "stages")
    return {name: found[name] for name in names} | {
        "by_class": [right[name] for name in sorted(right)],
        "network": network.fingerprint,
        "trainable": run.metrics["trainable_parameters"],
        "bytes": run.metrics["stored_bytes"],
    }


def chunks(values: list[bool], size: int) -> list[list[bool]]:
    return [values[i : i + size] for i in range(0, len(values), size)]


def by_class(runs: list[Finished]) -> Tensor:
    """(seeds, classes): the share of a class's test pictures that is right at the end; A_N is its mean."""
    return torch.tensor([each.scores["by_class"] for each in runs])


def judge(results: Results) -> Verdict:
    tested = {
        (name, count): results.where(stage="test", contender=name, tasks=count)
        for name in CONTENDERS
        for count in COUNTS
    }
    others = [name for name in CONTENDERS if name != "c_lora"]
    pairs = [(name, MIDDLE) for name in others] + [("merge", COUNTS[-1])]
    better = [
        Comparison(
            name=f"A_N at {count} tasks, C-LoRA minus {CONTENDERS[name][0]},", margin=MARGIN,
            interval=interval_of_crossed_mean(
                by_class(tested["c_lora", count]) - by_class(tested[name, count]), level=1 - 0.05 / len(pairs)
            ),
        )
        for name, count in pairs
    ]  # fmt: skip
    decisive = [each for each, (name, _) in zip(better, pairs, strict=True) if name == "merge"]
    return Verdict(
        paper=claimed_better(better),
        goal=goal([within(each.interval, low=WANTED) for each in decisive], in_a_sentence(decisive)),
        comparisons=better,
        tables=[
            Table(
                title=f"{CLASSES} classes in {count} tasks",
                columns=["contender", "A_N", "F_N", "from the best", "mean over stages", "trained", "bytes"],
                rows=[
                    [
                        title,
                        interval_of_crossed_mean(by_class(tested[name, count])),
                        *(mean([each.scores[key] for each in tested[name, count]]) for key in KEPT),
                        mean([mean(each.scores["stages"]) for each in tested[name, count]]),
                        f"{tested[name, count][0].scores['trainable']:,}",
                        f"{tested[name, count][0].scores['bytes']:,}",
                    ]
                    for name, (title, _, _) in CONTENDERS.items()
                ],
                note="; ".join(
                    f"{title}: {what} {tested[name, count][0].unit['value']:g}"
                    for name, (title, what, _) in CONTENDERS.items()
                ),
            )
            for count in COUNTS
        ],
    )  # fmt: skip


KEPT = ("forgetting", "forgetting_from_best")


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def null(unit: Unit, generator: torch.Generator) -> dict[str, Any]:
    return fabricated(unit, 0.5, generator)


def oracle(unit: Unit) -> dict[str, Any]:
    return fabricated(unit, 0.6 if unit["contender"] == "c_lora" else 0.45, None)


def fabricated(unit: Unit, right: float, generator: torch.Generator | None) -> dict[str, Any]:
    """Scores of a training that nobody ran: classes are easy or hard, and two runs differ in a tenth of them."""
    hard = torch.tensor([crc32(f"{i}".encode()) / 2**32 for i in range(CLASSES)])
    of_class = (hard < right).float()
    if generator is not None:
        changed = torch.rand(CLASSES, generator=generator) < 0.1
        of_class = torch.where(changed, (torch.rand(CLASSES, generator=generator) < right).float(), of_class)
    average = of_class.mean().item()
    return {
        "scores": [], "average": average, "forgetting": 0.02, "forgetting_from_best": 0.1, "stages": [average],
        "by_class": of_class.tolist(), "network": "", "trainable": 1, "bytes": 1,
    }  # fmt: skip


CLAIM = Claim(
    id="CL-3",
    title="C-LoRA learns classes task after task, and keeps more of them than LoRA without its penalty",
    paper=(
        "Section 5: on ImageNet-R in 10 tasks, without rehearsal, C-LoRA has the highest final accuracy A_N (above "
        "sequential training, EWC, L2P, DualPrompt and CODA-Prompt). Tested here: above six of ours at 10 tasks"
    ),
    goal="A_N above LoRA without penalty by 5 points or more, at 10 and at 20 tasks",
    design=Design(
        resampled="classes and orders of them (training seeds), crossed", margin="2 points of A_N", half_width=0.05,
        pilot="assumed: two runs differ in a tenth of the pictures",
        seconds=lambda unit: 60.0 if unit["stage"] == "test" else 20.0, basis="timed: 26 units, at half a core",
    ),
    units=units,
    run=run,
    judge=judge,
    null=null,
    oracle=oracle,
    needs_base=False,
)  # fmt: skip
