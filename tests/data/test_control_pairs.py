"""Control pairs: where pictures, signals and captions come from, and what is refused."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from diffadapt.controls import SIGNALS
from diffadapt.data.control_pairs import ControlPairs, load_control_pairs, open_signal
from diffadapt.errors import Refused

COLOURS = ("red", "green", "blue")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three captioned pictures of 48x40, and `signals/` with one of the same name and size for each."""
    place = tmp_path / "photos"
    (tmp_path / "signals").mkdir()
    place.mkdir()
    for i, colour in enumerate(COLOURS):
        Image.new("RGB", (48, 40), colour).save(place / f"{i}.jpg")
        (place / f"{i}.txt").write_text(f"a {colour} square")
        signal = Image.new("RGB", (48, 40), "black")
        signal.paste("white", (4, 0, 24, 40))  # the square crop starts at 4
        signal.save(tmp_path / "signals" / f"{i}.png")
    return place


def write_metadata(folder: Path, rows: list[dict[str, str]]) -> None:
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_a_folder_of_signals_is_matched_by_name_and_cropped_like_the_pictures(folder):
    pairs = load_control_pairs(folder, folder.parent / "signals")
    assert len(pairs) == 3 and pairs.captions()[1] == "a green square" and pairs.signal is None and not pairs.notes
    pictures, signals = pairs.read([0, 2], 40)
    assert pictures.shape == signals.shape == (2, 3, 40, 40)
    assert 0 <= pictures.min() < 0.05 and 0.95 < pictures.max() <= 1
    assert (signals[..., :20] == 1).all() and (signals[..., 20:] == 0).all()


@pytest.mark.parametrize(("kind", "colours"), [("segmentation", 2), ("depth_order", 2), ("canny", 3)])
def test_labels_are_not_blended_when_a_signal_is_made_smaller(folder, kind, colours):
    """Between two labels lies a third one, which nothing in the picture is."""
    pairs = load_control_pairs(folder, folder.parent / "signals", kind=kind)
    _, signals = pairs.read([0], 24)
    assert (len(signals.unique()) == 2) == (colours == 2)


def test_metadata_names_the_signals_as_diffusers_has_it(folder):
    (folder / "edges").mkdir()
    for i in range(3):
        (folder.parent / "signals" / f"{i}.png").rename(folder / "edges" / f"e{i}.png")
        (folder / f"{i}.txt").unlink()
    rows = [
        {"file_name": f"{i}.jpg", "text": colour, "conditioning_file_name": f"edges/e{i}.png"}
        for i, colour in enumerate(COLOURS)
    ]
    write_metadata(folder, rows)
    pairs = load_control_pairs(folder, kind="canny")
    assert pairs.captions() == [*COLOURS] and pairs.signal == "canny" and not pairs.notes
    assert pairs.read([1], 40)[1].mean() == 0.5


def test_signals_beside_the_pictures_are_no_pictures(folder):
    for i in range(3):
        (folder.parent / "signals" / f"{i}.png").rename(folder / f"{i}-edges.png")
    write_metadata(folder, [{"file_name": f"{i}.jpg", "conditioning_file_name": f"{i}-edges.png"} for i in range(3)])
    assert len(load_control_pairs(folder)) == 3


def test_a_named_signal_is_computed_from_the_cropped_picture(folder):
    pytest.importorskip("cv2")
    pairs = load_control_pairs(folder, "canny")
    pictures, signals = pairs.read([0, 1], 32)
    assert pairs.signal == "canny" and torch.equal(signals, SIGNALS["canny"].extract(pictures))


def test_a_picture_without_a_caption_is_left_out_and_named(folder):
    (folder / "1.txt").unlink()
    pairs = load_control_pairs(folder, folder.parent / "signals")
    assert len(pairs) == 2 and pairs.notes == ["1.jpg: left out, it has no caption"]


def test_what_is_transparent_in_a_signal_is_black(tmp_path):
    picture = Image.new("RGBA", (20, 20), (255, 0, 0, 0))
    picture.putpixel((3, 4), (0, 255, 0, 255))
    picture.save(tmp_path / "s.png")
    signal = open_signal(tmp_path / "s.png")
    assert signal.getpixel((0, 0)) == (0, 0, 0) and signal.getpixel((3, 4)) == (0, 255, 0)


def test_pairs_in_memory_are_handed_out_as_they_are():
    pictures, signals = torch.rand(4, 3, 16, 16), torch.rand(4, 3, 16, 16)
    pairs = ControlPairs.in_memory(pictures, signals, ["a", "b", "c", "d"], signal="landmarks")
    read, its = pairs.read([2, 0], 16)
    assert torch.equal(read, pictures[[2, 0]])
    assert torch.equal(its, signals[[2, 0]]) and pairs.signal == "landmarks"
    with pytest.raises(Refused, match="expected pictures of 32 pixels, got 16"):
        pairs.read([0], 32)


def test_the_last_pairs_can_be_held_out(folder):
    pairs, held_out = load_control_pairs(folder, folder.parent / "signals").split(1)
    assert pairs.captions() == ["a red square", "a green square"] and held_out.captions() == ["a blue square"]
    assert pairs.split(0)[1] is None and len(pairs.first(1)) == 1 and len(pairs.first(9)) == 2
    with pytest.raises(Refused, match="leaves nothing of 2 pairs"):
        pairs.split(2)


def test_the_identity_knows_captions_kind_and_every_byte(folder):
    def identity(kind=None):
        return load_control_pairs(folder, folder.parent / "signals", kind=kind).identity()

    first = identity()
    assert first == identity() and first != identity("canny")
    (folder / "0.txt").write_text("another caption")
    assert identity() != first
    for changed in (folder / "1.jpg", folder.parent / "signals" / "1.png"):
        before = identity()
        Image.new("RGB", (48, 40), (1, 2, 3)).save(changed)
        assert identity() != before


@pytest.mark.parametrize(
    ("pictures", "signals", "captions", "says"),
    [
        ((2, 3, 8, 6), (2, 3, 8, 6), 2, r"expected \(N, 3, R, R\)"),
        ((2, 3, 8, 8), (2, 3, 4, 4), 2, "expected the same"),
        ((2, 3, 8, 8), (2, 3, 8, 8), 1, "got 1 captions for 2 pictures"),
    ],
)
def test_tensors_that_do_not_go_together_are_refused(pictures, signals, captions, says):
    with pytest.raises(Refused, match=says):
        ControlPairs.in_memory(torch.zeros(pictures), torch.zeros(signals), ["a"] * captions)


# --- what is refused --------------------------------------------------------------------------------------------------


def test_a_picture_without_a_signal_is_refused_by_name(folder):
    (folder.parent / "signals" / "1.png").unlink()
    (folder.parent / "signals" / "2.png").unlink()
    with pytest.raises(Refused, match=r"1\.jpg has no signal in .*signals, nor have 1 more; add the signal"):
        load_control_pairs(folder, folder.parent / "signals")


def test_a_signal_of_another_size_is_refused_with_both_sizes(folder):
    Image.new("RGB", (24, 20)).save(folder.parent / "signals" / "1.png")
    with pytest.raises(Refused, match=r"1\.png is 24x20, its picture 1\.jpg 48x40; make the signal at"):
        load_control_pairs(folder, folder.parent / "signals")


def test_sizes_are_compared_the_way_up_that_the_pictures_are_seen(folder):
    exif = Image.Exif()
    exif[0x0112] = 6  # stored on its side
    Image.new("RGB", (40, 48), "red").save(folder / "0.jpg", exif=exif)
    pictures, signals = load_control_pairs(folder, folder.parent / "signals").read([0], 40)
    assert pictures.shape == signals.shape


def test_a_damaged_picture_or_signal_is_refused_by_name(folder):
    pairs = load_control_pairs(folder, folder.parent / "signals")
    signal = folder.parent / "signals" / "0.png"
    signal.write_bytes(signal.read_bytes()[:60])
    with pytest.raises(Refused, match=r"signals/0\.png is damaged"):
        pairs.read([0], 40)
    (folder / "2.jpg").write_bytes((folder / "2.jpg").read_bytes()[:100])
    with pytest.raises(Refused, match=r"2\.jpg is damaged"):
        pairs.read([2], 40)


@pytest.mark.parametrize(
    ("signals", "says"),
    [
        ("cany", "no folder of signals at 'cany', and as a name it is an unknown signal 'cany'; did you mean canny"),
        (Path("nowhere"), "neither a folder nor one of canny"),
        ("segmentation", "cannot be computed from pictures; give a folder"),
        (None, "no metadata.jsonl that names a signal"),
    ],
)
def test_a_place_where_no_signals_can_be_had_is_refused(folder, signals, says):
    with pytest.raises(Refused, match=says):
        load_control_pairs(folder, signals)


@pytest.mark.parametrize("name", ["../signals/0.png", "missing.png", 7])
def test_a_line_that_names_no_signal_in_the_folder_is_refused_by_number(folder, name):
    write_metadata(folder, [{"file_name": "0.jpg", "conditioning_file_name": name}])
    with pytest.raises(Refused, match="metadata.jsonl line 1: there is no signal"):
        load_control_pairs(folder)


def test_an_empty_folder_and_one_without_captions_are_refused(folder, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(Refused, match="holds no picture"):
        load_control_pairs(tmp_path / "empty", folder.parent / "signals")
    for i in range(3):
        (folder / f"{i}.txt").unlink()
    with pytest.raises(Refused, match="none of the 3 pictures .* has a caption"):
        load_control_pairs(folder, folder.parent / "signals")


def test_an_unknown_kind_is_refused(folder):
    with pytest.raises(Refused, match="unknown signal 'edge'"):
        load_control_pairs(folder, folder.parent / "signals", kind="edge")
