"""What the claims about subjects measure of an adapter: learned, followed, leaked, drifted, and the held-out loss.

Everything that the untouched base draws is drawn once for each subject and kept, and drawn once more from other seeds:
what a figure of the base against itself comes to is the floor under the same figure of an adapter.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffadapt.bases import Base
from diffadapt.data.asked import asked_of
from diffadapt.data.concept import Concept
from diffadapt.data.prompts import benchmark_prompts, drift_prompts, spread
from diffadapt.data.scenes import (
    KIND_OF,
    Placed,
    Scene,
    World,
    caption,
    load_sprites,
    place,
    render,
    sample_scene,
    world_of,
)
from diffadapt.evaluation.held_out_loss import held_out_loss
from diffadapt.evaluation.judge import draw
from diffadapt.files import load_tensors, save_tensors
from diffadapt.metrics.diversity import diversity
from diffadapt.metrics.drift import drift_features
from diffadapt.metrics.features import ProbeFeatures
from diffadapt.metrics.fidelity import subject_fidelity
from diffadapt.metrics.following import followed, look
from diffadapt.metrics.reader import load_reader

PROMPTS, PER_PROMPT, CLASS_PROMPTS, NEAR, FAR, ON_THE_WAY, SAMPLING_STEPS = 12, 2, 12, 8, 8, 6, 10
HELD_OUT = 8  # pictures of each of the three sets that the loss is measured on
SETS = ("concept", "class", "world")
ANOTHER = 1000  # added to every seed for the floor


class Judge:
    """Scores whatever is attached to a base now.

    Args:
        base: the base; with nothing attached when this is made for the first time.
        concept: the subject.
        noun, style: the sprite that the subject is, out of `data.world`.
        emoji: folder of sprite folders, for perfect renderings and held-out scenes.
        shared: folder where what the untouched base draws is kept.
        alone: whether the concept's word stands for the noun.
    """

    def __init__(
        self, base: Base, concept: Concept, noun: str, style: str, emoji: Path, shared: Path, *, alone: bool = False
    ) -> None:
        self.base, self.noun, self.style, self.emoji = base, noun, style, emoji
        self.word = concept.token if alone else f"{concept.token} {KIND_OF[noun]}"
        self.encoder, self.reader = ProbeFeatures("probe", torch.device("cpu")), load_reader()
        self.world = world_of(base) or World()
        self.mine = self.encoder.subjects(concept.pixels(base.resolution))
        asked = benchmark_prompts(concept.noun, concept.token, self.world)
        self.prompts = (concept.standing_alone() if alone else concept).said(spread(asked, PROMPTS))
        self.asked = [asked_of(prompt, self.world) for prompt in spread(asked, PROMPTS)]
        self.plain = spread(benchmark_prompts(concept.noun, "", self.world), CLASS_PROMPTS)
        kind = KIND_OF[noun]
        alike = tuple(other for other in self.world.nouns if KIND_OF[other] == kind)
        near = replace(self.world, nouns=alike or self.world.nouns)
        far = replace(self.world, nouns=tuple(other for other in self.world.nouns if other not in alike))
        self.unrelated = {
            "near": drift_prompts(near, NEAR, 0, without=kind),
            "far": drift_prompts(far, FAR, 0, without=kind),
        }
        self.perfect = self.follows(self._perfect())
        self.before = self._kept(shared / f"before-{noun}-{base.fingerprint.split(':')[-1][:8]}.safetensors")

    # --- all of it --------------------------------------------------------------------------------------------------

    def scores(self) -> dict[str, Any]:
        """Every figure of what is attached; raw, so that a judge can average what it likes."""
        drawn = self.draw(self.prompts, PER_PROMPT)
        rows = self.encoder.subjects(drawn)
        of_class = self.draw(self.plain, 1)
        result: dict[str, Any] = {
            "fidelity": listed(subject_fidelity(rows, self.mine)),
            "followed": self.follows(drawn, PER_PROMPT),
            "perfect": self.perfect,
            "diversity": listed(diversity(rows, torch.arange(PROMPTS).repeat_interleave(PER_PROMPT))),
            "leaked": self.leaked(of_class),
            "leak_floor": self.leaked(self.before["class again"]),
            "class_diversity": [self.spread_of(each) for each in (of_class, self.before["class"])],
            "loss": self.loss(),
        }
        for name, prompts in self.unrelated.items():
            result[f"drift_{name}"] = self.drift(self.draw(prompts, 1), name)
            result[f"{name}_floor"] = self.drift(self.before[f"{name} again"], name)
        return result

    def on_the_way(self) -> tuple[list[float], dict[str, list[float]]]:
        """Fidelity, and what was followed, on a few pictures."""
        places = [i * PROMPTS // ON_THE_WAY for i in range(ON_THE_WAY)]
        drawn = self.draw([self.prompts[i] for i in places], 1)
        seen = look(drawn, self.encoder, self.reader)
        fidelity = listed(subject_fidelity(self.encoder.subjects(drawn), self.mine))
        return fidelity, followed([self.asked[i] for i in places], seen)

    def follows(self, drawn: Tensor, per_prompt: int = 1) -> dict[str, list[float]]:
        """Attribute -> 1.0 or 0.0 of every picture that was asked for it."""
        asked = [each for each in self.asked for _ in range(per_prompt)]
        return followed(asked, look(drawn, self.encoder, self.reader))

    def leaked(self, drawn: Tensor) -> list[float]:
        """By how much more pictures of the plain class are like the subject than the untouched base's."""
        after, before = (self.encoder.subjects(each) for each in (drawn, self.before["class"]))
        return listed(subject_fidelity(after, self.mine) - subject_fidelity(before, self.mine))

    def spread_of(self, drawn: Tensor) -> float:
        """How much pictures of the plain class differ from each other, all pairs."""
        return listed(diversity(self.encoder.subjects(drawn)))[0]

    def drift(self, drawn: Tensor, name: str) -> list[float]:
        """The change of pictures of other things, same prompt and seed."""
        after, before = (self.encoder.pictures(each) for each in (drawn, self.before[name]))
        return listed(drift_features(after, before))

    def loss(self) -> dict[str, list[float]]:
        """Set -> the mean squared error at each noise level minus the untouched base's, same pictures, same noise."""
        return {name: listed((self._loss(name, self.word) - self.before[f"loss {name}"]).mean(1)) for name in SETS}

    # --- pictures ---------------------------------------------------------------------------------------------------

    def draw(self, prompts: Sequence[str], per_prompt: int, more: int = 0) -> Tensor:
        """(N, 3, H, W): pictures of prompts, from seeds 0, 1, ... of each, plus `more`."""
        return draw(self.base, prompts, per_prompt, seed=more, steps=SAMPLING_STEPS)

    def _kept(self, file: Path) -> dict[str, Tensor]:
        """What the untouched base draws and what it loses, from a file, or drawn now."""
        if not file.exists():
            prompts = {"class": self.plain, **self.unrelated}
            drawn = {name: self.draw(each, 1) for name, each in prompts.items()}
            drawn |= {f"{name} again": self.draw(each, 1, ANOTHER) for name, each in prompts.items()}
            self.before = drawn
            kind = KIND_OF[self.noun]  # all that the untouched base can be told of the subject
            save_tensors(file, drawn | {f"loss {name}": self._loss(name, kind) for name in SETS}, {})
        return load_tensors(file)[0]

    def _loss(self, name: str, word: str) -> Tensor:
        """(levels, N) on one set: fresh scenes of the subject; what the base draws of its class; other scenes.

        `word` is what captions call the subject.
        """
        if name == "class":
            return held_out_loss(self.base, self.before["class"][:HELD_OUT], self.plain[:HELD_OUT])
        rng = np.random.default_rng(7)
        if name == "concept":
            of = World(nouns=(self.noun,), styles=(self.style,), backgrounds=self.world.backgrounds)
            scenes = [sample_scene(rng, of) for _ in range(HELD_OUT)]
            captions = [caption(s).replace(f"{self.style} {self.noun}", word).replace("an <", "a <") for s in scenes]
        else:
            of = replace(self.world, nouns=tuple(n for n in self.world.nouns if KIND_OF[n] != KIND_OF[self.noun]))
            scenes = [sample_scene(rng, of) for _ in range(HELD_OUT)]
            captions = [caption(scene) for scene in scenes]
        return held_out_loss(self.base, render(scenes, load_sprites(self.emoji, of))[0], captions)

    def _perfect(self) -> Tensor:
        """What a perfect adapter would draw: the sprite itself, as each prompt asks."""
        rng, drawn = np.random.default_rng(3), []
        for asked in self.asked:
            style, other = asked.get("style", self.style), asked.get("second")
            of = World(nouns=(self.noun, *([other] if other else [])), styles=(style,))
            drawn.append(render([scene_of(asked, self.noun, style, rng)], load_sprites(self.emoji, of))[0])
        pictures = torch.cat(drawn)
        return self.base.decode_latents(self.base.encode_pictures(pictures))  # with the look of decoded ones


def scene_of(asked: dict[str, str], noun: str, style: str, rng: np.random.Generator) -> Scene:
    """The scene that a prompt asks for; what it leaves open is medium and in the centre."""
    background = asked.get("background", "white")
    if other := asked.get("second"):
        both = World(nouns=(noun, other), styles=(style,), backgrounds=(background,))
        while True:  # scenes of two are drawn with a relation of their own choice
            scene = sample_scene(rng, both, two_objects=1.0)
            if scene.relation == asked["relation"]:
                return scene
    thing: Placed = place(rng, noun, style, asked.get("size", "medium"), asked.get("position", "center"))
    return Scene(objects=(thing,), background=background)


def listed(values: Tensor) -> list[float]:
    """Five digits are more than any score is good for."""
    return [round(float(value), 5) for value in values]
