"""A checkpoint is what was written or it is none."""

import json

import pytest
import torch

from diffadapt.errors import Failed, Refused
from diffadapt.files import save_tensors
from diffadapt.run_layout import checkpoint_of
from diffadapt.training.checkpoint import load_checkpoint, save_checkpoint


@pytest.fixture
def folder(tmp_path):
    for step in (2, 4):
        save_tensors(checkpoint_of(tmp_path, step) / "adapter.safetensors", {"x": torch.full((8,), float(step))})
        save_checkpoint(tmp_path, step, {"x": torch.full((8,), float(step))}, {"of": 4}, keep=0)
    return tmp_path


def flip(path):
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(bytes(data))


def edit(path, **facts):
    path.write_text(json.dumps({**json.loads(path.read_text()), **facts}))


DAMAGE = {
    "one flipped bit": lambda place: flip(place / "state.safetensors"),
    "one flipped bit of the adapter": lambda place: flip(place / "adapter.safetensors"),
    "another optimizer": lambda place: save_tensors(place / "state.safetensors", {"x": torch.zeros(8)}),
    "no state": lambda place: (place / "state.safetensors").unlink(),
    "no adapter": lambda place: (place / "adapter.safetensors").unlink(),
    "another step": lambda place: edit(place / "state.json", step=3),
    "a step that is text": lambda place: edit(place / "state.json", step="4"),
    "no digests": lambda place: edit(place / "state.json", sha256={}),
    "a digest of another file": lambda place: edit(
        place / "state.json", sha256={**json.loads((place / "state.json").read_text())["sha256"], "../x": "0"}
    ),
    "a list": lambda place: (place / "state.json").write_text("[]"),
    "half": lambda place: (place / "state.json").write_text('{"step": 4'),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_passed_over_aloud(folder, damage, capsys):
    DAMAGE[damage](checkpoint_of(folder, 4))
    found = load_checkpoint(folder)
    assert found is not None and found[0] == 2 and float(found[1]["x"][0]) == 2
    assert "passed over" in capsys.readouterr().err


def test_when_every_checkpoint_is_damaged_the_run_does_not_begin_again_in_silence(folder):
    for step in (2, 4):
        flip(checkpoint_of(folder, step) / "state.safetensors")
    with pytest.raises(Refused, match="no checkpoint in .* is whole .*digest differs.*start again in a new folder"):
        load_checkpoint(folder)


def test_values_that_are_no_numbers_become_no_checkpoint(folder):
    with pytest.raises(Failed, match="not numbers"):
        save_checkpoint(folder, 6, {"x": torch.tensor([float("nan")])}, {}, keep=0)
    assert load_checkpoint(folder)[0] == 4
