"""The report of a run that follows a control signal: its signals stand beside what was made of them."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from diffadapt.data.control_pairs import ControlPairs
from diffadapt.report import write_report
from diffadapt.report.run_folder import read_run_folder
from diffadapt.run_layout import RunLayout
from diffadapt.shapes import LOG_LINE, hold


@pytest.fixture(scope="module")
def trained_control(tiny_v_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two steps of a ControlNet on pictures of one grey, which only their signals say, with samples and figures."""
    pytest.importorskip("cv2")
    from diffadapt.adapters.control_net import ControlNet
    from diffadapt.bases import load_base
    from diffadapt.recipes.control import train_control

    base = load_base(tiny_v_folder, device="cpu")
    base.default_steps = 1
    light = torch.tensor([0.0, 1.0]).view(2, 1, 1, 1).expand(2, 3, 32, 32)
    pairs = ControlPairs.in_memory(0.1 + 0.8 * light, light.clone(), ["a cat", "a dog"], signal="canny")
    return train_control(
        base, pairs, held_out=pairs, method=ControlNet(blocks=1), out=tmp_path_factory.mktemp("runs") / "edges",
        steps=2, batch_size=1, warmup=0, sample_every=2, sample_pairs=2, checkpoint_every=2, evaluation_pairs=2,
        quiet=True,
    ).folder  # fmt: skip


@pytest.fixture
def folder(trained_control: Path, tmp_path: Path) -> Path:
    """The run with chosen figures of one kind, so that the words about them are known."""
    run = Path(shutil.copytree(trained_control, tmp_path / "edges"))
    metrics = json.loads(RunLayout(run).metrics.read_text())
    chosen = {"f1": {"value": 0.4, "low": 0.3, "high": 0.5, "base": 0.1}, "fid": {"value": 0.2, "base": 0.3}}
    values = {name: metrics["values"][name] | change for name, change in chosen.items()}
    RunLayout(run).metrics.write_text(json.dumps(metrics | {"values": values}))
    return run


def test_everything_that_a_control_run_writes_is_read_back(trained_control):
    layout, read = RunLayout(trained_control), read_run_folder(trained_control)
    assert not read.remarks and read.complete and read.last_step == read.steps == 2
    assert read.metadata["method"] == "controlnet" and {"f1", "fid"} <= read.metrics["values"].keys()
    assert list(read.samples) == [2] and len(read.prompts["prompts"]) == len(read.base_samples) == 2
    assert {len(files) for files in (*read.samples.values(), *read.strengths.values())} == {2}
    assert sorted(path.name for path in (layout.samples / "signals").iterdir()) == ["00.png", "01.png"]
    for line in layout.log.read_text().splitlines():
        hold(json.loads(line), LOG_LINE, "log.jsonl")


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
