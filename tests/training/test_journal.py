"""When a line, a sample, a checkpoint and the page of a run are written, by a real learner of one small layer."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from diffadapt.adapters import LoRA, attach
from diffadapt.bases import Network
from diffadapt.run_layout import RunLayout
from diffadapt.training import journal as journal_module
from diffadapt.training.journal import Journal
from diffadapt.training.learner import Learner, make_accelerator
from diffadapt.training.loop_config import LoopConfig


class Samples:
    """Keeps the adapter's values at the moments when pictures would be drawn."""

    def __init__(self, parameter: nn.Parameter) -> None:
        self.parameter, self.attached = parameter, None
        self.at: dict[int, float] = {}

    def save_base(self, attachments, *, bar) -> None:
        self.attached = attachments

    def save_step(self, step: int, *, bar) -> None:
        self.at[step] = self.parameter.flatten()[0].item()


def learner_in(folder: Path, **settings) -> Learner:
    torch.manual_seed(0)
    network = Network({"net": nn.Sequential(nn.Linear(4, 4))}, [(r"net\.0", "linear")], name="net")
    attachment = attach(network, LoRA(rank=1), ["linear"])
    config = LoopConfig(**{"steps": 5, "sample_every": 0, "checkpoint_every": 0, "keep_checkpoints": 0} | settings)
    groups = [{"params": list(attachment.parameters()), "peak": 0.1}]
    return Learner(
        network, {"adapter": attachment}, groups=groups, config=config, folder=folder,
        accelerator=make_accelerator(network, config),
    )  # fmt: skip


def go(learner: Learner, samples=None, *, images: int = 3, quiet: bool = True, upto: int = 5, **more) -> list[int]:
    """Every step moves the adapter by one; returns the steps that were done."""
    done = []
    with Journal(learner, samples, images=images, quiet=quiet, **more) as journal:
        for step in journal.steps():
            with torch.no_grad():
                for parameter in learner.parameters:
                    parameter += 1
            if learner.ema:
                learner.ema.update()
            journal.write({"step": step + 1, "loss": 1.0 / (step + 1)})
            done.append(step)
            if step + 1 == upto:
                break
    return done


def rows_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def checkpoints_of(folder: Path) -> list[int]:
    return sorted(int(path.name.split("-")[1]) for path in (folder / "checkpoints").glob("step-*"))


def test_every_step_is_a_line_with_its_time_and_the_pictures_seen(tmp_path):
    watched = []
    assert go(learner_in(tmp_path), watch=lambda *now: watched.append(now)) == [0, 1, 2, 3, 4]
    rows = rows_of(tmp_path)
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5] and [row["images"] for row in rows] == [3, 6, 9, 12, 15]
    assert all(0 < row["seconds"] < 60 for row in rows) and watched[1] == (2, 0.5)
    assert not any("cosine_change" in row for row in rows) and not (tmp_path / "checkpoints").exists()


def test_samples_and_the_geometry_of_the_neurons_are_due_every_few_steps_and_at_the_end(tmp_path):
    learner = learner_in(tmp_path, sample_every=2)
    samples = Samples(learner.parameters[0])
    start = samples.parameter.flatten()[0].item()
    go(learner, samples)
    assert list(samples.at) == [2, 4, 5] and samples.at[4] == pytest.approx(start + 4)
    assert samples.attached == list(learner.attachments.values())
    assert [row["step"] for row in rows_of(tmp_path) if "cosine_change" in row] == [2, 4, 5]


def test_samples_and_geometry_are_those_of_the_moving_average(tmp_path):
    plain, averaged = (learner_in(tmp_path / str(decay), sample_every=5, ema_decay=decay) for decay in (0.0, 0.9))
    found = []
    for learner in (plain, averaged):
        samples = Samples(learner.parameters[0])
        go(learner, samples)
        found.append((samples.at[5], rows_of(learner.folder)[-1]["norm_change"], samples.parameter.flatten()[0].item()))
    assert found[0][2] == found[1][2] == pytest.approx(found[0][0])
    assert found[1][0] < found[0][0] and found[1][1] != found[0][1]


def test_checkpoints_are_due_every_few_steps_and_at_the_end(tmp_path):
    go(learner_in(tmp_path, checkpoint_every=2))
    assert checkpoints_of(tmp_path) == [2, 4, 5]


def test_a_resumed_journal_goes_on_behind_its_checkpoint_and_says_so(tmp_path, capsys):
    go(learner_in(tmp_path, checkpoint_every=2), upto=3)
    assert [row["step"] for row in rows_of(tmp_path)] == [1, 2, 3] and capsys.readouterr().err == ""
    assert go(learner_in(tmp_path, checkpoint_every=2), quiet=False) == [2, 3, 4]
    assert [row["step"] for row in rows_of(tmp_path)] == [1, 2, 3, 4, 5]
    said = capsys.readouterr().err
    assert f"resumed at step 2 of 5 in {tmp_path}" in said and "train 3/5  loss 0.3333" in said
    go(learner_in(tmp_path, checkpoint_every=2))
    assert capsys.readouterr().err == ""


def test_a_run_s_page_is_written_before_the_first_step_and_with_the_samples(tmp_path, monkeypatch):
    learner = learner_in(tmp_path, sample_every=2, checkpoint_every=1)
    layout, seen = RunLayout(tmp_path), []
    layout.run.write_text('recipe = "subject"\n')

    def look(step: int, _: float) -> None:
        seen.append(layout.report.exists() and 'http-equiv="refresh"' in layout.report.read_text())
        layout.report.unlink(missing_ok=True)

    samples = Samples(learner.parameters[0])
    go(learner, samples, watch=look)
    assert seen == [True, False, True, False, True] and layout.report.exists()
    monkeypatch.setattr(journal_module, "PAGE_EVERY", -1)  # seconds: long ago at every checkpoint
    seen.clear()
    other = learner_in(tmp_path / "other", checkpoint_every=2)
    layout = RunLayout(tmp_path / "other")
    layout.folder.mkdir(exist_ok=True)
    layout.run.write_text('recipe = "subject"\n')
    go(other, watch=look)
    assert seen == [True, False, True, False, True] and layout.report.exists()


def test_a_loop_on_its_own_has_no_page(tmp_path):
    learner = learner_in(tmp_path, sample_every=2)
    go(learner, Samples(learner.parameters[0]))
    assert not RunLayout(tmp_path).report.exists()


def test_processes_other_than_the_first_write_nothing(tmp_path):
    learner = learner_in(tmp_path, sample_every=1, checkpoint_every=1)
    RunLayout(tmp_path).run.write_text('recipe = "subject"\n')
    journal = Journal(learner, None, images=1, quiet=True)
    journal.is_main = False
    with journal:
        for step in journal.steps():
            journal.write({"step": step + 1, "loss": 1.0})
    assert [path.name for path in tmp_path.iterdir()] == ["run.toml"]
