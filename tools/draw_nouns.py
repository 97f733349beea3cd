"""Nouns of the core in every style, large on white, drawn by a state of the base's training: a sheet to look at.

    python tools/draw_nouns.py FOLDER --out sheet.png

FOLDER is what `tools/train_denoiser.py --keep` writes, or its --work. Every picture begins at the same noise in every
state, so that two sheets can be laid side by side. Printed is the share of pictures whose noun the probe names.
"""

import argparse
from pathlib import Path

import torch
from compare_bases import named_right
from torch import Tensor
from train_denoiser import pictures_of, write_grid
from train_embedded_base import build_tokenizer, load_trained

from diffadapt.data.wide_scenes import WideWorld
from diffadapt.metrics import interval_of_mean
from diffadapt.metrics.probe import load_probe


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="state.safetensors, tokenizer, autoencoder and, if there, decoder")
    parser.add_argument("--probe", type=Path, help="folder of the probe; the one that ships if not given")
    parser.add_argument("--out", type=Path, required=True, help="the sheet, four nouns a row")
    parser.add_argument("--count", type=int, default=60, help="nouns, the first of the core")
    parser.add_argument("--weights", choices=("ema", "model"), default="ema", help="averaged, or of the moment")
    args = parser.parse_args()
    tokenizer, (autoencoder, text_encoder, unet) = build_tokenizer(args.folder), load_trained(args.folder, args.weights)

    def embed(captions: list[str]) -> Tensor:
        ids = tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids
        return text_encoder(ids).last_hidden_state

    def decode(latents: Tensor) -> Tensor:
        return (autoencoder.decoder(latents) + 1) / 2

    world, probe = WideWorld(), load_probe(args.probe)
    asked = [(noun, style) for noun in world.nouns[: args.count] for style in world.styles]
    captions = [f"a large {style} {noun} on a white background" for noun, style in asked]
    parts = [captions[i : i + 60] for i in range(0, len(captions), 60)]
    pictures = torch.cat([pictures_of(part, unet, embed, decode, torch.device("cpu")) for part in parts])
    right = named_right(probe, pictures, [noun for noun, _ in asked])
    found = interval_of_mean(right)
    print(f"{args.folder}: {found.value:.3f} [{found.low:.3f}, {found.high:.3f}] of {len(asked)} pictures named right")
    write_grid(args.out, pictures, across=4 * len(world.styles))


if __name__ == "__main__":
    main()
