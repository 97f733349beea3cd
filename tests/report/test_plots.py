"""Axes, smoothing and thinning; what is drawn is looked at in a browser, what is computed is held here."""

import math
from xml.etree import ElementTree

import pytest

from diffadapt.report.plots import (
    Axis,
    Series,
    binned_plot,
    crop_mark,
    interval_mark,
    line_plot,
    linear_ticks,
    short_number,
    smoothed,
    spans_decades,
    thinned,
)
from diffadapt.report.run_plots import curve_points, times_the_base


def plot(*series: Series, log_y: bool = False) -> str:
    return line_plot(list(series), x_label="step", y_label="loss", description="d", log_y=log_y)


def test_smoothing_keeps_a_constant_and_the_number_of_points() -> None:
    points = [(float(x), 2.0) for x in range(50)]
    assert smoothed(points, 9) == points


def test_smoothing_is_the_mean_of_the_window() -> None:
    assert smoothed([(0, 1.0), (1, 2.0), (2, 6.0)], 3)[1] == (1, 3.0)


def test_thinning_keeps_the_largest_and_the_smallest_point() -> None:
    points = [(float(x), math.sin(x)) for x in range(10_000)]
    points[4321] = (4321.0, 99.0)
    points[1234] = (1234.0, -99.0)
    few = thinned(points, 300)
    assert len(few) <= 302 and (4321.0, 99.0) in few and (1234.0, -99.0) in few
    assert few == sorted(few)


def test_ticks_are_round_and_inside() -> None:
    assert linear_ticks(0, 1000) == [0, 200, 400, 600, 800, 1000]
    assert linear_ticks(0.0, 0.7) == pytest.approx([0, 0.2, 0.4, 0.6])
    assert Axis(0.02, 3, 0, 1, log=True).ticks() == pytest.approx([0.03, 0.1, 0.3, 1, 3])
    assert Axis(0.001, 10, 0, 1, log=True).ticks() == pytest.approx([0.001, 0.01, 0.1, 1, 10])
    assert [short_number(value) for value in (0, 0.30000000000000004, 12_000, 1e-5)] == ["0", "0.3", "12k", "1e-5"]


def test_a_logarithmic_axis_spaces_decades_evenly() -> None:
    axis = Axis(0.01, 1.0, 0, 100, log=True)
    assert axis(0.1) == pytest.approx(50) and axis(0) == 0


def test_only_positive_values_over_decades_ask_for_a_logarithmic_axis() -> None:
    assert spans_decades([0.001, 0.1, 1.0]) and not spans_decades([0.5, 1.0]) and not spans_decades([0.0, 1.0])


@pytest.mark.parametrize("log_y", [False, True])
def test_plots_are_well_formed_and_skip_what_is_not_finite(log_y: bool) -> None:
    points = [(0.0, 1.0), (1.0, math.nan), (2.0, math.inf), (3.0, 0.0), (4.0, 2.0)]
    svg = plot(Series(name="a < b & c", points=points), log_y=log_y)
    ElementTree.fromstring(svg)
    assert "nan" not in svg and "inf" not in svg and "a &lt; b &amp; c" in svg


@pytest.mark.parametrize("points", [[(3.0, 0.0)], [(3.0, 0.2)], [(0.0, 0.0), (1.0, 0.0)], [(0.0, -1.0), (1.0, -1.0)]])
def test_degenerate_data_still_make_a_plot(points: list[tuple[float, float]]) -> None:
    ElementTree.fromstring(plot(Series(name="a", points=points)))


def test_nothing_to_draw_is_no_plot() -> None:
    assert plot(Series(name="a", points=[])) == ""


def test_bins_show_the_mean_of_what_falls_into_them() -> None:
    points = [(0.1, 1.0), (0.2, 3.0), (1.0, 5.0)]
    svg = binned_plot(
        [Series(name="a", points=points)], edges=[0, 0.5, 1], x_label="t", y_label="y", description="d", log_y=False
    )
    ElementTree.fromstring(svg)
    assert svg.count("<circle") == 2  # the last edge belongs to the last bin


@pytest.mark.parametrize("low, high, base", [(None, None, None), (0.2, 0.4, 0.1), (0.3, 0.3, 0.3), (-2.0, 5.0, 0.0)])
def test_interval_marks_are_well_formed(low: float | None, high: float | None, base: float | None) -> None:
    ElementTree.fromstring(interval_mark(0.3, low, high, base))


def test_a_crop_mark_keeps_the_proportions() -> None:
    whole = ElementTree.fromstring(crop_mark((4000, 2000), (1000, 0, 3000, 2000)))[0]
    assert (whole.get("width"), whole.get("height")) == ("30.0", "15.0")


def test_losses_are_drawn_over_the_bases_and_a_curve_by_its_pairs_whatever_else_stands_there():
    assert times_the_base([[0.1, 0.5, 0.9], [2.0, 0.0, 4.0], [1.0, 1.0, None]]) == [(0.1, 0.5)]
    assert times_the_base([[0.1], None, [1.0]]) == []
    assert curve_points([[15, 0.25], [30, None], "x", [45]]) == [(15.0, 0.25)] and curve_points(None) == []
