"""Measures a class-conditional base that `tools/train_dit.py` exported: Frechet distance, cost, premise of transfers.

    python tools/measure_dit.py --base BASE --data EMOJI --targets TRANSFER/* --out DIR

Writes DIR/measured.json and DIR/classes.png, one picture of each class. The Frechet distance is that of the features
of two encoders, the probe and the second judge, between COUNT pictures made of the classes in their shares and as many
real sprites drawn as in training; beside it the same between two such draws of real sprites, which is the floor, and of
the null class alone. The premise (docs/diff_tuning.md) is the base's loss near the data on each target over that on its
own pictures, under the null condition. 1000 pictures take some 8 minutes on one core.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from measure_embedded_base import processor
from PIL import Image
from torch import Tensor
from train_dit import draw, list_sprites

from diffadapt.bases import Base, load_base
from diffadapt.data.class_folders import load_classes
from diffadapt.data.picture import to_picture, write_png
from diffadapt.evaluation.chain_of_forgetting import losses_at, near_data
from diffadapt.evaluation.judge import load_encoders
from diffadapt.files import write_json
from diffadapt.metrics.frechet import fid
from diffadapt.progress import Steps
from diffadapt.sampling.sample import default_line, generate

COLUMNS = 12
PREMISE = 64  # pictures of each set


def real_pictures(sprites: list[tuple[Path, str]], chosen: np.ndarray, seed: int) -> Tensor:
    """Sprites of these numbers as training sees them, (N, 3, 64, 64) in [0, 1]."""
    rng = np.random.default_rng([seed, 10**6])
    return torch.stack([draw(Image.open(sprites[i][0]).convert("RGBA"), rng) for i in chosen])


def made_pictures(base: Base, classes: list[str], seed: int) -> Tensor:
    """A picture of each of these classes, (N, 3, 64, 64) in [0, 1]; picture i starts from seed + i."""
    lines = [default_line(base, name, seed + i) for i, name in enumerate(classes)]
    with Steps("pictures", len(lines)) as bar:
        return torch.stack(generate(base, lines, batch=32, bar=bar))


def premise(base: Base, own: Tensor, targets: list[Path]) -> dict[str, float]:
    """Target -> loss near the data over that on the base's own pictures."""
    steps = near_data(base.noise_schedule.noise_ratio(), PREMISE)
    of_own = float(losses_at(base, base.encode_pictures(own[:PREMISE]), steps).mean())
    found = {}
    for folder in targets:
        classes = load_classes(folder).held_out
        share = -(-PREMISE // len(classes))
        pixels = torch.cat([part.pixels(range(min(share, len(part))), base.resolution) for part in classes.values()])
        chosen = np.random.default_rng(0).permutation(len(pixels))[:PREMISE]
        latents = base.encode_pictures(pixels[chosen])
        found[folder.name] = round(float(losses_at(base, latents, steps[: len(latents)]).mean()) / of_own, 3)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", required=True, help="what load_base takes")
    parser.add_argument("--data", type=Path, required=True, help="folder of sprite folders")
    parser.add_argument("--targets", type=Path, nargs="*", default=[], help="class folders whose premise is checked")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--count", type=int, default=1000, help="pictures of each kind")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    base, sprites = load_base(args.base), list_sprites(args.data)
    rng = np.random.default_rng([args.seed, 10**6 + 1])
    chosen = [rng.integers(len(sprites), size=args.count) for _ in range(2)]
    real, again = (real_pictures(sprites, each, args.seed + i) for i, each in enumerate(chosen))

    began = time.process_time()
    made = made_pictures(base, [sprites[i][1] for i in chosen[0]], args.seed)
    seconds = (time.process_time() - began) / len(made)
    null = made_pictures(base, [""] * args.count, args.seed)
    distances = {}
    for encoder in load_encoders(base):
        reference, *others = (encoder.pictures(each) for each in (real, made, null, again))
        names = ("classes", "null class", "real sprites again")
        distances[encoder.name] = {n: round(fid(each, reference), 4) for n, each in zip(names, others, strict=True)}
    facts = {
        "base": base.fingerprint, "classes": len(base.classes), "pictures": args.count, "seed": args.seed,
        "steps": base.default_steps, "guidance": base.default_guidance,
        "cpu_seconds_a_picture": round(seconds, 3), "threads": torch.get_num_threads(), "hardware": processor(),
        "frechet_distance": distances, "premise": premise(base, made, args.targets),
    }  # fmt: skip
    write_json(args.out / "measured.json", facts)
    one = made_pictures(base, list(base.classes), args.seed)
    blank = torch.ones(-len(one) % COLUMNS, *one.shape[1:])
    rows = [torch.cat(list(row), dim=2) for row in torch.cat([one, blank]).split(COLUMNS)]
    write_png(args.out / "classes.png", to_picture(torch.cat(rows, dim=1)))
    print(f"{args.out / 'measured.json'}: {facts['frechet_distance']}, premise {facts['premise']}")


if __name__ == "__main__":
    main()
