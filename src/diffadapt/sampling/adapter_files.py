"""Adapters named by a file of any kind that a training writes, or by a run's folder."""

from collections.abc import Mapping
from pathlib import Path

from ..adapters import Attachment, copy_values, load_adapter
from ..adapters.control_net import copy_control_net, is_control_net, load_control_net
from ..bases import Base
from ..errors import Refused
from ..files import at_home
from ..run_layout import ADAPTERS, RunLayout


def adapter_files(path: str | Path) -> list[Path]:
    """A file itself; of a finished run's folder its adapter and, where the run followed a control signal, its hint.

    Raises:
        Refused: a folder without an adapter.
    """
    path = at_home(path)
    if not path.is_dir():
        return [path]
    run = RunLayout(path)
    if not run.adapter.is_file():
        raise Refused(
            f"no adapter at {run.adapter}; expected a .safetensors file or the folder of a finished run"
            + usable_checkpoints(path)
        )
    return run.adapters


def usable_checkpoints(run: Path) -> str:
    """The end of a message about a run that has no adapter yet: which of its checkpoints can be used in its place."""
    found = sorted(RunLayout(run).checkpoints.glob(f"step-*/{ADAPTERS[0]}"))
    return f"; this run is not finished, its newest checkpoint is {found[-1]}" if found else ""


def load_file(base: Base, path: Path) -> Attachment:
    """Loads one file onto the base that it was trained on; see `load_adapter`."""
    return load_control_net(base, path) if is_control_net(path) else load_adapter(base, path)


def start_from(attachments: Mapping[str, Attachment], place: str) -> None:
    """Lets attachments, by the name of their file, start from a file or a finished run's folder; "" leaves them."""
    for path in adapter_files(place) if place else []:
        copy = copy_control_net if is_control_net(path) else copy_values
        copy(attachments.get(path.stem, attachments["adapter"]), path)
