"""A folder of a few pictures becomes a concept."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from diffadapt.data.concept import load_concept
from diffadapt.data.sequence import load_sequence


def draw(path: Path, colour: str = "red", size: tuple[int, int] = (64, 64)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for i, colour in enumerate(("red", "green", "blue")):
        draw(tmp_path / "My Biscuit!" / f"{i}.png", colour)
    return tmp_path / "My Biscuit!"


def test_a_concept_has_pixels_a_token_and_prompts(folder: Path) -> None:
    concept = load_concept(folder, "cat")
    assert (concept.name, concept.token, concept.phrase) == ("My Biscuit!", "<my-biscuit>", "<my-biscuit> cat")
    assert concept.captions() == ["a <my-biscuit> cat"] * 3 and len(concept) == 3
    assert concept.class_prompt == "a cat" and load_concept(folder, "owl").class_prompt == "an owl"
    pixels = concept.pixels(32)
    assert pixels.shape == (3, 3, 32, 32) and pixels.dtype == torch.float32
    assert torch.equal(pixels[0, :, 5, 5], torch.tensor([1.0, 0.0, 0.0]))
    assert concept.masks(32) is None and concept.notes == []


def test_pictures_come_in_natural_order(tmp_path: Path) -> None:
    for name in ("10.png", "2.png", "a.jpg", "B.PNG", "1.webp"):
        draw(tmp_path / "c" / name)
    names = [example.path.name for example in load_concept(tmp_path / "c", "cat").examples]
    assert names == ["1.webp", "2.png", "10.png", "a.jpg", "B.PNG"]


def test_each_picture_is_decoded_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    concept = load_concept(folder, "cat")
    monkeypatch.setattr(Image, "open", None)
    assert concept.pixels(16).shape == (3, 3, 16, 16)
    assert concept.pixels(64) is concept.pixels(64)


def test_a_resolution_above_what_was_kept_goes_back_to_the_file(tmp_path: Path) -> None:
    picture = Image.effect_noise((1100, 1100), 80).convert("RGB")
    (tmp_path / "c").mkdir()
    picture.save(tmp_path / "c" / "large.png")
    expected = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8).view(1100, 1100, 3).permute(2, 0, 1)
    pixels = load_concept(tmp_path / "c", "cat").pixels(1100)
    assert torch.equal((pixels[0] * 255).round().byte(), expected)


def test_everything_that_is_not_used_is_named(folder: Path) -> None:
    for name in (".DS_Store", ".hidden.png"):
        (folder / name).write_bytes(b"junk")
    (folder / "notes.txt").write_text("hello")
    (folder / "phone.HEIC").write_bytes(b"junk")
    (folder / "Thumbs.db").write_bytes(b"junk")
    draw(folder / "more" / "x.png")
    draw(folder / "gone-masklabel.png")
    draw(folder / "0-condlabel.png")
    notes = load_concept(folder, "cat").notes
    skipped = {note.split(":")[0] for note in notes}
    assert skipped == {"notes.txt", "phone.HEIC", "Thumbs.db", "more", "gone-masklabel.png", "0-condlabel.png"}
    assert any("convert it" in note for note in notes if "HEIC" in note)


def test_duplicates_are_noted_and_kept(folder: Path) -> None:
    (folder / "7.png").write_bytes((folder / "1.png").read_bytes())
    concept = load_concept(folder, "cat")
    assert len(concept) == 4 and concept.notes == ["7.png: the same file as 1.png, so it counts twice"]
    assert concept.contents[1] == concept.contents[3] != concept.contents[0]


def test_an_enlarged_picture_is_noted_once(tmp_path: Path) -> None:
    draw(tmp_path / "c" / "tiny.png", size=(20, 30))
    concept = load_concept(tmp_path / "c", "cat")
    assert concept.pixels(64).shape == (1, 3, 64, 64)
    concept.pixels(64)
    assert concept.notes == ["tiny.png: 20 pixels, enlarged to 64; it will be soft"]
    concept.pixels(24)
    assert len(concept.notes) == 1


def test_the_crop_table_can_be_written_as_json(tmp_path: Path) -> None:
    draw(tmp_path / "c" / "wide.png", size=(100, 50))
    rows = load_concept(tmp_path / "c", "cat", token="sks").crop_table()
    assert json.loads(json.dumps(rows)) == [
        {"file": "wide.png", "original": [100, 50], "box": [25, 0, 75, 50], "caption": "a sks cat"}
    ]


@pytest.mark.parametrize(
    ("written", "learned"),
    [
        ("a photo of a [token] cat", "a photo of a <b> cat"),
        ("{token} asleep", "<b> asleep"),
        ("[trigger] cat", "<b> cat"),
        ("a <b> cat on a sofa", "a <b> cat on a sofa"),
        ("a cat on a sofa", "a <b> cat on a sofa"),
        ("a CAT, asleep", "a <b> CAT, asleep"),
        ("on a sofa,\n  asleep\n", "a <b> cat, on a sofa, asleep"),
        ("a category of cats", "a <b> cat, a category of cats"),
        ("  \n", "a <b> cat"),
    ],
)
def test_every_caption_names_the_concept(folder: Path, written: str, learned: str) -> None:
    (folder / "1.txt").write_text(written)
    assert load_concept(folder, "cat", token="<b>").captions() == ["a <b> cat", learned, "a <b> cat"]


def test_the_article_fits_the_token(folder: Path) -> None:
    (folder / "0.caption").write_text("an owl at night")
    assert load_concept(folder, "owl", token="<b>").caption(0) == "a <b> owl at night"


@pytest.mark.parametrize(("name", "token"), [("Zoë", "<zoe>"), ("Zo\u0065\u0308 2", "<zoe-2>"), ("Åse_B.", "<ase-b>")])
def test_a_task_of_a_sequence_gets_the_word_that_its_folder_gives_a_concept(tmp_path: Path, name, token) -> None:
    draw(tmp_path / "all" / name / "0.png")
    [task] = load_sequence(tmp_path / "all", "cat")
    assert task.token == task.load().token == load_concept(tmp_path / "all" / name, "cat").token == token


@pytest.mark.parametrize(
    ("token", "caption", "without", "noun_alone"),
    [
        ("ana", "an ana cat and a banana on red", "an cat and a banana on red", "an cat and a banana on red"),
        ("ana", "a banana cat beside Ana", "a banana cat beside", "a banana cat beside cat"),
        ("<biscuit>", "a <biscuit> cat at night", "a cat at night", "a cat at night"),
    ],
)
def test_without_its_word_a_caption_is_one_of_the_class(folder: Path, token, caption, without, noun_alone) -> None:
    (folder / "0.txt").write_text(caption)
    concept = load_concept(folder, "cat", token=token)
    assert concept.class_captions()[:2] == [without, "a cat"]
    assert concept.standing_alone().class_captions()[:2] == [noun_alone, "a cat"]


def test_a_plain_word_that_stands_alone_takes_the_place_of_no_part_of_another(folder: Path) -> None:
    concept = load_concept(folder, "cat", token="ana")
    asked = ["an ana cat on red", "a banana cat", "an ana cattle"]
    assert concept.standing_alone().in_prompts(asked) == ["an ana on red", "a banana cat", "an ana cattle"]
    assert concept.in_prompts(asked) == asked


def test_sidecars_win_over_metadata_and_txt_over_caption(folder: Path) -> None:
    lines = [{"file_name": f"{i}.png", "text": f"meta {i}"} for i in range(3)]
    (folder / "metadata.jsonl").write_text("\n".join(json.dumps(line) for line in lines) + "\n\n")
    (folder / "1.caption").write_text("caption one")
    (folder / "2.txt").write_text("\ufefftext two", encoding="utf-8")
    (folder / "2.caption").write_text("caption two")
    concept = load_concept(folder, "cat")
    assert [example.caption for example in concept.examples] == ["meta 0", "caption one", "text two"]
    assert concept.notes == ["2.caption: not used, 2.txt comes first"]


def test_metadata_may_name_pictures_in_subfolders_and_lack_text(folder: Path) -> None:
    draw(folder / "sub" / "x.png", "yellow")
    (folder / "metadata.jsonl").write_text('{"file_name": "sub/x.png"}\n{"file_name": "0.png", "text": null}\n')
    concept = load_concept(folder, "cat")
    assert len(concept) == 4 and concept.crop_table()[3]["file"] == "sub/x.png" and concept.notes == []


def test_masks_come_from_files_and_from_alpha(folder: Path) -> None:
    mask = Image.new("L", (64, 64), 0)
    mask.paste(255, (0, 0, 32, 64))
    mask.save(folder / "1-masklabel.png")
    sprite = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
    sprite.paste((255, 0, 0, 255), (0, 0, 64, 32))
    sprite.save(folder / "2.png")
    concept = load_concept(folder, "cat")
    masks, pixels = concept.masks(64), concept.pixels(64)
    assert masks is not None and masks.shape == (3, 1, 64, 64)
    assert masks[0].min() == 1  # no mask among others with one: all of it counts
    assert masks[1, 0, :, :32].min() == 1 and masks[1, 0, :, 32:].max() == 0
    assert masks[2, 0, :32].min() == 1 and masks[2, 0, 32:].max() == 0
    assert (pixels[2, :, 40] == 1).all()  # transparent is white
    assert (pixels[1, 1] - pixels[1, 1, 0, 0]).abs().max() == 0  # a mask file does not change the picture


def test_a_mask_that_the_crop_cuts_is_noted(tmp_path: Path) -> None:
    draw(tmp_path / "c" / "wide.png", size=(160, 40))
    Image.new("L", (160, 40), 255).save(tmp_path / "c" / "wide-masklabel.png")
    assert load_concept(tmp_path / "c", "cat").notes == ["wide.png: the square crop cuts 75% of the mask off"]


def test_loading_twice_gives_the_same_bits(folder: Path) -> None:
    first, second = (load_concept(folder, "cat") for _ in range(2))
    assert torch.equal(first.pixels(48), second.pixels(48)) and first.contents == second.contents
