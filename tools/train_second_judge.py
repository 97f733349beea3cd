"""Trains a second judge of subjects, which has nothing in common with the probe but the sprites.

    python tools/train_second_judge.py --data EMOJI --out FOLDER --minutes 10
    diffadapt evaluate ... --features probe --features dino:FOLDER

EMOJI is the folder of sprite folders that `tools/train_probe.py` reads. Another architecture, a vision transformer, and
another objective, without a word of language: of two scenes of one sprite among those of others it has to find the
pair (SimCLR's NT-Xent, Chen et al. 2020, arXiv:2002.05709, equation 1). The scenes differ in place, size, background,
brightness and noise, so that what is left to agree on is the sprite. Held-out nouns and styles are never shown. Batches
are drawn from (seed, step). FOLDER is in transformers' format, float16, below 2 MB, with `judge.json`: how often the
nearest of 32 scenes of held-out sprites shows the same one, and how far the probe's likenesses of them agree.
"""

import argparse
import json
import platform
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffadapt.data.scenes import FOLDER_OF, STEM_OF, World, load_sprite, render, sample_scene
from diffadapt.data.world import HELD_OUT_NOUNS, NOUNS, STYLES
from diffadapt.files import write_json
from diffadapt.metrics.features import load_features

SHAPE = {
    "image_size": 64, "patch_size": 8, "hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4,
    "intermediate_size": 256, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
}  # fmt: skip
PAIRS, TEMPERATURE, RATE, HELD_BACK = 64, 0.1, 1e-3, 10**9  # HELD_BACK: a "step" that no training reaches
Sprites = dict[tuple[str, str], Tensor]


def sprites_of(folder: Path, nouns: tuple[tuple[str, str, str], ...]) -> Sprites:
    """(noun, style) -> sprite, of those that are there."""
    wanted = [(noun, style) for noun, _, _ in nouns for style, _ in STYLES]
    files = {key: folder / FOLDER_OF[key[1]] / f"{STEM_OF[key[0]]}.png" for key in wanted}
    return {key: load_sprite(file) for key, file in files.items() if file.is_file()}


def two_scenes(names: list[tuple[str, str]], sprites: Sprites, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Two pictures (N, 3, 64, 64) of each sprite, alike in nothing else."""
    views = []
    for _ in range(2):
        scenes = [sample_scene(rng, World(nouns=(n,), styles=(s,)), two_objects=0.0) for n, s in names]
        drawn = render(scenes, {name: sprites[name] for name in names})[0]
        light = torch.from_numpy(rng.uniform(0.8, 1.2, (len(names), 1, 1, 1))).float()
        noise = torch.from_numpy(rng.standard_normal(drawn.shape, dtype=np.float32)) * 0.02
        views.append((drawn * light + noise).clamp(0, 1))
    return views[0], views[1]


def nt_xent(first: Tensor, second: Tensor) -> Tensor:
    """Equation 1 of SimCLR over a batch of pairs of features (N, D)."""
    rows = F.normalize(torch.cat([first, second]), dim=1)
    similar = (rows @ rows.T / TEMPERATURE).fill_diagonal_(float("-inf"))
    n = len(first)
    return F.cross_entropy(similar, torch.cat([torch.arange(n) + n, torch.arange(n)]))


def train(folder: Path, out: Path, minutes: float, seed: int) -> dict[str, float | int]:
    """Trains for some CPU minutes and writes the model; returns what is known of the training."""
    from transformers import ViTConfig, ViTModel

    torch.manual_seed(seed)
    model, head = ViTModel(ViTConfig(**SHAPE), add_pooling_layer=False), nn.Linear(128, 128)
    sprites = sprites_of(folder, NOUNS)
    optimizer = torch.optim.AdamW([*model.parameters(), *head.parameters()], lr=RATE, weight_decay=0.05)
    step, started, names, loss = 0, time.process_time(), list(sprites), float("nan")
    while (spent := (time.process_time() - started) / 60) < minutes:
        rate = RATE * min(1.0, (step + 1) / 50) * (1 - spent / minutes)
        for group in optimizer.param_groups:
            group["lr"] = rate
        rng = np.random.default_rng((seed, step))
        chosen = [names[i] for i in rng.choice(len(names), PAIRS, replace=False)]
        pictures = torch.cat(two_scenes(chosen, sprites, rng))
        rows = head(model(pixel_values=(pictures - 0.5) / 0.5).last_hidden_state[:, 0])
        value = nt_xent(*rows.chunk(2))
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        step, loss = step + 1, float(value)
        if step % 50 == 0:
            print(f"step {step}, {spent:.1f} CPU minutes, loss {loss:.3f}", flush=True)
    model.half().save_pretrained(out, safe_serialization=True)
    fit = {"do_center_crop": True, "crop_size": 64, "size": {"shortest_edge": 64}}
    write_json(out / "preprocessor_config.json", {**fit, "image_mean": [0.5] * 3, "image_std": [0.5] * 3})
    return {"steps": step, "pairs": PAIRS, "sprites": len(sprites), "cpu_minutes": round(minutes, 2), "loss": loss}


@torch.no_grad()
def measure(folder: Path, out: Path) -> dict[str, float]:
    """On held-out sprites: how often the nearest scene shows the same one, and agreement with the probe."""
    sprites, rng = sprites_of(folder, HELD_OUT_NOUNS), np.random.default_rng(HELD_BACK)
    names = [list(sprites)[i] for i in rng.choice(len(sprites), 32, replace=False)]
    views = two_scenes(names, sprites, rng)
    likeness = {}
    for name in ("probe", f"dino:{out}"):
        first, second = (load_features(name).subjects(each) for each in views)
        likeness[name] = first @ second.T
    right = {name: float((each.argmax(1) == torch.arange(32)).float().mean()) for name, each in likeness.items()}
    both = torch.stack([each.flatten() for each in likeness.values()])
    return {
        "held_out_top1": right[f"dino:{out}"], "held_out_top1_probe": right["probe"],
        "agreement_with_probe": float(torch.corrcoef(both)[0, 1]),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=10.0, help="CPU minutes")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    facts = train(arguments.data, arguments.out, arguments.minutes, arguments.seed)
    facts |= measure(arguments.data, arguments.out)
    facts |= {"seed": arguments.seed, "machine": platform.machine(), "torch": torch.__version__}
    write_json(arguments.out / "judge.json", facts)
    print(json.dumps(facts, indent=1))


if __name__ == "__main__":
    main()
