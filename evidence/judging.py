"""Measures of an adapter for the claims about subjects: learned, followed, leaked, drifted, and the held-out loss.

Everything that the untouched base draws is drawn once for each subject and kept, and drawn once more from other seeds:
what a figure of the base against itself comes to is the floor under the same figure of an adapter.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffadapt.bases import Base
from diffadapt.data.asked import asked_of
from diffadapt.data.concept import Concept
from diffadapt.data.prompts import drift_prompts
from diffadapt.data.scenes import (
    KIND_OF,
    Placed,
    Scene,
    World,
    caption,
    load_sprites,
    place,
    plain_world_of,
    render,
    sample_scene,
)
from diffadapt.evaluation.held_out_loss import held_out_loss
from diffadapt.evaluation.judge import Judge
from diffadapt.files import load_tensors, save_tensors
from diffadapt.metrics.diversity import diversity
from diffadapt.metrics.drift import drift_features
from diffadapt.metrics.features import ProbeFeatures, load_features
from diffadapt.metrics.following import followed, look
from diffadapt.metrics.reader import load_reader

PROMPTS, PER_PROMPT, NEAR, FAR, ON_THE_WAY, SAMPLING_STEPS = 12, 2, 8, 8, 6, 10
HELD_OUT = 8  # pictures of each of the three sets that the loss is measured on
SETS = ("concept", "class", "world")


class SubjectJudge(Judge):
    """The judge of every concept, with all that its world knows of a drawn one: renderings, kinds, held-out scenes.

    Args:
        base: the base; with nothing attached when this is made for the first time.
        concept: the subject.
        noun, style: the sprite that the subject is, out of `data.world`.
        emoji: folder of sprite folders, for perfect renderings and held-out scenes.
        shared: folder where what the untouched base draws is kept.
    """

    def __init__(self, base: Base, concept: Concept, noun: str, style: str, emoji: Path, shared: Path) -> None:
        self.world = plain_world_of(base)
        super().__init__(base, concept, prompts=PROMPTS, per_prompt=PER_PROMPT, steps=SAMPLING_STEPS, world=self.world)
        self.noun, self.style, self.emoji = noun, style, emoji
        self.encoder, self.reader = ProbeFeatures("probe", torch.device("cpu")), load_reader()
        self.second = load_features("second")
        self.wanted = [asked_of(prompt, self.world) for prompt in self.prompts]
        kind = KIND_OF[noun]
        alike = tuple(other for other in self.world.nouns if KIND_OF[other] == kind)
        near = replace(self.world, nouns=alike or self.world.nouns)
        far = replace(self.world, nouns=tuple(other for other in self.world.nouns if other not in alike))
        self.others = {
            "near": drift_prompts(near, NEAR, 0, without=kind),
            "far": drift_prompts(far, FAR, 0, without=kind),
        }
        self.perfect = self.follows(self._perfect())
        self.before = self._kept(shared / f"before-{noun}-{base.fingerprint.split(':')[-1][:8]}.safetensors")

    # --- all of it --------------------------------------------------------------------------------------------------

    def scores(self) -> dict[str, Any]:
        """Every figure of what is attached; raw, so that a judge can average what it likes."""
        drawn = self.of_concept()
        of_class = self.draw(self.plain, 1)
        result: dict[str, Any] = {
            "fidelity": listed(self.fidelity(self.encoder, drawn)),
            "fidelity_second": listed(self.fidelity(self.second, drawn)),
            "followed": self.follows(drawn, PER_PROMPT),
            "perfect": self.perfect,
            "diversity": listed(self.diversity(self.encoder, drawn)),
            "leaked": self.leaked(of_class),
            "leak_floor": self.leaked(self.before["class again"]),
            "class_diversity": [self.spread_of(each) for each in (of_class, self.before["class"])],
            "loss": self.loss(),
        }
        for name, prompts in self.others.items():
            result[f"drift_{name}"] = self.drift(self.draw(prompts, 1), name)
            result[f"{name}_floor"] = self.drift(self.before[f"{name} again"], name)
        return result

    def on_the_way(self) -> tuple[list[float], list[float], dict[str, list[float]]]:
        """Fidelity by both judges, and what was followed, on a few pictures."""
        places = [i * PROMPTS // ON_THE_WAY for i in range(ON_THE_WAY)]
        drawn = self.draw([self.asked[i] for i in places], 1)
        seen = look(drawn, self.encoder, self.reader)
        first, second = (listed(self.fidelity(each, drawn)) for each in (self.encoder, self.second))
        return first, second, followed([self.wanted[i] for i in places], seen)

    def follows(self, drawn: Tensor, per_prompt: int = 1) -> dict[str, list[float]]:
        """Attribute -> 1.0 or 0.0 of every picture that was asked for it."""
        wanted = [each for each in self.wanted for _ in range(per_prompt)]
        return followed(wanted, look(drawn, self.encoder, self.reader))

    def leaked(self, drawn: Tensor) -> list[float]:
        """By how much more pictures of the plain class are like the subject than the untouched base's."""
        after, before = (self.fidelity(self.encoder, each) for each in (drawn, self.before["class"]))
        return listed(after - before)

    def spread_of(self, drawn: Tensor) -> float:
        """How much pictures of the plain class differ from each other, all pairs."""
        return listed(diversity(self.encoder.subjects(drawn)))[0]

    def drift(self, drawn: Tensor, name: str) -> list[float]:
        """The change of pictures of other things, same prompt and seed."""
        after, before = (self.encoder.pictures(each) for each in (drawn, self.before[name]))
        return listed(drift_features(after, before))

    def loss(self) -> dict[str, list[float]]:
        """Set -> the mean squared error at each noise level minus the untouched base's, same pictures, same noise."""
        change = {name: self._loss(name, self.named.phrase) - self.before[f"loss {name}"] for name in SETS}
        return {name: listed(each.mean(1)) for name, each in change.items()}

    # --- pictures ---------------------------------------------------------------------------------------------------

    def _kept(self, file: Path) -> dict[str, Tensor]:
        """The untouched base's pictures and losses, from a file, or drawn now."""
        if not file.exists():
            prompts = {"class": self.plain, **self.others}
            drawn = {name: self.draw(each, 1) for name, each in prompts.items()}
            drawn |= {f"{name} again": self.draw(each, 1, redrawn=True) for name, each in prompts.items()}
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
        """A perfect adapter's pictures: the sprite itself, as each prompt asks."""
        rng, drawn = np.random.default_rng(3), []
        for wanted in self.wanted:
            style, other = wanted.get("style", self.style), wanted.get("second")
            of = World(nouns=(self.noun, *([other] if other else [])), styles=(style,))
            drawn.append(render([scene_of(wanted, self.noun, style, rng)], load_sprites(self.emoji, of))[0])
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
