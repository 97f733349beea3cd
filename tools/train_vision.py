"""Trains the small vision transformer that ships for classification, on the sprites that the embedded base may see.

    python tools/train_vision.py train  --data EMOJI --work DIR --minutes 10      (CPU minutes; resumes from DIR)
    python tools/train_vision.py export --data EMOJI --work DIR --out src/diffadapt/bases/embedded_vision

EMOJI is the folder of sprite folders that `tools/train_probe.py` reads. Each picture is a sprite, turned, shifted,
scaled and mirrored at random on a plain background. The transformer's class token, projected, has to find the sprite
among all by the probe's embedding of its plain picture, so that what it learns is the probe's geometry from other
views; a second head names the sprite's group. Held-out nouns and styles are never shown, as with the probe. Batches are
drawn from (seed, step). What is exported is the backbone alone, in transformers' format, float16.
"""

import argparse
import json
import math
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from probe_batches import Sprites
from torch import Tensor, nn
from train_probe import load_state, save_state

from diffadapt.files import load_tensors, save_tensors, write_json
from diffadapt.metrics.probe import load_probe

SIDE, PATCH, WIDTH, LAYERS, HEADS, INNER = 48, 8, 128, 4, 4, 256
SHAPE = {
    "model_type": "vit", "image_size": SIDE, "patch_size": PATCH, "hidden_size": WIDTH, "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS, "intermediate_size": INNER, "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}  # fmt: skip


class Student(nn.Module):
    """The backbone with what only its training needs."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        from transformers import ViTConfig, ViTModel

        config = ViTConfig(**{key: value for key, value in SHAPE.items() if key != "model_type"})
        self.backbone = ViTModel(config, add_pooling_layer=False)
        self.project = nn.Sequential(nn.Linear(WIDTH, 256), nn.GELU(), nn.Linear(256, 128))
        self.group = nn.Linear(WIDTH, groups)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """pixels (N, 3, 48, 48) in [0, 1] -> unit rows (N, 128), logits of the groups."""
        token = self.backbone(pixel_values=(pixels - 0.5) / 0.5).last_hidden_state[:, 0]
        return F.normalize(self.project(token), dim=1), self.group(token)


class Views:
    """Sprites with the probe's embedding of each and the number of its group.

    Attributes:
        targets: (S, 128) unit rows.
        groups: (S,) long.
    """

    def __init__(self, data: Path, work: Path) -> None:
        kept = work / "sprites.safetensors"
        if not kept.exists():  # read and embedded once; a resumed run takes them from here
            save_tensors(kept, dict(zip(("stack", "targets", "groups"), read(data), strict=True)))
        held = load_tensors(kept)[0]
        self.stack, self.targets, self.groups = held["stack"], held["targets"], held["groups"]
        self.count = int(self.groups.max()) + 1

    def batch(self, rng: np.random.Generator, size: int) -> tuple[Tensor, Tensor]:
        """Pictures (N, 3, 48, 48) in [0, 1] and the numbers of their sprites."""
        index = torch.from_numpy(rng.integers(len(self.targets), size=size))
        rows = self.stack[index].float() / 255
        angle = np.deg2rad(rng.uniform(-25, 25, size))
        scale, mirror = rng.uniform(0.9, 1.9, size), np.where(rng.random(size) < 0.5, -1.0, 1.0)
        shift = rng.uniform(-0.35, 0.35, (2, size)) * (scale - 0.6)
        cos, sin = np.cos(angle) * scale, np.sin(angle) * scale
        matrix = np.stack([cos * mirror, -sin, shift[0], sin * mirror, cos, shift[1]], 1)
        grid = F.affine_grid(
            torch.from_numpy(matrix).float().view(-1, 2, 3), [size, 4, SIDE, SIDE], align_corners=False
        )
        rows = F.grid_sample(rows, grid, align_corners=False)
        ground = torch.from_numpy(rng.random((size, 3, 1, 1), dtype=np.float32)) * 0.7 + 0.3
        pictures = rows[:, :3] + (1 - rows[:, 3:]) * ground
        grey = torch.from_numpy(rng.random(size) < 0.25)
        pictures[grey] = pictures[grey].mean(1, keepdim=True).expand(-1, 3, -1, -1)
        return pictures.clamp(0, 1), index


def read(data: Path) -> tuple[Tensor, Tensor, Tensor]:
    """The sprites (S, 4, 72, 72), the probe's embedding of each (S, 128) and the number of its group (S,)."""
    sprites = Sprites(data)
    names = sorted(sprites.number, key=lambda key: sprites.number[key])
    group_of = {}
    for folder in {folder for folder, _ in names}:
        for line in (data / folder / "metadata.jsonl").read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            group_of[folder, row["file_name"].removesuffix(".png")] = row["group"]
    labels = sorted(set(group_of.values()))
    probe = load_probe()
    targets = torch.cat([probe.image(plain(part))[2] for part in sprites.stack.split(64)])
    return sprites.stack, targets, torch.tensor([labels.index(group_of[name]) for name in names])


def plain(stack: Tensor) -> Tensor:
    """(N, 4, 72, 72) premultiplied bytes -> the sprites on white, (N, 3, 64, 64) in [0, 1]."""
    rows = stack.float() / 255
    return F.interpolate(rows[:, :3] + (1 - rows[:, 3:]), (64, 64), mode="bilinear", antialias=True).clamp(0, 1)


def train(args: argparse.Namespace) -> None:
    torch.manual_seed(args.seed)
    with torch.no_grad():
        views = Views(args.data, args.work)
    student = Student(views.count)
    optimizer = torch.optim.AdamW(student.parameters(), lr=args.lr, betas=(0.9, 0.98), weight_decay=0.05)
    weights = {key: value for key, value in student.state_dict().items() if value.is_floating_point()}
    average = {key: value.detach().clone() for key, value in weights.items()}
    first = load_state(args.work, student, average, optimizer)
    spent = json.loads((args.work / "spent.json").read_text(encoding="utf-8"))["minutes"] if first else 0.0
    start, sums = time.process_time(), [0.0, 0.0, 0.0]
    for step in range(first, args.steps):
        peak = args.lr * min(1.0, (step + 1) / 100) * 0.5 * (1 + math.cos(math.pi * step / args.steps))
        for group in optimizer.param_groups:
            group["lr"] = peak
        pictures, index = views.batch(np.random.default_rng([args.seed, step]), args.batch)
        found, groups = student(pictures)
        naming = F.cross_entropy(found @ views.targets.T * 24, index)
        loss = naming + 0.5 * F.cross_entropy(groups, views.groups[index])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        keep = min(0.995, (step + 1) / (step + 10))
        for key, value in average.items():
            value.lerp_(weights[key].detach(), 1 - keep)
        right = (found.detach() * views.targets[index]).sum(1).mean().item()
        accuracy = (groups.argmax(1) == views.groups[index]).float().mean().item()
        sums = [a + b / 50 for a, b in zip(sums, (naming.item(), right, accuracy), strict=True)]
        done, minutes = step + 1, spent + (time.process_time() - start) / 60
        if done % 50 == 0:
            told = dict(zip(("naming", "cosine", "group"), (round(value, 4) for value in sums), strict=True))
            print(json.dumps({"step": done, **told, "minutes": round(minutes, 2)}), flush=True)
            sums = [0.0, 0.0, 0.0]
        over = minutes - spent > args.minutes
        if done % 100 == 0 or done == args.steps or over:
            save_state(args.work, student, average, optimizer, done)
            write_json(args.work / "spent.json", {"minutes": round(minutes, 2), "step": done})
        if over:
            return


def export(args: argparse.Namespace) -> None:
    tensors, metadata = load_tensors(args.work / "state.safetensors")
    prefix = "average.backbone."
    half = {key.removeprefix(prefix): value.half() for key, value in tensors.items() if key.startswith(prefix)}
    save_tensors(args.out / "model.safetensors", half, {"format": "pt"})
    spent = json.loads((args.work / "spent.json").read_text(encoding="utf-8"))
    steps = int(metadata["step"])
    training = {"steps": steps, "pictures": steps * args.batch, "cpu_minutes": spent["minutes"], "seed": args.seed}
    write_json(args.out / "config.json", {**SHAPE, "architectures": ["ViTModel"]})
    write_json(args.out / "training.json", training | {"data": "the sprites of metrics/probe, see ATTRIBUTION.md"})
    print(sum(file.stat().st_size for file in args.out.iterdir()) / 1e6, "MB", training)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=("train", "export"))
    parser.add_argument("--data", type=Path, required=True, help="folder of sprite folders")
    parser.add_argument("--work", type=Path, required=True, help="checkpoint and log")
    parser.add_argument("--out", type=Path, help="export: the folder to write")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--minutes", type=float, default=10.0, help="CPU minutes after which this call saves and ends")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=1.5e-3, help="peak learning rate")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    train(args) if args.stage == "train" else export(args)


if __name__ == "__main__":
    main()
