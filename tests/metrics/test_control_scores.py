"""Control scores on examples small enough to work out by hand, and control consistency of signals with themselves."""

import math

import pytest
import torch
from torch import Tensor

from diffadapt.controls.canny import canny
from diffadapt.controls.line_art import line_art
from diffadapt.errors import Refused
from diffadapt.metrics.control_consistency import control_consistency, read_signal
from diffadapt.metrics.edge_agreement import edge_agreement
from diffadapt.metrics.landmark_error import landmark_error
from diffadapt.metrics.reader import load_reader
from diffadapt.metrics.segmentation_scores import confusion_matrix, pixel_accuracy, segmentation_scores


def row(*values: int) -> Tensor:
    return torch.tensor([[values]])


# --- edges ---


def test_edge_agreement_of_a_worked_example():
    # Two edge pixels in both, three and four in each: IoU 2 / 5, F1 2 x 2 / (3 + 4).
    found = edge_agreement(row(1, 1, 1, 0, 0, 0).bool(), row(0, 1, 1, 1, 1, 0).bool())
    assert found["iou"].tolist() == [pytest.approx(2 / 5)]
    assert found["f1"].tolist() == [pytest.approx(4 / 7)]


def test_two_empty_edge_maps_agree_and_an_empty_one_agrees_with_no_other():
    none, some = row(0, 0, 0).bool(), row(0, 1, 0).bool()
    maps = torch.cat([none, none, some, some]), torch.cat([none, some, none, some])
    for values in edge_agreement(*maps).values():
        assert values.tolist() == [1, 0, 0, 1]


def test_one_pixel_beside_is_not_the_same():
    line = torch.eye(8, dtype=torch.bool)[None]
    assert edge_agreement(line, line.roll(1, 2))["iou"].item() == 0


def test_edge_maps_must_be_bool_and_of_one_shape():
    with pytest.raises(Refused, match="bool"):
        edge_agreement(row(1, 0), row(1, 0))
    with pytest.raises(Refused, match="got \\(1, 1, 1\\)"):
        edge_agreement(row(1).bool(), row(1, 0).bool())


# --- segmentation ---


def test_segmentation_scores_of_a_worked_example():
    wanted, found = row(0, 0, 0, 1, 1, 2), row(0, 0, 1, 1, 2, 2)
    confusion = confusion_matrix(wanted, found, 4)
    assert confusion[0, :3, :3].tolist() == [[2, 1, 0], [0, 1, 1], [0, 0, 1]]
    scores = segmentation_scores(confusion)
    assert scores["aacc"] == pytest.approx(4 / 6)
    assert scores["macc"] == pytest.approx((2 / 3 + 1 / 2 + 1) / 3)
    assert scores["miou"] == pytest.approx((2 / 3 + 1 / 3 + 1 / 2) / 3)  # class 3 is nowhere: left out
    assert pixel_accuracy(confusion).tolist() == [pytest.approx(4 / 6)]


def test_a_class_that_was_found_but_not_wanted_lowers_miou_only():
    scores = segmentation_scores(confusion_matrix(row(0, 0, 0, 0), row(0, 0, 0, 1), 2))
    assert scores == pytest.approx({"miou": 3 / 8, "macc": 3 / 4, "aacc": 3 / 4})


def test_scores_of_a_set_come_from_its_pixels_and_not_from_its_pictures():
    confusion = confusion_matrix(torch.tensor([[[0, 0]], [[0, 1]]]), torch.tensor([[[0, 0]], [[1, 1]]]), 2)
    assert segmentation_scores(confusion)["miou"] == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert pixel_accuracy(confusion).tolist() == [1, 0.5]
    assert segmentation_scores(confusion) == segmentation_scores(confusion.sum(0, keepdim=True))


def test_confusion_counts_every_pixel_once():
    generator = torch.Generator().manual_seed(0)
    wanted, found = torch.randint(5, (2, 3, 7, 7), generator=generator)
    confusion = confusion_matrix(wanted, found, 5)
    assert (confusion.sum((1, 2)) == 49).all()
    assert confusion[1, 2, 3] == ((wanted[1] == 2) & (found[1] == 3)).sum()


def test_labels_out_of_range_and_shapes_that_differ_are_refused():
    with pytest.raises(Refused, match="found: expected classes 0 to 1, got 0 to 2"):
        confusion_matrix(row(0, 1), row(0, 2), 2)
    with pytest.raises(Refused, match="whole numbers"):
        confusion_matrix(row(0, 1), row(0, 1).float(), 2)
    with pytest.raises(Refused, match="\\(N, C, C\\)"):
        segmentation_scores(torch.zeros(1, 2, 2))


# --- landmarks ---

NAN = math.nan


def test_landmark_error_of_a_worked_example():
    wanted = torch.tensor([[[0.0, 0], [10, 10]], [[1, 1], [NAN, NAN]], [[5, 5], [6, 6]]])
    found = torch.tensor([[[3.0, 4], [NAN, NAN]], [[1, 3], [9, 9]], [[NAN, NAN], [NAN, NAN]]])
    result = landmark_error(wanted, found)
    assert result["error"][:2].tolist() == [5, 2]  # what was not detected, and not wanted, is left out
    assert result["error"][2].isnan()
    assert result["detected"].tolist() == [0.5, 1, 0]


def test_a_picture_for_which_no_landmark_is_wanted_has_no_figure():
    result = landmark_error(torch.tensor([[[1.0, 1]], [[NAN, NAN]]]), torch.zeros(2, 1, 2))
    assert result["detected"][0] == 1 and result["detected"][1].isnan() and result["error"][1].isnan()


def test_landmarks_must_be_of_one_shape():
    with pytest.raises(Refused, match="twice"):
        landmark_error(torch.zeros(1, 2, 2), torch.zeros(1, 3, 2))


# --- control consistency ---


@pytest.fixture(scope="module")
def pictures() -> Tensor:
    """Smooth random pictures: no scenes, but something to draw lines in."""
    noise = torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.interpolate(noise, (64, 64), mode="nearest")


@pytest.mark.parametrize("name, extract", [("canny", canny), ("line_art", line_art)])
def test_lines_of_a_picture_agree_with_themselves_and_less_with_moved_ones(name, extract, pictures):
    signal = extract(pictures)
    own = control_consistency(name, signal, pictures)
    moved = control_consistency(name, signal, pictures.roll((3, 3), (2, 3)))
    assert set(own) == {"iou", "f1"}
    assert own["iou"].tolist() == own["f1"].tolist() == [1] * 6
    assert (moved["iou"] < 0.5).all() and (moved["iou"] <= moved["f1"]).all()


@pytest.mark.parametrize("name", ["segmentation", "depth_order", "landmarks"])
def test_what_was_read_agrees_with_itself(name, pictures):
    reader = load_reader()
    if name == "landmarks":  # only where the reader sees an object is there anything to compare
        pictures = pictures[[bool((reader.read(p[None]).layers > 0).float().mean() > 0.05) for p in pictures]]
        assert len(pictures)
    scores = control_consistency(name, read_signal(name, pictures, reader), pictures, reader)
    if name == "landmarks":
        assert scores["error"].abs().max() == 0 and scores["detected"].min() == 1
    else:
        assert scores["aacc"].min() == 1
        assert segmentation_scores(scores["confusion"])["miou"] == 1


def test_consistency_refuses_what_does_not_fit(pictures):
    with pytest.raises(Refused, match="did you mean canny"):
        control_consistency("cany", pictures, pictures)
    with pytest.raises(Refused, match="reader=load_reader"):
        control_consistency("segmentation", pictures, pictures)
    with pytest.raises(Refused, match="expected the same"):
        control_consistency("canny", pictures[:2], pictures)
    with pytest.raises(Refused, match="wanted: expected values in \\[0, 1\\]"):
        control_consistency("canny", pictures * 2 - 1, pictures)
