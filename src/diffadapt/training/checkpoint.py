"""Checkpoints of a run: everything that the next step depends on, whole or not there.

    checkpoints/step-000200/adapter.safetensors   the adapter as a user would load it
    checkpoints/step-000200/state.safetensors     raw parameters, optimizer moments, moving averages
    checkpoints/step-000200/state.json            the step, and what the run was set to

`state.json` is written last, with the digests of the other files: a folder without it is not a checkpoint and is passed
over, and one whose files are not as they were written is passed over aloud.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import Refused
from ..files import file_digest, load_tensors, read_json, save_tensors, write_json
from ..progress import say
from ..run_layout import checkpoint_of
from ..shapes import CHECKPOINT


def save_checkpoint(
    folder: Path, step: int, tensors: Mapping[str, Tensor], facts: Mapping[str, Any], *, keep: int
) -> Path:
    """Writes `folder/step-NNNNNN` and removes all but the newest `keep` checkpoints (0 keeps all)."""
    place = checkpoint_of(folder, step)
    save_tensors(place / "state.safetensors", tensors)
    digests = {path.name: file_digest(path) for path in sorted(place.glob("*.safetensors"))}
    write_json(place / "state.json", {"step": step, **facts, "sha256": digests})
    if keep:
        for old in checkpoints(folder)[:-keep]:
            (old / "state.json").unlink()  # first, so that a kill in the middle leaves no half checkpoint
            shutil.rmtree(old)
    return place


def checkpoints(folder: Path) -> list[Path]:
    """The complete checkpoints in a folder, oldest first."""
    return sorted(path.parent for path in folder.glob("step-*/state.json"))


def load_checkpoint(folder: Path) -> tuple[int, dict[str, Tensor], dict[str, Any]] | None:
    """The newest checkpoint that is as it was written: its step, tensors and facts; None when there is none at all.

    A checkpoint that is damaged (a disk that failed, a changed file) is passed over, with a word about it, in favour of
    the one before it.

    Raises:
        Refused: there are checkpoints, and every one of them is damaged.
    """
    damaged = ""
    for place in reversed(checkpoints(folder)):
        try:
            return read_checkpoint(place)
        except Refused as error:
            damaged = str(error)
            say(f"passed over: {damaged}")
    if damaged:
        raise Refused(f"no checkpoint in {folder} is whole ({damaged}); start again in a new folder")
    return None


def read_checkpoint(place: Path) -> tuple[int, dict[str, Tensor], dict[str, Any]]:
    """One checkpoint: its step, tensors and facts.

    Raises:
        Refused: a file of it is missing or is not as it was written, or it says another step than its folder.
    """
    facts = read_json(place / "state.json", CHECKPOINT)
    if place.name != checkpoint_of(place.parent, facts["step"]).name:
        raise Refused(f"{place} says that it is step {facts['step']}; it was changed")
    for name, digest in facts["sha256"].items():
        if name != Path(name).name or file_digest(place / name) != digest:
            raise Refused(f"{place / name} is not as it was written (its digest differs)")
    tensors, _ = load_tensors(place / "state.safetensors")
    return facts["step"], tensors, facts


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """An optimizer's state as named tensors."""
    states = optimizer.state_dict()["state"]
    return {f"optimizer.{i}.{k}": torch.as_tensor(v) for i, state in states.items() for k, v in state.items()}


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Puts the state back that `optimizer_tensors` took."""
    states: dict[int, dict[str, Tensor | int]] = {}
    for key, value in tensors.items():
        if key.startswith("optimizer."):
            _, index, name = key.split(".", 2)
            whole = value.ndim == 0 and not value.is_floating_point()  # 8-bit AdamW counts its steps in an int
            states.setdefault(int(index), {})[name] = int(value) if whole else value
    optimizer.load_state_dict({"state": states, "param_groups": optimizer.state_dict()["param_groups"]})


def scaler_tensors(scaler: torch.amp.GradScaler | None) -> dict[str, Tensor]:
    """The state of what scales the loss in fp16, as named tensors; none where nothing does."""
    state = scaler.state_dict() if scaler is not None else {}
    return {f"scaler.{key}": torch.tensor(value, dtype=torch.float64) for key, value in state.items()}


def restore_scaler(scaler: torch.amp.GradScaler | None, tensors: Mapping[str, Tensor]) -> None:
    """Puts the state back that `scaler_tensors` took; a checkpoint from before it was kept has none."""
    state = {key: value.item() for key, value in without_prefix("scaler", tensors).items()}
    if scaler is not None and state:
        counts = {key: int(state[key]) for key in ("growth_interval", "_growth_tracker")}
        scaler.load_state_dict(state | counts)


def prefixed(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors with `prefix.` before each name."""
    return {f"{prefix}.{key}": value for key, value in tensors.items()}


def without_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names begin with `prefix.`, without it."""
    return {key.removeprefix(f"{prefix}."): value for key, value in tensors.items() if key.startswith(f"{prefix}.")}
