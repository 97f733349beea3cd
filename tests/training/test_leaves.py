import json
import math
import time

import pytest
import torch

from diffadapt.errors import Failed, Refused
from diffadapt.progress import Steps
from diffadapt.training import seeds
from diffadapt.training.checkpoint import (
    checkpoints,
    load_checkpoint,
    optimizer_tensors,
    restore_optimizer,
    save_checkpoint,
)
from diffadapt.training.ema import EMA
from diffadapt.training.log import RunLog
from diffadapt.training.optimizer import build_optimizer
from diffadapt.training.schedule import learning_rate_factor


def test_schedules_warm_up_and_end_where_they_say():
    def at(step, schedule):
        return learning_rate_factor(step, total=100, warmup=10, schedule=schedule)

    assert at(0, "cosine") == 0.1 and at(9, "cosine") == 1
    assert at(10, "cosine") == at(10, "linear") == at(99, "constant") == 1
    assert at(55, "linear") == 0.5 and math.isclose(at(55, "cosine"), 0.5)
    assert 0 < at(99, "cosine") < at(99, "linear") < 0.02


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [0.5, 1, 1, 1, 1, 1]), ("linear", [0.5, 1, 1, 0.75, 0.5, 0.25]),
        ("cosine", [0.5, 1, 1, 0.5 + 0.125**0.5, 0.5, 0.5 - 0.125**0.5]),
    ],
)  # fmt: skip
def test_every_step_of_a_schedule_by_hand(schedule, expected):
    factors = [learning_rate_factor(step, total=6, warmup=2, schedule=schedule) for step in range(6)]
    assert factors == pytest.approx(expected)


def test_without_warm_up_the_first_step_has_the_peak_and_a_run_may_be_all_warm_up():
    for schedule in ("constant", "linear", "cosine"):
        assert learning_rate_factor(0, total=4, warmup=0, schedule=schedule) == 1
        assert learning_rate_factor(1, total=2, warmup=2, schedule=schedule) == 1
        assert learning_rate_factor(2, total=2, warmup=2, schedule=schedule) == 1  # nothing is left, by nothing


def test_ema_equals_its_recurrence_and_gives_the_values_back():
    parameter = torch.nn.Parameter(torch.zeros(3))
    ema, expected = EMA([parameter], 0.9), torch.zeros(3)
    for n in range(20):
        with torch.no_grad():
            parameter += 1
        ema.update()
        decay = min(0.9, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * parameter.detach()
    with ema.applied():
        torch.testing.assert_close(parameter.detach(), expected)
    assert torch.equal(parameter.detach(), torch.full((3,), 20.0))


def test_draws_depend_on_their_place_alone():
    first = [seeds.normal((4,), seeds.rng(0, 1, step)) for step in range(3)]
    again = seeds.normal((4,), seeds.rng(0, 1, 2))
    assert torch.equal(first[2], again) and not torch.equal(first[0], first[1])
    assert again.dtype == torch.float32


def test_draws_are_those_of_earlier_versions():
    """A run that is resumed by a newer version goes on with the same numbers."""
    assert seeds.number(0, 1, 2) == 2586662107276842404
    expected = torch.tensor([0.4559846520423889, -2.1591031551361084])
    assert torch.equal(seeds.normal((2,), seeds.rng(0, 1)), expected)


def steps_of_adam(count, resume_at=None):
    """Trains (2,) values for `count` steps; with `resume_at`, through saved tensors into a new optimizer."""
    values = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
    optimizer = build_optimizer("adamw", [{"params": [values], "lr": 0.1}], weight_decay=0.01)
    for step in range(count):
        if step == resume_at:
            kept, tensors = values.detach().clone(), {k: v.clone() for k, v in optimizer_tensors(optimizer).items()}
            values = torch.nn.Parameter(kept)
            optimizer = build_optimizer("adamw", [{"params": [values], "lr": 0.1}], weight_decay=0.01)
            restore_optimizer(optimizer, tensors)
        optimizer.zero_grad()
        (values.square().sum() * (1 + step)).backward()
        optimizer.step()
    return values.detach()


def test_an_optimizer_continues_bit_for_bit_from_its_tensors():
    assert torch.equal(steps_of_adam(7), steps_of_adam(7, resume_at=3))


def test_the_newest_whole_checkpoint_is_loaded(tmp_path):
    for step in (1, 2, 3):
        save_checkpoint(tmp_path, step, {"x": torch.tensor([float(step)])}, {}, keep=0)
    (tmp_path / "step-000003" / "state.safetensors").write_bytes(b"cut short")
    (tmp_path / "step-000004").mkdir()  # killed before state.json
    found = load_checkpoint(tmp_path)
    assert found is not None and found[0] == 2 and found[1]["x"] == 2


def test_only_the_newest_checkpoints_stay(tmp_path):
    for step in (1, 2, 3):
        save_checkpoint(tmp_path, step, {"x": torch.zeros(1)}, {}, keep=2)
    assert [path.name for path in checkpoints(tmp_path)] == ["step-000002", "step-000003"]


def test_no_checkpoint_is_no_checkpoint(tmp_path):
    assert load_checkpoint(tmp_path / "nothing") is None


def test_a_resumed_log_has_every_step_once(tmp_path):
    log = RunLog(tmp_path / "log.jsonl")
    for step in range(1, 6):
        log.write({"step": step, "loss": 1 / 3})
    log.close()
    with open(tmp_path / "log.jsonl", "a") as file:
        file.write('{"step": 6, "lo')  # killed in the middle of a line
    log = RunLog(tmp_path / "log.jsonl", resume_at=3)
    for step in (4, 5, 6):
        log.write({"step": step, "loss": 0.5})
    log.close()
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert rows[0]["loss"] == 0.333333 and rows[3]["loss"] == 0.5


def test_progress_without_a_terminal_is_a_line_per_tenth(capsys):
    with Steps("train", 40) as bar:
        for _ in range(40):
            bar.advance("loss 0.1")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 10 and lines[-1] == "train 40/40  loss 0.1"


def test_progress_tells_the_time_left_at_the_pace_so_far(capsys, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with Steps("train", 40, done=20) as bar:  # resumed: what lies behind took no time now
        for _ in range(10):
            now[0] += 30
            bar.advance("loss 0.1", by=2)
    left = [line.split("  ")[2:] for line in capsys.readouterr().err.splitlines()]
    assert left == [["4 min left"], ["3 min left"], ["2 min left"], ["60 s left"], []] and bar.done == 40


def test_work_within_a_step_is_told_once_it_has_taken_five_seconds(capsys, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with Steps("train", 40) as bar:
        aside = bar.aside("pictures on the way", 6)
        for _ in range(3):
            now[0] += 4
            aside.advance(by=2)
    told = capsys.readouterr().err.splitlines()
    assert told == ["pictures on the way 4/6", "pictures on the way 6/6"]  # 4 s are left, which need no word
    now[0] = 200
    aside = bar.aside("pictures on the way", 6)
    now[0] += 30
    aside.advance()
    assert capsys.readouterr().err == "pictures on the way 1/6  2 min left\n"
    aside = Steps("train", 40, quiet=True).aside("pictures on the way", 6)
    now[0] += 30
    aside.advance()
    assert not capsys.readouterr().err


def test_a_missing_8_bit_optimizer_names_the_extra():
    pytest.importorskip("torch")
    try:
        import bitsandbytes  # noqa: F401
    except ImportError:
        with pytest.raises(Refused, match=r"diffadapt\[optim\]"):
            build_optimizer("adamw8bit", [{"params": [torch.nn.Parameter(torch.zeros(1))]}], weight_decay=0.0)


def test_a_log_on_a_full_disk_says_so():
    class Full:
        def write(self, _):
            raise OSError(28, "No space left on device")

    log = RunLog.__new__(RunLog)
    log._file, log._path = Full(), "log.jsonl"  # type: ignore[assignment]
    with pytest.raises(Failed, match="No space left"):
        log.write({"step": 1})
