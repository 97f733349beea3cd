"""The README's Python does what it says, on a tiny base and drawn pictures."""

import re
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from diffadapt.bases import load_base
from diffadapt.errors import Refused

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"


def test_the_embedded_base_knows_the_nouns_of_the_readme_and_the_tutorial():
    base, found = load_base("embedded", device="cpu"), {}
    for page in (README, ROOT / "docs" / "tutorial.md"):
        text = page.read_text(encoding="utf-8")
        found[page.stem] = set(re.findall(r"(?:--noun |noun=\"?)(\w+)", text))
        for noun in found[page.stem]:
            base.check_noun(noun)
    assert found == {"README": {"cat"}, "tutorial": {"cat"}}
    with pytest.raises(Refused, match="class noun"):
        base.check_noun("submarine")


def test_the_six_lines_run_from_pictures_to_a_picture(tiny_v_folder, tmp_path, monkeypatch):
    code = re.search(r"```python\n(.*?)```", README.read_text(), re.DOTALL)[1]
    assert len([line for line in code.splitlines() if line.strip() and not line.startswith("import")]) == 6
    folder = tmp_path / "photos" / "biscuit"
    folder.mkdir(parents=True)
    for i, colour in enumerate(("red", "blue")):
        picture = Image.new("RGB", (40, 40), colour)
        ImageDraw.Draw(picture).ellipse((8, 8, 32, 32), fill="orange")
        picture.save(folder / f"{i}.png")
    code = code.replace('"embedded"', repr(str(tiny_v_folder)))  # the base that ships would take minutes
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
