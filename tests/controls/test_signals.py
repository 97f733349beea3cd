"""Signals say exactly what scenes hold: colours are classes, dots are places, greys are depth, lines are edges."""

import sys

import numpy as np
import pytest
import torch
from torch import Tensor

from diffadapt.controls import SIGNALS, find_signal
from diffadapt.controls.canny import canny
from diffadapt.controls.depth_order import depth_order, layers_in, layers_of
from diffadapt.controls.landmarks import POINTS, draw_landmarks, landmarks, landmarks_in, landmarks_of
from diffadapt.controls.line_art import line_art
from diffadapt.controls.segmentation import CLASSES, PALETTE, labels_in, labels_of, segmentation
from diffadapt.data.scenes import KIND_OF, World, render, sample_scene
from diffadapt.data.world import KINDS
from diffadapt.errors import Refused

WORLD = World(nouns=("cat", "apple", "car", "dog"), styles=("flat",))


def rounded(signal: Tensor) -> Tensor:
    """As a PNG would give it back."""
    return (signal * 255).round() / 255


def masks_of(*boxes: tuple[int, int, int, int], size: tuple[int, int] = (64, 64)) -> Tensor:
    """One scene of filled boxes (left, top, right, bottom), back to front, the front one hiding the back one."""
    masks = torch.zeros(1, 2, *size)
    for layer, (left, top, right, bottom) in enumerate(boxes):
        masks[0, :, top:bottom, left:right] = 0
        masks[0, layer, top:bottom, left:right] = 1
    return masks


@pytest.fixture(scope="module")
def scenes() -> tuple[Tensor, Tensor, list[list[str]]]:
    """Pictures, masks and kinds of 60 scenes of ellipses."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, 72), torch.linspace(-1, 1, 72), indexing="ij")
    sprites = {}
    for i, noun in enumerate(WORLD.nouns):
        alpha = (x.square() + (y * (1 + 0.2 * i)).square() < 0.9).float()
        sprites[noun, "flat"] = torch.stack([alpha * 0.2 * i, alpha * 0.9, alpha * 0.9, alpha])
    rng = np.random.default_rng(0)
    drawn = [sample_scene(rng, WORLD, two_objects=0.5) for _ in range(60)]
    return *render(drawn, sprites), [[KIND_OF[thing.noun] for thing in scene.objects] for scene in drawn]


@pytest.mark.parametrize("name", SIGNALS)
def test_every_signal_is_a_picture_in_the_size_of_what_it_came_from(name, scenes):
    pictures, masks, kinds = scenes
    signal = SIGNALS[name]
    assert signal.name == name and signal.doc
    assert (signal.extract is None) != (signal.from_scene is None)
    for rows in (slice(None), slice(0, 64, 2)):  # square, and half as high
        sizes = pictures[:, :, rows], masks[:, :, rows]
        found = signal.extract(sizes[0]) if signal.extract else signal.from_scene(sizes[1], kinds)
        assert found.shape == sizes[0].shape and found.dtype == torch.float32
        assert found.min() >= 0 and found.max() <= 1
        again = signal.extract(sizes[0]) if signal.extract else signal.from_scene(sizes[1], kinds)
        assert torch.equal(found, again)


def test_unknown_signal_names_the_nearest():
    assert find_signal("canny") is SIGNALS["canny"]
    with pytest.raises(Refused, match="'segmentatoin'; did you mean segmentation\\? There are canny, segmentation"):
        find_signal("segmentatoin")


# --- segmentation and depth order ---


def test_the_classes_are_the_kinds_of_the_world():
    assert ("background", *KINDS) == CLASSES


def test_colours_round_trip_to_classes_through_eight_bits(scenes):
    _, masks, kinds = scenes
    labels = labels_of(masks, kinds)
    assert torch.equal(labels_in(rounded(segmentation(masks, kinds))), labels)
    assert {int(i) for i in labels.unique()} == {
        CLASSES.index(name) for name in ("background", "animal", "food", "vehicle")
    }


def test_segmentation_names_what_fills_each_pixel():
    masks = masks_of((10, 10, 40, 40), (30, 30, 60, 60))
    picture = segmentation(masks, [["animal", "food"]])[0] * 255
    assert tuple(picture[:, 20, 20]) == PALETTE["animal"]
    assert tuple(picture[:, 35, 35]) == PALETTE["food"]
    assert tuple(picture[:, 5, 5]) == PALETTE["background"]


def test_a_half_covered_pixel_belongs_to_what_lies_behind():
    assert layers_of(torch.full((1, 2, 1, 1), 0.25)).item() == 0  # background has half
    assert layers_of(torch.tensor([0.5, 0.5]).view(1, 2, 1, 1)).item() == 1


def test_nearer_is_brighter_and_greys_round_trip_to_layers(scenes):
    masks = scenes[1]
    greys = depth_order(masks_of((10, 10, 40, 40), (30, 30, 60, 60)))[0, 0]
    assert (greys[5, 5], greys[20, 20], greys[35, 35]) == (0, 0.5, 1)
    assert torch.equal(layers_in(rounded(depth_order(masks))), layers_of(masks))


# --- landmarks ---


def test_landmarks_of_a_box_are_known():
    back, front = landmarks_of(layers_of(masks_of((10, 20, 30, 60))))[0]
    found = dict(zip(POINTS, back.tolist(), strict=True))
    # A tenth of 20 columns are two columns, a tenth of 40 rows are four rows.
    for name, place in {
        "centre": (20, 40),
        "left": (11, 40),
        "right": (29, 40),
        "top": (20, 22),
        "bottom": (20, 58),
    }.items():
        assert found[name] == pytest.approx(place, abs=1e-4), name
    assert front.isnan().all()


def test_a_tenth_is_taken_exactly_when_it_ends_inside_a_column():
    left = landmarks_of(layers_of(masks_of((10, 20, 25, 40))))[0, 0, POINTS.index("left")]
    assert left[0] == pytest.approx((10.5 * 1 + 11.5 * 0.5) / 1.5, abs=1e-4)  # one column and a half


def test_landmarks_hardly_move_when_the_edge_of_the_mask_does():
    layers = layers_of(masks_of((10, 20, 40, 50)))
    frayed = layers.clone()
    frayed[0, 35, 2:10] = 1  # a hair that sticks out to the left
    moved = (landmarks_of(layers) - landmarks_of(frayed))[0, 0].norm(dim=1)
    assert moved.max() < 1.2  # the leftmost pixel moved by eight


def test_each_object_has_its_own_landmarks():
    points = landmarks_of(layers_of(masks_of((4, 10, 24, 40), (34, 20, 60, 50))))[0]
    assert points[0, 0].tolist() == [14, 25] and points[1, 0].tolist() == [47, 35]


def test_a_speck_has_no_landmarks():
    assert landmarks_of(layers_of(masks_of((10, 10, 14, 15)))).isnan().all()  # 20 pixels are less than 0.5 %


@pytest.mark.parametrize("size", [(64, 64), (64, 96), (512, 512)])
def test_dots_are_found_where_they_were_drawn(size):
    generator = torch.Generator().manual_seed(0)
    room = torch.tensor([size[1] / 5, size[0] / 2])
    cells = torch.stack(torch.meshgrid(torch.arange(5), torch.arange(2), indexing="xy"), 2)  # (2, 5, 2): no overlap
    points = (cells + 0.3 + 0.4 * torch.rand(8, 2, 5, 2, generator=generator)) * room
    points[0, 1] = torch.nan
    found = landmarks_in(rounded(draw_landmarks(points, *size)))
    torch.testing.assert_close(found, points, atol=0.1, rtol=0, equal_nan=True)


def test_landmarks_of_scenes_can_be_read_from_their_signal(scenes):
    masks = scenes[1]
    wanted, found = landmarks_of(layers_of(masks)), landmarks_in(rounded(landmarks(masks)))
    assert torch.equal(wanted.isnan(), found.isnan())
    assert (wanted - found).norm(dim=3).nanmean() < 0.1


# --- edges and lines ---


def square(inside: float = 1.0, outside: float = 0.0) -> Tensor:
    picture = torch.full((1, 3, 64, 64), outside)
    picture[:, :, 20:44, 20:44] = inside
    return picture


def test_canny_draws_the_outline_of_a_square_and_nothing_else():
    edges = canny(square())[0, 0]
    y, x = edges.nonzero().T
    outline = torch.maximum((x - 31.5).abs(), (y - 31.5).abs())
    assert ((outline - 12).abs() <= 0.5).all()  # within the two pixels on either side of the outline
    assert 4 * 20 <= len(x) <= 4 * 25
    assert edges.unique().tolist() == [0, 1]


def test_canny_of_a_flat_picture_is_empty_and_thresholds_count():
    assert canny(square(0.5, 0.5)).sum() == 0
    faint = square(0.55, 0.45)  # a step of 26 of 255: a gradient of 4 x 26
    assert canny(faint).sum() == 0
    assert canny(faint, low=50, high=100).sum() > 0


def test_line_art_draws_the_dark_side_of_edges_the_whiter_the_stronger():
    strong, faint = line_art(square())[0, 0], line_art(square(0.6, 0.4))[0, 0]
    assert strong[32, 19] > 0.9 and strong[32, 21] < 0.05 and strong[32, 32] == 0
    assert 0.2 < faint[32, 19] < strong[32, 19]
    assert line_art(square(0.3, 0.3)).max() < 1e-5


def test_line_art_sees_an_edge_between_equally_bright_colours():
    picture = torch.zeros(1, 3, 32, 32)
    picture[:, 0, :, :16] = 0.6
    picture[:, 1, :, 16:] = 0.6
    assert line_art(picture)[0, 0, 16].max() > 0.7


# --- what is refused ---


@pytest.mark.parametrize(
    "pictures, sentence",
    [
        (torch.zeros(3, 8, 8), "expected \\(N, 3, H, W\\)"),
        (torch.zeros(1, 1, 8, 8), "expected \\(N, 3, H, W\\)"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), "floating point in \\[0, 1\\], got .* uint8"),
        (torch.full((1, 3, 8, 8), -1.0), "pictures in \\[-1, 1\\] become"),
        (torch.full((1, 3, 8, 8), torch.nan), "expected values in \\[0, 1\\]"),
        (torch.zeros(0, 3, 8, 8), "at least one picture"),
    ],
)
@pytest.mark.parametrize("read", [canny, line_art, labels_in, layers_in, landmarks_in])
def test_what_is_no_picture_is_refused(read, pictures, sentence):
    with pytest.raises(Refused, match=sentence):
        read(pictures)


@pytest.mark.parametrize(
    "masks, kinds, sentence",
    [
        (torch.zeros(1, 3, 8, 8), [["animal"]], "masks: expected \\(N, 2, H, W\\)"),
        (torch.full((1, 2, 8, 8), 2.0), [["animal"]], "values in \\[0, 1\\]"),
        (torch.zeros(2, 2, 8, 8), [["animal"]], "each of 2 scenes, got 1"),
        (torch.zeros(1, 2, 8, 8), ["animal"], "one or two objects a scene, got 'animal'"),
        (torch.zeros(1, 2, 8, 8), [["beast"]], "unknown kind 'beast'; known: animal"),
        (torch.zeros(1, 2, 8, 8), [["background"]], "unknown kind 'background'"),
    ],
)
def test_what_is_no_scene_is_refused(masks, kinds, sentence):
    with pytest.raises(Refused, match=sentence):
        segmentation(masks, kinds)


def test_thresholds_and_widths_out_of_range_are_refused():
    with pytest.raises(Refused, match="0 <= low <= high"):
        canny(square(), low=200, high=100)
    with pytest.raises(Refused, match="sigma > 0"):
        line_art(square(), sigma=0)
    with pytest.raises(Refused, match="whole numbers"):
        landmarks_of(torch.zeros(1, 8, 8))


def test_without_opencv_one_sentence_names_the_extra(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(Refused, match="diffadapt\\[control\\]"):
        canny(square())
