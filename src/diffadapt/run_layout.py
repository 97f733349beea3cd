"""The layout of a run's folder: every name in it is written and read through here; `shapes.py` says what files hold."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ADAPTERS = ("adapter.safetensors", "hint.safetensors")  # what a run learns, in the order in which it is put on


@dataclass(frozen=True)
class RunLayout:
    """Where everything of a run is, whether it is there or not."""

    folder: Path

    @property
    def run(self) -> Path:
        """The resolved job and what made the run."""
        return self.folder / "run.toml"

    @property
    def settings(self) -> Path:
        """The settings that a resumed run must repeat."""
        return self.folder / "settings.toml"

    @property
    def log(self) -> Path:
        """One JSON line a step."""
        return self.folder / "log.jsonl"

    @property
    def metrics(self) -> Path:
        return self.folder / "metrics.json"

    @property
    def selection(self) -> Path:
        """The scores of every checkpoint, where a step was chosen."""
        return self.folder / "selection.json"

    @property
    def report(self) -> Path:
        return self.folder / "report.html"

    @property
    def memory_banks(self) -> Path:
        """What the untouched base made, beside the run's folder, for the runs beside it too."""
        return self.folder.parent / "memory_banks"

    @property
    def untouched(self) -> Path:
        """The untouched base's pictures of evaluations."""
        return self.memory_banks / "untouched"

    @property
    def adapter(self) -> Path:
        return self.folder / ADAPTERS[0]

    @property
    def last_adapter(self) -> Path:
        """The last step's adapter, where another step was chosen."""
        return self.folder / "adapter-last.safetensors"

    @property
    def adapters(self) -> list[Path]:
        """The adapter files of the run that exist."""
        return [self.folder / name for name in ADAPTERS if (self.folder / name).is_file()]

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    @property
    def concept(self) -> Path:
        """The pictures as training sees them."""
        return self.folder / "concept"

    @property
    def crops(self) -> Path:
        """The table that describes each of these pictures."""
        return self.concept / "crops.json"

    @property
    def samples(self) -> Path:
        return self.folder / "samples"

    @property
    def prompts(self) -> Path:
        """Prompts and seeds of the samples."""
        return self.samples / "prompts.json"

    @property
    def followed(self) -> Path:
        """How well the signals were followed, by step, where a run follows any."""
        return self.samples / "followed.json"

    @property
    def signals(self) -> Path:
        """The control signals of the samples."""
        return self.samples / "signals"

    @property
    def base_samples(self) -> Path:
        """Samples of the untouched base."""
        return self.samples / "base"

    def step_samples(self, step: int) -> Path:
        """Samples after a step."""
        return self.samples / f"step-{step:06d}"

    def strength_samples(self, strength: float) -> Path:
        """Samples of the finished adapter at a strength."""
        return self.samples / f"strength-{strength:g}"

    def sampled_steps(self) -> list[tuple[int, Path]]:
        """(step, folder) of every step that was drawn, rising."""
        return sorted((int(number), path) for number, path in self._named(r"step-(\d+)"))

    def sampled_strengths(self) -> list[tuple[float, Path]]:
        """(strength, folder) of every strength that was drawn, rising."""
        return sorted((float(number), path) for number, path in self._named(r"strength-(\d+(?:\.\d+)?)"))

    def _named(self, pattern: str) -> Iterator[tuple[str, Path]]:
        for path in self.samples.iterdir() if self.samples.is_dir() else ():
            if found := re.fullmatch(pattern, path.name):
                yield found[1], path

    def parts(self) -> list[Path]:
        """The files that mark a folder as that of a run."""
        return [self.run, self.log, self.metrics, self.samples, self.concept, self.adapter]


def picture(folder: Path, index: int) -> Path:
    """The file of one of the pictures in a folder of a run."""
    return folder / f"{index:02d}.png"


def checkpoint_of(folder: Path, step: int) -> Path:
    """The checkpoint of a step, in the folder of all checkpoints."""
    return folder / f"step-{step:06d}"
