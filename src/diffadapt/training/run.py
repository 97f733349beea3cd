"""A run's folder: what was asked for, what made it, and where its parts are."""

import os
import platform
import re
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..bases import Base, Network
from ..config import dump_toml
from ..data.picture import to_picture, write_png
from ..errors import Refused
from ..files import read_text, sweep, text_lines, write_atomic, write_json
from ..run_layout import RunLayout, picture

LATER = ("prediction_type", "base_config", "teachers_predict")  # lines that marks of earlier versions do not have


@dataclass(frozen=True)
class Run:
    """A finished (or stopped) run.

    Attributes:
        folder: the run's folder.
        adapter: its `adapter.safetensors`.
        metrics: what `metrics.json` holds; empty when nothing was evaluated.
        report: its `report.html`.
    """

    folder: Path
    metrics: dict[str, Any] = field(default_factory=dict)

    @property
    def adapter(self) -> Path:
        return RunLayout(self.folder).adapter

    @property
    def report(self) -> Path:
        return RunLayout(self.folder).report


def made_by() -> dict[str, Any]:
    """Versions and hardware, for the header of whatever a run writes."""
    facts: dict[str, Any] = {}
    for package in ("diffadapt", "torch", "diffusers", "transformers"):
        try:
            facts[package] = version(package)
        except PackageNotFoundError:
            facts[package] = "unknown"
    facts["python"] = platform.python_version()
    facts["hardware"] = hardware()
    facts["command"] = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
    facts["started"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    return facts


def hardware() -> str:
    """One line about the machine: GPU name or CPU cores, threads in use."""
    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()}x {torch.cuda.get_device_name()}"
    return f"{platform.machine()} CPU, {os.cpu_count()} cores, {torch.get_num_threads()} threads"


def peak_memory_mb(device: torch.device) -> float:
    """The most memory this process has held, in MB: on the GPU where the work is done, else resident."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    status = Path("/proc/self/status")
    if status.exists():  # the high-water mark of this program alone; getrusage keeps that of the shell that started it
        return float(re.search(r"VmHWM:\s*(\d+) kB", status.read_text(encoding="utf-8"))[1]) / 1e3  # pyright: ignore[reportOptionalSubscript]
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6  # bytes on macOS


def open_run(
    folder: Path,
    base: Network,
    recipe: str,
    settings: Mapping[str, Any],
    *,
    identity: Mapping[str, Any],
    tables: Mapping[str, Any],
) -> None:
    """Claims a run's folder, or finds the same run in it, and writes what was asked for.

    Whoever resumes must repeat the base and how it was loaded, the settings, and what identifies the data.

    Args:
        folder: where the run goes.
        base: what is adapted.
        recipe: its name, for `run.toml`.
        settings: seed, method, and settings of the loop.
        identity: name -> what tells the data from any others: digests of files, captions.
        tables: name -> where the data come from, as a job says it, for `run.toml`.

    Raises:
        Refused: the folder holds something else, or another run.
    """
    of_base, given = {"base": base.fingerprint}, {}
    if isinstance(base, Base):
        given = base.given
        of_base |= {"prediction_type": base.prediction_type, "base_config": given.get("base_config", "")}
    claim_folder(folder, dump_toml({**of_base, **settings, **identity}))
    job = {"recipe": recipe, "base": base.name, **given, "out": str(folder), **settings, **tables}
    write_run_file(folder, base, dump_toml(job))


def open_task(
    place: Path, base: Network, recipe: str, settings: Mapping[str, Any], identity: Mapping[str, Any]
) -> None:
    """The same for one of the tasks that a run learns one after another, in the task's own folder."""
    layout = RunLayout(place)
    if layout.run.is_file() and not layout.settings.is_file():
        return  # it was begun before tasks had marks of their own
    open_run(place, base, recipe, settings, identity={"task": identity}, tables={})


def claim_folder(folder: Path, settings: str) -> bool:
    """Makes a run's folder, or finds the run in it that these settings started.

    Args:
        folder: where the run goes.
        settings: the resolved config as TOML without what may differ between start and resume. A run that was begun
            before some of its lines were noted (`LATER`) is compared without these.

    Returns:
        True when the folder holds a run of the same settings, which may be resumed.

    Raises:
        Refused: the folder holds something else, or a run of other settings.
    """
    mark = RunLayout(folder).settings
    if mark.exists():
        held = read_text(mark)
        for name in LATER:
            if not re.search(rf"^{name} = ", held, re.MULTILINE):
                settings = re.sub(rf"^{name} = .*\n", "", settings, flags=re.MULTILINE)
        if held == settings:
            sweep(folder, deep=True)
            return True
        was, now = text_lines(held), text_lines(settings)
        difference = next(
            ((a, b) for a, b in zip(was, now, strict=False) if a != b), ("fewer settings", "more settings")
        )
        raise Refused(
            f"{folder} holds a run with other settings (it has {difference[0]!r}, you asked for {difference[1]!r}); "
            "choose another out folder, or repeat the settings to resume it"
        )
    # A write that was killed leaves its temporary file, which is hidden; that alone makes no foreign folder.
    if folder.exists() and not folder.is_dir():
        raise Refused(f"{folder} is a file; choose a new or empty out folder")
    if folder.exists() and any(not path.name.startswith(".") for path in folder.iterdir()):
        raise Refused(f"{folder} exists and holds no run of diffadapt; choose a new or empty out folder")
    write_atomic(mark, settings)
    return False


def write_pictures(folder: Path, pictures: Tensor, table: Sequence[Mapping[str, Any]]) -> None:
    """Writes the pictures (N, 3, H, W) in [0, 1] that the report shows as what was learned, and what they are."""
    for i, pixels in enumerate(pictures):
        write_png(picture(RunLayout(folder).concept, i), to_picture(pixels))
    write_json(RunLayout(folder).crops, table)


def write_run_file(folder: Path, base: Network, settings: str) -> None:
    """Writes run.toml, the resolved config and what made the run, unless it is there."""
    place = RunLayout(folder).run
    if not place.exists():
        write_atomic(
            place,
            settings + "\n" + dump_toml({"made_by": {"base_fingerprint": base.fingerprint, **made_by()}}),
        )
