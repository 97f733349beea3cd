"""Draws scenes of the embedded base's world with their captions, for a control training: what they show and not where.

    python tools/draw_scenes.py --data EMOJI --out photos/scenes --count 1000
    diffadapt train configs/embedded-control-oft.toml pairs.folder=photos/scenes pairs.signals=canny

Writes OUT/NNNN.png and OUT/metadata.jsonl. With `--signal segmentation` (or depth_order, landmarks), which pixels alone
do not tell, OUT/signals/NNNN.png as well. A caption leaves size and place to the signal.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path

import numpy as np

from diffadapt.bases import load_base
from diffadapt.controls import SIGNALS
from diffadapt.data.picture import to_picture, write_png
from diffadapt.data.scenes import KIND_OF, caption, load_sprites, plain_world_of, render, sample_scene
from diffadapt.files import write_atomic


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of sprite folders")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--count", type=int, default=1000, help="scenes")
    parser.add_argument("--signal", choices=[name for name, each in SIGNALS.items() if each.from_scene])
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    world = plain_world_of(load_base("embedded"))
    sprites, rng = load_sprites(args.data, world), np.random.default_rng(args.seed)
    scenes = [sample_scene(rng, world) for _ in range(args.count)]
    pictures, masks = render(scenes, sprites)
    lines = []
    for i, scene in enumerate(scenes):
        things = tuple(replace(thing, size="medium", position="center") for thing in scene.objects)
        write_png(args.out / f"{i:04d}.png", to_picture(pictures[i]))
        lines.append({"file_name": f"{i:04d}.png", "text": caption(replace(scene, objects=things))})
    if args.signal:
        kinds = [[KIND_OF[thing.noun] for thing in scene.objects] for scene in scenes]
        from_scene = SIGNALS[args.signal].from_scene
        assert from_scene is not None
        for i, signal in enumerate(from_scene(masks, kinds)):
            write_png(args.out / "signals" / f"{i:04d}.png", to_picture(signal))
            lines[i]["conditioning_file_name"] = f"signals/{i:04d}.png"
    write_atomic(args.out / "metadata.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    print(f"{args.out}: {args.count} scenes")


if __name__ == "__main__":
    main()
