"""The lines of a run's log: rounded, whole, and once for each step."""

import json

import pytest

from diffadapt.errors import Refused
from diffadapt.training.log import RunLog


def lines(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_numbers_have_six_digits_wherever_they_are_and_what_is_no_number_is_null(tmp_path):
    path = tmp_path / "a" / "b" / "log.jsonl"  # the folders are made
    log = RunLog(path)
    row = {
        "step": 1,
        "loss": 1 / 3,
        "pairs": [[7, 2 / 3], (1e-9 / 3,)],
        "by": {"\u00e9": 1234567.0},
        "norm": float("inf"),
    }
    log.write(row)
    assert lines(path) == [  # there at once, so that a kill loses nothing
        {
            "step": 1,
            "loss": 0.333333,
            "pairs": [[7, 0.666667], [3.33333e-10]],
            "by": {"\u00e9": 1234570.0},
            "norm": None,
        }
    ]
    log.write({"step": 2, "loss": float("nan"), "name": "x"})
    log.close()
    assert lines(path)[1] == {"step": 2, "loss": None, "name": "x"}
    with pytest.raises(ValueError, match="closed"):
        log.write({"step": 3, "loss": 1.0})


def test_a_new_run_starts_with_an_empty_log_and_a_resumed_one_keeps_what_was_done(tmp_path):
    path = tmp_path / "log.jsonl"
    kept = [{"step": step, "loss": 1.0} for step in (1, 2, 3)]
    path.write_text("".join(json.dumps(row) + "\n" for row in kept) + '{"step": 4, "lo')
    RunLog(path, resume_at=2).close()
    assert lines(path) == kept[:2] and path.read_text().endswith("}\n")
    RunLog(path).close()
    assert path.read_text() == ""
    RunLog(tmp_path / "new" / "log.jsonl", resume_at=5).close()
    assert (tmp_path / "new" / "log.jsonl").read_text() == ""


def test_a_folder_in_which_another_trains_is_refused_until_it_ends(tmp_path):
    path = tmp_path / "run" / "log.jsonl"
    log = RunLog(path)
    log.write({"step": 1, "loss": 1.0})
    with pytest.raises(Refused, match=r"another process trains in .*run now"):
        RunLog(path, resume_at=1)
    log.write({"step": 2, "loss": 1.0})
    log.close()
    assert [row["step"] for row in lines(path)] == [1, 2]  # what it wrote stands
    RunLog(path, resume_at=1).close()
    assert [row["step"] for row in lines(path)] == [1]


def test_a_line_that_is_none_of_a_log_is_refused_by_name(tmp_path):
    (tmp_path / "log.jsonl").write_text('{"loss": 1.0}\n')
    with pytest.raises(Refused, match=r"^a line of log\.jsonl"):
        RunLog(tmp_path / "log.jsonl", resume_at=1)
