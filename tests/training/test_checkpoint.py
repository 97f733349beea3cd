"""A checkpoint is what was written or it is none."""

import json

import pytest
import torch

from diffadapt.errors import Failed, Refused
from diffadapt.files import save_tensors
from diffadapt.run_layout import checkpoint_of
from diffadapt.training.checkpoint import (
    checkpoints,
    load_checkpoint,
    optimizer_tensors,
    prefixed,
    read_checkpoint,
    restore_optimizer,
    restore_scaler,
    save_checkpoint,
    scaler_tensors,
    without_prefix,
)


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


def test_a_checkpoint_says_its_step_its_facts_and_the_digests_of_its_files(folder):
    place = save_checkpoint(folder, 6, {"x": torch.ones(2)}, {"of": 9}, keep=0)
    assert place == checkpoint_of(folder, 6) and place.name == "step-000006"
    step, tensors, facts = read_checkpoint(checkpoint_of(folder, 4))
    assert (step, facts["step"], facts["of"]) == (4, 4, 4) and torch.equal(tensors["x"], torch.full((8,), 4.0))
    assert sorted(facts["sha256"]) == ["adapter.safetensors", "state.safetensors"]
    assert all(len(digest) == 64 for digest in facts["sha256"].values())


@pytest.mark.parametrize("keep", [1, 2])
def test_of_whole_checkpoints_the_newest_stay_and_half_ones_are_none(folder, keep):
    checkpoint_of(folder, 5).mkdir()
    save_checkpoint(folder, 6, {"x": torch.ones(2)}, {}, keep=keep)
    assert checkpoints(folder) == [checkpoint_of(folder, step) for step in (4, 6)[-keep:]]
    assert not checkpoint_of(folder, 2).exists() and checkpoint_of(folder, 5).exists()


def test_an_optimizers_state_goes_through_named_tensors_beside_others():
    parameter = torch.nn.Parameter(torch.ones(2))
    optimizer, other = (torch.optim.AdamW([{"params": [parameter], "lr": rate}]) for rate in (0.1, 0.2))
    parameter.sum().backward()
    optimizer.step()
    tensors = optimizer_tensors(optimizer)
    assert set(tensors) == {"optimizer.0.step", "optimizer.0.exp_avg", "optimizer.0.exp_avg_sq"}
    restore_optimizer(other, tensors | {"adapter.0.exp_avg": torch.zeros(2)})
    state = other.state_dict()
    assert (
        torch.equal(state["state"][0]["exp_avg"], tensors["optimizer.0.exp_avg"])
        and float(state["state"][0]["step"]) == 1
    )
    assert state["param_groups"][0]["lr"] == 0.2  # rates are set before every step


def test_a_count_of_steps_that_is_no_tensor_comes_back_as_one_that_is_none():
    parameter = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    optimizer.state[parameter] = {"step": 3, "state1": torch.ones(2, dtype=torch.uint8)}  # as 8-bit AdamW has it
    tensors = optimizer_tensors(optimizer)
    again = torch.optim.SGD([parameter], lr=1.0)
    restore_optimizer(again, tensors)
    assert again.state[parameter]["step"] == 3 and isinstance(again.state[parameter]["step"], int)


def test_the_scale_of_a_loss_goes_through_named_tensors():
    scaler, other = (torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=7) for scale in (8.0, 2.0))
    tensors = scaler_tensors(scaler)
    assert all(key.startswith("scaler.") and value.dtype == torch.float64 for key, value in tensors.items()) and tensors
    restore_scaler(other, tensors | {"x": torch.zeros(1)})
    assert other.get_scale() == 8.0 and other.state_dict() == scaler.state_dict()
    assert all(isinstance(other.state_dict()[key], int) for key in ("growth_interval", "_growth_tracker"))
    restore_scaler(other, {})  # of a checkpoint without it: as it is
    assert other.get_scale() == 8.0 and scaler_tensors(None) == {}
    restore_scaler(None, tensors)


def test_prefixes_come_and_go():
    tensors = {"a.x": torch.zeros(1), "b.x": torch.ones(1), "ab.y": torch.ones(2)}
    assert list(prefixed("a", {"x": tensors["a.x"]})) == ["a.x"]
    assert list(without_prefix("a", tensors)) == ["x"] and without_prefix("a", tensors)["x"] is tensors["a.x"]
