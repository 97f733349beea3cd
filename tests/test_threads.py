"""Threads that wait for each other: what OpenMP itself says it was set to."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from diffadapt.threads import SPINS, bound_spinning

SOURCE = Path(__file__).parents[1] / "src"


def spins_after(*command: str) -> int:
    """The spin count that GNU's OpenMP shows when a program without settings of its own loads it."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("GOMP_", "OMP_"))}
    environment |= {"PYTHONPATH": str(SOURCE), "OMP_DISPLAY_ENV": "verbose"}
    shown = subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True).stderr
    found = re.search(r"GOMP_SPINCOUNT = '(\d+)'", shown)
    if not found:
        pytest.skip("this torch does not use GNU's OpenMP")
    return int(found[1])


def test_spinning_is_bounded_before_torch_is_loaded_in_python_and_on_the_command_line():
    assert spins_after("-c", "import diffadapt; diffadapt.LoRA") == SPINS
    assert spins_after("-m", "diffadapt", "list", "methods") == SPINS


@pytest.mark.parametrize(("name", "value"), [("GOMP_SPINCOUNT", "7"), ("OMP_WAIT_POLICY", "ACTIVE")])
def test_what_the_user_set_is_kept(monkeypatch: pytest.MonkeyPatch, name: str, value: str):
    for each in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(each, raising=False)
    monkeypatch.setenv(name, value)
    before = dict(os.environ)
    bound_spinning()
    assert dict(os.environ) == before


def test_without_a_setting_ours_is_made(monkeypatch: pytest.MonkeyPatch):
    for each in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(each, raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "2")  # another setting, which says nothing about waiting
    bound_spinning()
    assert os.environ["GOMP_SPINCOUNT"] == str(SPINS)
