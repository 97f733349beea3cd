"""Steps of fp16 whose gradients overflow: the scaler passes over them, and the run goes on, ends and resumes."""

import json
import math
from contextlib import nullcontext

import pytest
import torch
from accelerate import Accelerator
from PIL import Image

from diffadapt.adapters import CLoRA
from diffadapt.data.sequence import load_sequence
from diffadapt.files import load_tensors
from diffadapt.recipes import sequence
from diffadapt.recipes.sequence import SequenceConfig, train_sequence
from diffadapt.training.task_log import penalty_ratio

FAST = SequenceConfig(
    steps=4, batch_size=1, warmup=0, prior_weight=0.0, checkpoint_every=1, evaluation_pictures=2, pairs=0
)


class Stopped(Exception):
    pass


class Overflowing(Accelerator):
    """fp16 as far as a CPU has it: the loss is scaled, gradients overflow at some steps, and one step may not come."""

    mixed_precision = "fp16"

    def __init__(self, at: set[int], stop: int) -> None:
        super().__init__(cpu=True)
        self.native_amp, self.scaler = True, torch.amp.GradScaler("cpu", init_scale=1024.0)
        self.at, self.stop, self.done = at, stop, 0

    def autocast(self):
        return nullcontext()

    def backward(self, loss):
        self.done += 1
        if self.done == self.stop:
            raise Stopped
        super().backward(loss * (math.inf if self.done in self.at else 1))


@pytest.fixture
def learn(base, tmp_path, monkeypatch):
    """Learns two tasks of four steps with C-LoRA; returns the run and its accelerator."""
    for name, colour in (("mia", "red"), ("otto", "blue")):
        (tmp_path / "characters" / name).mkdir(parents=True)
        Image.new("RGB", (32, 32), colour).save(tmp_path / "characters" / name / "0.png")
    tasks = load_sequence(tmp_path / "characters", "cat")

    def learn(name: str, *at: int, stop: int = 0):
        accelerator = Overflowing(set(at), stop)
        monkeypatch.setattr(sequence, "make_accelerator", lambda base, config: accelerator)
        method = CLoRA(rank=1, penalty_weight=1.0)
        return train_sequence(base, tasks, method=method, out=tmp_path / name, config=FAST, quiet=True), accelerator

    return learn


def test_a_sequence_whose_gradients_overflow_ends_well_and_resumes_to_the_same_bits(learn, tmp_path):
    whole, accelerator = learn("whole", 6, 8)  # the second and the last step of the second task
    rows = [json.loads(line) for line in (tmp_path / "whole/tasks/02-otto/log.jsonl").read_text().splitlines()]
    assert [row["grad_norm"] is None for row in rows] == [False, True, False, True]
    assert accelerator.scaler.get_scale() == 256.0  # halved twice
    learned = json.loads((tmp_path / "whole" / "sequence.json").read_text())["learned"]
    assert learned[0]["penalty_ratio"] == 0.0  # nothing is past yet
    assert learned[1]["penalty_ratio"] == pytest.approx(rows[2]["penalty_gradient"] / rows[2]["grad_norm"])
    with pytest.raises(Stopped):
        learn("stopped", 6, stop=7)
    resumed, accelerator = learn("stopped", 2)  # which is the last step again
    one, other = (load_tensors(each.adapter)[0] for each in (whole, resumed))
    assert one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())
    assert accelerator.done == 2 and accelerator.scaler.get_scale() == 256.0


def test_the_penalty_s_share_is_that_of_the_last_quarter_of_the_steps_that_were_made():
    rows = [{"step": i + 1, "loss": 1.0, "penalty_gradient": float(i), "grad_norm": 2.0} for i in range(8)]
    assert penalty_ratio(rows) == pytest.approx((3.0 + 3.5) / 2)
    passed_over = {"step": 9, "loss": 1.0, "penalty_gradient": 1.0, "grad_norm": None}
    assert penalty_ratio([*rows, passed_over]) == pytest.approx((3.0 + 3.5) / 2)
    assert penalty_ratio([passed_over]) is None and penalty_ratio([{**rows[0], "penalty_gradient": None}]) is None
    assert penalty_ratio([{"step": 1, "loss": 1.0, "grad_norm": 2.0}]) is None
