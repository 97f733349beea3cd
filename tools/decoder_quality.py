"""How well an autoencoder gives pictures back: never-seen sprites on plain grounds, textured grounds, everything.

    python tools/decoder_quality.py --data EMOJI src/diffadapt/bases/embedded/vae/diffusion_pytorch_model.safetensors

The files are those of an exported base or of `tools/train_embedded_base.py`.
256 scenes a set; the peak signal to noise in dB of the mean squared error over a set.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from train_embedded_base import load_autoencoder

from diffadapt.data.wide_pictures import draw_wide_scenes, load_wide_sprites
from diffadapt.data.wide_scenes import WideWorld, sample_wide_scene
from diffadapt.data.wide_world import PLACES, tail_nouns
from diffadapt.data.world import HELD_OUT_NOUNS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path, help="weights of autoencoders")
    parser.add_argument("--data", type=Path, required=True, help="folder of sprite folders")
    parser.add_argument("--count", type=int, default=256, help="scenes of each set")
    args = parser.parse_args()
    unseen = WideWorld(core=tuple((kind, kind, stem) for _, kind, stem in HELD_OUT_NOUNS), drawn=())
    wide = WideWorld(tail=tail_nouns(args.data), drawn=())
    sprites = load_wide_sprites(args.data, wide, HELD_OUT_NOUNS)

    def pictures(world: WideWorld, *, plain: bool, textured: bool = False) -> Tensor:
        rng, scenes = np.random.default_rng(77), []
        while len(scenes) < args.count:
            scene = sample_wide_scene(rng, world, plain=plain)
            if not textured or scene.ground.pattern or scene.ground.word in PLACES:
                scenes.append(scene)
        return torch.cat([draw_wide_scenes(scenes[i : i + 64], sprites)[0] for i in range(0, args.count, 64)])

    sets = {
        "never seen, plain": pictures(unseen, plain=True),
        "textured": pictures(wide, plain=False, textured=True),
        "everything": pictures(wide, plain=False),
    }
    for file in args.files:
        model = load_autoencoder(file)
        for name, shown in sets.items():
            with torch.no_grad():
                back = torch.cat([(model.decoder(model.encoder(part * 2 - 1)) + 1) / 2 for part in shown.split(64)])
            print(f"{file}, {name}: {-10 * (back.clamp(0, 1) - shown).square().mean().log10():.2f} dB")


if __name__ == "__main__":
    main()
