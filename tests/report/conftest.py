"""An invented run of a plausible shape: drawn cats, a falling loss, figures with intervals. Nothing is trained."""

import json
import math
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageDraw

from diffadapt.files import save_tensors, write_json

STEPS = 600
TOKEN, NOUN = "<biscuit>", "cat"
PROMPTS = [
    "a <biscuit> cat on a red background",
    "a <biscuit> cat next to an apple on grass",
    "a small <biscuit> cat in the snow, pixel style",
    "a <biscuit> cat at night",
]
GROUNDS = [(186, 52, 44), (94, 148, 66), (226, 233, 240), (26, 30, 62)]
UNRELATED = [
    "an apple on a blue background",
    "a red car on sand",
    "a dog on grass",
    "a tree in the snow",
    "a blue cup & saucer",
    "a house at night",
    "a fish in water",
    "a cat on a yellow background",
]
LAYERS = [
    (f"unet.{block}.attentions.{place}.transformer_blocks.0.attn{kind}.to_{name}", f"{role}_attention.{long}")
    for block in ("down_blocks.0", "down_blocks.1", "up_blocks.1")
    for place in (0, 1)
    for kind, role in ((1, "self"), (2, "cross"))
    for name, long in (("q", "query"), ("k", "key"), ("v", "value"))
]


def draw_cat(learned: float, ground: tuple[int, int, int], *, side: int = 64, seed: int = 0) -> Image.Image:
    """A cat's face: grey and plain at learned = 0, ginger with stripes and green eyes at 1, grainy in between."""
    dice = random.Random(seed)
    plain, ginger = (128, 128, 134), (226, 138, 52)
    coat = tuple(round(a + (b - a) * learned) for a, b in zip(plain, ginger, strict=True))
    picture = Image.new("RGB", (64, 64), ground)
    draw = ImageDraw.Draw(picture)
    x, y = 32 + dice.randint(-4, 4), 35 + dice.randint(-3, 3)
    dark = tuple(round(value * 0.62) for value in coat)
    for way in (-1, 1):
        draw.polygon([(x + way * 18, y - 22), (x + way * 4, y - 14), (x + way * 18, y - 4)], fill=dark)
    draw.ellipse((x - 19, y - 17, x + 19, y + 17), fill=coat)
    for stripe in range(3 if learned > 0.4 else 0):
        draw.rectangle((x - 7 + 6 * stripe, y - 16, x - 5 + 6 * stripe, y - 8), fill=dark)
    eye = (58, 168, 92) if learned > 0.6 else (44, 40, 38)
    for way in (-1, 1):
        draw.ellipse((x + way * 8 - 3, y - 4, x + way * 8 + 3, y + 3), fill=eye)
    draw.polygon([(x - 2, y + 6), (x + 2, y + 6), (x, y + 9)], fill=(70, 40, 40))
    grain = Image.effect_noise((64, 64), 60).convert("RGB")
    picture = Image.blend(picture, grain, 0.03 + 0.35 * learned * (1 - learned))
    return picture if side == 64 else picture.resize((side, side), Image.Resampling.BICUBIC)


def draw_thing(index: int, changed: float, side: int = 64) -> Image.Image:
    """Some unrelated object; `changed` in [0, 1] moves its colours a little."""
    dice = random.Random(100 + index)
    ground, colour = ([dice.randint(30, 225) for _ in range(3)] for _ in range(2))
    colour = [round(value + changed * 40) for value in colour]
    picture = Image.new("RGB", (64, 64), tuple(ground))
    shape = ImageDraw.Draw(picture).ellipse if index % 2 else ImageDraw.Draw(picture).rectangle
    shape((14 + 4 * changed, 16, 50, 50), fill=tuple(colour))
    return picture.resize((side, side), Image.Resampling.NEAREST)


def write_pictures(folder: Path, pictures: list[Image.Image]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for index, picture in enumerate(pictures):
        picture.save(folder / f"{index:02d}.png")


def log_lines(steps: int, seed: int = 0) -> list[str]:
    dice = random.Random(seed)
    lines: list[str] = []
    for step in range(1, steps + 1):
        pairs = []
        for _ in range(4):
            timestep = dice.randrange(1000)
            level = 0.9 * math.exp(-timestep / 260) + 0.02
            pairs.append([timestep, level * (0.55 + 0.45 * math.exp(-step / 150)) * dice.lognormvariate(0, 0.35)])
        concept = sum(loss for _, loss in pairs) / 4
        prior = 0.16 * dice.lognormvariate(0, 0.3)
        record = {
            "step": step,
            "loss": concept + prior,
            "loss_concept": concept,
            "loss_prior": prior,
            "loss_by_timestep": pairs,
            "lr": 1e-4,
            "grad_norm": dice.random(),
            "seconds": 0.21 + 0.04 * dice.random(),
            "images": step * 4,
        }
        if step % 50 == 0:
            moved = 0.1 * (1 - math.exp(-step / 200))
            record |= {"energy_change": moved**2 / 10, "cosine_change": moved, "norm_change": moved / 2}
        lines.append(json.dumps(record))
    return lines


def figures() -> dict[str, dict[str, object]]:
    def line(
        value: float, low: float, high: float, base: float | None, better: str, meaning: str, n: int
    ) -> dict[str, object]:
        return {
            "value": value,
            "low": low,
            "high": high,
            "n": n,
            "base": base,
            "better": better,
            "unit": "",
            "meaning": meaning,
        }

    return {
        "subject_fidelity": line(
            0.812, 0.784, 0.837, 0.431, "higher", "likeness of the samples to the concept's pictures", 100
        ),
        "text_alignment": line(0.302, 0.291, 0.313, 0.318, "higher", "likeness of picture and prompt", 100),
        "diversity": line(0.214, 0.19, 0.238, 0.301, "higher", "mean distance between samples of one prompt", 100),
        "drift_features": line(
            0.031, 0.024, 0.039, None, "lower", "change of unrelated pictures (cosine distance)", 64
        ),
        "class_leakage": line(
            0.437, 0.419, 0.455, 0.428, "near base", "likeness to the subject of its plain class", 16
        ),
        "drift_pixels": line(0.046, 0.041, 0.052, None, "lower", "root mean square change of unrelated pictures", 64),
    }


def config_text() -> str:
    return "\n".join(
        [
            'base = "sha256:0123456789abcdef"',
            'concept = "photos/biscuit"',
            f'noun = "{NOUN}"',
            f'token = "{TOKEN}"',
            f"steps = {STEPS}",
            "seed = 0",
            "learning_rate = 1e-4",
            "batch = 4",
            "",
            "[method]",
            'name = "lora"',
            "rank = 4",
            'roles = ["cross_attention.*", "self_attention.*"]',
            "",
            "[sampling]",
            "steps = 20",
            "guidance = 4.0",
            "",
            "[made_by]",
            'base = "embedded"',
            'diffadapt = "0.1.0"',
            'torch = "2.13.0"',
            'diffusers = "0.35.1"',
            'hardware = "2 x CPU core, 8 GB"',
            'started = "2025-11-21 05:39"',
            'command = "diffadapt train biscuit.toml steps=600"',
            "",
        ]
    )


def invent_run(folder: Path, *, side: int = 64, stopped_at: int | None = None) -> Path:
    """Writes a whole run folder, or, with `stopped_at`, one that was interrupted at that step."""
    last = stopped_at or STEPS
    (folder / "checkpoints" / "step-000200").mkdir(parents=True)
    (folder / "checkpoints" / "step-000200" / "state.json").write_text("{}")
    (folder / "run.toml").write_text(config_text())
    (folder / "log.jsonl").write_text("\n".join(log_lines(last)) + "\n")
    write_pictures(folder / "concept", [draw_cat(1, GROUNDS[i % 4], side=side, seed=i) for i in range(5)])
    crops = [
        {
            "file": f"photos/biscuit/IMG_{100 + i}.jpg",
            "original": [4032, 3024],
            "box": [504, 0, 3528, 3024],
            "caption": f"a {TOKEN} {NOUN} {where}",
        }
        for i, where in enumerate(["on a sofa", "on grass", "in the snow", "at night", "looking at you"])
    ]
    write_json(folder / "concept" / "crops.json", crops)
    prompts = {"prompts": PROMPTS, "seeds": [0, 1, 2, 3], "steps": 20, "guidance": 4.0, "noun": NOUN, "token": TOKEN}
    (folder / "samples").mkdir()
    write_json(folder / "samples" / "prompts.json", prompts)

    def cats(learned: float) -> list[Image.Image]:
        return [draw_cat(learned, ground, side=side, seed=i) for i, ground in enumerate(GROUNDS)]

    write_pictures(folder / "samples" / "base", cats(0.0))
    for step in range(100, last + 1, 100):
        write_pictures(folder / "samples" / f"step-{step:06d}", cats(1 - math.exp(-step / 180)))
    if stopped_at:
        return folder
    for strength in (0.25, 0.5, 0.75, 1.0):
        write_pictures(folder / "samples" / f"strength-{strength}", cats(strength * 0.97))
    write_pictures(folder / "drift" / "base", [draw_thing(i, 0.0, side) for i in range(len(UNRELATED))])
    write_pictures(folder / "drift" / "adapted", [draw_thing(i, i / 8, side) for i in range(len(UNRELATED))])
    dice = random.Random(1)
    metrics = {
        "values": figures(),
        "features": "probe",
        "seconds_train": 151.4,
        "seconds_total": 204.9,
        "peak_memory_mb": 1310.5,
        "trainable_parameters": 48_128,
        "adapter_bytes": 201_344,
        "drift_pictures": [
            [p, f"drift/base/{i:02d}.png", f"drift/adapted/{i:02d}.png"] for i, p in enumerate(UNRELATED)
        ],
        "weight_drift": [
            {
                "layer": layer,
                "role": role,
                "relative_frobenius": dice.lognormvariate(-3.2, 0.6),
                "angle_degrees": 1 + dice.random(),
                "energy": 11_000.0,
                "energy_change": dice.gauss(0, 1e-4),
                "cosine_change": dice.lognormvariate(-3, 0.5),
                "norm_change": dice.lognormvariate(-4, 0.5),
            }
            for layer, role in LAYERS
        ],
        "not_measured": [{"layer": "unet.conv_in", "role": "input.conv", "reason": "its change depends on the input"}],
    }
    write_json(folder / "metrics.json", metrics)
    metadata = {
        "format": "diffadapt",
        "format_version": "1",
        "method": "lora",
        "base": "embedded",
        "roles": '["cross_attention.*", "self_attention.*"]',
    }
    save_tensors(folder / "adapter.safetensors", {"a": torch.zeros(8, 4)}, metadata)
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A whole run."""
    return invent_run(tmp_path / "biscuit run")


@pytest.fixture
def invent() -> Callable[..., Path]:
    return invent_run
