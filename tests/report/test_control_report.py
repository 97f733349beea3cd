"""The report of a run that follows a control signal: its signals stand beside what was made of them."""

import json
from pathlib import Path

import pytest
from PIL import Image

from diffadapt.files import save_tensors
from diffadapt.report import write_report


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    run = tmp_path / "edges"
    for name in ("concept", "samples/signals", "samples/base", "samples/step-000010", "samples/strength-1"):
        (run / name).mkdir(parents=True)
        Image.new("RGB", (32, 32), "gray").save(run / name / "00.png")
    (run / "samples" / "prompts.json").write_text(json.dumps({"prompts": ["a cat"], "seeds": [0]}))
    (run / "run.toml").write_text('recipe = "control"\n[method]\nname = "controlnet"\n')
    values = {
        "f1": {"value": 0.4, "low": 0.3, "high": 0.5, "n": 8, "base": 0.1, "better": "higher", "kind": "control"},
        "fid": {"value": 0.2, "low": None, "high": None, "n": 8, "base": 0.3, "better": "lower", "kind": "control"},
    }
    (run / "metrics.json").write_text(json.dumps({"values": values}))
    (run / "log.jsonl").write_text(json.dumps({"step": 10, "loss": 0.1, "images": 80}) + "\n")
    save_tensors(run / "adapter.safetensors", {}, {"method": "controlnet", "base": "embedded"})
    return run


def test_the_report_speaks_of_the_signal(folder):
    page = write_report(folder).read_text()
    assert "It follows the signal" in page and "What it forgot was not measured" in page
    assert "Control: does the picture follow the signal?" in page
    assert page.count('<th scope="col">signal</th>') == 2 and "each picture beside its signal" in page
    assert "ControlNet" in page and "The concept" not in page


def test_the_lines_to_copy_take_the_folder_and_a_signal(folder):
    page = write_report(folder).read_text()
    assert f"--adapter {folder.resolve()}:1 --control signal.png" in page
    assert "control=&#34;signal.png&#34;" in page or 'control="signal.png"' in page
    assert "diffadapt merge" not in page
