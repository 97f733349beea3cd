"""Reads a run folder as it is found: what is missing or cut short is left out, and never stops a report."""

import json
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import Refused
from ..files import load_tensors, text_lines
from ..run_layout import RunLayout

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pyright: ignore[reportMissingImports]

PICTURES = (".png", ".webp", ".jpg", ".jpeg")


@dataclass(frozen=True, kw_only=True)
class RunFolder:
    """The contents of a run folder; empty containers and None stand for what is not there."""

    folder: Path
    config: Mapping[str, Any]
    config_text: str
    log: list[dict[str, Any]]
    metrics: Mapping[str, Any]
    prompts: Mapping[str, Any]
    crops: list[dict[str, Any]]
    concept: list[Path]
    samples: Mapping[int, list[Path]]  # step -> pictures, steps rising
    base_samples: list[Path]
    signals: list[Path]  # the control signals of the samples
    strengths: Mapping[float, list[Path]]  # strength -> pictures, strengths rising
    adapter: Path | None
    metadata: Mapping[str, str]  # of the adapter file
    last_checkpoint: Path | None
    remarks: list[str] = field(default_factory=list)

    @property
    def last_step(self) -> int:
        """The last step that was logged or sampled; 0 when there is none."""
        logged = [record["step"] for record in self.log[-1:]]
        return max([0, *logged, *self.samples])

    @property
    def steps(self) -> int | None:
        """How many steps were asked for, when the config says so."""
        found = self.setting("steps", "max_steps", "num_steps")
        return found if isinstance(found, int) and not isinstance(found, bool) else None

    @property
    def complete(self) -> bool:
        """Whether training went to its end: the adapter is there."""
        return self.adapter is not None

    def selection(self) -> tuple[Any, Any]:
        """The step that was chosen among the checkpoints, and the last one; None where none was to be chosen."""
        found = self.metrics.get("selection")
        return (found.get("chosen"), found.get("last")) if isinstance(found, dict) else (None, None)

    def setting(self, *keys: str) -> Any:
        """The first of these keys found in the config, outer tables before inner ones; None when there is none.

        Tables about sampling and about what made the run are not searched: their "steps" is another one.
        """
        tables: list[Mapping[str, Any]] = [self.config]
        while tables:
            table = tables.pop(0)
            for key in keys:
                if key in table and not isinstance(table[key], Mapping):
                    return table[key]
            inner = {key: value for key, value in table.items() if isinstance(value, Mapping)}
            tables += [value for key, value in inner.items() if "sampl" not in key and key != "made_by"]
        return None


def read_run_folder(folder: str | Path) -> RunFolder:
    """Reads what is in a run folder.

    Raises:
        Refused: there is no such folder, or nothing in it that a run writes.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise Refused(f"no folder at {folder}; give the folder that a training run wrote")
    run = RunLayout(folder)
    if not any(part.exists() for part in run.parts()):
        expected = ", ".join(part.name for part in run.parts())
        raise Refused(f"{folder} is no run folder: it holds none of {expected}; give the folder of a run")
    remarks: list[str] = []
    config_text = _text(run.run, remarks)
    adapter, metadata = _adapter(run.adapter, remarks)
    crops = _json(run.crops, remarks)
    return RunFolder(
        folder=folder,
        config=_toml(config_text, remarks),
        config_text=config_text,
        log=_log(run.log, remarks),
        metrics=_mapping(_json(run.metrics, remarks)),
        prompts=_mapping(_json(run.prompts, remarks)),
        crops=[crop for crop in crops if isinstance(crop, dict)] if isinstance(crops, list) else [],
        concept=_pictures(run.concept),
        samples={step: files for step, place in run.sampled_steps() if (files := _pictures(place))},
        base_samples=_pictures(run.base_samples),
        signals=_pictures(run.signals),
        strengths={strength: files for strength, place in run.sampled_strengths() if (files := _pictures(place))},
        adapter=adapter,
        metadata=metadata,
        last_checkpoint=_last_checkpoint(run.checkpoints),
        remarks=remarks,
    )


def finite(value: object) -> float | None:
    """A number that can be shown, or None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def inside(folder: Path, name: object) -> Path | None:
    """The file of that name in the folder; None when it lies outside, so that a foreign run cannot show other files."""
    if not isinstance(name, str) or not name:
        return None
    path = (folder / name).resolve()
    return path if path.is_relative_to(folder.resolve()) and path.is_file() else None


def _text(path: Path, remarks: list[str]) -> str:
    if not path.is_file():
        return ""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        remarks.append(f"{path.name} could not be read.")
        return ""


def _toml(text: str, remarks: list[str]) -> Mapping[str, Any]:
    try:
        return tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError):
        remarks.append("run.toml is not whole; its text is shown below as it is.")
        return {}


def _json(path: Path, remarks: list[str]) -> Any:
    text = _text(path, remarks)
    try:
        return json.loads(text) if text else None
    except (ValueError, RecursionError):
        remarks.append(f"{path.name} is not whole and was left out.")
        return None


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _log(path: Path, remarks: list[str]) -> list[dict[str, Any]]:
    """One record a step, rising; a resumed run may have written a step twice, and then the later one counts."""
    records: dict[int, dict[str, Any]] = {}
    broken = 0
    for line in text_lines(_text(path, remarks)):
        try:
            record = json.loads(line)
            records[int(record["step"])] = record | {"step": int(record["step"])}
        except (ValueError, TypeError, KeyError, RecursionError, OverflowError):
            broken += bool(line.strip())
    if broken:
        remarks.append(f"{broken} line{'s' if broken > 1 else ''} of log.jsonl could not be read and were left out.")
    return [records[step] for step in sorted(records)]


def _pictures(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    found = [path for path in folder.iterdir() if path.suffix.lower() in PICTURES and path.is_file()]
    # by number where the name is one: 100.png comes after 99.png
    return sorted(found, key=lambda path: (int(path.stem) if path.stem.isdecimal() else math.inf, path.name))


def _adapter(path: Path, remarks: list[str]) -> tuple[Path | None, Mapping[str, str]]:
    if not path.is_file():
        return None, {}
    try:
        return path, load_tensors(path)[1]
    except Refused:
        remarks.append("adapter.safetensors is not whole; train again or resume from a checkpoint.")
        return None, {}


def _last_checkpoint(folder: Path) -> Path | None:
    found = [each for each in folder.glob("step-*") if each.name[5:].isdigit() and any(each.iterdir())]
    return max(found, key=lambda each: int(each.name[5:]), default=None)
