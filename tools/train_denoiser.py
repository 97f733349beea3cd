"""Trains the denoiser and the text encoder of the embedded base on the wide world, for hours, one piece at a time.

    python tools/train_denoiser.py --data EMOJI --work DIR --init BASE --minutes 150

Stop it at any time (Ctrl-C or SIGTERM saves) and start it again with the same line: it goes on from
DIR/state.safetensors (weights and EMA in fp16, 45 MB, all that another machine needs) and DIR/optimizer.safetensors
(warmed up again where it is missing). Scenes are drawn from (seed, step). bf16 autocast is used where the processor
(avx512_bf16, amx_bf16) or the GPU has it.

What another machine needs is kept small (EMA in fp16, 23 MB, which is also what it goes on from) by

    python tools/train_denoiser.py --work DIR --keep FOLDER

and taken up there by copying FOLDER to DIR.

DIR also gets log.jsonl (loss), errors.jsonl (v-error at five noise levels on held-back scenes, of the EMA weights) and
grids/ (60 captions drawn by the EMA weights every 100,000 pictures). The rate holds until `--decay-from` pictures have
been seen and then falls to zero within `--decay-over`; without it, it holds. `tools/train_embedded_base.py` makes the
autoencoder that this needs and exports what this makes.
"""

import argparse
import json
import math
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from train_embedded_base import (
    TEXT_LENGTH,
    build_scheduler,
    build_text_encoder,
    build_tokenizer,
    build_unet,
    has_bf16,
    load_autoencoder,
    train_tokenizer,
)

from diffadapt.data.wide_pictures import Sprites, draw_wide_scenes, load_wide_sprites
from diffadapt.data.wide_scenes import WideScene, WideWorld, sample_wide_scene, wide_caption
from diffadapt.data.wide_world import tail_nouns, wide_grammar_words
from diffadapt.data.world import HELD_OUT_NOUNS, NOUNS
from diffadapt.files import save_tensors

LEVELS = (150, 350, 550, 750, 900, 980)  # timesteps of the held-back errors
HELD_BACK = 10**9  # no training step reaches this number
WARM_UP = 200  # steps
WEIGHTS = "diffusion_pytorch_model.safetensors"


class Stopped(Exception):
    """SIGTERM or SIGINT: save and leave."""


# --- what is held back ------------------------------------------------------------------------------------------------


class HeldBack:
    """Plain scenes of old nouns, of new core nouns, of sprites that training never shows, wide scenes, upright ones.

    In the first four sets half of the things are mirrored; "upright" has core nouns as their artists drew them.

    The error is the mean squared error of v at each noise level, with the same noise every time. What was never shown
    is captioned by its kind ("a flat animal on a red background").
    """

    def __init__(self, world: WideWorld, sprites: Sprites, encode, device: torch.device, count: int = 64) -> None:
        old = WideWorld(core=NOUNS[:48], styles=("flat", "3d"), drawn=())
        new = WideWorld(core=world.core[48:], drawn=())
        unseen = WideWorld(core=tuple((kind, kind, stem) for _, kind, stem in HELD_OUT_NOUNS), drawn=())
        self.sets: dict[str, tuple[list[str], Tensor, Tensor]] = {}
        upright = WideWorld(core=world.core, drawn=(), mirrored=0.0, looks=0.0)
        worlds = {"old": old, "new": new, "unseen": unseen, "wide": world, "upright": upright}
        for name, its_world in worlds.items():
            rng = np.random.default_rng([HELD_BACK, len(self.sets)])
            scenes = [sample_wide_scene(rng, its_world, plain=name != "wide") for _ in range(count)]
            latents = encode(draw_wide_scenes(scenes, sprites)[0])
            noise = torch.from_numpy(rng.standard_normal(latents.shape, dtype=np.float32)).to(device)
            self.sets[name] = ([wide_caption(scene) for scene in scenes], latents, noise)

    @torch.no_grad()
    def errors(self, unet: nn.Module, embed, alphas: Tensor) -> dict[str, list[float]]:
        """{set: mean squared error of v at each of LEVELS}."""
        result = {}
        for name, (captions, latents, noise) in self.sets.items():
            text, row = embed(captions), []
            for level in LEVELS:
                alpha = alphas[level]
                noisy = alpha.sqrt() * latents + (1 - alpha).sqrt() * noise
                target = alpha.sqrt() * noise - (1 - alpha).sqrt() * latents
                t = torch.full((len(latents),), level, device=latents.device)
                row.append(round(float((unet(noisy, t, text).sample.float() - target).square().mean()), 5))
            result[name] = row
        return result


def grid_captions(world: WideWorld) -> list[str]:
    """60 captions: 20 single core nouns by name, then what the wide world adds, then kinds alone."""
    nouns = [noun for noun, *_ in world.core]
    singles = [
        f"a large {style} {noun}"
        for noun, style in zip(nouns[::7][:20], ("flat", "3d", "blob", "noto") * 5, strict=True)
    ]
    said = [
        "a purple cat on a white background", "a green flat dog in the snow", "a blue 3d apple on a wooden floor",
        "a pink car on a street", "a red blob penguin", "a yellow crown", "two cats on a red background",
        "three apples", "two 3d cars in the desert", "three flat penguins in the snow", "a cat wearing a hat",
        "a 3d dog wearing a red scarf", "a rabbit wearing a crown in a forest", "a frog wearing glasses",
        "a cat next to a tent", "a dog on a bed", "a penguin behind a snowman", "a 3d apple above a book",
        "a bird under a tree", "a robot in front of a house", "a flat horse next to a noto carrot",
        "a pencil picture of a cat", "a halftone picture of a rocket",
        "a watercolour picture of a tree in the mountains", "a pixel picture of a robot",
        "a cat on a striped blue background", "a dog on a checkered red background", "a boat at sunset",
        "a rocket in space", "a fish under water", "a lion", "a horse", "an elephant", "an owl", "a pet", "an animal",
        "a vehicle", "a fruit", "food", "",
    ]  # fmt: skip
    return [*singles, *said]


@torch.no_grad()
def pictures_of(captions: list[str], unet: nn.Module, embed, decode, device: torch.device) -> Tensor:
    """(N, 3, 64, 64) in [0, 1]: 16 steps of DPM-Solver++ with guidance 4, the same starting noise every time."""
    scheduler = build_scheduler()
    scheduler.set_timesteps(16)
    text = torch.cat([embed([""] * len(captions)), embed(captions)])
    x = torch.randn(len(captions), 6, 16, 16, generator=torch.Generator().manual_seed(0)).to(device)
    for t in scheduler.timesteps:
        empty, full = unet(torch.cat([x, x]), t.to(device), text).sample.float().chunk(2)
        x = scheduler.step(empty + 4.0 * (full - empty), t, x).prev_sample
    return decode(x).clamp(0, 1).cpu()


def write_grid(path: Path, pictures: Tensor, across: int = 10) -> None:
    """So many pictures a row, at twice their size."""
    from PIL import Image

    rows = [torch.cat(list(row), dim=2) for row in (pictures * 255).round().byte().split(across)]
    page = torch.cat(rows, dim=1).permute(1, 2, 0).numpy()
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(page).resize((page.shape[1] * 2, page.shape[0] * 2), Image.Resampling.LANCZOS).save(path)


interpolate = nn.functional.interpolate


def doubled(x: Tensor, size=None, scale_factor=None, mode: str = "nearest", *args, **kwargs) -> Tensor:
    """interpolate, with the doubling of the UNet's upsampling written out: (N, C, H, W) to (N, C, 2 H, 2 W).

    In a UNet that torch 2.13 compiles for a CPU in bf16 the gradient of interpolate's own is zero, without a word.
    """
    if size is not None or scale_factor != 2.0 or mode != "nearest":
        return interpolate(x, size, scale_factor, mode, *args, **kwargs)
    n, c, h, w = x.shape
    return x[:, :, :, None, :, None].expand(n, c, h, 2, w, 2).reshape(n, c, 2 * h, 2 * w)


# --- state ------------------------------------------------------------------------------------------------------------


def begin(args: argparse.Namespace, words: list[str]) -> None:
    """Makes DIR out of a base's folder: its autoencoder, a tokenizer with the wide world's words, its weights.

    The vector of a token that both vocabularies have is carried over; a new one starts near the old ones' mean.
    """
    args.work.mkdir(parents=True, exist_ok=True)
    if (args.work / "state.safetensors").exists():
        return
    from transformers import CLIPTokenizer

    (args.work / "autoencoder").mkdir(exist_ok=True)
    shutil.copy(
        args.init / "vae" / "diffusion_pytorch_model.safetensors", args.work / "autoencoder" / "vae.safetensors"
    )
    train_tokenizer(args.work, words)
    new, old = build_tokenizer(args.work), CLIPTokenizer.from_pretrained(args.init / "tokenizer")
    weights = {k: v.float() for k, v in load_file(args.init / "text_encoder" / "model.safetensors").items()}
    unet = {k: v.float() for k, v in load_file(args.init / "unet" / WEIGHTS).items()}
    generator = torch.Generator().manual_seed(args.seed)

    def longer(table: Tensor, rows: int) -> Tensor:
        noise = torch.randn(rows, table.shape[1], generator=generator)
        return table.mean(0) + noise * table.std(0)

    key = next(k for k in weights if k.endswith("token_embedding.weight"))
    table, places = longer(weights[key], len(new)), old.get_vocab()
    for token, i in new.get_vocab().items():
        if token in places:
            table[i] = weights[key][places[token]]
    weights[key] = table
    key = next(k for k in weights if k.endswith("position_embedding.weight"))
    positions = longer(weights[key], TEXT_LENGTH)
    positions[: len(weights[key])] = weights[key][:TEXT_LENGTH]
    weights[key] = positions
    tensors = {f"unet.{k}": v for k, v in unet.items()} | {f"text_encoder.{k}": v for k, v in weights.items()}
    state = {f"model.{k}": v.half() for k, v in tensors.items() if v.is_floating_point()}
    state |= {f"ema.{k}": v.half() for k, v in tensors.items() if v.is_floating_point()}
    save_tensors(args.work / "state.safetensors", state, {"step": "0", "pictures": "0"})


def keep(work: Path, out: Path) -> None:
    """Writes the EMA of a training with its tokenizer, autoencoder and errors so far."""
    with safe_open(work / "state.safetensors", "pt") as handle:
        facts = handle.metadata()
    state = {key: value for key, value in load_file(work / "state.safetensors").items() if key.startswith("ema.")}
    out.mkdir(parents=True, exist_ok=True)
    save_tensors(out / "state.safetensors", state, facts)
    for name in ("tokenizer", "autoencoder"):
        shutil.copytree(work / name, out / name, dirs_exist_ok=True)
    shutil.copy(work / "errors.jsonl", out / "errors.jsonl")
    print(f"{out}: {facts['pictures']} pictures, {sum(f.stat().st_size for f in out.rglob('*') if f.is_file())} bytes")


def train(args: argparse.Namespace) -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    core = WideWorld().core
    world = WideWorld(
        core=core + (args.animals - 1) * tuple(row for row in core if row[1] == "animal"),  # a row of its own each time
        tail=tail_nouns(args.data), core_share=args.core_share, single_share=args.single_share,
        mirrored=args.mirrored, looks=args.looks,
    )  # fmt: skip
    begin(args, wide_grammar_words(world.tail))
    sprites = load_wide_sprites(args.data, world, HELD_OUT_NOUNS)
    tokenizer = build_tokenizer(args.work)
    autoencoder = load_autoencoder(args.work / "autoencoder" / "vae.safetensors").requires_grad_(False)
    autoencoder.to(device, memory_format=torch.channels_last)
    models = {"unet": build_unet(), "text_encoder": build_text_encoder(tokenizer)}
    averaged = {"unet": build_unet(), "text_encoder": build_text_encoder(tokenizer)}
    bf16 = has_bf16()
    for pair in (models, averaged):
        pair["unet"].to(memory_format=torch.channels_last)
        if bf16 and device.type == "cpu":  # torch's own attention is slow backwards in bf16 on a CPU
            from diffusers.models.attention_processor import AttnProcessor

            pair["unet"].set_attn_processor(AttnProcessor())
        for model in pair.values():
            model.to(device)
    for model in averaged.values():
        model.requires_grad_(False).eval()
    weights = {f"{n}.{k}": v for n, m in models.items() for k, v in m.state_dict().items() if v.is_floating_point()}
    ema = {f"{n}.{k}": v for n, m in averaged.items() for k, v in m.state_dict().items() if v.is_floating_point()}
    parameters = [p for model in models.values() for p in model.parameters()]
    optimizer = torch.optim.AdamW(parameters, betas=(0.9, 0.99), weight_decay=1e-3, fused=True)
    state = load_file(args.work / "state.safetensors")
    with safe_open(args.work / "state.safetensors", "pt") as handle:
        step, seen = int(handle.metadata()["step"]), int(handle.metadata()["pictures"])
    with torch.no_grad():
        for name, place in (("model", weights), ("ema", ema)):
            for key, value in place.items():
                value.copy_(state.get(f"{name}.{key}", state[f"ema.{key}"]))  # a small state holds the EMA alone
    warm_from = step
    if (args.work / "optimizer.safetensors").exists():
        moments = load_file(args.work / "optimizer.safetensors", device=str(device))
        if int(moments.pop("step")) == step:
            keys = ("step", "exp_avg", "exp_avg_sq")
            rows = {i: {key: moments[f"{i}.{key}"] for key in keys} for i in range(len(parameters))}
            optimizer.load_state_dict({"state": rows, "param_groups": optimizer.state_dict()["param_groups"]})
            warm_from = -WARM_UP
    alphas = build_scheduler().alphas_cumprod.to(device)
    denoise = models["unet"]
    if args.compile:
        nn.functional.interpolate, denoise = doubled, torch.compile(denoise)

    def embed(captions: list[str], model: str = "averaged") -> Tensor:
        ids = tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids.to(device)
        return (averaged if model == "averaged" else models)["text_encoder"](ids).last_hidden_state

    @torch.no_grad()
    def encode(pictures: Tensor) -> Tensor:
        return autoencoder.encoder(pictures.to(device, memory_format=torch.channels_last) * 2 - 1).float()

    @torch.no_grad()
    def decode(latents: Tensor) -> Tensor:
        return (autoencoder.decoder(latents) + 1) / 2

    def measure() -> None:
        row = {"pictures": seen, "levels": LEVELS, **held_back.errors(averaged["unet"], embed, alphas)}
        print(json.dumps(row), flush=True)
        with open(args.work / "errors.jsonl", "a", encoding="utf-8") as log:
            log.write(json.dumps(row) + "\n")

    def draw_grid() -> None:
        pictures = pictures_of(captions, averaged["unet"], embed, decode, device)
        write_grid(args.work / "grids" / f"{seen:08}.png", pictures)

    def save() -> None:
        tensors = {f"model.{k}": v.half() for k, v in weights.items()} | {f"ema.{k}": v.half() for k, v in ema.items()}
        save_tensors(args.work / "state.safetensors", tensors, {"step": str(step), "pictures": str(seen)})
        rows = optimizer.state_dict()["state"]
        moments = {f"{i}.{k}": v for i, row in rows.items() for k, v in row.items()} | {"step": torch.tensor(step)}
        save_tensors(args.work / "optimizer.safetensors", moments)

    def one_step() -> tuple[float, float]:
        rng = np.random.default_rng([args.seed, step, 3])
        scenes: list[WideScene] = [sample_wide_scene(rng, world) for _ in range(args.batch)]
        captions = ["" if rng.random() < 0.1 else wide_caption(scene, rng) for scene in scenes]
        pictures = draw_wide_scenes(scenes, sprites)[0]
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            latents = encode(pictures)
        # Stratified timesteps: one per bin of the batch, which lowers the variance of the gradient.
        t = (
            torch.from_numpy((rng.permutation(args.batch) + rng.random(args.batch)) / args.batch * 1000)
            .long()
            .to(device)
        )
        noise = torch.from_numpy(rng.standard_normal(latents.shape, dtype=np.float32)).to(device)
        alpha = alphas[t][:, None, None, None]
        noisy = alpha.sqrt() * latents + (1 - alpha).sqrt() * noise
        target = alpha.sqrt() * noise - (1 - alpha).sqrt() * latents
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            predicted = denoise(noisy, t, embed(captions, "trained")).sample
        each = (predicted.float() - target).square().mean((1, 2, 3))  # (N,)
        # Min-SNR for v-prediction falls to 0 at pure noise, where it is decided which object appears: 0.25 more there.
        snr = (alpha / (1 - alpha).clamp(min=1e-6)).flatten()
        loss = (each * (snr + 0.25).clamp(max=5) / (snr + 1)).mean()
        rate = args.lr * min(1.0, (step - warm_from + 1) / WARM_UP)
        if args.decay_from is not None:
            rate *= min(1.0, max(0.0, 1 - (seen - args.decay_from) / args.decay_over))
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(parameters, 1.0)
        if not math.isfinite(norm):
            raise FloatingPointError(f"gradient norm {norm} at step {step}; {args.work} keeps the last saved state")
        optimizer.step()
        decay = min(args.ema, (step + 1) / (step + 10))
        torch._foreach_lerp_(list(ema.values()), [v.detach() for v in weights.values()], 1 - decay)
        return float(loss.detach()), float(each.detach().mean())

    def stop(*_: object) -> None:
        raise Stopped

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    standard = WideWorld(tail=world.tail)  # whatever is trained on, the same scenes are held back
    held_back, captions = HeldBack(standard, sprites, encode, device), grid_captions(standard)
    began = saved = time.time()
    first, sums, count = seen, np.zeros(2), 0
    print(
        f"{sum(p.numel() for p in parameters) / 1e6:.2f} M parameters, {seen} pictures so far, bf16 {bf16}", flush=True
    )
    if seen == 0:
        measure()
    try:
        while (args.until is None or seen < args.until) and time.time() - began < 60 * args.minutes:
            sums += one_step()
            count, step, seen = count + 1, step + 1, seen + args.batch
            if step % 50 == 0:
                loss, error = (sums / count).round(5).tolist()
                rate = round((seen - first) / (time.time() - began), 2)
                row = {"step": step, "pictures": seen, "loss": loss, "v_error": error, "pictures_per_s": rate}
                print(json.dumps(row), flush=True)
                with open(args.work / "log.jsonl", "a", encoding="utf-8") as log:
                    log.write(json.dumps(row) + "\n")
                sums, count = np.zeros(2), 0
            if seen // 25_000 > (seen - args.batch) // 25_000:
                measure()
            if seen // 100_000 > (seen - args.batch) // 100_000:
                draw_grid()
            if time.time() - saved > 600:
                save()
                saved = time.time()
    except Stopped:
        print("stopped", flush=True)
    save()
    measure()
    draw_grid()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of sprite folders")
    parser.add_argument("--work", type=Path, required=True, help="state, log, errors, grids")
    parser.add_argument("--init", type=Path, help="an exported base to start from when DIR has no state")
    parser.add_argument("--minutes", type=float, default=1e9, help="stop after so many minutes")
    parser.add_argument("--until", type=int, default=None, help="stop after so many pictures in all")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=1e-3, help="AdamW's rate after the warm-up")
    parser.add_argument(
        "--ema", type=float, default=0.9995, help="decay of the average of weights that is measured and exported"
    )
    parser.add_argument("--core-share", type=float, default=0.5, help="share of the things that are of the core")
    parser.add_argument("--single-share", type=float, default=0.55, help="share of scenes with one undressed thing")
    parser.add_argument("--animals", type=int, default=1, help="so many times as often as other nouns of the core")
    parser.add_argument("--mirrored", type=float, default=0.5, help="share of things that are mirrored")
    parser.add_argument("--looks", type=float, default=1.0, help="how often things are tilted or turned in hue")
    parser.add_argument("--decay-from", type=int, default=None, help="pictures after which the rate falls")
    parser.add_argument("--decay-over", type=int, default=500_000, help="pictures within which it falls to zero")
    parser.add_argument("--compile", action="store_true", help="by torch.compile: a minute at first, a tenth faster")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="train nothing; write what another machine needs to this folder")
    args = parser.parse_args()
    keep(args.work, args.keep) if args.keep else train(args)


if __name__ == "__main__":
    main()
