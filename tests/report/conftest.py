"""A run that was trained once in a process by the shared loop, whole and interrupted, and copies of it to change."""

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageDraw

STEPS, STOPPED_AT, PROMPTS, UNRELATED = 6, 5, 6, 8
TOKEN, NOUN = "<biscuit>", "cat"
GROUNDS = [(186, 52, 44), (94, 148, 66), (226, 233, 240), (26, 30, 62), (120, 120, 120)]


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


def change_json(path: Path, **changes: Any) -> None:
    """Other values of some keys in a file of a run."""
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.fixture(scope="session")
def trained(tiny_v_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two run folders of one training: `stopped`, as Ctrl-C left it after step 5, and `whole`, resumed from there."""
    from diffadapt.adapters import LoRA
    from diffadapt.bases import load_base
    from diffadapt.data.concept import load_concept
    from diffadapt.recipes.subject import SubjectConfig, train_subject

    place = tmp_path_factory.mktemp("runs")
    (place / "biscuit").mkdir()
    for i, ground in enumerate(GROUNDS):
        draw_cat(1, ground, seed=i).resize((32, 32), Image.Resampling.NEAREST).save(place / "biscuit" / f"{i}.png")
    base = load_base(tiny_v_folder, device="cpu")
    base.default_steps = 1
    config = SubjectConfig(
        steps=STEPS, batch_size=6, warmup=0, prior_pictures=1, sample_every=1, checkpoint_every=2,
        evaluation_prompts=UNRELATED // 2, evaluation_pictures=1,
    )  # fmt: skip

    def train(watch=None) -> None:
        train_subject(
            base, load_concept(place / "biscuit", NOUN), method=LoRA(rank=2), out=place / "whole", config=config,
            watch=watch, quiet=True,
        )  # fmt: skip

    def stop(step: int, loss: float) -> None:
        if step == STOPPED_AT:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(stop)
    shutil.copytree(place / "whole", place / "stopped")
    train()
    return place


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """The whole run with chosen figures and costs, so that the words about them can be told."""
    folder = Path(shutil.copytree(trained / "whole", tmp_path / "biscuit run"))
    costs = {"seconds_train": 151.4, "seconds_total": 204.9, "trainable_parameters": 48_128, "adapter_bytes": 201_344}
    change_json(folder / "metrics.json", values=figures(), **costs)
    return folder


@pytest.fixture
def asked(run: Path) -> list[str]:
    """The prompts of the run's samples."""
    return json.loads((run / "samples" / "prompts.json").read_text())["prompts"]
