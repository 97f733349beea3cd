"""Says what an adapter file or a run's folder holds: method, settings, base, roles, tokens, sizes, provenance.

No base is loaded. Any other safetensors file is described by its header and tensors.
"""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import Refused

SUMMARY = "say what an adapter file or a run holds"
EXAMPLES = """\
  diffadapt inspect runs/biscuit
  diffadapt inspect runs/biscuit/adapter.safetensors --json
"""
_LISTED = ("config", "roles", "tokens")  # header entries that are JSON


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", metavar="FILE | RUN", help="a .safetensors file or the folder of a run")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(arguments: argparse.Namespace) -> int:
    path = Path(arguments.path).expanduser()
    if not path.exists():
        raise Refused(f"nothing at {path}; give an adapter file or the folder of a run")
    facts = describe_run(path) if path.is_dir() else describe_file(path)
    print(json.dumps(facts, indent=1, default=str) if arguments.json else "\n".join(as_text(facts)))
    return 0


def describe_file(path: Path) -> dict[str, Any]:
    """The facts of one safetensors file.

    Raises:
        Refused: it is not a whole safetensors file, or an adapter of a newer format.
    """
    from ..adapters import read_adapter
    from ..files import load_tensors

    tensors, header = load_tensors(path)
    if header.get("format") == "diffadapt":
        read_adapter(path)  # refuses what could not be loaded
    sizes = {
        "file": f"{path.stat().st_size:,} bytes",
        "tensors": len(tensors),
        "values": f"{sum(tensor.numel() for tensor in tensors.values()):,}",
        "dtypes": sorted({str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values()}),
    }
    facts: dict[str, Any] = {"path": str(path)}
    if header.get("format") != "diffadapt":
        facts["note"] = "not an adapter of diffadapt"
    facts |= {key: json.loads(value) if key in _LISTED else value for key, value in header.items()}
    layers = sorted({name.rpartition(".")[0] for name in tensors})
    return facts | {"sizes": sizes, "layers": layers}


def describe_run(folder: Path) -> dict[str, Any]:
    """The facts of a run's folder: how far it is, its settings, figures and adapter."""
    from ..report.run_folder import read_run_folder

    found = read_run_folder(folder)
    facts: dict[str, Any] = {
        "run": str(folder),
        "state": "finished" if found.complete else f"stopped at step {found.last_step} of {found.steps or 'unknown'}",
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
        facts["adapter"] = describe_file(found.adapter)
    return facts


def as_text(facts: Mapping[str, Any], depth: int = 0) -> list[str]:
    """Facts as indented lines; long lists are cut."""
    margin, lines = "  " * depth, []
    for key, value in facts.items():
        if isinstance(value, Mapping) and value:
            lines += [f"{margin}{key}", *as_text(value, depth + 1)]
        elif isinstance(value, list | tuple) and len(value) > 6:
            lines.append(f"{margin}{key}: {len(value)}, the first {', '.join(map(str, value[:3]))}")
        elif isinstance(value, list | tuple):
            lines.append(f"{margin}{key}: {', '.join(map(str, value)) or 'none'}")
        else:
            lines.append(f"{margin}{key}: {'none' if value is None or value == {} else value}")
    return lines
