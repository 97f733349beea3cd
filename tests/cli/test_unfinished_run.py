"""What the commands say of a run that goes on or was interrupted, and what a training says of its pictures."""

import json
from pathlib import Path

import pytest
from PIL import Image

from diffadapt.adapters import LoRA
from diffadapt.cli.main import main
from diffadapt.data.concept import Concept, load_concept
from diffadapt.recipes.subject import SubjectConfig, train_subject

SHORT = SubjectConfig(
    steps=6, batch_size=1, prior_weight=0, checkpoint_every=2, sample_every=0, evaluation_prompts=0
)  # fmt: skip


class Stopped(Exception):
    pass


@pytest.fixture
def concept(tmp_path: Path) -> Concept:
    (tmp_path / "biscuit").mkdir()
    for i, colour in enumerate(("red", "blue")):
        Image.new("RGB", (140, 140), colour).save(tmp_path / "biscuit" / f"{i}.png")
    return load_concept(tmp_path / "biscuit", "cat")


def test_inspect_tells_a_run_that_goes_on_from_one_that_stopped_and_both_name_its_checkpoints(
    base, concept, tmp_path, capsys
):
    run, found = tmp_path / "run", {}

    def inspect(name: str) -> None:
        capsys.readouterr()
        assert main(["inspect", str(run), "--json"]) == 0
        found[name] = json.loads(capsys.readouterr().out)

    def stop(step: int, _: float) -> None:
        if step == 5:
            inspect("goes on")
            raise Stopped

    with pytest.raises(Stopped):
        train_subject(base, concept, method=LoRA(rank=1), config=SHORT, out=run, watch=stop, quiet=True)
    inspect("stopped")
    assert found["goes on"]["state"] == "running, at step 5 of 6"
    assert found["stopped"]["state"] == "stopped at step 5 of 6"
    assert all(each["checkpoints"] == ["step-000002", "step-000004"] for each in found.values())

    assert main(["sample", "a <biscuit> cat", "--adapter", f"{run}:0.5", "--out", str(tmp_path / "out")]) == 2
    newest = run / "checkpoints" / "step-000004" / "adapter.safetensors"
    assert f"this run is not finished, its newest checkpoint is {newest}" in capsys.readouterr().err
    command = ["sample", "a cat", "--adapter", str(newest), "--base", base.name, "--out", str(tmp_path / "out")]
    assert main([*command, "--steps", "1", "--device", "cpu"]) == 0

    train_subject(base, concept, method=LoRA(rank=1), config=SHORT, out=run, quiet=True)
    inspect("finished")
    assert found["finished"]["state"] == "finished"


def test_a_training_says_that_photographs_become_drawings_on_a_base_of_small_drawings(base, concept, tmp_path, capsys):
    def stop(*_) -> None:
        raise Stopped

    with pytest.raises(Stopped):
        train_subject(base, concept, method=LoRA(rank=1), config=SHORT, out=tmp_path / "run", watch=stop)
    error = capsys.readouterr().err
    assert "note: these look like photographs, and base" in error and "has seen drawings of 32 pixels alone" in error


def test_sampling_notes_unknown_words_untaught_tokens_and_what_is_cut_off(tiny_v_folder, tmp_path, capsys):
    prompts = ["a <biscuit> cat", "a teapot on a red background", "a cat " + "on red " * 10]
    command = ["sample", *prompts, "--base", str(tiny_v_folder), "--device", "cpu", "--steps", "1"]
    assert main([*command, "--out", str(tmp_path)]) == 0
    shown = capsys.readouterr()
    notes = [line for line in shown.err.splitlines() if line.startswith("note: ")]
    assert notes[0] == "note: <biscuit> is no word that was taught; add the adapter that knows it"
    assert "was never shown teapot, so that the picture will not show it" in notes[1]
    assert "is cut off, the prompt is too long for the text encoder" in notes[2] and len(notes) == 3
    assert len(shown.out.split()) == 3  # the notes are not among the paths
