"""Pictures of fixed prompts and seeds on the way, so that steps, strengths and the base can be compared."""

from pathlib import Path

from ..adapters import Attachment
from ..bases import Base
from ..data.concept import Concept
from ..data.prompts import benchmark_prompts, spread
from ..files import write_json
from .pictures import write_png
from .sample import default_line, generate, to_picture
from .world import world_of

COUNT = 6


class ProgressSamples:
    """Writes `samples/<name>/NN.png` of a run, and `samples/prompts.json` about them.

    Args:
        base: with the attachment that is being trained on it.
        concept: its token and noun go into the prompts.
        folder: the run's folder.
        seed: picture i of every set starts from seed + i.
    """

    def __init__(self, base: Base, concept: Concept, folder: Path, seed: int) -> None:
        self.base, self.folder, self.seed = base, folder / "samples", seed
        self.prompts = progress_prompts(base, concept.prompt, concept.noun, concept.token)
        self.class_prompts = progress_prompts(base, concept.class_prompt, concept.noun, "")
        write_json(
            self.folder / "prompts.json",
            {
                "prompts": self.prompts,
                "seeds": [seed + i for i in range(len(self.prompts))],
                "steps": base.default_steps,
                "guidance": base.default_guidance,
                "noun": concept.noun,
                "token": concept.token,
            },
        )

    def save_base(self, attachment: Attachment) -> None:
        """The untouched base's pictures of the same prompts without the token."""
        if self.complete("base"):
            return
        attachment.enabled = False
        self._write("base", self.class_prompts)
        attachment.enabled = True

    def complete(self, name: str) -> bool:
        """Whether every picture of a set is there."""
        return all((self.folder / name / f"{i:02d}.png").is_file() for i in range(len(self.prompts)))

    def save(self, name: str) -> None:
        """The pictures of what is attached now."""
        self._write(name, self.prompts)

    def _write(self, name: str, prompts: list[str]) -> None:
        lines = [default_line(self.base, prompt, self.seed + i) for i, prompt in enumerate(prompts)]
        for i, pixels in enumerate(generate(self.base, lines)):
            write_png(self.folder / name / f"{i:02d}.png", to_picture(pixels))


def progress_prompts(base: Base, plain: str, noun: str, token: str) -> list[str]:
    """The plain prompt first, then a spread of the benchmark's; without a token, the same about the class."""
    return [plain, *spread(benchmark_prompts(noun, token, world_of(base)), COUNT - 1)]
