"""Runs of a toy claim with real workers: stages, failures, interruption. Their fork server imports torch once."""

import json
import os
import signal
import sys
import time
from multiprocessing import forkserver
from pathlib import Path

import pytest

from diffadapt.bases import load_base
from diffadapt.cli.main import main
from diffadapt.errors import Refused
from diffadapt.evidence import Evidence, Settings
from diffadapt.evidence.runner import run_claim
from diffadapt.evidence.worker import Job


def invoke(folder: Path, base: Path, *, workers: int = 1, minutes: float | None = None) -> list[str]:
    """One invocation; what it says."""
    said: list[str] = []
    fingerprint = load_base(base, device="cpu").fingerprint
    run_claim(
        Evidence(folder, folder / "results", fingerprint, Settings(seeds=(1, 2, 3, 4, 0))),
        Job(claim="TOY-1", folder=folder, base={"name": str(base)}, work=folder / "runs", pictures=folder),
        facts={"claim": "TOY-1", "commit": "abc", "base": {"fingerprint": fingerprint}},
        workers=workers, minutes=minutes, say=said.append,
    )  # fmt: skip
    return said


def without_a_base(folder: Path) -> None:
    """The toy asks for no base: a worker starts in a third of the time."""
    file = folder / "toy_1.py"
    text = file.read_text().replace("context.base.fingerprint", "str(context.base)")
    file.write_text(text.replace('id="TOY-1",', 'id="TOY-1", needs_base=False,'))


def result_files(folder: Path) -> list[Path]:
    return sorted((folder / "results" / "TOY-1").glob("*.json"), key=lambda path: path.stem)


@pytest.mark.slow
def test_failing_units_are_recorded_and_are_all_that_the_next_invocation_runs(folder: Path, tiny_folder: Path):
    without_a_base(folder)
    (folder / "mood.txt").write_text("fail")
    said = invoke(folder, tiny_folder, workers=2)
    (first,) = result_files(folder)
    held = json.loads(first.read_text())
    assert [row["unit"]["stage"] for row in held["units"]] == ["tune"] * 3 + ["test"]
    assert held["units"][-1]["unit"] == {"stage": "test", "rate": 2, "seed": 0}  # 2 did best
    errors = {row["unit"]["seed"]: row["error"] for row in held["failed"]}
    assert errors[1] == "FileNotFoundError: nothing at adapter"
    assert errors[2].startswith("the worker died (exit code 3)")
    assert "absolute path" in errors[3] and "JSON compliant" in errors[4]
    assert str(folder) not in first.read_text()
    assert any("left in this stage, about" in line for line in said)
    assert len([*(folder / "runs" / "TOY-1").glob("*.error.txt")]) == 3  # the one that died could say nothing

    before = first.read_bytes()
    (folder / "mood.txt").write_text("")
    said = invoke(folder, tiny_folder)
    assert said[0] == "TOY-1: 4 units finished, 4 to do in this stage" and len(said) == 5
    _, second = result_files(folder)
    assert first.read_bytes() == before
    assert [row["unit"]["seed"] for row in json.loads(second.read_text())["units"]] == [1, 2, 3, 4]
    assert invoke(folder, tiny_folder) == [] and len(result_files(folder)) == 2


def test_after_the_time_limit_nothing_is_started(folder: Path, tiny_folder: Path):
    assert invoke(folder, tiny_folder, minutes=1e-9) == [] and result_files(folder) == []


def test_fewer_than_one_worker_is_refused(folder: Path):
    with pytest.raises(Refused, match="at least 1"):
        run_claim(
            Evidence(folder, folder / "results", "", Settings()),
            Job(claim="TOY-1", folder=folder, base={}, work=folder, pictures=folder),
            facts={"commit": ""}, workers=0,
        )  # fmt: skip


def started(command: list[str], errors: Path) -> int:
    """A forked process that runs a command, with what it says on stderr in a file; nothing is imported again."""
    forkserver.set_forkserver_preload([Job.__module__])
    forkserver.ensure_running()
    process = os.fork()
    if process:
        return process
    forkserver._forkserver.ensure_running = lambda: None  # it asks after a child, and the server is its parent's
    with errors.open("w") as file:
        os.dup2(file.fileno(), 2)
        sys.stderr = file
        code = 1
        try:
            code = main(command)
        finally:
            file.flush()
            os._exit(code)


@pytest.mark.slow
def test_an_interrupted_run_keeps_what_is_finished_and_goes_on(folder: Path, tiny_folder: Path, capsys, ctrl_c):
    (folder / "mood.txt").write_text("slow")
    command = ["evidence", "run", "TOY-1", "--base", str(tiny_folder), "--seeds", "0", "--device", "cpu"]
    command += ["--folder", str(folder), "--out", str(folder / "runs")]
    process = started(command, folder / "errors.txt")
    end = time.monotonic() + 300
    while not result_files(folder) and os.waitpid(process, os.WNOHANG) == (0, 0) and time.monotonic() < end:
        time.sleep(0.1)
    os.kill(process, signal.SIGINT)
    _, status = os.waitpid(process, 0)
    errors = (folder / "errors.txt").read_text()
    assert os.waitstatus_to_exitcode(status) == 130 and "resume with: diffadapt evidence run TOY-1" in errors, errors
    (first,) = result_files(folder)
    assert [row["unit"]["rate"] for row in json.loads(first.read_text())["units"]] == [1]

    (folder / "mood.txt").write_text("")
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "TOY-1: 1 units finished, 2 to do" in said and "TOY-1: 3 units finished, 1 to do" in said
    held = json.loads(result_files(folder)[1].read_text())
    assert held["base"]["name"] == "base" and held["command"].endswith("--base base --seeds 0 --workers 1")
    assert str(folder) not in json.dumps(held) and len(held["units"]) == 3
