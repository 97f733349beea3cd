"""The demo's subject: the same bytes every time, recognisable, and ready for `load_concept`."""

import time
from pathlib import Path

import pytest

from diffadapt.data.concept import load_concept
from diffadapt.data.demo_subject import NOUN, POSES, caption, draw, draw_demo_subject
from diffadapt.data.scenes import grammar_words
from diffadapt.data.world import KINDS
from diffadapt.errors import Refused


def test_drawing_twice_gives_the_same_bytes(tmp_path: Path):
    first, second = draw_demo_subject(tmp_path / "a", size=64), draw_demo_subject(tmp_path / "b", size=64)
    files = sorted(path.name for path in first.iterdir())
    assert len(files) == 3 * len(POSES)
    assert all((first / name).read_bytes() == (second / name).read_bytes() for name in files)


def test_it_is_drawn_in_a_moment(tmp_path: Path):
    start = time.process_time()
    draw_demo_subject(tmp_path)
    assert time.process_time() - start < 1


def test_the_folder_is_a_concept_with_captions_and_masks(tmp_path: Path):
    concept = load_concept(draw_demo_subject(tmp_path), NOUN)
    assert len(concept) == len(POSES) >= 5
    assert concept.token == "<tuli>"
    assert concept.caption(1) == "a <tuli> animal on a blue background"
    masks = concept.masks(64)
    assert masks is not None
    assert concept.notes == []


@pytest.mark.parametrize("pose", POSES, ids=lambda pose: pose.background)
def test_the_figure_fills_the_picture_and_stays_inside(pose):
    picture, mask = draw(pose, 64)
    assert picture.size == mask.size == (64, 64)
    left, top, right, bottom = mask.point(lambda value: 255 * (value > 8)).getbbox()
    assert min(left, top, 64 - right, 64 - bottom) >= 1
    assert 0.5 <= max(right - left, bottom - top) / 64 <= 0.95


def test_no_two_pictures_share_a_background_or_a_pose():
    assert len({pose.background for pose in POSES}) == len(POSES)


def test_captions_speak_the_language_of_the_embedded_base():
    assert NOUN in KINDS
    for pose in POSES:
        assert set(caption(pose).split()) <= {"[token]", *grammar_words()}


@pytest.mark.parametrize("size", [0, 2048])
def test_an_absurd_size_is_an_error(tmp_path: Path, size: int):
    with pytest.raises(ValueError, match="expected 16 to 1024"):
        draw_demo_subject(tmp_path, size=size)


def test_nothing_of_the_users_is_drawn_over_and_what_is_the_same_is_kept(tmp_path: Path):
    concept = draw_demo_subject(tmp_path, size=64)
    kept = (concept / "1.png").stat().st_mtime_ns
    (concept / "0.png").unlink()
    draw_demo_subject(tmp_path, size=64)
    assert (concept / "0.png").is_file() and (concept / "1.png").stat().st_mtime_ns == kept
    (concept / "0.png").unlink()
    (concept / "3.txt").write_text("a photo of my own")
    with pytest.raises(Refused, match=r"3\.txt exists already and holds something else; choose another folder"):
        draw_demo_subject(tmp_path, size=64)
    assert (concept / "3.txt").read_text() == "a photo of my own" and not (concept / "0.png").exists()
