"""Bases side by side on the first base's own nouns: does a wider one draw them as well?

    python tools/compare_bases.py --data EMOJI embedded BASE ...

192 plain scenes of one of the first 48 nouns, flat or 3d, medium or large, neither coloured nor mirrored, tilted or
turned in hue. Each base draws a picture of each caption, seed 0, and the probe names the object. Printed are the share
named right of real scenes and of each base's pictures, with the 95 % bootstrap interval over pictures, and that of
animals.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from diffadapt.bases import load_base
from diffadapt.data.picture import to_tensor
from diffadapt.data.wide_pictures import draw_wide_scenes, load_wide_sprites
from diffadapt.data.wide_scenes import WideWorld, sample_wide_scene, wide_caption
from diffadapt.data.world import NOUNS
from diffadapt.metrics import interval_of_mean
from diffadapt.metrics.probe import Probe, load_probe
from diffadapt.sampling.sample import sample


def named_right(probe: Probe, pixels: Tensor, nouns: list[str]) -> Tensor:
    """(N,) 1.0 where the object that the probe names in a picture is the noun that was asked for."""
    with torch.no_grad():
        read = torch.cat([probe.image(part)[0]["object"] for part in pixels.split(64)]).argmax(1).tolist()
    labels = probe.shape.labels["object"]
    return torch.tensor([float(labels[i] == noun) for i, noun in zip(read, nouns, strict=True)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bases", nargs="+", help="as --base takes them")
    parser.add_argument("--data", type=Path, required=True, help="folder of sprite folders")
    parser.add_argument("--probe", type=Path, help="folder of the probe; the one that ships if not given")
    parser.add_argument("--count", type=int, default=192, help="scenes")
    args = parser.parse_args()
    world = WideWorld(core=NOUNS[:48], styles=("flat", "3d"), drawn=(), mirrored=0.0, looks=0.0)
    rng, scenes = np.random.default_rng(11), []
    while len(scenes) < args.count:
        scene = sample_wide_scene(rng, world, plain=True)
        if scene.things[0].size != "small" and not scene.things[0].colour:
            scenes.append(scene)
    probe, captions = load_probe(args.probe), [wide_caption(scene) for scene in scenes]
    shown = {"real scenes": draw_wide_scenes(scenes, load_wide_sprites(args.data, world))[0]}
    for name in args.bases:
        pictures = sample(load_base(name, device="cpu"), captions, seed=0)
        shown[name] = torch.stack([to_tensor(picture) for picture in pictures]).float() / 255
    animals = torch.tensor([scene.things[0].kind == "animal" for scene in scenes])
    nouns = [scene.things[0].noun for scene in scenes]
    for name, pixels in shown.items():
        right = named_right(probe, pixels, nouns)
        found = interval_of_mean(right)
        print(f"{name}: {found.value:.3f} [{found.low:.3f}, {found.high:.3f}], animals {right[animals].mean():.3f}")


if __name__ == "__main__":
    main()
