"""Measures the embedded base with the probe: generated pictures against real scenes of the same captions.

    python tools/measure_embedded_base.py --base src/diffadapt/bases/embedded --data EMOJI --out DIR \\
        --count 1000

Writes DIR/measured.json (per attribute: share right of generated pictures, of real ones and of real ones sent through
the base's autoencoder, which are what a perfect denoiser would draw, and the ratios to real ones, each with a 95 %
bootstrap interval; seed, counts, hardware, seconds a picture) and DIR/sheet.png, the first pictures under their
captions. Scenes are of the wide world's core nouns and come from a seed that training never reaches. Only what a
caption says is asked: the position and size of a centred or medium thing are not said, nor the colour of one that is as
its artist painted it. 1000 pictures take some 10 minutes on two cores.
"""

import argparse
import importlib.metadata
import os
import platform
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from probe_batches import LABELS, SKIP, labels_of
from torch import Tensor

from diffadapt.bases import load_base
from diffadapt.data.wide_pictures import draw_wide_scenes, load_wide_sprites
from diffadapt.data.wide_scenes import WideScene, WideWorld, sample_wide_scene, wide_caption
from diffadapt.files import read_json, write_json
from diffadapt.metrics import (
    ProbeFeatures,
    interval_of_difference,
    interval_of_mean,
    interval_of_ratio,
    kid,
    text_alignment,
)
from diffadapt.metrics import attribute_accuracy as accuracy

HELD_BACK = 10**9  # training draws scenes from (seed, process, step); no run reaches this step


UNSAID = {"position": "center", "size": "medium", "colour": "own", "count": "1", "wearing": "nothing",
          "relation": "none", "pattern": "none", "drawn": "none"}  # fmt: skip


def expected(scenes: list[WideScene]) -> dict[str, list[str | None]]:
    """Each caption's labels, in the words of the probe's heads; None where it gives none."""
    wanted: dict[str, list[str | None]] = defaultdict(list)
    for scene in scenes:
        words = {
            head: LABELS[head][label] if label != SKIP else None
            for head, label in zip(LABELS, labels_of(scene), strict=True)
        }
        second = words.pop("second")
        pair = second if len(scene.things) == 2 else None
        wanted["both objects"].append(f"{words['object']} + {pair}" if pair else None)
        words["object"] = None if pair else words["object"]
        for head, word in words.items():
            wanted[head].append(None if word == UNSAID.get(head) else word)
    return dict(wanted)


def seen(probe: ProbeFeatures, pixels: Tensor) -> dict[str, list[str]]:
    found = probe.describe(pixels)
    both = [f"{a} + {b}" for a, b in zip(found["object"], found["second"], strict=True)]
    return {**found, "both objects": both}


def generate(args, captions: list[str]) -> tuple[Tensor, float]:
    """(N, 3, 64, 64) in [0, 1], and seconds a picture. Picture i starts from the seed args.seed + i."""
    import diffusers

    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.float16 if device == "cuda" else torch.float32
    pipeline: Any = getattr(diffusers, "StableDiffusionPipeline").from_pretrained(  # noqa: B009 (a lazy export)
        args.base, safety_checker=None, torch_dtype=dtype
    )
    pipeline.to(device)
    pipeline.set_progress_bar_config(disable=True)
    pictures, spent = [], 0.0
    for start in range(0, len(captions), args.batch):
        prompts = captions[start : start + args.batch]
        seeds = [torch.Generator().manual_seed(args.seed + start + i) for i in range(len(prompts))]
        began = time.perf_counter()
        made = pipeline(
            prompts,
            num_inference_steps=args.steps,
            guidance_scale=args.guidance,
            generator=seeds,
            height=64,
            width=64,
            output_type="pt",
        ).images
        spent += time.perf_counter() - began
        pictures.append(made.float().cpu().clamp(0, 1))
        done = start + len(prompts)
        print(f"{done} of {len(captions)} pictures, {spent / done:.2f} s each", flush=True)
    return torch.cat(pictures), spent / len(captions)


def compare(probe: ProbeFeatures, scenes: list[WideScene], made: Tensor, real: Tensor, sent: Tensor, args) -> dict:
    wanted = expected(scenes)
    sets = {"generated": made, "autoencoded": sent, "real": real}
    right = {name: accuracy(seen(probe, pixels), wanted) for name, pixels in sets.items()}
    attributes = {}
    for attribute in wanted:
        a, b = right["generated"][attribute], right["real"][attribute]
        if len(a) == 0:
            continue
        row = {name: interval_of_mean(right[name][attribute], seed=args.seed).as_row() for name in sets}
        if b.mean() > 0:
            for name, of in (("share_of_real", a), ("autoencoded_share_of_real", right["autoencoded"][attribute])):
                row[name] = interval_of_ratio(of, b, seed=args.seed).as_row()
        attributes[attribute] = row
    by_noun: dict[str, list[float]] = defaultdict(list)
    single = [noun for noun in wanted["object"] if noun is not None]
    for noun, hit in zip(single, right["generated"]["object"].tolist(), strict=True):
        by_noun[noun].append(hit)
    texts = probe.texts([wide_caption(scene) for scene in scenes])
    aligned = {name: text_alignment(probe.pictures(x), texts) for name, x in (("generated", made), ("real", real))}
    return {
        "attributes": attributes,
        "text_alignment": {name: interval_of_mean(values, seed=args.seed).as_row() for name, values in aligned.items()}
        | {"difference": interval_of_difference(aligned["generated"], aligned["real"], paired=True).as_row()},
        "kid_of_subject_features": round(float(kid(probe.subjects(made), probe.subjects(real)).mean()), 6),
        "object_by_noun": {
            noun: {"right": round(sum(hits) / len(hits), 4), "n": len(hits)}
            for noun, hits in sorted(by_noun.items(), key=lambda item: sum(item[1]) / len(item[1]))
        },
    }


def sheet(pixels: Tensor, captions: list[str], columns: int, scale: int = 2) -> Image.Image:
    """Pictures (N, 3, 64, 64) in rows under their captions, enlarged `scale` times."""
    side, gap, text = 64 * scale, 8, 40
    rows = -(-len(pixels) // columns)
    page = Image.new("RGB", (columns * (side + gap) + gap, rows * (side + text + gap) + gap), "white")
    draw = ImageDraw.Draw(page)
    for i, (picture, words) in enumerate(zip(pixels, captions, strict=True)):
        left, top = gap + i % columns * (side + gap), gap + i // columns * (side + text + gap)
        values = (picture.permute(1, 2, 0) * 255).round().byte().numpy()
        page.paste(Image.fromarray(values).resize((side, side), Image.Resampling.LANCZOS), (left, top + text))
        lines, line = [], ""
        for word in words.split():
            if draw.textlength(f"{line} {word}") > side:
                lines, line = [*lines, line], ""
            line = f"{line} {word}".strip()
        draw.multiline_text((left, top), "\n".join([*lines, line][:3]), fill="black", spacing=1)
    return page


def processor() -> str:
    """The processor that made the pictures."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    facts = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").is_file() else ""
    models = [line.split(":", 1)[1].strip() for line in facts.splitlines() if line.startswith("model name")]
    return models[0] if models else platform.machine()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, required=True, help="folder that StableDiffusionPipeline opens")
    parser.add_argument("--data", type=Path, required=True, help="folder of sprite folders, for the real scenes")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--probe", type=Path, help="folder of the probe; the one that ships if not given")
    parser.add_argument("--count", type=int, default=1000, help="pictures of each kind")
    parser.add_argument("--sheet", type=int, default=24, help="pictures on the contact sheet")
    parser.add_argument("--columns", type=int, default=6)
    parser.add_argument("--steps", type=int, default=None, help="denoising steps; default: base.json's, or 20")
    parser.add_argument("--guidance", type=float, default=None, help="guidance scale; default: base.json's, or 4")
    parser.add_argument("--batch", type=int, default=25)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    facts = read_json(args.base / "base.json") if (args.base / "base.json").is_file() else {}
    args.steps = args.steps or facts.get("default_steps", 20)
    args.guidance = facts.get("default_guidance", 4.0) if args.guidance is None else args.guidance

    world = WideWorld()
    rng = np.random.default_rng([HELD_BACK, args.seed])
    scenes = [sample_wide_scene(rng, world) for _ in range(args.count)]
    captions = [wide_caption(scene) for scene in scenes]
    sprites = load_wide_sprites(args.data, world)
    real = torch.cat([draw_wide_scenes(scenes[i : i + 128], sprites)[0] for i in range(0, len(scenes), 128)])
    base = load_base(args.base, device="cpu")
    with torch.no_grad():
        parts = [base.decode_latents(base.encode_pictures(part)) for part in real.clamp(0, 1).split(100)]
    sent = torch.cat(parts).clamp(0, 1)
    made, seconds = generate(args, captions)
    probe = ProbeFeatures("probe", torch.device("cpu"), args.probe)
    result = {
        "base": str(args.base),
        "world": {"nouns": len(world.core), "styles": list(world.styles), "drawn": list(world.drawn)},
        "settings": {"steps": args.steps, "guidance": args.guidance, "batch": args.batch, "seed": args.seed},
        "pictures": {"generated": len(made), "real": len(real)},
        "seconds_per_picture": round(seconds, 4),
        "hardware": {"device": processor(), "cores": os.cpu_count(), "threads": torch.get_num_threads()},
        "versions": {name: importlib.metadata.version(name) for name in ("torch", "diffusers", "transformers")},
        **compare(probe, scenes, made, real, sent, args),
    }
    write_json(args.out / "measured.json", result)
    shown = min(args.sheet, len(made))
    sheet(made[:shown], captions[:shown], args.columns).save(args.out / "sheet.png")
    for attribute, row in result["attributes"].items():
        share = row.get("share_of_real", {"value": float("nan")})["value"]
        made_right, real_right = row["generated"]["value"], row["real"]["value"]
        best = row.get("autoencoded_share_of_real", {"value": float("nan")})["value"]
        print(
            f"{attribute:13} generated {made_right:.3f}  real {real_right:.3f}  share {share:.3f}  "
            f"through the autoencoder {best:.3f}"
        )
    print(f"{args.out / 'measured.json'}, {args.out / 'sheet.png'}; {seconds:.2f} s a picture")


if __name__ == "__main__":
    main()
