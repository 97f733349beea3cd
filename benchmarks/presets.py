"""What each preset gives on the embedded base: two drawn subjects, each method, every preset, measured alike.

    python benchmarks/presets.py --out benchmarks/results/presets.json

The subjects are the demo's, captioned, and one of its relatives (`data.demo_characters`) without captions. A run that
is in the results already is not done again; --methods, --presets and --subjects choose some. "" is the method's own
settings.
"""

import argparse
from pathlib import Path
from typing import Any

import torch

from diffadapt.data.demo_characters import draw_demo_characters
from diffadapt.data.demo_subject import NOUN, draw_demo_subject
from diffadapt.files import read_json, write_json
from diffadapt.recipes.job import read_job
from diffadapt.recipes.own_settings import PRESETS
from diffadapt.training.run import made_by

METHODS = ("lora", "oft", "selective", "perfusion", "token")
MEASURED = {"evaluation_prompts": 10, "evaluation_pictures": 2, "sample_every": 0, "checkpoint_every": 0}
NAMES = ("subject_fidelity", "followed", "diversity", "class_leakage", "drift_features")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/presets"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--subjects", default="tuli,hugo", help="tuli, or names out of demo_characters")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--presets", default=",".join(("", *PRESETS)))
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    folder_of = {place.name: place for place in draw_demo_characters(args.runs / "photos").iterdir()}
    folder_of["tuli"] = draw_demo_subject(args.runs)
    results: list[dict[str, Any]] = read_json(args.out, dict)["runs"] if args.out.exists() else []
    for method in args.methods.split(","):
        for preset in args.presets.split(","):
            for name in args.subjects.split(","):
                key = {"subject": name, "method": method, "preset": preset, "seed": args.seed}
                if not any(key.items() <= row.items() for row in results):
                    results.append(key | train(key, folder_of[name], args.runs))
                    write_json(args.out, {"experiment": "presets", "made_by": made_by(), "runs": results})
    print(table(results))


def train(key: dict[str, Any], photos: Path, runs: Path) -> dict[str, Any]:
    """The figures of one run."""
    job = read_job(
        {
            "out": str(runs / f"{key['subject']}-{key['method']}-{key['preset'] or 'own'}"),
            "seed": key["seed"],
            "concept": {"folder": str(photos), "noun": NOUN},
            "method": {"name": key["method"]},
            "train": {**({"preset": key["preset"]} if key["preset"] else {}), **MEASURED},
        }
    )
    metrics = job.run().metrics
    values = {name: {k: metrics["values"][name][k] for k in ("value", "low", "high", "base")} for name in NAMES}
    return {
        "steps": job.train.steps, "seconds_train": metrics["seconds_train"], "adapter_bytes": metrics["adapter_bytes"],
        "values": values,
    }  # fmt: skip


def table(results: list[dict[str, Any]]) -> str:
    """Means over the subjects as a Markdown table."""
    lines = ["| method | preset | steps | s | KB | " + " | ".join(NAMES) + " |", "|---" * (len(NAMES) + 5) + "|"]
    for method, preset in dict.fromkeys((row["method"], row["preset"]) for row in results):
        rows = [row for row in results if (row["method"], row["preset"]) == (method, preset)]
        mean = [sum(row["values"][name]["value"] for row in rows) / len(rows) for name in NAMES]
        seconds = sum(row["seconds_train"] for row in rows) / len(rows)
        facts = f"{rows[0]['steps']} | {seconds:.0f} | {rows[0]['adapter_bytes'] / 1e3:.0f}"
        lines.append(f"| {method} | {preset or 'its own'} | {facts} | " + " | ".join(f"{x:.2f}" for x in mean) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
