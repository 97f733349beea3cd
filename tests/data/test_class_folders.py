"""Class folders: names as captions, what is kept back, and what cannot be learned from."""

import pytest
from PIL import Image

from diffadapt.data.class_folders import load_classes
from diffadapt.errors import Refused


def fill(folder, **counts):
    for name, count in counts.items():
        (folder / name).mkdir(parents=True)
        for i in range(count):
            Image.new("RGB", (20, 20), "red").save(folder / name / f"{i}.png")
    return folder


def test_every_picture_is_captioned_by_its_class_and_the_last_ones_are_kept_back(tmp_path):
    found = load_classes(fill(tmp_path, rose=5, tulip=4), held_out=2)
    assert {name: len(each) for name, each in found.pictures.items()} == {"rose": 3, "tulip": 2}
    assert found.pictures["rose"].captions() == ["rose"] * 3 and found.held_out["tulip"].captions() == ["tulip"] * 2
    assert found.held_out["rose"].examples[0].path.name == "3.png"


def test_a_folder_of_test_pictures_is_what_is_kept_back(tmp_path):
    fill(tmp_path / "train", rose=3, tulip=3)
    fill(tmp_path / "test", rose=1, tulip=2, unseen=1)
    found = load_classes(tmp_path)
    assert {name: len(each) for name, each in found.pictures.items()} == {"rose": 3, "tulip": 3}
    assert {name: len(each) for name, each in found.held_out.items()} == {"rose": 1, "tulip": 2}


def test_one_class_an_empty_class_and_too_few_pictures_are_refused(tmp_path):
    with pytest.raises(Refused, match="holds 1 classes"):
        load_classes(fill(tmp_path / "one", rose=3))
    with pytest.raises(Refused, match="holds no picture"):
        load_classes(fill(tmp_path / "empty", rose=3, tulip=0))
    with pytest.raises(Refused, match="class 'tulip' .* has 3 pictures"):
        load_classes(fill(tmp_path / "few", rose=9, tulip=3), held_out=2)
    with pytest.raises(Refused, match="check the path"):
        load_classes(tmp_path / "nowhere")
