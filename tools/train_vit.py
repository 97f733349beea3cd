"""Trains the small vision transformer that class-incremental classification starts from, on the embedded world.

    python tools/train_vit.py train  --data EMOJI --work DIR --minutes 60       (resumes from DIR)
    python tools/train_vit.py export --data EMOJI --work DIR --out src/diffadapt/bases/embedded_vit

EMOJI is the folder of sprite folders that `tools/train_embedded_base.py` reads. A scene shows one of the 160 core nouns
in one of four styles, middle-sized or large, and the noun is its label. The hundred emoji of `data/emoji_classes.py`,
which the classifier is to learn later, are none of them. Scenes are drawn from (seed, step), so that a resumed run sees
what an uninterrupted one would have seen. The rate holds, and falls to zero within the last `--cool-down` minutes.
`export` writes the averaged weights in transformers' format, float16, with `card.json`: pictures seen and accuracy on
scenes of held-back seeds.
"""

import argparse
import json
import math
import platform
import signal
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import ViTConfig, ViTForImageClassification

from diffadapt.data.emoji_classes import new_classes
from diffadapt.data.wide_pictures import Sprites, draw_wide_scenes, load_wide_sprites
from diffadapt.data.wide_scenes import WideScene, WideWorld, sample_wide_scene
from diffadapt.files import load_tensors, save_tensors, write_json

SHAPE = {
    "image_size": 64, "patch_size": 8, "hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4,
    "intermediate_size": 384, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
}  # fmt: skip
WARM_UP, HELD_BACK = 100, 10**9  # steps; a "step" that no training reaches


class Stopped(Exception):
    """SIGTERM or SIGINT: save and leave."""


def core_world(data: Path) -> WideWorld:
    """The core of the wide world; refuses to go on if a class that is to be new is in it."""
    world = WideWorld(drawn=(), core_share=1.0)
    known = {stem for *_, stem in world.core} & set(new_classes(data))
    if known:
        raise ValueError(f"{', '.join(sorted(known))} must stay new, and is in the core; see data/emoji_classes.py")
    return world


def draw(rng: np.random.Generator, world: WideWorld, sprites: Sprites, size: int) -> tuple[Tensor, Tensor]:
    """Pictures (N, 3, 64, 64) in [-1, 1], and the numbers of their nouns, (N,)."""
    scenes: list[WideScene] = []
    while len(scenes) < size:
        scene = sample_wide_scene(rng, world, plain=True)
        scenes += [] if scene.things[0].size == "small" else [scene]
    places = {noun: i for i, (noun, *_) in enumerate(world.core)}
    labels = torch.tensor([places[scene.things[0].noun] for scene in scenes])
    return draw_wide_scenes(scenes, sprites)[0] * 2 - 1, labels


def build(nouns: list[str]) -> ViTForImageClassification:
    labels = dict(enumerate(nouns))
    return ViTForImageClassification(
        ViTConfig(**SHAPE, id2label=labels, label2id={noun: i for i, noun in labels.items()})
    )


@torch.no_grad()
def measure(model: nn.Module, world: WideWorld, sprites: Sprites, count: int) -> dict[str, float]:
    """Share of held-back scenes whose noun comes first, or among the first five."""
    right = []
    for i in range(0, count, 64):
        pictures, labels = draw(np.random.default_rng([HELD_BACK, i]), world, sprites, min(64, count - i))
        right.append(model(pictures).logits.topk(5).indices == labels[:, None])
    found = torch.cat(right).float()
    return {"top1": round(found[:, 0].mean().item(), 4), "top5": round(found.sum(1).mean().item(), 4)}


def train(args: argparse.Namespace) -> None:
    torch.manual_seed(args.seed)
    world = core_world(args.data)
    nouns = [noun for noun, *_ in world.core]
    sprites = load_wide_sprites(args.data, world)
    model, averaged = build(nouns), build(nouns).eval().requires_grad_(False)
    averaged.load_state_dict(model.state_dict())
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(parameters, betas=(0.9, 0.99), weight_decay=0.02, fused=True)
    step, spent = 0, 0.0
    if (args.work / "state.safetensors").exists():
        tensors, facts = load_tensors(args.work / "state.safetensors")
        step, spent = int(facts["step"]), float(facts["cpu_minutes"])
        for part, module in (("model", model), ("average", averaged)):
            module.load_state_dict({k.removeprefix(f"{part}."): v for k, v in tensors.items() if k.startswith(part)})
        keys = ("step", "exp_avg", "exp_avg_sq")
        rows = {i: {key: tensors[f"optimizer.{i}.{key}"] for key in keys} for i in range(len(parameters))}
        optimizer.load_state_dict({"state": rows, "param_groups": optimizer.state_dict()["param_groups"]})
    clock = time.process_time()

    def save() -> None:
        tensors = {f"model.{k}": v for k, v in model.state_dict().items()}
        tensors |= {f"average.{k}": v for k, v in averaged.state_dict().items()}
        for i, row in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{i}.{k}": torch.as_tensor(v) for k, v in row.items()}
        minutes = spent + (time.process_time() - clock) / 60
        facts = {"step": str(step), "pictures": str(step * args.batch), "cpu_minutes": f"{minutes:.2f}"}
        save_tensors(args.work / "state.safetensors", tensors, facts | {"seed": str(args.seed)})

    def stop(*_: object) -> None:
        raise Stopped

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    saved = counted = time.time()
    end = saved + 60 * args.minutes
    sums, count = 0.0, 0
    print(f"{sum(p.numel() for p in parameters) / 1e6:.2f} M parameters, {len(nouns)} nouns, step {step}", flush=True)
    try:
        while (left := end - time.time()) > 0:
            rate = args.lr * min(1.0, (step + 1) / WARM_UP, left / max(60 * args.cool_down, 1e-9))
            for group in optimizer.param_groups:
                group["lr"] = rate
            pictures, labels = draw(np.random.default_rng([args.seed, step]), world, sprites, args.batch)
            loss = F.cross_entropy(model(pictures).logits, labels)
            optimizer.zero_grad()
            loss.backward()
            norm = nn.utils.clip_grad_norm_(parameters, 1.0)
            if not math.isfinite(norm):
                raise FloatingPointError(f"gradient norm {norm} at step {step}; resume from {args.work}")
            optimizer.step()
            step += 1
            decay = min(0.998, step / (step + 10))
            for mean, value in zip(averaged.parameters(), parameters, strict=True):
                mean.lerp_(value.detach(), 1 - decay)
            sums, count = sums + float(loss.detach()), count + 1
            if step % 50 == 0:
                row = {"step": step, "pictures": step * args.batch, "loss": round(sums / count, 4), "lr": rate}
                row["pictures_per_s"] = round(count * args.batch / (time.time() - counted), 1)
                row["cpu_minutes"] = round(spent + (time.process_time() - clock) / 60, 1)
                sums, count, counted = 0.0, 0, time.time()
                print(json.dumps(row), flush=True)
                with open(args.work / "log.jsonl", "a", encoding="utf-8") as log:
                    log.write(json.dumps(row) + "\n")
            if time.time() - saved > 180:
                save()
                saved = time.time()
    except Stopped:
        print("stopped", flush=True)
    save()
    print(json.dumps({"step": step, **measure(averaged, world, sprites, 256)}), flush=True)


def export(args: argparse.Namespace) -> None:
    world = core_world(args.data)
    tensors, facts = load_tensors(args.work / "state.safetensors")
    model = build([noun for noun, *_ in world.core]).eval().requires_grad_(False)
    weights = {k.removeprefix("average."): v.half().float() for k, v in tensors.items() if k.startswith("average.")}
    model.load_state_dict(weights)
    accuracy = measure(model, world, load_wide_sprites(args.data, world), args.count)
    model.half().save_pretrained(args.out)
    fit = {"image_processor_type": "ViTImageProcessor", "size": {"height": 64, "width": 64}, "rescale_factor": 1 / 255}
    write_json(args.out / "preprocessor_config.json", {**fit, "image_mean": [0.5] * 3, "image_std": [0.5] * 3})
    card = {
        "shape": SHAPE,
        "nouns": len(world.core),
        "never_shown": list(new_classes(args.data)),
        "accuracy": accuracy,
        "held_back_scenes": args.count,
        "pictures": int(facts["pictures"]),
        "cpu_minutes": float(facts["cpu_minutes"]),
        "seed": int(facts["seed"]),
        "hardware": f"one shared core of a CPU ({platform.machine()}), float32",
        "sprites": "Noto Emoji (Apache-2.0), Twemoji (CC-BY 4.0), Fluent Emoji 3D (MIT), Blobmoji (Apache-2.0)",
    }
    write_json(args.out / "card.json", card)
    size = sum(file.stat().st_size for file in args.out.iterdir()) / 1e6
    print(json.dumps(accuracy), f"{args.out}: {size:.2f} MB", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=("train", "export"))
    parser.add_argument("--data", type=Path, required=True, help="folder of sprite folders")
    parser.add_argument("--work", type=Path, required=True, help="state and log")
    parser.add_argument("--out", type=Path, help="export: the folder to write")
    parser.add_argument("--minutes", type=float, default=1e9, help="stop after so many minutes")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--lr", type=float, default=1e-3, help="AdamW's rate after the warm-up")
    parser.add_argument("--cool-down", type=float, default=0.0, help="last minutes in which the rate falls to zero")
    parser.add_argument("--count", type=int, default=1024, help="export: held-back scenes to measure on")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    train(args) if args.stage == "train" else export(args)


if __name__ == "__main__":
    main()
