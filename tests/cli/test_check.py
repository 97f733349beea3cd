"""`diffadapt check`, and what `sample` says before it computes."""

import base64
import io
import re
import time

import pytest
import torch
from PIL import Image, ImageDraw

from diffadapt.adapters import Token, attach
from diffadapt.cli.main import main
from diffadapt.data.concept import load_concept
from diffadapt.data.contact_sheet import contact_sheet
from diffadapt.data.picture import to_tensor
from diffadapt.data.prompt_check import caption_notes, cut_at, prompt_notes
from diffadapt.errors import LONGEST, Refused
from diffadapt.files import save_tensors
from diffadapt.report.data_page import write_data_page


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "biscuit"
    folder.mkdir()
    for i in range(2):
        picture = Image.new("RGBA", (200, 160), (200, 90 * i, 40, 0))
        ImageDraw.Draw(picture).ellipse((60, 30, 150, 130), fill=(10, 80, 200, 255))
        picture.save(folder / f"{i}.png")
    return folder


def test_the_page_shows_each_picture_its_mask_and_its_caption_as_used(photos, tiny_v_folder, tmp_path, capsys):
    (photos / "1.txt").write_text("a cat on red")
    command = ["check", str(photos), "--noun", "cat", "--base", str(tiny_v_folder), "--device", "cpu"]
    assert main([*command, "--out", str(tmp_path / "page.html")]) == 0
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert page.count("<img ") == 4 and "a &lt;biscuit&gt; cat on red" in page and "200 x 160" in page
    printed = capsys.readouterr().out
    assert printed.strip().endswith("page.html") and "these look like photographs" in printed
    assert main([*command, "--out", str(tmp_path / "page.html")]) == 2
    assert "exists already" in capsys.readouterr().err


def test_notes_of_check_and_sample_show_no_control_characters_and_end(photos, tiny_v_folder, tmp_path, capsys):
    named = photos / "a\x1b[31mred.png"
    (photos / "1.png").rename(named)
    named.with_suffix(".txt").write_text("a <biscuit> cat " + "x" * 100_000)
    of_base = ["--base", str(tiny_v_folder), "--device", "cpu"]
    assert main(["check", str(photos), "--noun", "cat", *of_base, "--out", str(tmp_path / "page.html")]) == 0
    checked = capsys.readouterr().out
    assert "\\x1b[31mred.png: its caption is too long" in checked
    prompt = "a cat " + "\x1b[31mred " * 9 + "x" * 100_000
    assert main(["sample", prompt, "--steps", "1", *of_base, "--out", str(tmp_path / "out")]) == 0
    sampled = capsys.readouterr().err
    assert "is cut off, the prompt is too long" in sampled
    for line in (checked + sampled).splitlines():
        assert "\x1b" not in line and len(line) < LONGEST + 200


def test_a_file_s_facts_show_no_control_characters(tmp_path, capsys):
    save_tensors(tmp_path / "a.safetensors", {"x": torch.zeros(1)}, {"author": "\x1b[31mred", "\x1b[1m": "y" * 100_000})
    assert main(["inspect", str(tmp_path / "a.safetensors")]) == 0
    printed = capsys.readouterr().out
    assert "\\x1b[31mred" in printed and "\x1b" not in printed and len(printed) < LONGEST + 2000


def test_the_page_shows_the_pictures_as_training_sees_them(photos, tmp_path):
    concept = load_concept(photos, "cat")
    page = write_data_page(concept, 32, [], tmp_path / "page.html").read_text(encoding="utf-8")
    shown = [Image.open(io.BytesIO(base64.b64decode(data))) for data in re.findall(r"base64,([^\"]+)", page)]
    pictures = [picture for picture in shown if picture.size == shown[0].size]
    light = [float(to_tensor(picture.convert("RGB")).float().mean()) / 255 for picture in pictures]
    assert light[0] == pytest.approx(float(concept.pixels(32)[0].mean()), abs=0.02)


def test_a_mask_that_is_empty_inside_the_crop_is_named(photos):
    mask = Image.new("L", (200, 160), 0)
    for box in ((0, 60, 12, 80), (188, 60, 200, 80)):  # at both ends, so that the crop between them has none of it
        mask.paste(255, box)
    mask.save(photos / "0-masklabel.png")
    assert load_concept(photos, "cat").empty_masks(32) == ["0.png"]


def test_a_caption_that_is_too_long_is_named_and_one_cut_before_its_word_is_refused(photos, tiny_v_base):
    (photos / "0.txt").write_text("a <biscuit> cat " + "on red " * 20)
    assert cut_at(tiny_v_base, "a cat") == ""
    (note,) = caption_notes(tiny_v_base, load_concept(photos, "cat"))
    assert note.startswith("0.png: its caption is too long, and 'red on red")
    (photos / "1.txt").write_text("on red " * 20 + "a <biscuit> cat")
    with pytest.raises(Refused, match="1.png is cut before <biscuit>: .* takes 16 tokens"):
        caption_notes(tiny_v_base, load_concept(photos, "cat"))


@pytest.mark.parametrize(
    "prompt",
    [
        "", " a  cat ", "a photo of a cat " * 3, "on red\n" * 8 + "x", "teapot " * 9, "a" * 40 + " cat", "b" * 40,
        "é🐈 " * 12, *(" ".join(["red"] * count) for count in range(11, 18)),
    ],
)  # fmt: skip
def test_a_prompt_is_cut_where_taking_one_word_after_the_other_away_cuts_it(tiny_base, prompt):
    words = re.findall(r"\S+\s*", prompt)
    kept = len(words)
    while kept and len(tiny_base.tokenizer("".join(words[:kept])).input_ids) > 16:
        kept -= 1
    assert cut_at(tiny_base, prompt) == "".join(words[kept:]).strip()


def test_where_twenty_thousand_words_are_cut_is_known_at_once(tiny_base):
    words = ["red"] * 20_000
    started = time.perf_counter()
    assert cut_at(tiny_base, " ".join(words)) == " ".join(words[14:])  # 16 tokens, two for start and end
    assert time.perf_counter() - started < 0.3


def test_a_plain_word_is_found_in_a_long_caption_where_it_stands_alone(photos, tiny_base):
    (photos / "0.txt").write_text("banana cat " + "on red " * 9 + "an ana cat")
    with pytest.raises(Refused, match="0.png is cut before ana"):
        caption_notes(tiny_base, load_concept(photos, "cat", token="ana"))


def test_words_that_nobody_taught_and_words_that_the_base_never_saw_are_named(tiny_v_base, tiny_base):
    notes = prompt_notes(tiny_v_base, ["a <biscuit> cat on red", "a teapot on a red background"])
    assert notes[0] == "<biscuit> is no word that was taught; add the adapter that knows it"
    assert "was never shown teapot, so" in notes[1] and len(notes) == 2
    attach(tiny_v_base, Token(), tokens={"<biscuit>": "cat"})
    assert prompt_notes(tiny_v_base, ["a <Biscuit> cat on red"]) == []
    assert prompt_notes(tiny_base, ["a teapot"]) == []  # a base without a small world


def test_several_pictures_of_each_prompt_and_a_sheet_of_all(tiny_v_folder, tmp_path, capsys):
    prompts = ["a cat", "a dog on red --d 7"]
    more = [
        "-n",
        "2",
        "--sheet",
        "--steps",
        "1",
        "--out",
        str(tmp_path),
        "--base",
        str(tiny_v_folder),
        "--device",
        "cpu",
    ]
    assert main(["sample", *prompts, *more]) == 0
    printed = capsys.readouterr().out.split()
    names = ["0000.png", "0001.png", "0002.png", "0003.png", "sheet-0000.png"]
    assert [path.rpartition("/")[2] for path in printed] == names
    pictures = [Image.open(path).tobytes() for path in printed[:4]]
    assert len(set(pictures)) == 4  # seeds count on, the line's own as well
    assert main(["sample", "a dog on red --d 8", *more[3:]]) == 0
    assert Image.open(capsys.readouterr().out.strip()).tobytes() == pictures[3]
    for path in tmp_path.glob("0*.png"):
        path.unlink()
    sheet = (tmp_path / "sheet-0000.png").read_bytes()
    assert main(["sample", *prompts, *more]) == 0
    assert (tmp_path / "sheet-0000.png").read_bytes() == sheet and (tmp_path / "sheet-0001.png").is_file()


def test_a_sheet_shows_small_pictures_as_squares_and_large_ones_smaller():
    small = contact_sheet([("a" * 500, [Image.new("RGB", (64, 64), "red")] * 3)])
    assert small.width == 8 + 3 * (128 + 8) and small.height == 8 + 20 + 128 + 8
    large = contact_sheet([("a", [Image.new("RGB", (1024, 512))]), ("b", [Image.new("RGB", (1024, 1024))] * 2)])
    assert large.width == 8 + 2 * (256 + 8) and large.height == 8 + (20 + 128 + 8) + (20 + 256 + 8)
