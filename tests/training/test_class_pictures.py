"""The pictures of a class for prior preservation: how many, of what, from which seeds, and where they lie."""

from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from diffadapt.data.concept import load_concept
from diffadapt.data.memory_bank import MemoryBank
from diffadapt.data.picture import to_picture
from diffadapt.sampling.sample import PromptLine, generate
from diffadapt.training.class_pictures import class_pictures


class Process:
    """All that is looked at of accelerate: whether this is the first process, and when all wait for it."""

    def __init__(self, first: bool = True) -> None:
        self.is_main_process, self.waited = first, 0

    def wait_for_everyone(self) -> None:
        self.waited += 1


@pytest.fixture
def concept(tmp_path):
    (tmp_path / "biscuit").mkdir()
    Image.new("RGB", (32, 32), "red").save(tmp_path / "biscuit" / "0.png")
    return load_concept(tmp_path / "biscuit", "cat")


def bank_of(base, concept, tmp_path, process=None, quiet=True, **settings) -> MemoryBank:
    config = {"resolution": 0, "prior_pictures": 3, "prior_prompts": (), "memory_bank": ""} | settings
    return class_pictures(
        base, concept, SimpleNamespace(**config), tmp_path / "runs" / "one", process or Process(), quiet
    )


def test_pictures_of_the_plain_class_lie_beside_the_run_under_noun_base_and_side(base, concept, tmp_path, capsys):
    process = Process()
    bank = bank_of(base, concept, tmp_path, process)
    assert len(bank) == 3 and bank.prompts == ["a cat"] * 3 and process.waited == 1
    name = f"cat-{base.drawing_fingerprint.split(':')[-1][:8]}-32"
    assert bank.folder == tmp_path / "runs" / "memory_banks" / name and capsys.readouterr().err == ""
    settings = bank.settings
    assert (settings.base_fingerprint, settings.resolution) == (base.drawing_fingerprint, 32)
    assert (settings.guidance, settings.steps) == (base.default_guidance, base.default_steps)
    lines = [
        PromptLine(prompt="a cat", seed=seed, width=32, height=32, guidance=base.default_guidance, steps=1)
        for seed in range(3)
    ]
    for path, pixels in zip(bank.paths, generate(base, lines), strict=True):  # seeds 0, 1, 2 of the base itself
        assert np.array_equal(np.asarray(Image.open(path)), np.asarray(to_picture(pixels)))


def test_prompts_side_and_folder_may_be_chosen(base, concept, tmp_path):
    bank = bank_of(base, concept, tmp_path, prior_prompts=("a red cat", "a blue cat"), resolution=16)
    assert bank.prompts == ["a red cat", "a blue cat", "a red cat"] and bank.pixels().shape == (3, 3, 16, 16)
    assert bank.folder.name == f"cat-{base.drawing_fingerprint.split(':')[-1][:8]}-16-2-prompts"
    bank = bank_of(base, concept, tmp_path, memory_bank=str(tmp_path / "mine"), prior_pictures=1)
    assert bank.folder == tmp_path / "mine" and len(bank) == 1


def test_only_what_is_missing_is_sampled_and_said(base, concept, tmp_path, capsys):
    place = bank_of(base, concept, tmp_path, quiet=False, prior_pictures=2).folder
    said = capsys.readouterr().err
    assert f"sampling 2 pictures of the class ('a cat') into {place}" in said and "class pictures 2/2" in said
    before = [path.stat().st_mtime_ns for path in sorted(place.glob("*.png"))]
    bank_of(base, concept, tmp_path, quiet=False)
    said = capsys.readouterr().err
    assert "sampling 1 pictures" in said and "class pictures 1/1" in said
    assert [path.stat().st_mtime_ns for path in sorted(place.glob("*.png"))][:2] == before
    bank_of(base, concept, tmp_path, quiet=False)
    assert capsys.readouterr().err == ""


def test_other_processes_wait_for_the_first_and_read_what_it_sampled(base, concept, tmp_path):
    class Waiting(Process):
        def wait_for_everyone(self) -> None:
            super().wait_for_everyone()
            bank_of(base, concept, tmp_path)  # the first one has done its part by now

    process = Waiting(first=False)
    bank = bank_of(base, concept, tmp_path, process)
    assert process.waited == 1 and len(bank) == 3 and len(list(bank.folder.glob("*.png"))) == 3


def test_several_nouns_name_the_bank(base, tmp_path):
    tokens = {"<a>": "red cat", "<b>": "dog", "<c>": "red cat"}
    concept = SimpleNamespace(tokens=tokens, class_prompts=["a red cat", "a dog"])
    assert bank_of(base, concept, tmp_path, prior_pictures=1).folder.name.startswith("red-cat-dog-")
