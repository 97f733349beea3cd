"""What the probe is trained on: scenes of the world, scenes of thousands of other sprites, captions true and false."""

import dataclasses
import json
import re
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from diffadapt.data.scenes import (
    FOLDER_OF,
    Placed,
    Scene,
    World,
    caption,
    grammar_words,
    load_sprite,
    render,
    sample_scene,
)
from diffadapt.data.world import BACKGROUNDS, HELD_OUT_NOUNS, KINDS, NOUNS, POSITIONS, SIZES, STYLES
from diffadapt.metrics.probe import PADDING, UNKNOWN, ProbeShape

FOLDERS = (*(folder for _, folder in STYLES), "fluent-flat")  # the base-marked sets but the held-out style
STYLE_OF = {folder: style for style, folder in STYLES}
LABELS = {
    "object": tuple(noun for noun, *_ in NOUNS),
    "second": (*(noun for noun, *_ in NOUNS), "none"),
    "style": tuple(style for style, _ in STYLES),
    "background": tuple(BACKGROUNDS),
    "position": tuple(POSITIONS),
    "size": tuple(SIZES),
}
NUMBER = {head: {label: i for i, label in enumerate(labels)} for head, labels in LABELS.items()}
SKIP = -100  # a label that is not known: no loss
NOUN_OF_STEM = {stem: noun for noun, _, stem in NOUNS}


def probe_shape() -> ProbeShape:
    """Labels, and the vocabulary: every grammar word that pictures can teach; held-out ones stay unknown."""
    untaught = {noun for noun, *_ in HELD_OUT_NOUNS} | (set(FOLDER_OF) - set(STYLE_OF.values()))
    words = [word for word in grammar_words() if word not in untaught or word in KINDS]
    return ProbeShape(labels=LABELS, words=(PADDING, UNKNOWN, *words), widths=(32, 64, 128, 192))


class Sprites:
    """Every sprite the probe may see, by number. Held-out nouns are left out in every folder.

    Attributes:
        stack: (S, 4, 72, 72) uint8, premultiplied.
        number: (folder, file stem) -> row of `stack`.
    """

    def __init__(self, data: Path, *, stems: set[str] | None = None, folders: tuple[str, ...] = FOLDERS) -> None:
        held_out = {stem for _, _, stem in HELD_OUT_NOUNS}
        pictures, self.number, self.folders_of = [], {}, defaultdict(list)
        for folder in folders:
            lines = (data / folder / "metadata.jsonl").read_text().splitlines()
            for name in sorted(json.loads(line)["file_name"] for line in lines):
                stem = name.removesuffix(".png")
                if (stem in held_out) if stems is None else (stem not in stems):
                    continue
                self.number[folder, stem] = len(pictures)
                self.folders_of[stem].append(folder)
                pictures.append((load_sprite(data / folder / name) * 255).round().byte())
        self.stack = torch.stack(pictures)
        self.stems = sorted(self.folders_of)
        self.world = {
            (noun, style): self.stack[self.number[folder, stem]].float() / 255
            for noun, _, stem in NOUNS
            for style, folder in STYLES
            if (folder, stem) in self.number
        }

    def views(self, rng: np.random.Generator, chosen: list[tuple[str, str]]) -> tuple[list[Scene], dict]:
        """One single-object scene for each (folder, stem), the sprite mirrored or turned up to 15 degrees at times."""
        rows = self.stack[[self.number[key] for key in chosen]].float() / 255
        angle = np.deg2rad(rng.uniform(-15, 15, len(chosen)) * (rng.random(len(chosen)) < 0.5))
        mirror = np.where(rng.random(len(chosen)) < 0.3, -1.0, 1.0)
        cos, sin, zero = np.cos(angle), np.sin(angle), np.zeros_like(angle)
        matrix = np.stack([cos * mirror, -sin, zero, sin * mirror, cos, zero], 1)
        grid = F.affine_grid(torch.from_numpy(matrix).float().view(-1, 2, 3), list(rows.shape), align_corners=False)
        rows = F.grid_sample(rows, grid, align_corners=False)
        scenes, sprites = [], {}
        for i, (folder, _) in enumerate(chosen):
            scene = sample_scene(rng, World(nouns=("cat",)), two_objects=0.0)
            thing = dataclasses.replace(scene.objects[0], noun=f"view {i}", style=STYLE_OF.get(folder, "<style>"))
            scenes.append(dataclasses.replace(scene, objects=(thing,)))
            sprites[thing.noun, thing.style] = rows[i]
        return scenes, sprites


def labels_of(scene: Scene, noun: str | None) -> list[int]:
    """The label of each head; `noun` is None where the object has no name in the world."""
    first, single = scene.objects[0], len(scene.objects) == 1
    return [
        SKIP if noun is None else NUMBER["object"][noun],
        NUMBER["second"]["none" if single else scene.objects[1].noun],
        NUMBER["style"].get(first.style, SKIP),
        NUMBER["background"][scene.background],
        NUMBER["position"][first.position] if single else SKIP,
        NUMBER["size"][first.size] if single else SKIP,
    ]


def change(scene: Scene, rng: np.random.Generator, what: str) -> Scene | None:
    """A scene that differs in one thing, or None where that thing cannot be changed into something false."""

    def other(words, word: str) -> str:
        words = [w for w in words if w != word]
        return words[int(rng.integers(len(words)))]

    if what == "background":
        return dataclasses.replace(scene, background=other(BACKGROUNDS, scene.background))
    objects = list(scene.objects)
    at = int(rng.integers(len(objects)))
    thing: Placed = objects[at]
    if what == "order":
        if scene.relation != "above":  # "next to" is true both ways
            return None
        objects[0], objects[1] = (dataclasses.replace(a, noun=b.noun) for a, b in (objects, objects[::-1]))
        return dataclasses.replace(scene, objects=tuple(objects))
    if what in ("position", "size"):
        if scene.relation is not None or (what == "size" and thing.size == "medium"):
            return None
        opposite = {"small": "large", "large": "small"}
        new = other(POSITIONS, thing.position) if what == "position" else opposite[thing.size]
    else:
        new = other(LABELS["object" if what == "noun" else "style"], getattr(thing, what))
    objects[at] = dataclasses.replace(thing, **{what: new})
    return dataclasses.replace(scene, objects=tuple(objects))


def spoil(pictures: Tensor, rng: np.random.Generator) -> Tensor:
    """Noise and blur at times, so that the small faults of generated pictures do not unsettle the probe."""
    n = len(pictures)
    soft = F.interpolate(F.avg_pool2d(pictures, 2), scale_factor=2, mode="bilinear", align_corners=False)
    share = torch.from_numpy((rng.random(n) < 0.4) * rng.random(n)).float()[:, None, None, None]
    level = torch.from_numpy((rng.random(n) < 0.5) * rng.uniform(0, 0.06, n)).float()[:, None, None, None]
    noise = torch.from_numpy(rng.standard_normal(pictures.shape, dtype=np.float32))
    return (pictures + share * (soft - pictures) + level * noise).clamp(0, 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Batch:
    pictures: Tensor  # (N, 3, 64, 64)
    labels: Tensor  # (N, heads) long
    sprite: Tensor  # (N,) long: the sprite's number, SKIP where two are seen
    captions: list[str]  # N true ones
    wrong: list[str]  # M <= N false ones: `wrong_for[k]` says for which picture


def draw_batch(rng: np.random.Generator, sprites: Sprites, size: int) -> Batch:
    """9/16 of a batch are scenes of the world, the rest two views each of any sprites, half of them in two styles."""
    world = World()
    scenes = [sample_scene(rng, world, two_objects=0.25) for _ in range(size * 9 // 16)]
    seeds = rng.integers(2**31, size=len(scenes))
    captions, wrong = [], []
    folder_of = dict(STYLES)
    stem_of = {noun: stem for noun, _, stem in NOUNS}
    labels, numbers = [], []
    for scene, seed in zip(scenes, seeds, strict=True):
        text = caption(scene, np.random.default_rng(seed))
        if no := change(scene, rng, ("noun", "style", "background", "position", "size", "order")[rng.integers(6)]):
            false = caption(no, np.random.default_rng(seed))
            wrong += [false] if false != text else []
        if rng.random() < 0.1:  # a new word before the noun, as personalisation will add one
            noun = scene.objects[0].noun
            text = re.sub(rf" {noun}\b", f" <new> {noun}", text, count=1)
        captions.append(text)
        first = scene.objects[0]
        labels.append(labels_of(scene, first.noun))
        single = len(scene.objects) == 1
        numbers.append(sprites.number[folder_of[first.style], stem_of[first.noun]] if single else SKIP)
    pictures = [render(scenes, sprites.world)[0]]

    chosen: list[tuple[str, str]] = []
    while len(chosen) < size - len(scenes):
        stem = sprites.stems[int(rng.integers(len(sprites.stems)))]
        folders = sprites.folders_of[stem]
        for i in rng.permutation(len(folders))[:2]:
            chosen += [(folders[i], stem)] * 2
    chosen = chosen[: size - len(scenes)]
    views, drawn = sprites.views(rng, chosen)
    pictures.append(render(views, drawn)[0])
    for view, (folder, stem) in zip(views, chosen, strict=True):
        named = dataclasses.replace(view, objects=(dataclasses.replace(view.objects[0], noun="cat"),))
        noun = NOUN_OF_STEM.get(stem)
        captions.append(re.sub(r"\b(cat|animal)\b", noun or "<thing>", caption(named, rng)))
        labels.append(labels_of(view, noun))
        numbers.append(sprites.number[folder, stem])
    return Batch(
        pictures=spoil(torch.cat(pictures), rng),
        labels=torch.tensor(labels),
        sprite=torch.tensor(numbers),
        captions=captions,
        wrong=wrong,
    )
