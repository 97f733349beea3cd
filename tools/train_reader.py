"""Trains the reader that control consistency is judged by: which pixel of a picture of the embedded world is what.

    python tools/train_reader.py --data EMOJI --base BASE --out OUT

EMOJI is the folder of sprite folders and BASE the base that `tools/train_embedded_base.py export` writes. Scenes of the
wide world's core are rendered, and their masks are the truth: patterned and painted grounds, colours, copies, what is
worn (which belongs to its wearer), clutter (which is background). Half of every batch passes through the base's
autoencoder, which is not what is judged (the denoiser is), for the look of decoded pictures; other colours, blur,
noise and other brightness at times do the rest. Batches are drawn from (seed, step). The averaged weights are
written, and measured on scenes that no training step draws, as they are and through the autoencoder, and on pictures
that the base generates from captions: is what the reader finds there what the caption asked for?
"""

import argparse
import itertools
import json
import math
import platform
import subprocess
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from train_denoiser import has_bf16

from diffadapt.bases import Base, load_base
from diffadapt.controls.depth_order import layers_of
from diffadapt.controls.landmarks import landmarks_of
from diffadapt.controls.segmentation import CLASSES, labels_of
from diffadapt.data.picture import to_tensor
from diffadapt.data.wide_pictures import Sprites, draw_wide_scenes, load_wide_sprites
from diffadapt.data.wide_scenes import WideScene, WideWorld, sample_wide_scene, wide_caption
from diffadapt.files import read_json, save_tensors, write_json
from diffadapt.metrics.landmark_error import landmark_error
from diffadapt.metrics.reader import FORMAT_VERSION, Reader, load_reader
from diffadapt.metrics.segmentation_scores import confusion_matrix, segmentation_scores
from diffadapt.sampling.sample import sample

HELD_BACK = 10**9  # training draws from (seed, step), so a "step" that no run reaches


def kinds_of(scenes: list[WideScene]) -> list[list[str]]:
    """Kinds back to front, in the order of `with_upper_behind`."""
    kinds = [[thing.kind for thing in scene.things] for scene in scenes]
    return [its[::-1] if scene.relation == "under" else its for scene, its in zip(scenes, kinds, strict=True)]


def recoloured(sprites: Sprites, rng: np.random.Generator) -> Sprites:
    """Red, green and blue in another order a quarter of the time: an object must not be known by its colours."""
    if rng.random() < 0.75:
        return sprites
    order = [*rng.permutation(3).tolist(), 3]
    return {name: sprite[order] for name, sprite in sprites.items()}


def with_upper_behind(scenes: list[WideScene], masks: Tensor) -> Tensor:
    """Masks back to front: of two things that do not touch the upper one counts as the one behind.

    Nothing in a picture tells "a cat above a dog" from "a dog under a cat", so that both need one order.
    """
    under = torch.tensor([scene.relation == "under" for scene in scenes])
    return torch.where(under[:, None, None, None], masks.flip(1), masks)


def half_precision():
    """bf16 autocast where the processor has it."""
    return torch.autocast("cpu", torch.bfloat16, enabled=has_bf16())


def decoded(base: Base, pictures: Tensor) -> Tensor:
    """Pictures as the autoencoder gives them back."""
    with half_precision():
        return base.decode_latents(base.encode_pictures(pictures.to(memory_format=torch.channels_last)))


def spoil(pictures: Tensor, rng: np.random.Generator) -> Tensor:
    """Blur, noise, and other brightness and contrast at times, for the small faults of generated pictures."""

    def at_times(probability: float, values: np.ndarray) -> Tensor:
        return torch.from_numpy((rng.random(len(pictures)) < probability) * values).float()[:, None, None, None]

    n = len(pictures)
    soft = F.interpolate(F.avg_pool2d(pictures, 2), scale_factor=2, mode="bilinear", align_corners=False)
    noise = torch.from_numpy(rng.standard_normal(pictures.shape, dtype=np.float32))
    changed = (
        pictures + at_times(0.4, rng.random(n)) * (soft - pictures) + at_times(0.5, rng.uniform(0, 0.06, n)) * noise
    )
    contrast, light = at_times(0.5, rng.uniform(-0.2, 0.2, n)), at_times(0.5, rng.uniform(-0.1, 0.1, n))
    return ((changed - 0.5) * (1 + contrast) + 0.5 + light).clamp(0, 1)


def losses_of(objects: Tensor, front: Tensor, kinds: Tensor, layers: Tensor, labels: Tensor) -> Tensor:
    """(3,): is there an object; is it the front one, and of which kind, asked where there is one."""
    there = layers > 0
    return torch.stack(
        [
            F.binary_cross_entropy_with_logits(objects, there.float()),
            F.binary_cross_entropy_with_logits(front[there], (layers[there] == 2).float()),
            F.cross_entropy(kinds, labels - 1, ignore_index=-1),
        ]
    )


def cpu_minutes() -> float:
    """Of this process since its start; on a shared machine the clock on the wall says less."""
    return round(time.process_time() / 60, 1)


def learning_rate(step: int, total: int, peak: float) -> float:
    return peak * min(1.0, (step + 1) / 100) * 0.5 * (1 + math.cos(math.pi * step / total))


def train(args, world: WideWorld, sprites: Sprites, base: Base) -> Reader:
    """The averaged weights after `args.steps` steps."""
    torch.manual_seed(args.seed)
    reader = load_reader(args.init) if args.init else Reader()
    reader = reader.requires_grad_(True).train().to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    optimizer = torch.optim.AdamW(reader.parameters(), lr=args.lr, betas=(0.9, 0.99), weight_decay=0.02, fused=True)
    weights = {key: value for key, value in reader.state_dict().items() if value.is_floating_point()}
    average = {key: value.detach().clone() for key, value in weights.items()}
    sums = torch.zeros(3)
    for step in range(args.steps):
        rng = np.random.default_rng([args.seed, step])
        scenes = [sample_wide_scene(rng, world) for _ in range(args.batch)]
        pictures, masks = draw_wide_scenes(scenes, recoloured(sprites, rng))
        half = args.batch // 2
        pictures[:half] = decoded(base, pictures[:half])
        masks = with_upper_behind(scenes, masks)
        layers, labels = layers_of(masks), labels_of(masks, kinds_of(scenes))
        with half_precision():
            seen = reader(spoil(pictures, rng).to(memory_format=torch.channels_last))
        losses = losses_of(*(logits.float() for logits in seen), layers, labels)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, args.steps, args.lr)
        optimizer.zero_grad()
        losses.sum().backward()
        norm = torch.nn.utils.clip_grad_norm_(reader.parameters(), 5.0)
        if not math.isfinite(norm):
            raise FloatingPointError(f"gradient norm {norm} at step {step}")
        optimizer.step()
        keep = min(0.995, (step + 1) / (step + 10))
        for key, value in average.items():
            value.lerp_(weights[key].detach(), 1 - keep)
        sums += losses.detach()
        if (step + 1) % 50 == 0:
            means = zip(("object", "front", "kind"), (round(value, 4) for value in (sums / 50).tolist()), strict=True)
            print(json.dumps({"step": step + 1, **dict(means), "minutes": cpu_minutes()}), flush=True)
            sums.zero_()
    averaged = Reader()
    averaged.load_state_dict({key: value.half().float() for key, value in average.items()}, strict=False)  # as stored
    return averaged.eval().requires_grad_(False)


def drawn_in_parts(scenes: list[WideScene], sprites: Sprites) -> list[tuple[Tensor, Tensor]]:
    return [draw_wide_scenes(scenes[i : i + 128], sprites) for i in range(0, len(scenes), 128)]


def measure(reader: Reader, world: WideWorld, sprites: Sprites, base: Base, count: int) -> dict[str, dict[str, float]]:
    """Segmentation and landmarks against the truth of fresh scenes; rendered, and decoded."""
    rng = np.random.default_rng([HELD_BACK, 0])
    scenes = [sample_wide_scene(rng, world) for _ in range(count)]
    pictures, masks = (torch.cat(part) for part in zip(*drawn_in_parts(scenes, sprites), strict=True))
    masks = with_upper_behind(scenes, masks)
    layers, labels = layers_of(masks), labels_of(masks, kinds_of(scenes))
    through = torch.cat([decoded(base, part) for part in pictures.split(128)])
    result = {}
    for name, shown in (("rendered", pictures), ("decoded", through)):
        reading = reader.read(shown)
        scores = segmentation_scores(confusion_matrix(labels, reading.labels, len(CLASSES)))
        scores["depth_order_aacc"] = float((reading.layers == layers).float().mean())
        found = landmark_error(landmarks_of(layers), landmarks_of(reading.layers))
        scores["landmark_error_px"] = float(found["error"].nanmean())
        scores["landmarks_detected"] = float(found["detected"].mean())
        result[name] = {"n": count, **{key: round(value, 4) for key, value in scores.items()}}
    return result


def measure_generated(reader: Reader, world: WideWorld, base: Base, count: int) -> dict[str, float]:
    """On pictures of the base: does the largest part of what the reader finds have the kinds that the caption named?"""
    rng = np.random.default_rng([HELD_BACK, 1])
    right, number_right = [], []
    for pair in (1, 2):
        drawn = (sample_wide_scene(rng, world) for _ in itertools.count())
        scenes = list(itertools.islice((scene for scene in drawn if len(scene.things) == pair), count))
        pictures = [to_tensor(picture) for picture in sample(base, [wide_caption(scene) for scene in scenes], seed=0)]
        reading = reader.read(torch.stack(pictures) / 255)
        for kinds, layers, labels in zip(kinds_of(scenes), reading.layers, reading.labels, strict=True):
            objects = [labels[layers == layer] for layer in (1, 2)]
            seen = [CLASSES[int(pixels.mode().values)] for pixels in objects if len(pixels) >= 20]
            right.append(float(seen == kinds))
            number_right.append(float(len(seen) == len(kinds)))
    return {
        "n": count,
        "one_object_kind": float(np.mean(right[:count])),
        "one_object_count": float(np.mean(number_right[:count])),
        "two_objects_both_kinds": float(np.mean(right[count:])),
        "two_objects_count": float(np.mean(number_right[count:])),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of sprite folders")
    parser.add_argument("--base", type=Path, required=True, help="folder that StableDiffusionPipeline opens")
    parser.add_argument("--out", type=Path, required=True, help="the folder to write")
    parser.add_argument("--init", type=Path, help="folder of a reader to start from; without it the kinds come late")
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--lr", type=float, default=3e-3, help="peak learning rate")
    parser.add_argument("--count", type=int, default=1000, help="held-back scenes to measure on")
    parser.add_argument("--generated", type=int, default=100, help="pictures to generate of one and of two objects")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    base = load_base(str(args.base), device="cpu")
    world = WideWorld(drawn=())
    sprites = load_wide_sprites(args.data, world)
    reader = train(args, world, sprites, base)
    minutes = cpu_minutes()
    half = {key: value.half() for key, value in reader.state_dict().items() if value.is_floating_point()}
    save_tensors(args.out / "reader.safetensors", half, {"format": "diffadapt-reader", "format_version": "1"})
    accuracy: dict = measure(reader, world, sprites, base, args.count)
    accuracy["generated"] = measure_generated(reader, world, base, args.generated)
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    facts = {
        "format_version": FORMAT_VERSION,
        "classes": CLASSES,
        "widths": reader.widths,
        "parameters": sum(parameter.numel() for parameter in reader.parameters()),
        "accuracy": accuracy,
        "training": {
            "steps": args.steps,
            "pictures": args.steps * args.batch,
            "seed": args.seed,
            "started_from": read_json(args.init / "reader.json")["training"] if args.init else "random weights",
            "cpu_minutes": minutes,
            "hardware": f"one thread of a shared two-core {platform.machine()} machine",
            "precision": "bf16" if has_bf16() else "fp32",
            "torch": torch.__version__,
            "commit": commit,
            "base": base.fingerprint,
        },
    }
    write_json(args.out / "reader.json", facts)
    print(json.dumps(accuracy, indent=1))


if __name__ == "__main__":
    main()
