"""What prior preservation keeps: one subject trained with it and without, measured and drawn with the same noise.

    python tools/prior_on_and_off.py --data DATA --out runs/prior

DATA holds emoji/. Prints the table of docs/evidence/how_we_measure.md and writes docs/images/prior_preservation.png as
OUT/prior_preservation.png: the plain class by the untouched base, with the prior and without it; then the subject by
both. Runs are kept in OUT and resumed.
"""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from diffadapt.adapters import Selective
from diffadapt.bases import load_base
from diffadapt.data.concept import load_concept
from diffadapt.data.picture import to_picture, write_png
from diffadapt.data.scene_concept import write_scene_concept
from diffadapt.data.scenes import KIND_OF
from diffadapt.evaluation.evaluate import evaluate
from diffadapt.evaluation.judge import Judge
from diffadapt.files import read_json, write_json
from diffadapt.recipes.subject import train_subject
from diffadapt.sampling.sample import adapted

NOUN, STYLE = "fox", "3d"
WEIGHTS = {"prior on": 1.0, "prior off": 0.0}
TRAINING = {"steps": 150, "learning_rate": 2e-4, "batch_size": 2, "prior_pictures": 48, "seed": 0}
JUDGED = {"prompts": 8, "per_prompt": 1, "seed": 0, "steps": 10}
FIGURES = {
    "subject_fidelity": "learned: likeness to the fox", "subject_fidelity (second)": "the same, second judge",
    "followed": "followed", "class_leakage": "leaked: likeness of class pictures to the fox",
    "class_leakage (second)": "the same, second judge", "class_diversity": "class pictures differ from each other",
    "drift_near": "drifted, near", "drift_far": "drifted, far", "loss_class": "loss on class pictures, rise",
    "loss_world": "loss on unrelated pictures, rise", "judges_agree": "the two judges agree (correlation)",
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--base", default="embedded")
    args = parser.parse_args()
    base = load_base(args.base)
    folder = write_scene_concept(args.out / NOUN, args.data / "emoji", NOUN, STYLE)
    concept, measured, files = load_concept(folder, KIND_OF[NOUN], token=f"<{NOUN}>"), {}, {}
    for name, weight in WEIGHTS.items():
        place = args.out / name.replace(" ", "-")
        run = train_subject(
            base, concept, method=Selective(), out=place, prior_weight=weight, evaluation_prompts=0, sample_every=0,
            **TRAINING,
        )  # fmt: skip
        files[name], told = run.adapter, place / "measured.json"
        if not told.is_file():
            write_json(told, dict(evaluate(base, concept, adapters=[(run.adapter, 1.0)], drift_count=8, **JUDGED)))
        measured[name] = read_json(told)["values"]
    print(table(measured))

    judge, rows = Judge(base, concept, **JUDGED), {}
    rows["base"] = judge.of_class()[-JUDGED["prompts"] :]
    for name, file in files.items():
        with adapted(base, [(file, 1.0)]):
            rows[name] = judge.of_class()[-JUDGED["prompts"] :]
            rows[f"subject, {name}"] = judge.of_concept()[: JUDGED["prompts"] // 2]
    last = torch.cat([rows[f"subject, {name}"] for name in files])
    sheet = torch.cat([torch.cat([*row], 2) for row in (rows["base"], *(rows[name] for name in files), last)], 1)
    picture = to_picture(sheet)
    write_png(
        args.out / "prior_preservation.png",
        picture.resize((2 * picture.width, 2 * picture.height), Image.Resampling.NEAREST),
    )


def table(measured: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    """The figures of both as a Markdown table; what stands beside them is the same for both."""
    lines = [f"| figure | {' | '.join(measured)} | base | floor | perfect |", "|---" * (len(measured) + 4) + "|"]
    for name, title in FIGURES.items():
        rows = [each[name] for each in measured.values()]
        cells = [
            f"{row['value']:.3f}" + ("" if row["n"] < 2 else f" [{row['low']:.3f}, {row['high']:.3f}]") for row in rows
        ]
        beside = [rows[0].get(key) for key in ("base", "floor", "perfect")]
        cells += ["" if value is None else f"{value:.3f}" for value in beside]
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
