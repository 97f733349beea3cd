"""Draws what contenders made of a style, same prompts and noise, between the base's pictures and the style's own.

    python tools/draw_style_modes.py --style chalk --out chalk.png LABEL=RUN LABEL=RUN ...

Each RUN is a folder of `train_style` on one of the drawn styles (data/drawn_styles.py) that has its evaluation's
pictures. Rows: the base, each run, and the base's own pictures drawn in the style, which is what was to be learned. The
mean absolute difference of each row to the last is printed: only a drawn style has an exact answer.
"""

import argparse
import io
from pathlib import Path

import numpy as np

from diffadapt.data.contact_sheet import contact_sheet
from diffadapt.data.drawn_styles import draw_in_style
from diffadapt.data.picture import to_picture
from diffadapt.evaluation.evaluate_style import read_pairs
from diffadapt.files import write_atomic


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="LABEL=RUN")
    parser.add_argument("--style", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--pictures", type=int, default=8, help="drawn on the sheet (default 8); all are compared")
    args = parser.parse_args()
    named = {label: Path(run) for label, _, run in (each.partition("=") for each in args.runs)}
    pairs = {label: read_pairs(run / "styles" / args.style) for label, run in named.items()}
    base = next(iter(pairs.values()))[1]
    target = draw_in_style(args.style, base)
    rows = {"base": base, **{label: made for label, (made, _) in pairs.items()}}
    for label, made in rows.items():
        difference = (made - target).abs().mean(dim=(1, 2, 3))
        spread = np.std(difference.numpy(), ddof=1)
        print(f"{label:24} to the target {difference.mean():.3f} (standard deviation {spread:.3f}, n = {len(made)})")
    rows["the base's pictures, drawn: what was to be learned"] = target
    shown = [(label, [to_picture(pixels) for pixels in made[: args.pictures]]) for label, made in rows.items()]
    data = io.BytesIO()
    contact_sheet(shown).quantize(256, kmeans=2).save(data, "PNG", optimize=True)
    write_atomic(args.out, data.getvalue())


if __name__ == "__main__":
    main()
