"""The reader that ships: what it finds in pictures that this file draws, and how its files are read."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from diffadapt.controls.depth_order import layers_of
from diffadapt.controls.landmarks import landmarks_of
from diffadapt.controls.segmentation import CLASSES
from diffadapt.data.demo_subject import POSES, draw
from diffadapt.data.picture import to_tensor
from diffadapt.data.scenes import Scene, World, place, render, sample_scene
from diffadapt.errors import Refused
from diffadapt.files import read_json, save_tensors, write_json
from diffadapt.metrics.landmark_error import landmark_error
from diffadapt.metrics.reader import WEIGHTS, Reader, load_reader


@pytest.fixture(scope="module")
def reader() -> Reader:
    return load_reader()


@pytest.fixture(scope="module")
def drawn() -> tuple[Tensor, Tensor]:
    """Pictures and layers of the demo's character, which no emoji set holds, in each of its poses."""
    both = [draw(pose, 64) for pose in POSES]
    pictures = torch.stack([to_tensor(picture) for picture, _ in both]) / 255
    return pictures, torch.stack([to_tensor(mask)[0] > 127 for _, mask in both]).long()


def discs(count: int, *, two_objects: float) -> tuple[Tensor, Tensor, list[Scene]]:
    """Pictures and layers of striped discs and squares, which no emoji set holds either; two discs would be copies."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, 72), torch.linspace(-1, 1, 72), indexing="ij")
    shapes = {"cat": x.square() + y.square() < 0.9, "dog": torch.maximum(x.abs(), y.abs()) < 0.85}
    stripes, colours = 0.6 + 0.4 * (torch.sin(x * 12) > 0), {"cat": (0.9, 0.5, 0.1), "dog": (0.2, 0.6, 0.9)}
    sprites = {
        (noun, "flat"): torch.stack([*(c * stripes * inside for c in colours[noun]), inside.float()])
        for noun, inside in shapes.items()
    }
    rng = np.random.default_rng(0)
    world = World(nouns=tuple(colours), styles=("flat",))
    scenes = [sample_scene(rng, world, two_objects=two_objects) for _ in range(count)]
    pictures, masks = render(scenes, sprites)
    return pictures, layers_of(masks), scenes


def overlap(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union per picture."""
    return (a & b).sum((1, 2)) / (a | b).sum((1, 2))


def test_it_finds_where_a_character_is_that_it_never_saw(reader, drawn):
    pictures, layers = drawn
    found = reader.read(pictures).layers
    assert overlap(found > 0, layers > 0).mean() >= 0.9


def test_it_finds_where_discs_are(reader):
    pictures, layers, _ = discs(100, two_objects=0)
    found = reader.read(pictures).layers
    assert overlap(found > 0, layers > 0).mean() >= 0.9
    errors = landmark_error(landmarks_of(layers), landmarks_of(found))
    assert errors["detected"].mean() >= 0.9 and errors["error"].nanmean() <= 1.0


def test_it_tells_the_back_object_from_the_front_one(reader):
    pictures, layers, _ = discs(100, two_objects=1)
    found = reader.read(pictures).layers
    assert overlap(found > 0, layers > 0).mean() >= 0.9
    for layer in (1, 2):  # the left or the upper one is behind
        assert overlap(found == layer, layers == layer).mean() >= 0.9


def test_an_empty_background_holds_next_to_nothing(reader):
    rng = np.random.default_rng(0)
    thing = place(rng, "cat", "flat", "small", "center")
    nothing = {("cat", "flat"): torch.zeros(4, 72, 72)}
    scenes = [Scene(objects=(thing,), background=word) for word in World().backgrounds]
    found = reader.read(render(scenes, nothing)[0])
    assert (found.layers > 0).float().mean() < 0.05


def test_a_pixel_is_background_in_both_readings_or_in_none(reader, drawn):
    reading = reader.read(drawn[0])
    assert reading.layers.shape == reading.labels.shape == (len(POSES), 64, 64)
    assert reading.layers.dtype == reading.labels.dtype == torch.long
    assert torch.equal(reading.layers == 0, reading.labels == 0)
    assert reading.layers.max() <= 2 and reading.labels.max() < len(CLASSES)


def test_a_reading_depends_on_the_picture_alone(reader, drawn):
    pictures = drawn[0]
    whole, single = reader.read(pictures), reader.read(pictures[2:3])
    again = reader.read(pictures)
    assert torch.equal(whole.labels, again.labels) and torch.equal(whole.layers, again.layers)
    assert (whole.labels[2:3] == single.labels).float().mean() > 0.999  # another batch size may sum in another order


def test_the_weights_are_small_and_were_good_on_held_back_scenes(reader):
    assert sum(parameter.numel() for parameter in reader.parameters()) <= 400_000
    assert not any(parameter.requires_grad for parameter in reader.parameters()) and not reader.training
    assert (WEIGHTS / "reader.safetensors").stat().st_size <= 1_500_000
    accuracy = read_json(WEIGHTS / "reader.json")["accuracy"]
    for shown in ("rendered", "decoded"):
        assert accuracy[shown]["aacc"] >= 0.93 and accuracy[shown]["depth_order_aacc"] >= 0.95
        assert accuracy[shown]["landmarks_detected"] >= 0.98


# --- what is refused ---


def test_pictures_of_another_size_or_range_are_refused(reader):
    with pytest.raises(Refused, match="64x64 pixels, got 32x48"):
        reader.read(torch.zeros(1, 3, 48, 32))
    with pytest.raises(Refused, match="pictures: expected values in \\[0, 1\\]"):
        reader.read(torch.full((1, 3, 64, 64), -1.0))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An untrained reader's files, smaller than the one that ships."""
    small = Reader((4, 8, 8))
    save_tensors(
        tmp_path / "reader.safetensors", {k: v for k, v in small.state_dict().items() if v.is_floating_point()}
    )
    write_json(tmp_path / "reader.json", {"format_version": 1, "classes": CLASSES, "widths": small.widths})
    return tmp_path


def test_a_reader_can_be_loaded_from_a_folder(folder):
    assert load_reader(folder).widths == (4, 8, 8)


@pytest.mark.parametrize(
    "change, sentence",
    [
        ({"format_version": 2}, "install a newer diffadapt"),
        (
            {"classes": ["background", "beast"]},
            "a reader of the classes background, beast; expected background, animal",
        ),
        ({"widths": [4, 8, 16]}, "do not make a reader"),
        ({"widths": [4, 8]}, "do not fit each other"),
        ({"widths": None}, "do not make a reader"),
    ],
)
def test_files_that_do_not_fit_are_refused(folder, change, sentence):
    write_json(folder / "reader.json", read_json(folder / "reader.json") | change)
    with pytest.raises(Refused, match=sentence):
        load_reader(folder)


def test_missing_files_are_refused(tmp_path):
    with pytest.raises(Refused, match="reader.json"):
        load_reader(tmp_path)
