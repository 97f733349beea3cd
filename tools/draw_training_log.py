"""Draws the held-back errors of the embedded base's training over the pictures seen, one panel a noise level.

python tools/draw_training_log.py DIR/errors.jsonl docs/images/embedded_base_training.png
"""

import json
import sys
from pathlib import Path

import matplotlib.pyplot as plt

SETS = {
    "old": "the first base's nouns",
    "new": "the other core nouns",
    "unseen": "sprites never shown, by class",
    "wide": "everything the world holds",
    "upright": "core nouns, never mirrored",
}


def draw(rows: list[dict], path: Path) -> None:
    """One panel for each noise level, one line for each held-back set."""
    levels = rows[0]["levels"]
    figure, axes = plt.subplots(2, -(-len(levels) // 2), figsize=(11, 6), sharex=True)
    for i, (level, axis) in enumerate(zip(levels, axes.flat, strict=False)):
        for name, words in SETS.items():
            measured = [(row["pictures"] / 1000, row[name][i]) for row in rows if name in row]
            axis.plot(*zip(*measured, strict=True), marker=".", label=words)
        axis.set_title(f"t = {level}", fontsize=10)
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
    for axis in axes[-1]:
        axis.set_xlabel("thousand pictures seen")
    for axis in axes[:, 0]:
        axis.set_ylabel("mean squared error of v")
    axes.flat[0].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=90)


if __name__ == "__main__":
    log, out = map(Path, sys.argv[1:])
    draw([json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()], out)
