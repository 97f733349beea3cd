"""Forty kills at random moments: whatever is killed, the run ends with the same bits, and every file there is whole."""

import json
import os
import random
import signal
import time

import pytest
import torch
from PIL import Image

from diffadapt.adapters import LoRA
from diffadapt.data.concept import load_concept
from diffadapt.errors import Refused
from diffadapt.files import load_tensors
from diffadapt.recipes.subject import SubjectConfig, train_subject
from diffadapt.training.checkpoint import checkpoints, read_checkpoint

KILLS = 40
CONFIG = SubjectConfig(
    steps=8, batch_size=1, warmup=1, prior_pictures=2, checkpoint_every=2, sample_every=4, evaluation_prompts=1,
    evaluation_pictures=1,
)  # fmt: skip


def whole(folder):
    """Every file that is not a leftover can be read."""
    for path in folder.rglob("*"):
        if not path.is_file() or path.name.startswith("."):
            continue
        if path.suffix == ".safetensors":
            load_tensors(path)
        elif path.suffix == ".json":
            json.loads(path.read_text(encoding="utf-8"))
        elif path.suffix == ".png":
            Image.open(path).load()
    for place in checkpoints(folder / "run" / "checkpoints"):
        read_checkpoint(place)


@pytest.mark.slow
def test_forty_kills_lose_nothing(base, photos, tmp_path):
    base.default_steps = 1
    concept, method = load_concept(photos, "cat"), LoRA(rank=1)
    began = time.monotonic()
    train_subject(base, concept, method=method, config=CONFIG, out=tmp_path / "whole" / "run", quiet=True)
    seconds = time.monotonic() - began
    expected, _ = load_tensors(tmp_path / "whole" / "run" / "adapter.safetensors")
    place, draw, killed, rounds = tmp_path / "killed", random.Random(0), 0, 0
    while killed < KILLS:
        folder = place / f"{rounds}" / "run"
        child = os.fork()
        if child == 0:  # no import, no loading: the moment of the kill is all that differs
            try:
                train_subject(base, concept, method=method, config=CONFIG, out=folder, quiet=True)
                os._exit(0)
            except BaseException:
                os._exit(1)
        time.sleep(draw.uniform(0, seconds / 5))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        assert not (os.WIFEXITED(status) and os.WEXITSTATUS(status)), "a run that goes on after a kill fails"
        if os.WIFSIGNALED(status):
            killed += 1
        if (folder / "adapter.safetensors").is_file():  # over: another one
            rounds += 1
        if folder.parent.exists():
            whole(folder.parent)
    for number in range(rounds + 1):
        folder = place / f"{number}" / "run"
        run = train_subject(base, concept, method=method, config=CONFIG, out=folder, quiet=True)
        tensors, _ = load_tensors(run.adapter)
        assert all(torch.equal(tensors[key], expected[key]) for key in expected)
        assert run.report.is_file() and not list(folder.rglob(".*.tmp"))


def test_a_changed_checkpoint_does_not_become_the_result(base, photos, tmp_path):
    base.default_steps = 1
    config = SubjectConfig(
        steps=4, batch_size=1, warmup=1, prior_weight=0, checkpoint_every=2, sample_every=0, evaluation_prompts=0
    )
    concept = load_concept(photos, "cat")
    run = train_subject(base, concept, method=LoRA(rank=1), config=config, out=tmp_path / "run", quiet=True)
    run.adapter.unlink()
    for place in checkpoints(tmp_path / "run" / "checkpoints"):
        data = bytearray((place / "state.safetensors").read_bytes())
        data[-1] ^= 1
        (place / "state.safetensors").write_bytes(bytes(data))
    with pytest.raises(Refused, match=r"no checkpoint in .* is whole"):
        train_subject(base, concept, method=LoRA(rank=1), config=config, out=tmp_path / "run", quiet=True)
    assert not run.adapter.exists() and not base.attachments
