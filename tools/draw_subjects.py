"""Draws the picture of docs/evidence/subjects.md: each subject, and what three methods make of it.

python tools/draw_subjects.py runs/subjects docs/images/subjects.png
"""

import sys
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from diffadapt.data.picture import write_png

SUBJECTS = ("fox", "helicopter", "teddy", "dog6", "cat", "clock")
METHODS = ("lora", "token", "full")
SIDE, GAP, LABEL, EACH = 80, 4, 18, 3


def draw(runs: Path) -> Image.Image:
    """A row per subject: one picture that was shown, one of the base, three of each method (the same three prompts)."""
    columns = 2 + EACH * len(METHODS)
    page = Image.new("RGB", (columns * (SIDE + GAP) + 8 * GAP, LABEL + len(SUBJECTS) * (SIDE + GAP) + GAP), "white")
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(size=12)
    lefts = [GAP + i * (SIDE + GAP) + 2 * GAP * ((i + 1) // EACH if i else 0) for i in range(columns)]
    titles = {0: "shown", 1: "the base", **{2 + EACH * i: method for i, method in enumerate(METHODS)}}
    for column, title in titles.items():
        pen.text((lefts[column], 2), title, fill="black", font=font)
    for row, subject in enumerate(SUBJECTS):
        files = [
            runs / f"{subject}-lora" / "concept" / "00.png",
            runs / f"{subject}-lora" / "samples" / "base" / "00.png",
        ]
        for method in METHODS:
            last = sorted((runs / f"{subject}-{method}" / "samples").glob("step-*"))[-1]
            files += sorted(last.glob("*.png"))[:EACH]
        for left, path in zip(lefts, files, strict=True):
            picture = Image.open(path).convert("RGB").resize((SIDE, SIDE), Image.Resampling.LANCZOS)
            page.paste(picture, (left, LABEL + row * (SIDE + GAP)))
    return page


if __name__ == "__main__":
    write_png(Path(sys.argv[2]), draw(Path(sys.argv[1])))
