"""Trains the probe that measures the embedded base: an image-text encoder pair of the embedded world.

    python tools/train_probe.py train  --data EMOJI --work DIR --steps 4000     (resumes from DIR)
    python tools/train_probe.py train  --data EMOJI --work DIR --init PROBE    (begins with a probe, made deeper)
    python tools/train_probe.py export --data EMOJI --work DIR --out src/diffadapt/metrics/probe    (with --init again)

EMOJI is the folder of sprite folders that `tools/train_embedded_base.py` reads. Four things are asked of the probe at
once: name what is in a picture; find the caption of a picture among all captions of the batch and among captions that
are false in one word; name the sprite out of all sprites; tell two scenes of one sprite from scenes of others. Held-out
nouns (in every folder) and the held-out style are never shown. Batches are drawn from (seed, step) by a process of
their own, so a resumed run sees what an uninterrupted one would have seen. `export` also measures the averaged weights
on held-back scenes. What `--init` adds to a probe changes nothing to begin with.
"""

import argparse
import dataclasses
import json
import math
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from probe_batches import LABELS, SKIP, Batch, Sprites, draw_batch, probe_shape
from probe_quality import measure
from torch import Tensor, nn

from diffadapt.data.wide_pictures import draw_wide_scenes
from diffadapt.files import load_tensors, read_json, save_tensors, write_json
from diffadapt.metrics.probe import EMBEDDING, Probe, ProbeShape, load_probe

HEAD_WEIGHTS = {"object": 1.0, "second": 0.5, "style": 2.0, "colour": 1.0, "wearing": 0.5}  # the others 0.3

SOURCES = {
    "Noto Emoji": "Apache-2.0, Google",
    "Twemoji": "CC-BY 4.0, Twitter and contributors",
    "Fluent Emoji (3D, Flat)": "MIT, Microsoft",
    "Blobmoji": "Apache-2.0, C1710 and contributors",
}


def caption_loss(probe: Probe, joint: Tensor, batch: Batch) -> Tensor:
    """Picture -> caption among all true and false captions, and caption -> picture (CLIP's symmetric loss)."""
    texts = batch.captions + batch.wrong
    embedded = probe.text(probe.tokenize(texts))
    logits = joint @ embedded.T * probe.log_scale.exp().clamp(max=60)
    n = len(joint)
    # The same words twice are no contradiction. (They are rare: captions of a few words.)
    same = torch.tensor([[i != j and texts[i] == texts[j] for j in range(len(texts))] for i in range(n)])
    logits = logits.masked_fill(same, -1e4)
    truth = torch.arange(n)
    return (F.cross_entropy(logits, truth) + F.cross_entropy(logits[:, :n].T, truth)) / 2


def sprite_losses(subject: Tensor, proxies: Tensor, sprite: Tensor) -> tuple[Tensor, Tensor]:
    """Naming the sprite by a cosine softmax over all of them, and a supervised contrastive loss within the batch."""
    known = sprite != SKIP
    subject, sprite = subject[known], sprite[known]
    naming = F.cross_entropy(subject @ F.normalize(proxies, dim=1).T * 16, sprite)
    near = (subject @ subject.T * 10).fill_diagonal_(-1e4)
    alike = (sprite[:, None] == sprite[None, :]).fill_diagonal_(False)
    paired = alike.any(1)
    each = -(near.log_softmax(1) * alike).sum(1)[paired] / alike.sum(1)[paired]
    return naming, each.mean()


class Batches(torch.utils.data.Dataset[Batch]):
    """Batch number `step` of a run."""

    def __init__(self, sprites: Sprites, seed: int, size: int) -> None:
        self.sprites, self.seed, self.size = sprites, seed, size

    def __getitem__(self, step: int) -> Batch:
        return draw_batch(np.random.default_rng([self.seed, step]), self.sprites, self.size)


@torch.no_grad()
def deepen(old: Probe, probe: Probe) -> None:
    """Gives `probe`, which has as many blocks at each size or more, all that `old` knows: it says the same at first."""
    if old.shape.words != probe.shape.words or old.shape.labels != probe.shape.labels:
        raise ValueError("the probe to begin with knows other words or labels than the world has now")
    rest = {key: value for key, value in old.state_dict().items() if not key.startswith("image.trunk.")}
    if probe.shape.style_by_object:
        nn.init.zeros_(probe.image.style_by_object.weight)
    probe.load_state_dict(rest, strict=False)
    theirs, ours = iter(old.image.trunk), iter(probe.image.trunk)
    for was, now in zip(old.shape.blocks, probe.shape.blocks, strict=True):
        for at, layer in zip(range(1 + now), ours, strict=False):
            if at <= was:
                layer.load_state_dict(next(theirs).state_dict())
            else:
                nn.init.zeros_(layer.second_norm.weight)  # x + 0


@torch.no_grad()
def embed_sprites(probe: Probe, proxies: nn.Embedding, sprites: Sprites) -> None:
    """The proxy of each sprite becomes the subject embedding of one view of it."""
    chosen, rng = list(sprites.number), np.random.default_rng(0)
    probe.eval()
    for start in range(0, len(chosen), 256):
        scenes, drawn = sprites.views(rng, chosen[start : start + 256])
        proxies.weight[start : start + len(scenes)] = probe.image(draw_wide_scenes(scenes, drawn)[0])[2]
    probe.train()


def learning_rate(step: int, total: int, peak: float) -> float:
    return peak * min(1.0, (step + 1) / 200) * 0.5 * (1 + math.cos(math.pi * min(1.0, step / total)))


def save_state(work: Path, model: nn.Module, average: dict[str, Tensor], optimizer, step: int) -> None:
    tensors = {f"model.{k}": v for k, v in model.state_dict().items()} | {f"average.{k}": v for k, v in average.items()}
    for i, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{i}.{k}": torch.as_tensor(v) for k, v in state.items()}
    save_tensors(work / "state.safetensors", tensors, {"step": str(step)})


def load_state(work: Path, model: nn.Module, average: dict[str, Tensor], optimizer) -> int:
    if not (work / "state.safetensors").exists():
        return 0
    tensors, metadata = load_tensors(work / "state.safetensors")
    parts: dict[str, dict[str, Tensor]] = {"model": {}, "average": {}, "optimizer": {}}
    for key, value in tensors.items():
        part, name = key.split(".", 1)
        parts[part][name] = value
    model.load_state_dict(parts["model"])
    for key, value in average.items():
        value.copy_(parts["average"][key])
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in parts["optimizer"].items():
        index, name = key.split(".")
        state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return int(metadata["step"])


def train(args) -> None:
    torch.manual_seed(args.seed)
    sprites = Sprites(args.data)
    shape = dataclasses.replace(probe_shape(args.data), blocks=tuple(args.blocks))
    model = nn.ModuleDict({"probe": Probe(shape), "proxies": nn.Embedding(len(sprites.stack), EMBEDDING)})
    probe, proxies = model["probe"], model["proxies"]
    assert isinstance(probe, Probe) and isinstance(proxies, nn.Embedding)
    probe.image.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    groups = [{"params": list(probe.parameters())}, {"params": [proxies.weight], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=args.lr, betas=(0.9, 0.99), weight_decay=0.02, fused=True)
    weights = {k: v for k, v in probe.state_dict().items() if v.is_floating_point()}
    average = {k: v.detach().clone() for k, v in weights.items()}
    first = load_state(args.work, model, average, optimizer)
    if args.init and not first:
        deepen(load_probe(args.init), probe)
        embed_sprites(probe, proxies, sprites)
        for key, value in average.items():
            value.copy_(weights[key])
    millions = sum(p.numel() for p in probe.parameters()) / 1e6
    print(f"{len(sprites.stack)} sprites; {millions:.2f} M parameters; from step {first} to {args.steps}", flush=True)
    start, sums = time.time(), {}
    batches = Batches(sprites, args.seed, args.batch)
    ahead = torch.utils.data.DataLoader(batches, None, sampler=range(first, args.steps), num_workers=1)
    for step, batch in enumerate(ahead, first):
        for group, factor in zip(optimizer.param_groups, (1.0, 5.0), strict=True):
            group["lr"] = learning_rate(step, args.steps, args.lr) * factor
        # bf16 halves the time of the convolutions on a CPU with avx512_bf16; the text tower gains nothing from it.
        with torch.autocast("cpu", torch.bfloat16, enabled=args.bf16):
            logits, joint, subject = probe.image(batch.pictures.to(memory_format=torch.channels_last))
        losses = {
            head: F.cross_entropy(logits[head].float(), batch.labels[:, i], ignore_index=SKIP)
            for i, head in enumerate(LABELS)
        }
        total = sum(HEAD_WEIGHTS.get(head, 0.3) * loss for head, loss in losses.items())
        losses["caption"] = caption_loss(probe, joint, batch)
        losses["sprite"], losses["pairs"] = sprite_losses(subject, proxies.weight, batch.sprite)
        total = total + losses["caption"] + 0.5 * losses["sprite"] + 0.3 * losses["pairs"]
        optimizer.zero_grad()
        total.backward()
        norm = nn.utils.clip_grad_norm_(probe.parameters(), 5.0)
        if not math.isfinite(norm):
            raise FloatingPointError(f"gradient norm {norm} at step {step}; resume from {args.work}")
        optimizer.step()
        keep = min(0.998, (step + 1) / (step + 10))
        for key, value in average.items():
            value.lerp_(weights[key].detach(), 1 - keep)
        for key, value in losses.items():
            sums[key] = sums.get(key, 0.0) + float(value.detach())
        done = step + 1
        if done % 50 == 0:
            row: dict[str, float] = {"step": done, **{k: round(v / 50, 4) for k, v in sums.items()}}
            row["images_per_s"] = round((done - first) * args.batch / (time.time() - start), 1)
            row["minutes"] = round((time.time() - start) / 60, 2)
            print(json.dumps(row), flush=True)
            with open(args.work / "log.jsonl", "a") as log:
                log.write(json.dumps(row) + "\n")
            sums = {}
        if done % args.save_every == 0 or done == args.steps:
            save_state(args.work, model, average, optimizer, done)
            print(json.dumps({"step": done, **measure(averaged(average, shape), sprites, count=512)}), flush=True)


def averaged(average: dict[str, Tensor], shape: ProbeShape) -> Probe:
    """The averaged weights as a probe in evaluation mode."""
    probe = Probe(shape)
    probe.load_state_dict(average, strict=False)  # all but batch norm's counters
    return probe.eval().requires_grad_(False)


def minutes_spent(work: Path) -> float:
    """Wall time of training, from the log; the clock starts again with every resume."""
    clock = [json.loads(line)["minutes"] for line in (work / "log.jsonl").read_text().splitlines()]
    return round(sum(now for now, after in zip(clock, [*clock[1:], 0.0], strict=True) if after < now), 1)


def export(args) -> None:
    """Writes probe.safetensors (fp16) and probe.json (labels, vocabulary, accuracy, training facts)."""
    tensors, metadata = load_tensors(args.work / "state.safetensors")
    average = {k.removeprefix("average."): v for k, v in tensors.items() if k.startswith("average.")}
    probe = averaged(average, dataclasses.replace(probe_shape(args.data), blocks=tuple(args.blocks)))
    probe.load_state_dict({k: v.half().float() if v.is_floating_point() else v for k, v in probe.state_dict().items()})
    sprites = Sprites(args.data)
    quality = measure(probe, sprites, count=args.count, data=args.data)
    half = {k: v.half() for k, v in probe.state_dict().items() if v.is_floating_point()}
    save_tensors(args.out / "probe.safetensors", half, {"format": "diffadapt-probe", "format_version": "1"})
    shape = probe.shape
    write_json(
        args.out / "probe.json",
        {
            "format_version": 1,
            "widths": shape.widths,
            "blocks": shape.blocks,
            "text_width": shape.text_width,
            "style_by_object": shape.style_by_object,
            "labels": shape.labels,
            "words": shape.words,
            "accuracy": quality,
            "training": {
                "steps": int(metadata["step"]),
                "pictures": int(metadata["step"]) * args.batch,
                "sprites": len(sprites.stack),
                "seed": args.seed,
                "minutes": minutes_spent(args.work),
                "hardware": "two cores of an x86-64 CPU, one of which draws the batches",
                "began_with": read_json(args.init / "probe.json")["training"] if args.init else None,
                "held_out": "world.HELD_OUT_NOUNS in every folder, and the style fluent-high-contrast",
                "data": SOURCES,
            },
        },
    )
    print(json.dumps(quality, indent=1))
    print(f"{args.out}: {sum(f.stat().st_size for f in args.out.iterdir()) / 1e6:.2f} MB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=("train", "export"))
    parser.add_argument("--data", type=Path, required=True, help="folder of sprite folders")
    parser.add_argument("--work", type=Path, required=True, help="checkpoint and log")
    parser.add_argument("--init", type=Path, help="the folder of the probe that it begins with")
    parser.add_argument("--blocks", type=int, nargs=4, default=(1, 3, 3, 2), help="residual blocks at 32, 16, 8, 4 px")
    parser.add_argument("--out", type=Path, help="export: the folder to write")
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=2e-3, help="peak learning rate")
    parser.add_argument("--save-every", type=int, default=500)
    parser.add_argument("--bf16", action="store_true", help="autocast the image tower; for processors with avx512_bf16")
    parser.add_argument("--count", type=int, default=2000, help="export: held-back scenes to measure on")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    train(args) if args.stage == "train" else export(args)


if __name__ == "__main__":
    main()
