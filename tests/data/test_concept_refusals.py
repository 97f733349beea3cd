"""A folder that cannot be a concept is refused in one sentence that names the file."""

from pathlib import Path

import pytest
from PIL import Image

from diffadapt.data.concept import Concept, load_concept
from diffadapt.errors import Refused


def draw(path: Path, colour: str = "red", size: tuple[int, int] = (64, 64)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for i, colour in enumerate(("red", "green", "blue")):
        draw(tmp_path / "My Biscuit!" / f"{i}.png", colour)
    return tmp_path / "My Biscuit!"


def refusal(folder: Path, noun: str = "cat", token: str | None = None) -> str:
    with pytest.raises(Refused) as caught:
        load_concept(folder, noun, token=token)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_an_empty_or_missing_folder_is_refused(tmp_path: Path) -> None:
    assert "nothing is there" in refusal(tmp_path / "nowhere")
    assert "a file is there" in refusal(draw(tmp_path / "a.png"))
    (tmp_path / "empty").mkdir()
    assert "holds no picture (it is empty)" in refusal(tmp_path / "empty")
    (tmp_path / "empty" / "a.heic").write_bytes(b"x")
    assert "found a.heic" in refusal(tmp_path / "empty")


def test_thirty_pictures_are_a_concept_and_thirty_one_are_not(tmp_path: Path) -> None:
    for i in range(30):
        draw(tmp_path / "c" / f"{i}.png", size=(16, 16))
    assert len(load_concept(tmp_path / "c", "cat")) == 30
    draw(tmp_path / "c" / "30.png")
    assert "31 pictures" in refusal(tmp_path / "c") and "load_captioned" in refusal(tmp_path / "c")


def test_one_bad_picture_refuses_the_folder_and_is_named(folder: Path) -> None:
    (folder / "1.png").write_bytes((folder / "1.png").read_bytes()[:-40])
    assert "1.png is damaged" in refusal(folder)


def test_a_caption_that_is_not_utf8_is_named(folder: Path) -> None:
    (folder / "1.txt").write_bytes(b"a caf\xe9 cat")
    assert "1.txt is not UTF-8 (byte 0xe9 at 5)" in refusal(folder)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("{broken", "line 2 is not JSON"),
        ('"just text"', "expected a table"),
        ('{"text": "a cat"}', "file_name is missing"),
        ('{"file_name": 3}', "file_name: expected text, got 3"),
        ('{"file_name": "../secret.png"}', "leads out of the folder"),
        ('{"file_name": "sub/../../secret.png"}', "leads out of the folder"),
        ('{"file_name": "/etc/secret.png"}', "leads out of the folder"),
        ('{"file_name": "..\\\\secret.png"}', "leads out of the folder"),
        ('{"file_name": "C:/secret.png"}', "leads out of the folder"),
        ('{"file_name": "99.png"}', 'there is no picture "99.png"'),
        ('{"file_name": "metadata.jsonl"}', "there is no picture"),
        ('{"file_name": "0.png"}', "named twice"),
        ('{"file_name": "1.png", "text": ["a", "cat"]}', '"text" is list'),
    ],
)
def test_a_bad_line_of_metadata_is_named(folder: Path, line: str, expected: str) -> None:
    draw(folder.parent / "secret.png")
    (folder / "metadata.jsonl").write_text('{"file_name": "0.png", "text": "fine"}\n' + line)
    message = refusal(folder)
    assert expected in message and "metadata.jsonl line 2" in message


def test_metadata_in_another_encoding_is_named(folder: Path) -> None:
    (folder / "metadata.jsonl").write_bytes(b'{"file_name": "0.png", "text": "caf\xe9"}')
    assert "metadata.jsonl is not UTF-8" in refusal(folder)


def test_a_mask_of_another_shape_or_without_white_is_named(folder: Path) -> None:
    Image.new("L", (64, 40), 255).save(folder / "1-masklabel.png")
    assert "1-masklabel.png is 64x40" in refusal(folder)
    Image.new("L", (64, 64), 0).save(folder / "1-masklabel.png")
    assert "1-masklabel.png marks nothing" in refusal(folder)


@pytest.mark.parametrize(
    ("noun", "token", "expected"),
    [
        ("  ", None, "noun is empty"),
        ("cat", "", "not one word"),
        ("cat", "two words", "not one word"),
        ("cat", "Cat", "itself"),
    ],
)
def test_a_noun_or_token_that_cannot_be_used_is_refused(
    folder: Path, noun: str, token: str | None, expected: str
) -> None:
    assert expected in refusal(folder, noun, token)


def test_a_folder_name_without_letters_asks_for_a_token(tmp_path: Path) -> None:
    draw(tmp_path / "???" / "0.png")
    assert 'token="<it>"' in refusal(tmp_path / "???")
    concept = load_concept(tmp_path / "???", "cat", token="<it>")
    assert isinstance(concept, Concept) and concept.token == "<it>"


def test_a_resolution_below_one_is_refused(folder: Path) -> None:
    with pytest.raises(Refused, match="resolution is 0"):
        load_concept(folder, "cat").pixels(0)
