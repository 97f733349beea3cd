"""How many pictures a training of a subject makes beside the training itself, which can take longer than that."""

import math
from collections.abc import Mapping
from typing import Protocol

from ..data.concept import Concept
from ..evaluation.evaluate import picture_count
from ..training.finish import STRENGTHS
from ..training.progress_samples import COUNT


class PictureConfig(Protocol):
    """The settings of `train_subject` that decide it."""

    @property
    def steps(self) -> int: ...
    @property
    def sample_every(self) -> int: ...
    @property
    def checkpoint_every(self) -> int: ...
    @property
    def prior_weight(self) -> float: ...
    @property
    def prior_pictures(self) -> int: ...
    @property
    def select(self) -> int: ...
    @property
    def evaluation_prompts(self) -> int: ...
    @property
    def evaluation_pictures(self) -> int: ...


def count_pictures(concept: Concept, config: PictureConfig) -> dict[str, int]:
    """How many pictures a run makes, by what they are for; those that are there already (the memory bank) included."""
    of_a_set = -(-COUNT // len(concept.parts)) * len(concept.parts) + len(concept.parts) - 1  # of a set
    on_the_way = math.ceil(config.steps / config.sample_every) if config.sample_every else 0
    checkpoints = math.ceil(config.steps / config.checkpoint_every) if config.checkpoint_every else 0
    prompts, each = config.evaluation_prompts, config.evaluation_pictures
    measured = picture_count(prompts, each, min(25, 2 * prompts)) * len(concept.parts) if prompts else 0
    counts = {
        "the class, for prior preservation": config.prior_pictures if config.prior_weight else 0,
        "the base and the way": of_a_set * (1 + on_the_way) if on_the_way else 0,
        "strengths": of_a_set * len(STRENGTHS),
        "choosing the step": config.select * checkpoints * len(concept.parts),
        "evaluation": measured,
    }
    return {name: count for name, count in counts.items() if count}


def in_words(counts: Mapping[str, int]) -> str:
    """The same in words: "204: 48 for the class, ..., 132 for the evaluation"."""
    return f"{sum(counts.values())}: " + ", ".join(f"{count} for {purpose}" for purpose, count in counts.items())
