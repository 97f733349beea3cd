"""Draws the README's picture from the runs of a finished demo: the concept, the base's pictures, each adapter's.

python tools/draw_overview.py runs/demo/run runs/demo/lora docs/images/overview.png
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from diffadapt.data.picture import write_png
from diffadapt.report.run_folder import read_run_folder
from diffadapt.report.run_report import read_subject

SIDE, GAP, LABEL, COUNT = 128, 8, 20, 6


def draw(runs: Sequence[Path]) -> Image.Image:
    """Rows of six pictures, each 64 px picture at twice its size, and the prompts below."""
    run = runs[0]
    told = json.loads((run / "samples" / "prompts.json").read_text())
    rows = [
        (f"shown: {len(list((run / 'concept').glob('*.png')))} pictures of {told['token']}", run / "concept"),
        ("the base, without the token", run / "samples" / "base"),
        *((f"after training, {read_subject(read_run_folder(each)).short}", _last(each)) for each in runs),
    ]
    width = COUNT * (SIDE + GAP) + GAP
    height = len(rows) * (LABEL + SIDE + GAP) + 2 * LABEL
    page = Image.new("RGB", (width, height), "white")
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(size=12)
    y = GAP // 2
    for title, folder in rows:
        pen.text((GAP, y), title, fill="black", font=font)
        y += LABEL
        for i, path in enumerate(sorted(folder.glob("*.png"))[:COUNT]):
            picture = Image.open(path).convert("RGB").resize((SIDE, SIDE), Image.Resampling.NEAREST)
            page.paste(picture, (GAP + i * (SIDE + GAP), y))
        y += SIDE + GAP
    for i, prompt in enumerate(told["prompts"][:COUNT]):
        for j, line in enumerate(_wrapped(prompt, font, SIDE + GAP - 2)[:2]):
            pen.text((GAP + i * (SIDE + GAP), y + j * 14), line, fill="#444444", font=font)
    return page


def _last(run: Path) -> Path:
    """The samples of the last step."""
    return sorted((run / "samples").glob("step-*"))[-1]


def _wrapped(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> list[str]:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) > width and lines[-1]:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


if __name__ == "__main__":
    *folders, out = map(Path, sys.argv[1:])
    write_png(out, draw(folders))
