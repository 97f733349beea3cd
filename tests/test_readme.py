"""The README's Python does what it says, on a tiny base and drawn pictures."""

import re
from pathlib import Path

from PIL import Image, ImageDraw

README = Path(__file__).parents[1] / "README.md"


def test_the_six_lines_run_from_pictures_to_a_picture(tiny_v_folder, tmp_path, monkeypatch):
    code = re.search(r"```python\n(.*?)```", README.read_text(), re.DOTALL)[1]
    assert len([line for line in code.splitlines() if line.strip() and not line.startswith("import")]) == 6
    folder = tmp_path / "photos" / "biscuit"
    folder.mkdir(parents=True)
    for i, colour in enumerate(("red", "blue")):
        picture = Image.new("RGB", (40, 40), colour)
        ImageDraw.Draw(picture).ellipse((8, 8, 32, 32), fill="orange")
        picture.save(folder / f"{i}.png")
    # The base that ships would take minutes; the tiny one knows cats instead of animals.
    code = code.replace('"embedded"', repr(str(tiny_v_folder))).replace("animal", "cat")
    short = {  # the same lines; what a run makes by default would take minutes too
        'out="runs/biscuit"': 'out="runs/biscuit", steps=2, prior_pictures=2, sample_every=0, evaluation_prompts=2',
        "1.0)])": "1.0)], prompts=2, per_prompt=2, drift_count=2)",
    }
    for written, shortened in short.items():
        assert code.count(written) == 1
        code = code.replace(written, shortened)
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(compile(code, str(README), "exec"), names)  # what is executed is our own README
    assert names["run"].adapter.is_file() and names["run"].report.is_file()
    assert {"subject_fidelity", "drift_pixels"} <= names["scores"]["values"].keys()
    with Image.open(tmp_path / "biscuit.png") as picture:
        assert picture.size == (32, 32)
