"""Do the two judges see a style? How far perfect drawings are on the way to it, and what they know of the contents.

    python tools/judges_of_style.py --data DATA

DATA holds emoji/. Scenes of six sprites are drawn in each held-out style; half of them are the reference, the others
are measured as adapters are. Prints the table of docs/evidence/how_we_measure.md.
"""

import argparse
from pathlib import Path

import numpy as np

from diffadapt.data.drawn_styles import HELD_OUT, draw_in_style
from diffadapt.data.scenes import World, load_sprites, render, sample_scene
from diffadapt.metrics.features import load_features
from diffadapt.metrics.style import content_kept, style_distance

WORLD = World(nouns=("fox", "koala", "violin", "peach", "zebra", "ufo"), styles=("flat",))
SCENES = 24


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    rng, half = np.random.default_rng(0), SCENES // 2
    scenes = [sample_scene(rng, WORLD) for _ in range(SCENES)]
    plain = render(scenes, load_sprites(parser.parse_args().data / "emoji", WORLD))[0]
    probe, second = (load_features(name) for name in ("probe", "second"))
    judges = ((probe, probe.pictures), (second, second.subjects))
    for style in HELD_OUT:
        drawn, told = draw_in_style(style, plain), []
        for judge, rows in judges:
            reference = judge.maps(drawn[half:])
            far, near = (float(style_distance(judge.maps(each[:half]), reference).mean()) for each in (plain, drawn))
            after, before = rows(drawn[:half]), rows(plain[:half])
            kept, shuffled = (float(content_kept(each, before).mean()) for each in (after, after.roll(1, 0)))
            told.append(f"{judge.name}: way {1 - near / far:.2f}, kept {kept:.2f}, shuffled {shuffled:.2f}")
        print(f"{style:12s} {'; '.join(told)}", flush=True)


if __name__ == "__main__":
    main()
