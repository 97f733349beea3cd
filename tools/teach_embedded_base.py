"""Teaches an exported base eight sprites that its training never shows, and draws what became of each.

    python tools/train_embedded_base.py export --data EMOJI --work DIR --out BASE
    python tools/teach_embedded_base.py --base BASE --data EMOJI --out OUT

Each is learned from five captioned pictures: by full fine-tuning (150 steps) and by LoRA (250 steps) without prior
preservation, and by LoRA as the demo trains it ("kept": more layers, and prior preservation). Then it is asked for on
plain grounds, in purple, with a hat and beside a thing that the base knows.
OUT/sheet.png has a row for each sprite and method: a picture that was learned from, then two pictures of each prompt.
OUT/taught.json has, for each row, the probe's fidelity of the pictures on plain grounds and that of perfect ones: the
sprite itself, drawn as the prompts ask and sent through the autoencoder; and in which of the other pictures the probe
reads the purple, the hat and the other thing. What a person can name is to be looked at.
A sprite takes some four minutes on one core; those that are finished are not taught again.
"""

import argparse
import hashlib
from pathlib import Path

import numpy as np
import torch
from measure_embedded_base import processor
from PIL import Image
from torch import Tensor

import diffadapt as da
from diffadapt.data.picture import to_picture
from diffadapt.data.scene_concept import write_scene_concept
from diffadapt.data.wide_pictures import draw_wide_scenes, load_wide_sprites
from diffadapt.data.wide_scenes import Ground, Thing, WideScene, WideWorld
from diffadapt.data.world import HELD_OUT_NOUNS
from diffadapt.evaluation.judge import draw
from diffadapt.files import read_json, write_json
from diffadapt.metrics import ProbeFeatures, interval_of_mean, interval_of_ratio, subject_fidelity
from diffadapt.recipes.own_settings import own_settings
from diffadapt.sampling.sample import adapted

# noun: style, and a thing of another kind that the base knows
SUBJECTS = {
    "fox": ("3d", "tree"), "helicopter": ("flat", "cat"), "cupcake": ("noto", "dog"), "violin": ("3d", "apple"),
    "hibiscus": ("flat", "car"), "backpack": ("blob", "tree"), "ogre": ("noto", "house"), "lantern": ("3d", "book"),
}  # fmt: skip
PLAIN = ("on a white background", "on a red background", "on a blue background")
QUICK = own_settings("embedded", "lora", "quick")  # as the demo trains
METHODS = {
    "full": (da.Selective(), dict(steps=150)),
    "lora": (da.LoRA(rank=11), dict(steps=250)),
    "kept": (da.LoRA(rank=8), dict(steps=250, roles=QUICK["roles"], prior_weight=1.0, prior_pictures=24)),
}
PER_PROMPT = 2
LISTENED = ("purple", "hat", "next to")  # what the prompts after the plain ones ask for


def prompts(kind: str, other: str) -> list[str]:
    """The plain ones first."""
    asked = [f"a <it> {kind} {ground}" for ground in PLAIN]
    return [
        *asked,
        f"a purple <it> {kind} on a white background",
        f"a <it> {kind} wearing a hat on a white background",
        f"a <it> {kind} next to a {other} on a white background",
    ]


def listened(probe: ProbeFeatures, made: Tensor, other: str) -> dict[str, list[float]]:
    """Of LISTENED, 1.0 for each picture (PER_PROMPT of each, in that order) in which the probe reads it, else 0.0."""
    told = probe.describe(made)
    there = list(zip(told["colour"], told["wearing"], zip(told["object"], told["second"], strict=True), strict=True))
    parts = [there[i * PER_PROMPT : (i + 1) * PER_PROMPT] for i in range(len(LISTENED))]
    return {
        "purple": [float(colour == "purple") for colour, _, _ in parts[0]],
        "hat": [float(worn == "hat") for _, worn, _ in parts[1]],
        "next to": [float(other in things) for _, _, things in parts[2]],
    }


def perfect(data: Path, noun: str, style: str, base: da.Base) -> Tensor:
    """(len(PLAIN) * PER_PROMPT, 3, 64, 64): the sprite on the plain grounds, as decoded pictures look."""
    its = {name: (name, kind, stem) for name, kind, stem in HELD_OUT_NOUNS}[noun]
    sprites = load_wide_sprites(data, WideWorld(core=(its,), styles=(style,), drawn=()))
    rng, scenes = np.random.default_rng(3), []
    for ground in ("white", "red", "blue"):
        for _ in range(PER_PROMPT):
            side = float(rng.uniform(36, 50))
            box = (32 - side / 2, 32 - side / 2, 32 + side / 2, 32 + side / 2)
            thing = Thing(noun=noun, kind=its[1], stem=its[2], style=style, boxes=(box,))
            scenes.append(WideScene(things=(thing,), ground=Ground(word=ground)))
    return base.decode_latents(base.encode_pictures(draw_wide_scenes(scenes, sprites)[0]))


def teach(args: argparse.Namespace, base: da.Base, noun: str, name: str) -> dict:
    """Trains and draws one row, unless its folder holds it already."""
    style, other = SUBJECTS[noun]
    kind = {word: its for word, its, _ in HELD_OUT_NOUNS}[noun]
    folder, method, settings = args.out / f"{noun}-{name}", *METHODS[name]
    rate = args.full_rate if name == "full" else args.lora_rate
    settings = {"learning_rate": rate, "prior_weight": 0.0} | settings
    if (folder / "row.json").is_file():
        row = read_json(folder / "row.json", dict)
        if row["learning_rate"] != settings["learning_rate"]:
            raise SystemExit(f"{folder} was taught at a rate of {row['learning_rate']:g}; give another --out")
        return row
    write_scene_concept(args.out / "shown" / noun, args.data, noun, style)
    concept = da.load_concept(args.out / "shown" / noun, kind, token="<it>")
    run = da.train_subject(
        base, concept, method=method, out=folder / "run", seed=args.seed, batch_size=4,
        token_learning_rate=5e-3, sample_every=0, checkpoint_every=0, evaluation_prompts=0, **settings,
    )  # fmt: skip
    asked = prompts(kind, other)
    with adapted(base, [(run.adapter, 1.0)]):
        made = draw(base, asked, PER_PROMPT, seed=args.seed)
    probe = ProbeFeatures("probe", torch.device("cpu"))
    mine = probe.subjects(concept.pixels(base.resolution))
    plain = made[: len(PLAIN) * PER_PROMPT]
    reached, ideal = (
        subject_fidelity(probe.subjects(each), mine) for each in (plain, perfect(args.data, noun, style, base))
    )
    strip = torch.cat([concept.pixels(base.resolution)[:1], made])
    to_picture(torch.cat(list(strip), dim=2)).save(folder / "strip.png")
    row = {
        "noun": noun, "style": style, "kind": kind, "method": name, **settings,
        "fidelity": [round(float(x), 4) for x in reached], "perfect": [round(float(x), 4) for x in ideal],
        "listened": listened(probe, made[len(plain) :], other), "seconds_train": run.metrics["seconds_train"],
    }  # fmt: skip
    write_json(folder / "row.json", row)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, required=True, help="folder that StableDiffusionPipeline opens")
    parser.add_argument("--data", type=Path, required=True, help="folder of sprite folders")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--only", nargs="*", choices=tuple(SUBJECTS), default=list(SUBJECTS), help="some")
    parser.add_argument("--methods", nargs="*", choices=tuple(METHODS), default=["full", "lora"])
    parser.add_argument("--full-rate", type=float, default=2e-4, help="full fine-tuning's peak learning rate")
    parser.add_argument("--lora-rate", type=float, default=8e-3, help="LoRA's peak learning rate")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    base = da.load_base(str(args.base))
    rows = [teach(args, base, noun, name) for noun in args.only for name in args.methods]
    strips = [Image.open(args.out / f"{row['noun']}-{row['method']}" / "strip.png") for row in rows]
    sheet = Image.new("RGB", (strips[0].width, sum(strip.height for strip in strips)))
    for i, strip in enumerate(strips):
        sheet.paste(strip, (0, i * strip.height))
    sheet.save(args.out / "sheet.png", optimize=True)
    weights = (args.base / "unet" / "diffusion_pytorch_model.safetensors").read_bytes()
    shares = {
        name: interval_of_ratio(
            torch.tensor([np.mean(row["fidelity"]) for row in rows if row["method"] == name]),
            torch.tensor([np.mean(row["perfect"]) for row in rows if row["method"] == name]),
        ).as_row()
        for name in args.methods
    }
    heard = {
        name: {
            asked: interval_of_mean(
                torch.tensor([np.mean(row["listened"][asked]) for row in rows if row["method"] == name])
            ).as_row()
            for asked in LISTENED
        }
        for name in args.methods
    }
    facts = {"unet_sha256": hashlib.sha256(weights).hexdigest(), "seed": args.seed, "hardware": processor()}
    write_json(args.out / "taught.json", facts | {"share_of_perfect": shares, "listened": heard, "rows": rows})
    for row in rows:
        reached, ideal = (interval_of_mean(torch.tensor(row[key])).value for key in ("fidelity", "perfect"))
        print(f"{row['noun']:12} {row['method']:5} fidelity {reached:.3f} of {ideal:.3f}, {reached / ideal:.2f}")
    print(f"{args.out / 'sheet.png'}, {args.out / 'taught.json'}: share of perfect {shares}; listened {heard}")


if __name__ == "__main__":
    main()
