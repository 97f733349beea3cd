"""OFT-5: under a control signal OFT follows it better than LoRA and ControlNet; two statements, each by itself.

At equal size: LoRA and a copy of the first block, with at least OFT's parameters. Against the whole ControlNet: 14
times OFT's. Every training seed is scored on the same held-out scenes, so that seeds and scenes cross.

Scenes of the embedded base's world give exact signals; captions say what there is, and the signals where and how large.
All contenders but ControlNet learn the paper's hint encoder beside the method; each is tuned on segmentation with three
rates a factor of two apart and one seed of its own. Where the outermost was chosen, the three were moved by one in its
direction, once, before any test was run.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffadapt.adapters import OFT, LoRA
from diffadapt.adapters.control_net import ControlNet
from diffadapt.controls import SIGNALS
from diffadapt.data.control_pairs import ControlPairs
from diffadapt.data.picture import to_picture, write_png
from diffadapt.data.scenes import KIND_OF, Scene, caption, load_sprites, plain_world_of, render, sample_scene
from diffadapt.evaluation.evaluate_control import evaluate_control
from diffadapt.evidence import (
    Claim,
    Comparison,
    Contender,
    Context,
    Design,
    Forest,
    Results,
    Settings,
    Table,
    Unit,
    Verdict,
    tuned,
)
from diffadapt.metrics.crossed import interval_of_crossed_difference, interval_of_crossed_mean
from diffadapt.recipes.control import train_control
from diffadapt.report.finding import claimed_better, goal, in_a_sentence
from diffadapt.sampling.sample import adapted, default_line, generate
from diffadapt.training.run import Run

STEPS, BATCH, TRAINING, HELD_OUT, SAMPLING_STEPS = 500, 8, 1000, 32, 10
HINT_RATE = 4e-3
ROLES = ("self_attention.*", "cross_attention.*", "feed_forward.in")
MISSED = 32.0  # pixels that a landmark counts that is not found: half the picture


CONTENDERS = {
    "oft": Contender(method=OFT(blocks=4), title="OFT, 4 blocks + hint", rates=(2e-3, 4e-3, 8e-3)),
    "lora": Contender(method=LoRA(rank=8), title="LoRA, rank 8 + hint", rates=(4e-3, 8e-3, 1.6e-2)),
    "small": Contender(method=ControlNet(blocks=1), title="ControlNet, first block", rates=(1e-3, 2e-3, 4e-3)),
    "controlnet": Contender(method=ControlNet(), title="ControlNet, whole", rates=(5e-4, 1e-3, 2e-3)),
}
# signal: the score of one picture, whether higher is better, and what counts as equal: a quarter of what the whole
# ControlNet gained over the base without the signal in the first round
SCORES = {"canny": ("f1", True, 0.02), "segmentation": ("aacc", True, 0.02), "landmarks": ("error", False, 0.15)}
EQUAL_SIZE = ("lora", "small")
LEVEL = 1 - 0.1 / 9  # of nine comparisons, so that in 95 % of the cases none of them wrongly comes out better


def units(results: Results, settings: Settings) -> list[Unit]:
    tuning = [
        {"stage": "tune", "contender": name, "signal": "segmentation", "rate": rate, "seed": 100}
        for name, contender in CONTENDERS.items()
        for rate in contender.rates
    ]
    if len(results) < len(tuning):
        return tuning
    rates = chosen_rates(results)
    tests = [
        test_unit(name, signal, rates[name], seed)
        for seed in settings.seeds
        for signal in SCORES
        for name in CONTENDERS
    ]
    sheet = {"stage": "pictures", "seed": settings.seeds[0], **{f"rate_{name}": rate for name, rate in rates.items()}}
    return tuning + tests + ([sheet] if len(results) >= len(tuning) + len(tests) else [])


def test_unit(contender: str, signal: str, rate: float, seed: int) -> Unit:
    return {"stage": "test", "contender": contender, "signal": signal, "rate": rate, "seed": seed}


def chosen_rates(results: Results) -> dict[str, float]:
    """Contender -> the rate with the highest share of pixels that came out as asked for."""
    return {
        name: tuned(results.where(stage="tune", contender=name), lambda each: mean(each.scores["items"]["aacc"]))
        for name in CONTENDERS
    }


def run(unit: Unit, context: Context) -> dict[str, Any]:
    if unit["stage"] == "pictures":
        return {"picture": draw_sheet(unit, context)}
    trained = train(unit, context)
    held_out = scene_pairs(context, unit["signal"], HELD_OUT, seed=2)
    scores = evaluate_control(
        context.base, held_out, adapters=[(trained.folder, 1.0)], seed=0, steps=SAMPLING_STEPS,
        compare_base=unit["contender"] == "oft",
    )  # fmt: skip
    return {
        "items": {name: rounded(values) for name, values in scores["items"].items()},
        "base_items": {name: rounded(values) for name, values in scores["base_items"].items()},
        "values": {name: [row["value"], row["base"]] for name, row in scores["values"].items()},
        "trainable_parameters": trained.metrics["trainable_parameters"],
        "seconds_train": trained.metrics["seconds_train"],
    }


def train(unit: Unit, context: Context) -> Run:
    """The run of one tuning or test, trained in the folder of that unit."""
    contender = CONTENDERS[unit["contender"]]
    copy = isinstance(contender.method, ControlNet)
    return train_control(
        context.base, scene_pairs(context, unit["signal"], TRAINING, seed=1), method=contender.method,
        out=context.folder_of(unit), seed=unit["seed"], steps=STEPS, batch_size=BATCH, learning_rate=unit["rate"],
        hint_learning_rate=None if copy else HINT_RATE, roles=() if copy else ROLES,
        sample_every=0, checkpoint_every=0, evaluation_pairs=0, quiet=True,
    )  # fmt: skip


def scene_pairs(context: Context, signal: str, count: int, *, seed: int) -> ControlPairs:
    """Scenes of the base's world with one signal and their captions."""
    pictures, signals, captions = drawn(context, signal, count, seed)
    return ControlPairs.in_memory(pictures, signals, captions, signal=signal)


def drawn(context: Context, signal: str, count: int, seed: int) -> tuple[Tensor, Tensor, list[str]]:
    world = plain_world_of(context.base)
    sprites = load_sprites(context.data / "emoji", world)
    rng = np.random.default_rng(seed)
    scenes: list[Scene] = [sample_scene(rng, world) for _ in range(count)]
    pictures, masks = render(scenes, sprites)
    kinds = [[KIND_OF[thing.noun] for thing in scene.objects] for scene in scenes]
    known = SIGNALS[signal]
    signals = known.from_scene(masks, kinds) if known.from_scene else known.extract(pictures)
    return pictures, signals, [caption(unplaced(scene)) for scene in scenes]


def unplaced(scene: Scene) -> Scene:
    """A scene whose caption says what is there, and leaves it to the signal where and how large."""
    return replace(scene, objects=tuple(replace(thing, size="medium", position="center") for thing in scene.objects))


def draw_sheet(unit: Unit, context: Context) -> str:
    """Rows: two held-out scenes of each signal. Columns: the scene, the signal, the base, then each contender."""
    rows = []
    for signal in SCORES:
        pictures, signals, captions = drawn(context, signal, 2, seed=2)
        plain = [default_line(context.base, text, i) for i, text in enumerate(captions)]
        columns = [pictures, signals, torch.stack(generate(context.base, plain))]
        for name in CONTENDERS:
            test = test_unit(name, signal, unit[f"rate_{name}"], unit["seed"])
            folder = context.folder_of(test)
            if not (folder / "adapter.safetensors").exists():  # the test was run on another machine
                train(test, context)
            with adapted(context.base, [(folder, 1.0)]):
                lines = [default_line(context.base, text, i, control=signals[i]) for i, text in enumerate(captions)]
                columns.append(torch.stack(generate(context.base, lines)))
        rows += [torch.cat([column[i] for column in columns], dim=2) for i in range(2)]
    write_png(context.pictures / "signals.png", to_picture(torch.cat(rows, dim=1)))
    return "signals.png"


def scores_of(results: Results, contender: str, signal: str, kind: str = "items") -> Tensor:
    """(seeds, pictures): the deciding score of every held-out picture; a landmark that is not found counts `MISSED`."""
    name = SCORES[signal][0]
    runs = results.where(stage="test", contender=contender, signal=signal)
    return torch.tensor([[MISSED if v is None else v for v in run.scores[kind][name]] for run in runs])


def judge(results: Results) -> Verdict:
    comparisons: dict[tuple[str, str], Comparison] = {}
    rows = []
    for signal, (score, higher, margin) in SCORES.items():
        tables = {name: scores_of(results, name, signal) for name in CONTENDERS}
        own = tables["oft"]
        base = interval_of_crossed_mean(scores_of(results, "oft", signal, "base_items"))
        rows.append([signal, score, "the base, no signal", None, base, None])
        for name, contender in CONTENDERS.items():
            values = tables[name]
            runs = results.where(stage="test", contender=name, signal=signal)
            fid = mean([run.scores["values"]["fid"][0] for run in runs])
            parameters = runs[0].scores["trainable_parameters"]
            rows.append([signal, score, contender.title, parameters, interval_of_crossed_mean(values), round(fid, 3)])
            if name != "oft":
                pair = (own, values) if higher else (values, own)
                gain = interval_of_crossed_difference(*pair, [*tables.values()], level=LEVEL)
                comparisons[signal, name] = Comparison(
                    name=f"{signal} against {contender.title}", interval=gain, margin=margin
                )
    alike = [each for (_, name), each in comparisons.items() if name in EQUAL_SIZE]
    whole = [each for (_, name), each in comparisons.items() if name == "controlnet"]
    rates = ", ".join(f"{name} {rate:g}" for name, rate in chosen_rates(results).items())
    titles = ", ".join(contender.title for contender in CONTENDERS.values())
    parts = [*(True if c.standing == "better" else False if c.standing == "worse" else None for c in alike)]
    parts += [each.not_worse for each in whole]
    return Verdict(
        paper=claimed_better([each for (_, name), each in comparisons.items() if name != "small"]),
        goal=goal(parts, f"At equal size: {in_a_sentence(alike)} The whole ControlNet: {in_a_sentence(whole)}"),
        comparisons=[*comparisons.values()],
        tables=[
            Table(
                title="Consistency with the signal",
                columns=["signal", "score", "contender", "parameters", "mean", "FID"],
                rows=rows,
                note=f"Rates chosen by tuning: {rates}. FID: {HELD_OUT} pictures, the probe's features.",
            )
        ],
        plots=[
            Forest(
                title="How much better OFT follows the signal", label="difference, above 0 OFT is better", mark=0.0,
                caption="F1 of edges, share of pixels of the right class, pixels of landmark error",
                rows=[(each.name, each.interval) for each in comparisons.values()],
            )
        ],
        pictures=[("signals.png", f"The scene, the signal, the base without it, then {titles}; seed 0")],
    )  # fmt: skip


SPREAD = {"canny": (0.008, 0.09, 0.07), "segmentation": (0.006, 0.05, 0.04), "landmarks": (0.3, 5.0, 3.0)}
"""Standard deviations of seeds, of scenes, and of both together, as the first round's scores had them."""


def null(unit: Unit, generator: torch.Generator) -> dict[str, Any]:
    """All contenders are one, each with another seed."""
    if unit["stage"] == "pictures":
        return {"picture": ""}
    if unit["stage"] == "tune":
        return oracle(unit)
    name = SCORES[unit["signal"]][0]
    of_seed, of_scene, of_both = SPREAD[unit["signal"]]
    scenes = of_scene * torch.randn(HELD_OUT, generator=torch.Generator().manual_seed(5))  # hard ones are hard for all
    noise = of_both * torch.randn(HELD_OUT, generator=generator)
    seed = of_seed * torch.randn((), generator=generator)
    values = (0.5 + scenes + noise + seed).tolist()
    return {"items": {name: values}, "base_items": {name: values}, **SIZED}


def oracle(unit: Unit) -> dict[str, Any]:
    if unit["stage"] == "pictures":
        return {"picture": ""}
    name, higher, margin = SCORES[unit["signal"]]
    best = 4 * margin * (1 if higher else -1) * (unit["contender"] == "oft")
    middle = unit["rate"] == CONTENDERS[unit["contender"]].rates[1] or unit["stage"] == "test"
    values = [0.5 + best + 0.001 * (i + unit["seed"]) + 0.001 * middle for i in range(HELD_OUT)]
    return {"items": {name: values}, "base_items": {name: values}, **SIZED}


SIZED = {"values": {"fid": [0.1, 0.1]}, "trainable_parameters": 310_000}


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def rounded(values: list[float | None]) -> list[float | None]:
    return [None if value is None else round(value, 5) for value in values]


CLAIM = Claim(
    id="OFT-5",
    title="Under a control signal OFT is more consistent than LoRA and ControlNet",
    paper="Table 2, OFT (LoRA, ControlNet): canny F1 .323 (.286, .317), mIoU 27.06 (22.98, 20.88), landmarks 7.07 px "
    "(7.68, 7.61); here: above LoRA and the whole ControlNet on all three signals",
    goal="on three signals above LoRA and a ControlNet copy with at least its parameters, and not worse than the whole "
    "ControlNet by more than the margin",
    design=Design(
        resampled="training seeds and scenes, crossed",
        margin="F1 and share of pixels .02, landmarks .15 px: a quarter of what the whole ControlNet gains",
        half_width=0.03,
        pilot="of the difference in F1 to the first block, at the level that nine comparisons need; 3 seeds and 32 "
        "scenes, from the first round's own scores",
        seconds=173.0,
        basis="timed: mean of the first round's units, beside other work",
    ),
    units=units,
    run=run,
    judge=judge,
    null=null,
    oracle=oracle,
    earlier="Judged again, on the same runs. The first report nested scenes within seeds at a level of 99.99997 % and "
    "left the whole ControlNet, 14 times OFT's parameters, out of the verdict; seeds and scenes cross, and it is in "
    "now. Undecided before and after.",
)
