"""Real subjects on the embedded base: LoRA, textual inversion and full fine-tuning, each measured alike.

    python benchmarks/subjects.py --data DATA --out benchmarks/results/subjects.json

DATA holds `emoji/` (sprite folders: twemoji, fluent-3d, ...; see the embedded base's model card) and `dreambooth/` (the
DreamBooth benchmark's pictures). Three subjects are emoji that the base never saw, each in five scenes of the base's
world with captions; three are photographs, which are outside that world. Runs are kept in --runs and resumed.
"""

import argparse
import subprocess
from pathlib import Path
from typing import Any

import torch

from diffadapt.adapters import LoRA, Method, Selective, Token
from diffadapt.bases import load_base
from diffadapt.data.concept import load_concept
from diffadapt.data.scene_concept import write_scene_concept
from diffadapt.files import read_json, write_json
from diffadapt.recipes.subject import train_subject
from diffadapt.training.run import made_by

EMOJI = (("fox", "3d", "animal"), ("helicopter", "flat", "vehicle"), ("teddy", "3d", "thing"))
PHOTOS = (("dog6", "dog"), ("cat", "cat"), ("clock", "clock"))
METHODS: dict[str, tuple[Method, dict[str, Any]]] = {
    "lora": (LoRA(rank=4), {}),
    "token": (Token(vectors=2), {"token_learning_rate": 2e-2, "prior_weight": 0.0}),
    "full": (Selective(), {"learning_rate": 2e-4}),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--runs", type=Path, default=Path("runs/subjects"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--base", default="embedded")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--subjects", default="", help="names, separated by commas; empty means all six")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    base = load_base(args.base)
    subjects = [(noun, kind, write_scene_concept(args.runs / "emoji" / noun, args.data / "emoji", noun, style))
                for noun, style, kind in EMOJI]  # fmt: skip
    subjects += [(name, noun, args.data / "dreambooth" / name) for name, noun in PHOTOS]
    chosen = [name for name in args.subjects.split(",") if name]
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    results = read_json(args.out)["runs"] if args.out.exists() else []
    for name, noun, folder in subjects:
        for key in args.methods.split(","):
            if chosen and name not in chosen or any(r["subject"] == name and r["method"] == key for r in results):
                continue
            method, settings = METHODS[key]
            concept = load_concept(folder, noun, token=f"<{name}>")
            run = train_subject(
                base, concept, method=method, out=args.runs / f"{name}-{key}", seed=args.seed, steps=args.steps,
                sample_every=args.steps, checkpoint_every=100, evaluation_prompts=12, evaluation_pictures=2, **settings,
            )  # fmt: skip
            kept = {k: v for k, v in run.metrics.items() if k not in ("weight_drift", "drift_pictures")}
            kept["values"] = {
                k: {i: v for i, v in row.items() if i not in ("meaning", "unit")} for k, row in kept["values"].items()
            }
            results.append(
                {"subject": name, "noun": noun, "method": key, "seed": args.seed, "steps": args.steps} | kept
            )
            facts = {**made_by(), "commit": commit, "base_fingerprint": base.fingerprint}
            write_json(args.out, {"experiment": "subjects", "made_by": facts, "runs": results})
    print(table(results))


def table(results: list[dict[str, Any]]) -> str:
    """The figures as a Markdown table: value [95 % interval] (the base's figure)."""
    names = ["subject_fidelity", "text_alignment", "diversity", "drift_features", "drift_pixels", "class_leakage"]
    lines = ["| subject | method | " + " | ".join(names) + " | s | KB |", "|---" * (len(names) + 4) + "|"]
    for result in results:
        cells = []
        for name in names:
            row = result["values"][name]
            base = "" if row["base"] is None else f" ({row['base']:.2f})"
            cells.append(f"{row['value']:.2f} [{row['low']:.2f}, {row['high']:.2f}]{base}")
        size = f"{result['seconds_train']:.0f} | {result['adapter_bytes'] / 1e3:.0f}"
        lines.append(f"| {result['subject']} | {result['method']} | " + " | ".join(cells) + f" | {size} |")
    return "\n".join(lines)


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
