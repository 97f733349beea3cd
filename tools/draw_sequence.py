"""Draws every concept after every task of finished sequences, side by side, as one sheet.

    python tools/draw_sequence.py --out docs/images/sequence_characters.png runs/c_lora runs/lora runs/token

One block a run: a row a concept, first one of the pictures that it was shown, then one made after each task from the
task on in which it was learned. All are of the same prompt and noise. --picture chooses another of those made.
"""

import argparse
import io
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from diffadapt.config import read_toml
from diffadapt.data.picture import to_picture
from diffadapt.data.sequence import load_sequence
from diffadapt.files import write_atomic

SIDE, GAP, LABEL, PAPER, INK = 64, 2, 20, (252, 251, 248), (31, 29, 26)


def block(run: Path, which: int) -> Image.Image:
    """The sheet of one run."""
    table = read_toml(run / "run.toml")
    tasks = load_sequence(table["sequence"]["folder"], table["sequence"]["noun"])
    after = sorted((run / "evaluation").glob("after-*"))
    sheet = Image.new("RGB", ((len(after) + 1) * (SIDE + GAP) + 3 * GAP, LABEL + len(tasks) * (SIDE + GAP)), PAPER)
    title = f"{run.name}: shown, then after tasks 1 to {len(after)}"
    ImageDraw.Draw(sheet).text((GAP, 2), title, fill=INK, font=ImageFont.load_default(13))
    for row, task in enumerate(tasks):
        top = LABEL + row * (SIDE + GAP)
        sheet.paste(to_picture(task.load().pixels(SIDE)[0]), (GAP, top))
        for column, folder in enumerate(after):
            if (path := folder / task.name / f"{which:02d}.png").is_file():
                with Image.open(path) as made:
                    sheet.paste(made.convert("RGB").resize((SIDE, SIDE)), (4 * GAP + (column + 1) * (SIDE + GAP), top))
    return sheet


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--picture", type=int, default=0)
    args = parser.parse_args()
    blocks = [block(run, args.picture) for run in args.runs]
    width, gap = sum(each.width for each in blocks), 12
    whole = Image.new("RGB", (width + gap * (len(blocks) - 1), max(each.height for each in blocks)), PAPER)
    left = 0
    for each in blocks:
        whole.paste(each, (left, 0))
        left += each.width + gap
    data = io.BytesIO()
    whole.quantize(256, kmeans=2).save(data, "PNG", optimize=True)
    write_atomic(args.out, data.getvalue())


if __name__ == "__main__":
    main()
