"""Trains a second judge of subjects, which has nothing in common with the probe but the sprites.

    python tools/train_second_judge.py train  --data EMOJI --work DIR --steps 700      (resumes from DIR)
    python tools/train_second_judge.py export --data EMOJI --work DIR --out src/diffadapt/metrics/second_judge

EMOJI is the folder of sprite folders that `tools/train_probe.py` reads. Another architecture than the probe's
(`metrics/second_judge.py`), and another objective, without labels and without a word of language: of two scenes of one
sprite among those of others it has to find the pair (SimCLR's NT-Xent, Chen et al. 2020, arXiv:2002.05709, equation 1).
It has no projection head, as cosines of its features are what it is used for. Every sprite comes with the same thing by
another artist, so that the noun is not enough. The scenes differ in place, size, mirroring, tilt, hue, brightness, blur
and noise, half of them on the plain grounds of the first embedded world and half on those of the wide one: it serves
both. Held-out nouns and styles are never shown. Batches are drawn from (seed, step). The folder gets the weights in
float16 and `judge.json`, its card: how it was trained and what it gets right on held-out sprites.
"""

import argparse
import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from probe_batches import Sprites, spoil
from torch import Tensor
from train_probe import SOURCES, learning_rate, load_state, save_state

from diffadapt.data.scenes import FOLDER_OF, World, load_sprite, render, sample_scene
from diffadapt.data.wide_pictures import draw_wide_scenes
from diffadapt.data.wide_scenes import sample_wide_scene
from diffadapt.data.world import HELD_OUT_NOUNS, STYLES
from diffadapt.files import load_tensors, save_tensors, write_json
from diffadapt.metrics.features import load_features
from diffadapt.metrics.second_judge import SecondJudge, load_second_judge

STEMS, TEMPERATURE, RATE = 32, 0.1, 4e-3  # a batch is two scenes each of two artists' sprites of so many things
HELD_BACK = 10**9  # a "step" that no training reaches
AMONG, ROUNDS = 32, 20  # how many held-out sprites are told apart, how often
Key = tuple[str, str]  # (folder, file stem)


def chosen_of(rng: np.random.Generator, sprites: Sprites) -> list[Key]:
    """Sprites of a batch: of each thing those of two artists, or the one there is."""
    chosen = []
    for i in rng.choice(len(sprites.stems), STEMS, replace=False):
        folders = sprites.folders_of[sprites.stems[i]]
        chosen += [(folders[k], sprites.stems[i]) for k in rng.permutation(len(folders))[:2]]
    return chosen


def wide_views(rng: np.random.Generator, sprites: Sprites, chosen: list[Key]) -> Tensor:
    """A picture (N, 3, 64, 64) of each sprite, half of them on grounds of the wide world."""
    scenes, drawn = sprites.views(rng, chosen)
    for i in range(0, len(scenes), 2):
        scenes[i] = dataclasses.replace(scenes[i], ground=sample_wide_scene(rng, sprites.world).ground)
    order = rng.permutation(len(scenes))  # so that no sprite always stands on the one kind
    pictures = torch.empty(len(scenes), 3, 64, 64)
    pictures[order] = draw_wide_scenes([scenes[i] for i in order], drawn)[0]
    light = torch.from_numpy(rng.uniform(0.85, 1.15, (len(scenes), 1, 1, 1))).float()
    return spoil((pictures * light).clamp(0, 1), rng)


def nt_xent(first: Tensor, second: Tensor) -> Tensor:
    """Equation 1 of SimCLR over a batch of pairs of unit rows (N, D)."""
    rows = torch.cat([first, second])
    similar = (rows @ rows.T / TEMPERATURE).fill_diagonal_(float("-inf"))
    n = len(first)
    return F.cross_entropy(similar, torch.cat([torch.arange(n) + n, torch.arange(n)]))


def train(args: argparse.Namespace) -> None:
    torch.manual_seed(args.seed)
    sprites, model = Sprites(args.data), SecondJudge()
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, betas=(0.9, 0.98), weight_decay=0.05, fused=True)
    model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    weights = dict(model.state_dict())
    average = {name: value.detach().clone() for name, value in weights.items()}
    first, start = load_state(args.work, model, average, optimizer), time.process_time()
    millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    print(f"{len(sprites.stack)} sprites; {millions:.2f} M parameters; from step {first} to {args.steps}", flush=True)
    for step in range(first, args.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, args.steps, RATE)
        rng = np.random.default_rng([args.seed, step])
        chosen = chosen_of(rng, sprites)
        pictures = torch.cat([wide_views(rng, sprites, chosen) for _ in range(2)])
        loss = nt_xent(*model(pictures.to(memory_format=torch.channels_last)).chunk(2))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        keep = min(0.99, (step + 1) / (step + 10))
        for name, value in average.items():
            value.lerp_(weights[name].detach(), 1 - keep)
        done = step + 1
        if done % 25 == 0 or done == args.steps:
            save_state(args.work, model, average, optimizer, done)
            row = {"step": done, "loss": round(float(loss), 4)}
            row["cpu_minutes"] = round((time.process_time() - start) / 60, 2)
            print(json.dumps(row), flush=True)
            with open(args.work / "log.jsonl", "a", encoding="utf-8") as log:
                log.write(json.dumps(row) + "\n")


def export(args: argparse.Namespace) -> None:
    """Writes the averaged weights in float16, and the card."""
    tensors, metadata = load_tensors(args.work / "state.safetensors")
    half = {k.removeprefix("average."): v.half() for k, v in tensors.items() if k.startswith("average.")}
    save_tensors(args.out / "judge.safetensors", half, {"format": "diffadapt-second-judge", "format_version": "1"})
    shape = SecondJudge()
    card: dict[str, Any] = {"format_version": 1, "widths": shape.widths, "features": shape.features}
    write_json(args.out / "judge.json", card)  # so that it can be loaded and measured
    log = [json.loads(line) for line in (args.work / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    clock = [row["cpu_minutes"] for row in log]  # it starts again with every resume
    spent = sum(now for now, after in zip(clock, [*clock[1:], 0.0], strict=True) if after < now)
    steps = int(metadata["step"])
    card |= {
        "serves": "subjects of the first embedded world and of the wide one: whose sprite it is, on any ground",
        "does_not_serve": "prompts, backgrounds, styles (it reads no text); photographs",
        "architecture": f"{sum(p.numel() for p in shape.parameters()):,} parameters: five convolutions, group norm, "
        "the mean and the largest of an 8 x 8 grid",
        "objective": f"NT-Xent at temperature {TEMPERATURE}, {2 * STEMS} pairs a batch, no labels, no text",
        "training": {
            "steps": steps, "pictures_at_most": steps * STEMS * 4, "sprites": len(Sprites(args.data).stack),
            "seed": args.seed, "cpu_minutes": round(spent, 1), "last_loss": log[-1]["loss"],
            "hardware": "one thread of a shared two-core x86-64 machine", "torch": torch.__version__,
            "held_out": "world.HELD_OUT_NOUNS in every folder, and the folders of other styles", "data": SOURCES,
        },
        "held_out": measure(args.data, args.out),
    }  # fmt: skip
    write_json(args.out / "judge.json", card)
    print((args.out / "judge.json").read_text(encoding="utf-8"))


@torch.no_grad()
def measure(data: Path, out: Path) -> dict[str, Any]:
    """On sprites that neither judge was shown: how often the nearest of 32 other scenes shows the same one.

    "agreement" is the correlation of both judges' likenesses over all pairs of scenes, "agreement_others" over pairs of
    different sprites alone, where nothing but their taste decides.
    """
    stems = {stem for _, _, stem in HELD_OUT_NOUNS}
    sprites = Sprites(data, stems=stems)
    judges = {"probe": load_features("probe").subjects, "second": load_second_judge(out)}
    result: dict[str, Any] = {"among": AMONG, "rounds": ROUNDS}
    for world in ("first_world", "wide_world"):
        found: dict[str, list[Tensor]] = {name: [] for name in judges}
        for i in range(ROUNDS):
            rng = np.random.default_rng([HELD_BACK, i])
            views = first_views(rng, data) if world == "first_world" else held_back_views(rng, sprites)
            for name, judge in judges.items():
                first, second = (judge(each) for each in views)
                found[name].append(first @ second.T)
        own = torch.eye(AMONG, dtype=torch.bool)
        for name, likeness in found.items():
            all_of = torch.stack(likeness)
            right = (all_of.argmax(2) == torch.arange(AMONG)).float().mean()
            same, other = all_of[:, own], all_of[:, ~own]
            result[f"{world}_{name}"] = {
                "top1": round(float(right), 4), "cosine_same": round(float(same.mean()), 4),
                "cosine_other": round(float(other.mean()), 4),
            }  # fmt: skip
        both = [torch.stack(each) for each in found.values()]
        result[f"{world}_agreement"] = round(correlation(*(each.flatten() for each in both)), 4)
        result[f"{world}_agreement_others"] = round(correlation(*(each[:, ~own].flatten() for each in both)), 4)
    return result


def first_views(rng: np.random.Generator, data: Path) -> tuple[Tensor, Tensor]:
    """Two scenes of the first world of each of 32 held-out things, each in one of its four styles."""
    names = [HELD_OUT_NOUNS[i] for i in rng.choice(len(HELD_OUT_NOUNS), AMONG, replace=False)]
    keys = [(noun, STYLES[int(rng.integers(len(STYLES)))][0], stem) for noun, _, stem in names]
    sprites = {(noun, style): load_sprite(data / FOLDER_OF[style] / f"{stem}.png") for noun, style, stem in keys}
    views = []
    for _ in range(2):
        scenes = [sample_scene(rng, World(nouns=(noun,), styles=(style,))) for noun, style, _ in keys]
        views.append(render(scenes, sprites)[0])
    return views[0], views[1]


def held_back_views(rng: np.random.Generator, sprites: Sprites) -> tuple[Tensor, Tensor]:
    """Two scenes of the wide world of each of 32 held-out sprites, some of them the same thing by other artists."""
    keys = sorted(sprites.number)
    chosen = [keys[i] for i in rng.choice(len(keys), AMONG, replace=False)]
    return wide_views(rng, sprites, chosen), wide_views(rng, sprites, chosen)


def correlation(a: Tensor, b: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([a, b]))[0, 1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=("train", "export"))
    parser.add_argument("--data", type=Path, required=True, help="folder of sprite folders")
    parser.add_argument("--work", type=Path, required=True, help="state and log")
    parser.add_argument("--out", type=Path, help="export: the folder to write")
    parser.add_argument("--steps", type=int, default=700)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    train(args) if args.stage == "train" else export(args)


if __name__ == "__main__":
    main()
