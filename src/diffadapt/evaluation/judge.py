"""One judge: fixed prompts and seeds, whatever is attached, and how its pictures compare with what was learned.

`evaluate` measures a finished adapter with it, the selection of a step every checkpoint, and control its pictures.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..bases import Base
from ..data.cache import TensorCache, content_key
from ..data.concept import Concept
from ..data.prompts import benchmark_prompts, drift_prompts, spread
from ..data.scenes import World
from ..data.wide_scenes import WideWorld, world_of
from ..metrics.alignment import text_alignment
from ..metrics.diversity import diversity
from ..metrics.features import Features, load_features
from ..metrics.fidelity import subject_fidelity
from ..progress import Steps
from ..sampling.sample import PromptLine, default_line, generate

ANOTHER = 1000  # added to the seeds of pictures that are drawn again
PHOTO_ENCODERS = ("clip:openai/clip-vit-base-patch32", "dino:facebook/dino-vits16")


def draw(
    base: Base,
    prompts: Sequence[str],
    per_prompt: int = 1,
    *,
    seed: int = 0,
    same_noise: bool = True,
    steps: int | None = None,
    guidance: float | None = None,
    controls: Sequence[Tensor] | None = None,
    batch: int = 8,
    bar: Steps | None = None,
    kept: TensorCache | None = None,
) -> Tensor:
    """Pictures of prompts with whatever is attached now.

    Args:
        base: as it is to be judged.
        prompts: each gets `per_prompt` pictures, one after the other.
        seed: picture j of a prompt starts from seed + j.
        same_noise: False counts j on over all prompts, so that no two pictures start from the same noise.
        steps, guidance: of the sampling; None means the base's defaults.
        controls: the control signal (3, H, W) of each picture, for what follows one.
        batch: pictures made at once.
        bar: is advanced by every picture.
        kept: where pictures are kept from call to call that are drawn while nothing is attached; None keeps none.

    Returns:
        (len(prompts) * per_prompt, 3, H, W) in [0, 1], in steps of 1 / 255 as a file holds them
    """
    lines = []
    for i in range(len(prompts) * per_prompt):
        start = seed + (i % per_prompt if same_noise else i)
        control = None if controls is None else controls[i]
        line = default_line(base, prompts[i // per_prompt], start, steps=steps, guidance=guidance, control=control)
        lines.append(line)
    return draw_lines(base, lines, batch=batch, bar=bar, kept=kept)


def draw_lines(
    base: Base,
    lines: Sequence[PromptLine],
    *,
    batch: int = 8,
    bar: Steps | None = None,
    kept: TensorCache | None = None,
) -> Tensor:
    """(len(lines), 3, H, W) the same of lines that `default_line` made; arguments as of `draw`."""

    def make() -> Tensor:
        return (torch.stack(generate(base, lines, batch=batch, bar=bar)) * 255).round().to(torch.uint8)

    if kept is None or base.attachments:
        return make().float() / 255
    drawn_by = (base.drawing_fingerprint, base.device.type, str(base.draws_in or base.dtype))
    key = content_key("drawn", *drawn_by, *map(str, lines))
    there = kept.has(key)
    pixels = kept.get(key, make)
    if there and bar is not None:
        bar.advance(by=len(lines))
    return pixels.float() / 255


def load_encoders(base: Base, names: Sequence[str] = ()) -> list[Features]:
    """Encoders by name; without names probe and second judge on the embedded base, else CLIP ViT-B/32, DINO ViT-S/16.

    Raises:
        Refused: one cannot be loaded.
    """
    names = names or (("probe", "second") if base.encoder == "probe" else PHOTO_ENCODERS)
    return [load_features(name, device=base.device) for name in names]


CONTEXTS = 12  # at most so many contexts in which the class is drawn


def class_prompt_count(prompts: int) -> int:
    """How many prompts of the class there are beside a number of the concept's: its contexts, and the class alone."""
    return max(1, 4 - prompts) + min(CONTEXTS, prompts)


class Judge:
    """Draws the pictures that a concept is judged by, and scores them.

    Args:
        base: what is sampled, with whatever is attached when a method is called.
        concept: what was learned; its pictures are the reference.
        prompts: how many of the benchmark's 25 prompts.
        per_prompt: pictures of each.
        unrelated: how many prompts that have nothing to do with the concept.
        seed, same_noise, steps: as `draw` has them; `seed` chooses the unrelated prompts, too.
        world: whose words the prompts are made of; None means the base's own.

    Attributes:
        prompts: the benchmark's prompts with the concept's word before its noun.
        plain: the prompts without the concept, which the untouched base is asked and alignment is measured on.
        class_prompts: the plain class, by itself and in a dozen of the contexts of `plain`.
        unrelated: the prompts that have nothing to do with the concept.
        groups: (N,) which prompt each picture of the concept belongs to.
        bar: is advanced by every picture that is drawn, if there is one.
        kept: as `draw` has it.
    """

    def __init__(
        self,
        base: Base,
        concept: Concept,
        *,
        prompts: int,
        per_prompt: int = 1,
        unrelated: int = 0,
        seed: int = 0,
        same_noise: bool = True,
        steps: int | None = None,
        world: World | WideWorld | None = None,
    ) -> None:
        self.base, self.concept, self.per_prompt = base, concept, per_prompt
        self.seed, self.same_noise, self.steps = seed, same_noise, steps
        self.bar: Steps | None = None
        self.kept: TensorCache | None = None
        world = world or world_of(base)
        self.prompts = spread(benchmark_prompts(concept.noun, concept.token, world), prompts)
        self.plain = spread(benchmark_prompts(concept.noun, "", world), prompts)
        contexts = spread(self.plain, CONTEXTS)
        alone = class_prompt_count(len(self.plain)) - len(contexts)
        self.class_prompts = [concept.class_prompt] * alone + contexts
        self.unrelated = drift_prompts(world, unrelated, seed, without=concept.noun) if unrelated else []
        self.groups = torch.arange(len(self.prompts)).repeat_interleave(per_prompt)
        self._reference: dict[str, Tensor] = {}  # encoder -> features of the concept's pictures

    @property
    def named(self) -> Concept:
        """The concept as prompts name it now: by its word alone where what is attached puts it in the noun's place."""
        for each in self.base.attachments:
            if each.method.replaces_noun and self.concept.token in each.tokens:
                return self.concept.standing_alone()
        return self.concept

    @property
    def asked(self) -> list[str]:
        """The prompts with the concept, as it is named now."""
        return self.named.in_prompts(self.prompts)

    def of_concept(self) -> Tensor:
        """Pictures of the concept in other contexts."""
        return self.draw(self.asked, self.per_prompt)

    def of_prompts_alone(self) -> Tensor:
        """Pictures of the same prompts without the concept."""
        return self.draw(self.plain, self.per_prompt)

    def of_class(self, *, redrawn: bool = False) -> Tensor:
        """A picture of each class prompt, no two from the same noise; `redrawn` draws them from other seeds."""
        return self.draw(self.class_prompts, 1, redrawn=redrawn, same_noise=False)

    def of_unrelated(self, *, redrawn: bool = False) -> Tensor:
        """A picture of each unrelated prompt; `redrawn` draws them from other seeds."""
        return self.draw(self.unrelated, 1, redrawn=redrawn)

    def draw(
        self, prompts: Sequence[str], per_prompt: int, *, redrawn: bool = False, same_noise: bool | None = None
    ) -> Tensor:
        """Pictures of any prompts, (len(prompts) * per_prompt, 3, H, W); `redrawn` draws them from other seeds."""
        seed = self.seed + ANOTHER * redrawn
        same_noise = self.same_noise if same_noise is None else same_noise
        return draw(
            self.base, prompts, per_prompt, seed=seed, same_noise=same_noise, steps=self.steps, bar=self.bar,
            kept=self.kept,
        )  # fmt: skip

    def fidelity(self, encoder: Features, pictures: Tensor) -> Tensor:
        """(N,) likeness to the concept's pictures."""
        if encoder.name not in self._reference:
            self._reference[encoder.name] = encoder.subjects(self.concept.pixels(self.base.resolution))
        return subject_fidelity(encoder.subjects(pictures), self._reference[encoder.name])

    def alignment(self, encoder: Features, pictures: Tensor) -> Tensor:
        """(N,) likeness to the prompts without the concept, of pictures in the order of `of_concept`."""
        texts = encoder.texts([prompt for prompt in self.plain for _ in range(self.per_prompt)])
        return text_alignment(encoder.pictures(pictures), texts)

    def diversity(self, encoder: Features, pictures: Tensor) -> Tensor:
        """(prompts,) how much the pictures of a prompt differ, in the order of `of_concept`."""
        return diversity(encoder.subjects(pictures), self.groups)
