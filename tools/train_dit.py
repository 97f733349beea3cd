"""Trains a small class-conditional Diffusion Transformer on emoji sprites: the source model of the transfer recipe.

    python tools/train_dit.py --data EMOJI --work DIR --minutes 300
    python tools/train_dit.py --data EMOJI --work DIR --export OUT
    python tools/train_dit.py --data EMOJI --work DIR --keep OUT

EMOJI holds the folders of `SETS`, each with a metadata.jsonl whose "subgroup" is the class. Pictures of 64 pixels are
encoded once by the embedded base's autoencoder, twice each (mirrored, moved, on white or on a flat colour:
the wider the base, the more it denoises near the data whatever it is shown). Stop it at any time (Ctrl-C or SIGTERM
ends the step and saves) and start it again with the same line: it goes on from DIR/state.safetensors. DIR also gets
log.jsonl and grids/. `--keep` writes what another machine needs to go on, the averaged weights in fp16; copied to DIR,
they are gone on from with fresh moments and a new warm-up. The rate holds; for an end, let it fall (`--decay-from`).

The model has DiT's shape at a small size: linear betas, noise and variance predicted, a tenth of the labels dropped.
`--export` writes the averaged weights as fp16 in the layout of a DiTPipeline.
"""

import argparse
import json
import math
import signal
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from train_denoiser import has_bf16

from diffadapt.bases import load_base
from diffadapt.bases.defaults import Defaults, write_defaults
from diffadapt.files import read_json, save_tensors, write_json
from diffadapt.objectives.variational_bound import variational_bound

SETS = ("noto", "twemoji", "fluent-flat", "fluent-3d", "fluent-high-contrast", "blob")
SIDE, VARIANTS, WARM_UP, SAVE_EVERY = 64, 2, 500, 120  # the last in seconds
WIDTH, HEADS, LAYERS = 160, 5, 6
GUIDANCE, STEPS = 2.0, 25  # of its pictures, recommended
BETAS = {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 2e-2, "num_train_timesteps": 1000}


def list_sprites(data: Path) -> list[tuple[Path, str]]:
    """(file, subgroup) of every sprite."""
    found = []
    for name in SETS:
        for line in (data / name / "metadata.jsonl").read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            found.append((data / name / row["file_name"], row["subgroup"]))
    return found


def draw(sprite: Image.Image, rng: np.random.Generator) -> Tensor:
    """A sprite somewhere on white or a flat colour, (3, SIDE, SIDE) in [0, 1]."""
    colour = (255, 255, 255) if rng.random() < 0.5 else tuple(int(v) for v in rng.integers(256, size=3))
    side = int(SIDE * rng.uniform(0.7, 1.0))
    small = sprite.resize((side, side), Image.Resampling.LANCZOS)
    if rng.random() < 0.5:
        small = small.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    x, y = (int(v) for v in rng.integers(SIDE - side + 1, size=2))
    page = Image.new("RGB", (SIDE, SIDE), colour)
    page.paste(small, (x, y), small)
    return torch.from_numpy(np.array(page)).permute(2, 0, 1).float() / 255


def encode_all(data: Path, place: Path, base) -> tuple[Tensor, Tensor, list[str]]:
    """Latents (M, C, h, w) fp16, their labels (M,) and the class names; computed once."""
    sprites = list_sprites(data)
    names = sorted({kind for _, kind in sprites})
    if not place.exists():
        rows: list[Tensor] = []
        rng = np.random.default_rng(0)
        for i in range(0, len(sprites), 64):
            opened = [Image.open(file).convert("RGBA") for file, _ in sprites[i : i + 64]]
            pixels = torch.stack([draw(sprite, rng) for sprite in opened for _ in range(VARIANTS)])
            rows.append(base.encode_pictures(pixels).half())
            if i % 1024 == 0:
                print(f"encoding {i} of {len(sprites)} sprites", flush=True)
        labels = torch.tensor([names.index(kind) for _, kind in sprites]).repeat_interleave(VARIANTS)
        save_tensors(place, {"latents": torch.cat(rows), "labels": labels})
    held = load_file(place)
    return held["latents"], held["labels"], names


def build_transformer(classes: int) -> nn.Module:
    from diffusers import DiTTransformer2DModel

    model = DiTTransformer2DModel(
        num_attention_heads=HEADS, attention_head_dim=WIDTH // HEADS, in_channels=6, out_channels=12,
        num_layers=LAYERS, sample_size=16, patch_size=2, num_embeds_ada_norm=classes,
    )  # fmt: skip
    shared = model.transformer_blocks[0].norm1.emb  # DiT has one embedding of time and label, not one for each block
    for block in model.transformer_blocks:
        block.norm1.emb = shared
        nn.init.zeros_(block.norm1.linear.weight)  # adaLN-Zero: every block begins as the identity
        nn.init.zeros_(block.norm1.linear.bias)
    for last in (model.proj_out_1, model.proj_out_2):
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
    nn.init.normal_(shared.class_embedder.embedding_table.weight, std=0.02)
    return model.eval()  # labels are dropped here, not inside the model


def losses(model: nn.Module, alphas: Tensor, clean: Tensor, noise: Tensor, t: Tensor, labels: Tensor, bf16: bool):
    """Squared error of the noise and the variance's bound, (N,) each."""
    a = alphas[t].float()[:, None, None, None]
    noisy = a.sqrt() * clean + (1 - a).sqrt() * noise
    with torch.autocast(clean.device.type, torch.bfloat16, enabled=bf16):
        output = model(noisy, timestep=t, class_labels=labels).sample
    predicted, variance = output.float().chunk(2, dim=1)
    error = (predicted - noise).square().mean((1, 2, 3))
    return error, variational_bound(alphas, clean, noisy, t, predicted, variance)


@torch.no_grad()
def draw_grid(path: Path, model: nn.Module, base, classes: int, guidance: float = 2.0) -> None:
    """One picture of each class, DDIM with 50 steps, the same starting noise every time."""
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler(**BETAS, clip_sample=False, set_alpha_to_one=True)
    scheduler.set_timesteps(50)
    labels = torch.arange(classes)
    both = torch.cat([labels, torch.full_like(labels, classes)])
    x = torch.randn(classes, 6, 16, 16, generator=torch.Generator().manual_seed(0))
    for t in scheduler.timesteps:
        output = model(torch.cat([x, x]), timestep=t.expand(2 * classes), class_labels=both).sample[:, :6]
        told, null = output.chunk(2)
        x = scheduler.step(null + guidance * (told - null), t, x).prev_sample
    pictures = (base.decode_latents(x) * 255).round().byte().cpu()
    blank = torch.zeros(-classes % 12, 3, SIDE, SIDE, dtype=torch.uint8)
    rows = [torch.cat(list(row), dim=2) for row in torch.cat([pictures, blank]).split(12)]
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(torch.cat(rows, dim=1).permute(1, 2, 0).numpy()).save(path)


def left(step: int, args: argparse.Namespace) -> float:
    """The share of the rate that a step has once it falls, in a straight line to zero."""
    if args.decay_from is None:
        return 1.0
    return min(1.0, max(0.0, 1 - (step - args.decay_from) / args.decay_over))


def train(args: argparse.Namespace) -> None:
    base = load_base("embedded")
    latents, labels, names = encode_all(args.data, args.work / "latents.safetensors", base)
    model, averaged = build_transformer(len(names)), build_transformer(len(names)).requires_grad_(False)
    named = dict(model.named_parameters())  # a shared module is named once
    ema = {key: value for key, value in averaged.named_parameters() if key in named}
    optimizer = torch.optim.AdamW(named.values(), betas=(0.9, 0.99), weight_decay=0.0, fused=True)
    state, step, warm = args.work / "state.safetensors", 0, 0
    if state.exists():
        with safe_open(state, "pt") as file:
            step = int(file.metadata()["step"])
        held = load_file(state)
        with torch.no_grad():
            for key in named:
                ema[key].copy_(held[f"ema.{key}"])
                named[key].copy_(held.get(f"model.{key}", held[f"ema.{key}"]))
        if "optimizer.0.step" in held:
            keys = ("step", "exp_avg", "exp_avg_sq")
            moments = {i: {k: held[f"optimizer.{i}.{k}"] for k in keys} for i in range(len(named))}
            optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})
        else:  # what `--keep` wrote: the average alone, and the rate warms up again
            warm = step
    elif args.init:  # an export: every block's copy of the embedding is the same
        held = load_file(args.init / "transformer" / "diffusion_pytorch_model.safetensors")
        with torch.no_grad():
            for key in named:
                ema[key].copy_(held[key])
                named[key].copy_(held[key])
    if args.keep:
        args.keep.mkdir(parents=True, exist_ok=True)
        halves = {f"ema.{key}": value.half() for key, value in ema.items()}
        save_tensors(args.keep / "state.safetensors", halves, {"step": str(step)})
        return
    if args.export:
        export(args.export, averaged, base, names, step, args.batch)
        return
    betas = torch.linspace(1e-4, 2e-2, 1000, dtype=torch.float64)
    alphas, bf16 = (1 - betas).cumprod(0), has_bf16()

    def save() -> None:
        tensors = {f"model.{k}": v for k, v in named.items()} | {f"ema.{k}": v for k, v in ema.items()}
        for i, row in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{i}.{k}": v for k, v in row.items()}
        save_tensors(state, tensors, {"step": str(step)})

    stopped: list[int] = []
    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, lambda number, _: stopped.append(number))  # the step that runs is finished first
    print(f"{sum(p.numel() for p in named.values()) / 1e6:.2f} M parameters, {len(names)} classes, {len(latents)} "
          f"latents, step {step}, bf16 {bf16}", flush=True)  # fmt: skip
    began = saved = time.time()
    first, sums, count = step, np.zeros(2), 0
    while not stopped and time.time() - began < 60 * args.minutes and (args.until is None or step < args.until):
        rng = np.random.default_rng([args.seed, step])
        chosen = torch.from_numpy(rng.integers(len(latents), size=args.batch))
        told = torch.where(torch.from_numpy(rng.random(args.batch)) < 0.1, len(names), labels[chosen])
        share = (rng.permutation(args.batch) + rng.random(args.batch)) / args.batch
        t = torch.from_numpy(share * 1000).long()
        clean = latents[chosen].float()
        noise = torch.from_numpy(rng.standard_normal(clean.shape, dtype=np.float32))
        error, bound = losses(model, alphas, clean, noise, t, told, bf16)
        for group in optimizer.param_groups:
            group["lr"] = args.lr * min(1.0, (step - warm + 1) / WARM_UP) * left(step, args)
        optimizer.zero_grad()
        (error + bound).mean().backward()
        norm = nn.utils.clip_grad_norm_(named.values(), 1.0)
        if not math.isfinite(norm):
            raise FloatingPointError(f"gradient norm {norm} at step {step}; {state} keeps the last saved state")
        optimizer.step()
        decay = min(0.999, (step + 1) / (step + 10))
        torch._foreach_lerp_(list(ema.values()), [named[key].detach() for key in ema], 1 - decay)
        sums += float(error.detach().mean()), float(bound.detach().mean())
        count, step = count + 1, step + 1
        if step % 50 == 0:
            rate = round((step - first) * args.batch / (time.time() - began), 1)
            mse, vb = (sums / count).round(5).tolist()
            row = {"step": step, "pictures": step * args.batch, "mse": mse, "vb": vb, "pictures_per_s": rate}
            print(json.dumps(row), flush=True)
            with open(args.work / "log.jsonl", "a", encoding="utf-8") as log:
                log.write(json.dumps(row) + "\n")
            sums, count = np.zeros(2), 0
        if time.time() - saved > SAVE_EVERY:
            save()
            saved = time.time()
    save()
    draw_grid(args.work / "grids" / f"{step:07}.png", averaged, base, len(names))


def export(out: Path, model: nn.Module, base, names: list[str], step: int, batch: int) -> None:
    """Writes the layout of a DiTPipeline; its own sampler takes 1000 for the null label, ours is the last row."""
    from diffusers import DDIMScheduler, DiTPipeline

    pipeline = DiTPipeline(
        transformer=model.half(), vae=base.vae,
        scheduler=DDIMScheduler(**BETAS, clip_sample=False, set_alpha_to_one=True),
    )  # fmt: skip
    pipeline.register_to_config(id2label={str(i): name for i, name in enumerate(names)})
    for block in model.transformer_blocks[1:]:  # files hold one copy for each block
        block.norm1.emb = type(block.norm1.emb)(len(names), WIDTH).half()
        block.norm1.emb.load_state_dict(model.transformer_blocks[0].norm1.emb.state_dict())
    pipeline.save_pretrained(out)
    config = out / "vae" / "config.json"
    write_json(config, {key: value for key, value in read_json(config).items() if key != "_name_or_path"})
    write_defaults(out, "embedded-dit", Defaults(guidance=GUIDANCE, steps=STEPS, encoder="probe"))
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file()) / 1e6
    print(f"{out}: {step} steps of {batch} pictures, {size:.1f} MB", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of sprite folders")
    parser.add_argument("--work", type=Path, required=True, help="state, latents, log, grids")
    parser.add_argument("--init", type=Path, help="an exported base to start from where WORK holds no state")
    parser.add_argument("--export", type=Path, help="write the averaged model here and stop")
    parser.add_argument("--keep", type=Path, help="write the averaged weights in fp16 here, to go on from, and stop")
    parser.add_argument("--minutes", type=float, default=1e9, help="stop after so many minutes")
    parser.add_argument("--until", type=int, default=None, help="stop after so many steps in all")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=5e-4, help="AdamW's rate after the warm-up")
    parser.add_argument("--decay-from", type=int, help="step from which the rate falls; without it, it holds")
    parser.add_argument("--decay-over", type=int, default=1500, help="steps within which it falls to zero")
    parser.add_argument("--seed", type=int, default=0)
    train(parser.parse_args())


if __name__ == "__main__":
    main()
