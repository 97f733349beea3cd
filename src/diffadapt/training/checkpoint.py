"""Checkpoints of a run: everything that the next step depends on, whole or not there.

    checkpoints/step-000200/adapter.safetensors   the adapter as a user would load it
    checkpoints/step-000200/state.safetensors     raw parameters, optimizer moments, moving averages
    checkpoints/step-000200/state.json            the step, and what the run was set to

`state.json` is written last: a folder without it is not a checkpoint and is passed over.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import Refused
from ..files import load_tensors, read_json, save_tensors, write_json


def save_checkpoint(
    folder: Path, step: int, tensors: Mapping[str, Tensor], facts: Mapping[str, Any], *, keep: int
) -> Path:
    """Writes `folder/step-NNNNNN` and removes all but the newest `keep` checkpoints (0 keeps all)."""
    place = place_of(folder, step)
    save_tensors(place / "state.safetensors", tensors)
    write_json(place / "state.json", {"step": step, **facts})
    if keep:
        for old in checkpoints(folder)[:-keep]:
            (old / "state.json").unlink()  # first, so that a kill in the middle leaves no half checkpoint
            shutil.rmtree(old)
    return place


def place_of(folder: Path, step: int) -> Path:
    """The checkpoint of one step, whether it is there or not."""
    return folder / f"step-{step:06d}"


def checkpoints(folder: Path) -> list[Path]:
    """The complete checkpoints in a folder, oldest first."""
    return sorted(path.parent for path in folder.glob("step-*/state.json"))


def load_checkpoint(folder: Path) -> tuple[int, dict[str, Tensor], dict[str, Any]] | None:
    """The newest complete checkpoint: its step, tensors and facts; None when there is none.

    A checkpoint that cannot be read (a disk that failed) is passed over in favour of the one before it.
    """
    for place in reversed(checkpoints(folder)):
        try:
            facts = read_json(place / "state.json")
            tensors, _ = load_tensors(place / "state.safetensors")
        except Refused:
            continue
        return int(facts["step"]), tensors, facts
    return None


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """An optimizer's state as named tensors."""
    states = optimizer.state_dict()["state"]
    return {f"optimizer.{i}.{k}": torch.as_tensor(v) for i, state in states.items() for k, v in state.items()}


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Puts the state back that `optimizer_tensors` took."""
    states: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith("optimizer."):
            _, index, name = key.split(".", 2)
            states.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": states, "param_groups": optimizer.state_dict()["param_groups"]})


def prefixed(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors with `prefix.` before each name."""
    return {f"{prefix}.{key}": value for key, value in tensors.items()}


def without_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names begin with `prefix.`, without it."""
    return {key.removeprefix(f"{prefix}."): value for key, value in tensors.items() if key.startswith(f"{prefix}.")}
