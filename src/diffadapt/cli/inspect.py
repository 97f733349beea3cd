"""Says what an adapter file or a run's folder holds: method, settings, base, roles, tokens, sizes, provenance.

And what it does to the weights: the largest change of a layer's hyperspherical energy and of a neuron's norm, as
shares, and of the cosine between two neurons, over all layers and by role. That takes the base, which is loaded where
it is at hand: the embedded one, a folder or a file, or the one named with --base. Any other safetensors file is
described by its header and tensors.
"""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import Refused, printable
from ..files import at_home, is_there, parse_json

SUMMARY = "say what an adapter file or a run holds"
EXAMPLES = """\
  diffadapt inspect runs/biscuit
  diffadapt inspect runs/biscuit/adapter.safetensors --json
  diffadapt inspect a.safetensors --strength 0.5 --base stable-diffusion-v1-5/stable-diffusion-v1-5
"""
_LISTED = ("config", "roles", "tokens")  # header entries that are JSON


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", metavar="FILE | RUN", help="a .safetensors file or the folder of a run")
    parser.add_argument(
        "--base", metavar="NAME",
        help="the base to measure the movement on; default: the adapter's own where it is at hand",
    )  # fmt: skip
    parser.add_argument(
        "--strength", type=float, default=1.0, metavar="S", help="at which the movement is measured (default 1)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(arguments: argparse.Namespace) -> int:
    path = at_home(arguments.path)
    if not is_there(path):
        raise Refused(f"nothing at {path}; give an adapter file or the folder of a run")
    facts = describe_run(path, arguments) if path.is_dir() else describe_file(path, arguments)
    print(json.dumps(facts, indent=1, default=str) if arguments.json else "\n".join(map(printable, as_text(facts))))
    return 0


def describe_file(path: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """The facts of one safetensors file.

    Raises:
        Refused: it is not a whole safetensors file, an adapter of a newer format, or it does not fit the base named.
    """
    from ..adapters import read_adapter
    from ..adapters.control_net import FORMAT as CONTROL_NET
    from ..files import load_tensors

    facts: dict[str, Any] = {"path": str(path)}
    try:
        *_, tensors, header = read_adapter(path)
    except Refused:
        tensors, header = load_tensors(path)
        if header.get("format") == "diffadapt":
            raise
        known = header.get("format") == CONTROL_NET
        facts["note"] = "a ControlNet, which sample takes as an adapter" if known else "not an adapter of diffadapt"
    read = {key: parse_json(value, None, f"{path}: {key}") for key, value in header.items() if key in _LISTED}
    facts |= {**header, **read}
    facts["sizes"] = {
        "file": f"{path.stat().st_size:,} bytes",
        "tensors": len(tensors),
        "values": f"{sum(tensor.numel() for tensor in tensors.values()):,}",
        "dtypes": sorted({str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values()}),
    }
    facts["layers"] = sorted({name.rpartition(".")[0] for name in tensors})
    if "note" not in facts:
        facts["movement"] = describe_movement(path, str(header.get("base")), arguments)
    return facts


def describe_movement(path: Path, base: str, arguments: argparse.Namespace) -> dict[str, Any] | str:
    """The change of the base's weights by an adapter, or why it was not measured."""
    from ..bases.load import SHIPPED

    at_hand = base in SHIPPED or is_there(base)
    if not (arguments.base or at_hand):
        return f"not measured; name the base to load for it: --base {base}"
    from ..bases import load_base
    from ..evaluation.geometry import largest_changes, movement
    from ..sampling.sample import adapted

    try:
        loaded = load_base(arguments.base or base)
        with adapted(loaded, [(path, arguments.strength)]) as attachments:
            moved = movement(attachments)
    except Refused as error:
        if arguments.base:
            raise
        return f"not measured: {error}"
    rows, skipped = moved["weight_drift"], moved["not_measured"]
    if not rows and not skipped:
        return "none; every weight stays the base's own"
    facts: dict[str, Any] = {"strength": arguments.strength, "all layers": largest_changes(rows)}
    facts |= {role: largest_changes(row for row in rows if row["role"] == role) for role in loaded.roles}
    facts |= {row["layer"]: f"not measured; {row['reason']}" for row in skipped}
    return {name: value for name, value in facts.items() if value != {}}


def describe_run(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """The facts of a run's folder: how far it is, its settings, figures and adapter."""
    from ..report.run_folder import read_run_folder
    from ..run_layout import RunLayout
    from ..training.log import is_being_written

    found = read_run_folder(folder)
    state = "running, at" if is_being_written(RunLayout(folder).log) else "stopped at"
    facts: dict[str, Any] = {
        "run": str(folder),
        "state": "finished" if found.complete else f"{state} step {found.last_step} of {found.steps or 'unknown'}",
        "checkpoints": [path.parent.name for path in sorted(folder.glob("checkpoints/step-*/adapter.safetensors"))],
        "pictures": len(found.concept),
        "settings": dict(found.config),
    }
    if isinstance(values := found.metrics.get("values"), Mapping):
        facts["metrics"] = {name: row.get("value") for name, row in values.items() if isinstance(row, Mapping)}
    report = folder / "report.html"
    if report.is_file():
        facts["report"] = str(report)
    if found.remarks:
        facts["remarks"] = found.remarks
    if found.adapter:
        facts["adapter"] = describe_file(found.adapter, arguments)
    return facts


def as_text(facts: Mapping[str, Any], depth: int = 0) -> list[str]:
    """Facts as indented lines; long lists are cut."""
    margin, lines = "  " * depth, []
    for key, value in facts.items():
        if isinstance(value, Mapping) and "energy_change" in value:
            changes = (f"{name.removesuffix('_change')} {change:.3g}" for name, change in value.items())
            lines.append(f"{margin}{key}: {', '.join(changes)}")
        elif isinstance(value, Mapping) and value:
            lines += [f"{margin}{key}", *as_text(value, depth + 1)]
        elif isinstance(value, list | tuple) and len(value) > 6:
            lines.append(f"{margin}{key}: {len(value)}, the first {', '.join(map(str, value[:3]))}")
        elif isinstance(value, list | tuple):
            lines.append(f"{margin}{key}: {', '.join(map(str, value)) or 'none'}")
        else:
            lines.append(f"{margin}{key}: {'none' if value is None or value == {} else value}")
    return lines
