"""What the units of the claims are made of: CPU seconds of a training step of each family, of a picture, of a start.

    python benchmarks/unit_seconds.py --data DATA --out benchmarks/results/unit_seconds.json

DATA holds emoji/. Each family trains for a few steps by its own recipe, with the batch that the claims use; the figure
is the median of the steps after the second, in the process's own time. A busy machine lengthens that, too: before each
family the floor of docs/evidence/step_time.md is timed, forward and backward of the frozen UNet with a batch of 8, and
`pace` is its median over what it took when little else ran. `evidence/unit_cost.py` makes the expected seconds of units
from the figures over the pace.
"""

import argparse
import subprocess
import tempfile
import time

STARTED = time.process_time()

from collections.abc import Callable, Mapping  # noqa: E402
from pathlib import Path  # noqa: E402
from statistics import median  # noqa: E402
from typing import Any  # noqa: E402

import torch  # noqa: E402

from diffadapt.adapters import OFT, CLoRA, DiffFit, LoRA, Selective, StyleInject  # noqa: E402
from diffadapt.adapters.control_net import ControlNet  # noqa: E402
from diffadapt.bases import Base, load_base  # noqa: E402
from diffadapt.data.concept import load_concept  # noqa: E402
from diffadapt.data.control_pairs import ControlPairs  # noqa: E402
from diffadapt.data.demo_characters import draw_demo_characters  # noqa: E402
from diffadapt.data.scene_concept import write_scene_concept  # noqa: E402
from diffadapt.data.sequence import load_sequence  # noqa: E402
from diffadapt.data.styles import load_styles  # noqa: E402
from diffadapt.evaluation.judge import draw  # noqa: E402
from diffadapt.files import write_json  # noqa: E402
from diffadapt.metrics.features import load_features  # noqa: E402
from diffadapt.metrics.reader import load_reader  # noqa: E402
from diffadapt.recipes.control import train_control  # noqa: E402
from diffadapt.recipes.distill import train_distill  # noqa: E402
from diffadapt.recipes.sequence import train_sequence  # noqa: E402
from diffadapt.recipes.style import train_style  # noqa: E402
from diffadapt.recipes.subject import train_subject  # noqa: E402
from diffadapt.training.run import made_by  # noqa: E402

FLOOR = 0.1719  # seconds, in benchmarks/results/step_time-cpu.json
PROMPTS = ["an animal on a red background", "a thing at night"] * 4
ROLES = ("self_attention.*", "cross_attention.*", "feed_forward.in")  # of OFT-5
CHARACTERS = ("self_attention.*", "cross_attention.*", "feed_forward.*", "residual.conv")  # of CL-1
STYLES = ("self_attention.*", "cross_attention.*", "feed_forward.*", "residual.*")  # of SI-1 to SI-5


def families(base: Base, folder: Path, data: Path) -> Mapping[str, Callable[..., Any]]:
    """Family -> its training, which takes `out`, `steps` and `watch`."""
    shown = write_scene_concept(folder / "fox", data / "emoji", "fox", "3d")
    concept, styles = load_concept(shown, "animal", token="<fox>"), load_styles(shown, held_out=0)
    still: dict[str, Any] = {"quiet": True, "sample_every": 0, "checkpoint_every": 0}
    unmeasured = {**still, "evaluation_pictures": 0}
    few: dict[str, Any] = {"prior_pictures": 2, "memory_bank": str(folder / "bank")}
    pixels = torch.rand(8, 3, base.resolution, base.resolution, generator=torch.Generator().manual_seed(0))
    pairs = ControlPairs.in_memory(pixels, pixels, PROMPTS, signal="segmentation")
    tasks = load_sequence(draw_demo_characters(folder / "demo"), "animal")[:1]

    def subject(method: Any) -> Callable[..., Any]:
        return lambda **how: train_subject(
            base, concept, method=method, batch_size=2, evaluation_prompts=0, **few, **still, **how
        )

    def style(method: Any, batch: int, roles: tuple[str, ...] = ()) -> Callable[..., Any]:
        return lambda **how: train_style(
            base, styles, method=method, batch_size=batch, roles=roles, **unmeasured, **how
        )

    def control(method: Any, **more: Any) -> Callable[..., Any]:
        return lambda **how: train_control(base, pairs, method=method, evaluation_pairs=0, **more, **still, **how)

    return {
        "subject, LoRA": subject(LoRA(rank=11)),
        "subject, OFT": subject(OFT(blocks=4)),
        "subject, every weight": subject(Selective()),
        "style, LoRA": style(LoRA(rank=14), 4, STYLES),
        "style, StyleInject": style(StyleInject(), 4, STYLES),
        "mixed styles, StyleInject": style(StyleInject(), 8, STYLES),
        "transfer, LoRA": style(LoRA(rank=8), 16),
        "transfer, OFT": style(OFT(), 16),
        "transfer, every weight": style(Selective(), 16),
        "transfer, DiffFit": style(DiffFit(), 16),
        "control, OFT": control(OFT(blocks=4), roles=ROLES),
        "control, ControlNet": control(ControlNet()),
        "distillation, StyleInject": lambda **how: train_distill(
            base, {"itself": load_base(base.name)}, PROMPTS[:2], method=StyleInject(), teacher_pictures=2, roles=STYLES,
            **unmeasured, **how,
        ),
        "sequence, C-LoRA": lambda **how: train_sequence(
            base, tasks, method=CLoRA(rank=8, penalty_scale="normalised"), batch_size=2, evaluation_pictures=2, pairs=0,
            roles=CHARACTERS, quiet=True, **few, **how,
        ),
    }  # fmt: skip


def seconds_of_a_step(train: Callable[..., Any], out: Path, steps: int) -> float:
    """Median over the steps after the second."""
    at: list[float] = []
    train(out=out, steps=steps, watch=lambda step, loss: at.append(time.process_time()))
    return round(median(b - a for a, b in zip(at[1:-1], at[2:], strict=True)), 4)


def seconds_of_the_floor(base: Base) -> float:
    """Of one forward and backward pass of the frozen denoiser."""
    config = base.denoiser.config
    x = torch.randn(8, config.in_channels, config.sample_size, config.sample_size).requires_grad_()
    with torch.no_grad():
        condition = base.condition(PROMPTS)
    began = time.process_time()
    base.denoise(x, torch.full((8,), 500), condition).square().mean().backward()
    return time.process_time() - began


def seconds_of_a_picture(base: Base, steps: int) -> float:
    draw(base, PROMPTS[:1], steps=1)
    began = time.process_time()
    draw(base, PROMPTS, steps=steps)
    return round((time.process_time() - began) / len(PROMPTS), 4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=6)
    args = parser.parse_args()
    base = load_base("embedded")
    for name in ("probe", "second"):
        load_features(name)
    load_reader()
    found: dict[str, Any] = {"start": round(time.process_time() - STARTED, 2), "picture": {}, "step": {}}
    for steps in (10, base.default_steps):
        found["picture"][str(steps)] = seconds_of_a_picture(base, steps)
    floors = []
    with tempfile.TemporaryDirectory() as place:
        for name, train in families(base, Path(place), args.data).items():
            floors += [seconds_of_the_floor(base) for _ in range(3)]
            found["step"][name] = seconds_of_a_step(train, Path(place) / "runs" / name.replace(", ", "-"), args.steps)
            print(f"{name}: {found['step'][name]} s a step", flush=True)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    found["pace"] = round(median(floors) / FLOOR, 3)
    facts = made_by() | {"commit": commit, "base_fingerprint": base.fingerprint}
    write_json(args.out, found | {"made_by": facts | {"command": f"unit_seconds.py --data DATA --out {args.out}"}})


if __name__ == "__main__":
    main()
