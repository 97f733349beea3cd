"""Sixty single things to be named by somebody who does not see what was asked for: two sheets, and the count.

    python tools/name_by_eye.py draw --base BASE --data EMOJI --out OUT
    python tools/name_by_eye.py count --out OUT

`draw` writes OUT/generated.png, sixty nouns of the core, each in a style and on a ground by lot, by the base, and
OUT/real.png, sixty other ones as they are, sent through the autoencoder: what can be named at this size at all. What
was asked for is in OUT/asked.json, not to be opened. Whoever looks writes OUT/named.json, `{"generated": ["cat", ...],
"real": [...]}`, a word for each picture from the upper left on, "" for one that cannot be named. `count` then prints
the share of each sheet that is right, with its 95 % bootstrap interval, and each picture whose word is another one:
another word for the same thing is right, and to be written as it was asked in OUT/named.json before counting again.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from train_denoiser import write_grid

from diffadapt.bases import load_base
from diffadapt.data.picture import to_tensor
from diffadapt.data.wide_pictures import draw_wide_scenes, load_wide_sprites
from diffadapt.data.wide_scenes import WideScene, WideWorld, sample_wide_scene, wide_caption
from diffadapt.data.world import HELD_OUT_NOUNS
from diffadapt.files import read_json, write_json
from diffadapt.metrics import interval_of_mean
from diffadapt.sampling.sample import sample

COUNT = 60
ACROSS = 10


def single_things(rng: np.random.Generator) -> list[WideScene]:
    """Two sheets full of large or medium single things of different nouns, by lot."""
    world = WideWorld(drawn=(), mirrored=0.0, looks=0.0)
    found: dict[str, WideScene] = {}
    while len(found) < 2 * COUNT:
        scene = sample_wide_scene(rng, world, plain=True)
        thing = scene.things[0]
        if thing.size != "small" and thing.colour is None:
            found.setdefault(thing.noun, scene)
    return list(found.values())


def draw(args: argparse.Namespace) -> None:
    rng = np.random.default_rng(args.seed)
    scenes = single_things(rng)
    base = load_base(args.base, device="cpu")
    pictures = sample(base, [wide_caption(scene) for scene in scenes[:COUNT]], seed=args.seed, batch=30)
    sprites = load_wide_sprites(args.data, WideWorld(), HELD_OUT_NOUNS)
    real = draw_wide_scenes(scenes[COUNT:], sprites)[0]
    with torch.no_grad():
        given_back = base.decode_latents(base.encode_pictures(real.clamp(0, 1)))
    args.out.mkdir(parents=True, exist_ok=True)
    write_grid(args.out / "generated.png", torch.stack([to_tensor(picture) for picture in pictures]) / 255, ACROSS)
    write_grid(args.out / "real.png", given_back, ACROSS)
    nouns = [scene.things[0].noun for scene in scenes]
    write_json(args.out / "asked.json", {"generated": nouns[:COUNT], "real": nouns[COUNT:]})


def count(args: argparse.Namespace) -> None:
    asked, named = (read_json(args.out / name, dict) for name in ("asked.json", "named.json"))
    for sheet, nouns in asked.items():
        if len(named[sheet]) != len(nouns):
            raise SystemExit(f"{args.out / 'named.json'} has {len(named[sheet])} words for {sheet}, not {len(nouns)}")
        right = [float(word == noun) for word, noun in zip(named[sheet], nouns, strict=True)]
        found = interval_of_mean(torch.tensor(right))
        print(f"{sheet}: {found.value:.3f} [{found.low:.3f}, {found.high:.3f}] of {len(nouns)} named right")
        for i, (word, noun) in enumerate(zip(named[sheet], nouns, strict=True)):
            if word != noun:
                print(f"  row {i // ACROSS + 1}, picture {i % ACROSS + 1}: asked for {noun}, named {word or 'nothing'}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("do", choices=("draw", "count"))
    parser.add_argument("--base", default="embedded", help="as load_base takes it")
    parser.add_argument("--data", type=Path, help="folder of sprite folders, for draw")
    parser.add_argument(
        "--out", type=Path, required=True, help="folder of the sheets, what was asked and what was named"
    )
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    draw(args) if args.do == "draw" else count(args)


if __name__ == "__main__":
    main()
