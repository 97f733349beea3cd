"""The command line under launchers: one process of accelerate's, two of torchrun's that average their gradients."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

TRAIN = (
    "train.steps=3", "train.batch_size=1", "train.prior_pictures=2", "train.checkpoint_every=2", "train.sample_every=0",
    "train.evaluation_prompts=0", "method.rank=1", "concept.noun=cat",
)  # fmt: skip
LAUNCHERS = {
    "accelerate": ("accelerate.commands.accelerate_cli", "launch", "--cpu", "--num_processes", "1", "-m", "diffadapt"),
    "torchrun": ("torch.distributed.run", "--nproc_per_node", "2", "-m", "diffadapt"),
}


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_the_same_command_runs_under_a_launcher(launcher, tiny_v_folder: Path, photos: Path, tmp_path: Path):
    out = tmp_path / "run"
    command = [sys.executable, "-m", *LAUNCHERS[launcher], "train", f"base={tiny_v_folder}", f"out={out}"]
    done = subprocess.run([*command, f"concept.folder={photos}", *TRAIN], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (out / "adapter.safetensors").is_file() and (out / "report.html").is_file()
    rows = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    processes = 2 if launcher == "torchrun" else 1
    assert [row["images"] for row in rows] == [2 * processes * step for step in (1, 2, 3)]
    assert done.stderr.count("train 3/3") == 1  # only the first process talks
