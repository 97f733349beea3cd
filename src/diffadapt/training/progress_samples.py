"""Pictures of fixed prompts and seeds on the way, so that steps, strengths and the base can be compared."""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from ..adapters import Attachment
from ..bases import Base
from ..data.concept import Concept
from ..data.picture import to_picture, write_png
from ..data.prompts import benchmark_prompts, spread
from ..data.wide_scenes import world_of
from ..files import write_json
from ..progress import Aside, Steps
from ..run_layout import RunLayout, picture
from ..sampling.sample import adapted, default_line, generate

COUNT = 6


class ProgressSamples:
    """Writes `samples/<name>/NN.png` of a run, and about them `samples/prompts.json` and `samples/signals/`.

    Args:
        base: with what is being trained on it.
        folder: the run's folder.
        prompts: one picture each.
        base_prompts: what the untouched base is asked for in their place.
        seed: picture i of every set starts from seed + i.
        controls: the signal (3, H, W) of each picture, for a run that follows one.
        facts: more entries for `prompts.json`.
    """

    def __init__(
        self,
        base: Base,
        folder: Path,
        prompts: Sequence[str],
        base_prompts: Sequence[str],
        seed: int,
        *,
        controls: Sequence[Tensor] | None = None,
        facts: Mapping[str, Any] | None = None,
    ) -> None:
        self.base, self.run, self.seed = base, RunLayout(folder), seed
        self.prompts, self.base_prompts, self.controls = list(prompts), list(base_prompts), controls
        write_json(
            self.run.prompts,
            {
                "prompts": self.prompts,
                "seeds": [seed + i for i in range(len(self.prompts))],
                "steps": base.default_steps,
                "guidance": base.default_guidance,
                **(facts or {}),
            },
        )
        for i, control in enumerate(controls or ()):
            write_png(picture(self.run.signals, i), to_picture(control))

    def save_base(self, attachments: Sequence[Attachment], *, bar: Steps) -> None:
        """The untouched base's pictures. `bar` is that of the training, here and below."""
        if self._complete(self.run.base_samples):
            return
        for attachment in attachments:
            attachment.enabled = False
        aside = bar.aside("pictures of the base", len(self.prompts))
        self._write(self.run.base_samples, self.base_prompts, controls=None, bar=aside)  # nothing would follow them
        for attachment in attachments:
            attachment.enabled = True

    def save_step(self, step: int, *, bar: Steps) -> list[Tensor]:
        """Writes the pictures of what is attached now, after a 1-based step, and returns them."""
        aside = bar.aside("pictures on the way", len(self.prompts))
        return self._write(self.run.step_samples(step), self.prompts, self.controls, aside)

    def save_strengths(self, adapter: Path, strengths: Sequence[float], *, quiet: bool = True) -> None:
        """The pictures of a finished adapter, a file or a run's folder, at these strengths; those there are kept."""
        missing = [each for each in strengths if not self._complete(self.run.strength_samples(each))]
        if not missing:
            return
        with Steps("samples by strength", len(missing) * len(self.prompts), quiet=quiet) as bar:
            for strength in missing:
                with adapted(self.base, [(adapter, strength)]):
                    self._write(self.run.strength_samples(strength), self.prompts, self.controls, bar)

    def _complete(self, place: Path) -> bool:
        """Whether every picture of a set is there."""
        return all(picture(place, i).is_file() for i in range(len(self.prompts)))

    def _write(
        self, place: Path, prompts: Sequence[str], controls: Sequence[Tensor] | None, bar: Steps | Aside
    ) -> list[Tensor]:
        """Makes the pictures of a set, and returns them, (3, H, W) in [0, 1] each."""
        lines = [
            default_line(self.base, prompt, self.seed + i, control=controls[i] if controls else None)
            for i, prompt in enumerate(prompts)
        ]
        made = generate(self.base, lines, bar=bar)
        for i, pixels in enumerate(made):
            write_png(picture(place, i), to_picture(pixels))
        return made


def subject_samples(base: Base, concept: Concept, folder: Path, seed: int) -> ProgressSamples:
    """Of a subject: its plain prompt and a spread of the benchmark's; the base is asked for its class.

    Of several learned together: as many of each, and then two beside each other.
    """
    prompts, base_prompts = [], []
    for part in concept.parts:
        asked = part.in_prompts(progress_prompts(base, part.prompt, part.noun, part.token))
        plain = progress_prompts(base, part.class_prompt, part.noun, "")
        of_each = -(-COUNT // len(concept.parts))
        prompts, base_prompts = [*prompts, *asked[:of_each]], [*base_prompts, *plain[:of_each]]
    for one, other in itertools.pairwise(concept.parts):
        prompts.append(f"a {one.phrase} next to a {other.phrase}")
        base_prompts.append(f"{one.class_prompt} next to {other.class_prompt}")
    return ProgressSamples(
        base,
        folder,
        prompts,
        base_prompts,
        seed,
        facts={"noun": concept.noun, "token": concept.token, "phrase": concept.phrase},
    )


def progress_prompts(base: Base, plain: str, noun: str, token: str) -> list[str]:
    """The plain prompt first, then a spread of the benchmark's; without a token, the same about the class."""
    return [plain, *spread(benchmark_prompts(noun, token, world_of(base)), COUNT - 1)]
