"""Captions, masks and names as people's disks have them."""

import json
import unicodedata

import pytest
from PIL import Image

from diffadapt.data.captioned import load_captioned
from diffadapt.data.concept import load_concept
from diffadapt.errors import Refused


def picture(folder, name):
    Image.new("RGB", (16, 16), (200, 30, 30)).save(folder / name, "PNG")


def captions(folder):
    return [example.caption for example in load_concept(folder, "cat").examples]


def test_upper_case_sidecars_and_masks_are_read(tmp_path):
    picture(tmp_path, "IMG_1.PNG")
    (tmp_path / "IMG_1.TXT").write_text("a red cat")
    Image.new("L", (16, 16), 255).save(tmp_path / "IMG_1-MASKLABEL.PNG", "PNG")
    (example,) = load_concept(tmp_path, "cat").examples
    assert example.caption == "a red cat" and example.mask is not None


def test_accents_in_one_character_or_two_are_one_name(tmp_path):
    composed, apart = unicodedata.normalize("NFC", "tête"), unicodedata.normalize("NFD", "tête")
    picture(tmp_path, f"{apart}.png")
    (tmp_path / f"{composed}.txt").write_text("a head", encoding="utf-8")
    assert captions(tmp_path) == ["a head"]
    (tmp_path / f"{composed}.txt").unlink()
    (tmp_path / "metadata.jsonl").write_text(json.dumps({"file_name": f"{composed}.png", "text": "told"}))
    assert captions(tmp_path) == ["told"]


@pytest.mark.parametrize("column", ["text", "caption", "prompt"])
def test_the_caption_is_found_in_each_of_its_usual_columns(tmp_path, column):
    picture(tmp_path, "a.png")
    (tmp_path / "metadata.jsonl").write_text(json.dumps({"file_name": "a.png", column: "a red cat"}))
    assert captions(tmp_path) == ["a red cat"] and load_captioned(tmp_path).captions() == ["a red cat"]


def test_two_columns_that_disagree_are_refused(tmp_path):
    picture(tmp_path, "a.png")
    row = {"file_name": "a.png", "text": "a cat", "prompt": "a dog"}
    (tmp_path / "metadata.jsonl").write_text(json.dumps(row))
    with pytest.raises(Refused, match="line 1: text and prompt say different things"):
        load_concept(tmp_path, "cat")


def test_a_line_separator_in_a_caption_ends_no_line(tmp_path):
    picture(tmp_path, "a.png")
    row = json.dumps({"file_name": "a.png", "text": "a red\u2028cat"}, ensure_ascii=False)
    (tmp_path / "metadata.jsonl").write_text(row + "\r\n", encoding="utf-8")
    assert captions(tmp_path) == ["a red cat"]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("[" * 5000, "line 1 is not JSON"),
        ("[1]", r"line 1: expected a table, got \[1\]"),
        ('{"file_name": 3}', "line 1: file_name: expected text, got 3"),
        ('{"text": "x"}', "line 1: file_name is missing"),
        ('{"file_name": ""}', 'has no "file_name"'),
    ],
)
def test_a_line_of_another_shape_is_refused(tmp_path, line, says):
    picture(tmp_path, "a.png")
    (tmp_path / "metadata.jsonl").write_text(line)
    with pytest.raises(Refused, match=says):
        load_concept(tmp_path, "cat")


@pytest.mark.parametrize(("name", "token"), [("Café Noir", "<cafe-noir>"), ("Ñandú_2", "<nandu-2>")])
def test_a_folder_s_accents_become_plain_letters_of_the_token(tmp_path, name, token):
    (tmp_path / name).mkdir()
    picture(tmp_path / name, "a.png")
    assert load_concept(tmp_path / name, "cat").token == token
