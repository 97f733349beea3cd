import numpy as np
import pytest

from diffadapt.data.demo_characters import CHARACTERS, draw_demo_characters
from diffadapt.data.demo_subject import draw_demo_subject
from diffadapt.data.picture import open_picture
from diffadapt.data.sequence import load_sequence
from diffadapt.errors import Refused


def test_ten_characters_are_a_sequence_and_no_two_look_the_same(tmp_path):
    folder = draw_demo_characters(tmp_path, size=32)
    tasks = load_sequence(folder, "animal")
    assert [task.name for task in tasks] == sorted(each.name for each in CHARACTERS) and len(tasks) == 10
    first = [np.asarray(open_picture(task.folder / "0.png"), dtype=float) for task in tasks]
    gaps = [np.abs(a - b).mean() for i, a in enumerate(first) for b in first[:i]]
    assert min(gaps) > 3


def test_the_first_character_is_the_demos_subject(tmp_path):
    folder = draw_demo_characters(tmp_path, count=1, size=64)
    drawn, subject = (
        open_picture(folder / "anni" / "3.png"),
        open_picture(draw_demo_subject(tmp_path, size=64) / "3.png"),
    )
    assert np.array_equal(np.asarray(drawn), np.asarray(subject))


def test_more_characters_than_there_are_cannot_be_drawn(tmp_path):
    with pytest.raises(ValueError, match="1 to 10"):
        draw_demo_characters(tmp_path, count=11)


def test_a_picture_of_the_users_is_not_drawn_over(tmp_path):
    mine = tmp_path / "characters" / "anni" / "2.png"
    mine.parent.mkdir(parents=True)
    mine.write_bytes(b"mine")
    with pytest.raises(Refused, match=r"2\.png exists already and holds something else"):
        draw_demo_characters(tmp_path, count=1, size=32)
    assert mine.read_bytes() == b"mine" and list(mine.parent.iterdir()) == [mine]
