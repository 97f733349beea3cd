"""Plots with intervals: what is drawn is looked at in a browser, what is computed is held here."""

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from diffadapt.metrics.bootstrap import Interval
from diffadapt.report.evidence_page import Curve, Forest, Plot, cell, draw

IT = Interval(value=0.5, low=0.25, high=0.75, n=8)


def curves(*names: str, log_y: bool = False) -> str:
    points = [(0.0, IT), (1.0, 0.0), (2.0, 0.9)]
    made = [Curve(name=name, points=points) for name in names]
    return str(draw(Plot(title="t", caption="", x_label="x", y_label="y", curves=made, log_y=log_y)))


@pytest.mark.parametrize("log_y", [False, True])
def test_an_interval_is_a_whisker_and_a_plain_figure_has_none(log_y: bool) -> None:
    svg = curves("a < b", log_y=log_y)
    ElementTree.fromstring(svg)
    assert svg.count('class="whisker') == 1 and svg.count("<circle") == 3


def test_more_than_three_curves_are_told_apart_by_dashes() -> None:
    svg = curves("a", "b", "c", "d", "e")
    assert 'class="first dashed"' in svg and 'class="second dashed"' in svg and 'class="third dashed"' not in svg


def test_a_long_legend_is_given_more_rows() -> None:
    few, many = (ElementTree.fromstring(curves(*["a name of some length"] * count)) for count in (1, 5))
    heights = [float(str(each.get("viewBox")).split()[3]) for each in (few, many)]
    assert heights[1] > heights[0]


@pytest.mark.parametrize("mark", [None, 0.0])
def test_a_forest_has_a_line_for_each_row_and_one_for_its_mark(mark: float | None) -> None:
    exact = Interval(value=1.0, low=1.0, high=1.0, n=8)
    svg = str(draw(Forest(title="t", caption="", label="gain", rows=[("a & b", IT), ("c", exact)], mark=mark)))
    ElementTree.fromstring(svg)
    assert svg.count("<circle") == 2 and svg.count('class="base"') == (mark is not None)


def test_nothing_to_draw_is_no_plot() -> None:
    assert draw(Forest(title="t", caption="", label="x", rows=[])) == "" == curves()


def test_cells_are_written_as_people_read_them() -> None:
    assert [cell(each) for each in (None, "a", 12345, 0.123456, IT)] == [
        "\u2013", "a", "12,345", "0.123", "0.50 [0.25, 0.75]",
    ]  # fmt: skip


WRITTEN = (Path(__file__).parents[2] / "evidence" / "report.html").read_text(encoding="utf-8")
STATUS = ("Reproduced", "Met", "Equal", "Not reproduced", "Not met", "Undecided")


def test_the_verdicts_of_the_written_page_are_a_status_and_a_sentence() -> None:
    found = re.findall(r'<p class="verdict"><b class="[^"]*">([^<]*)\.</b> ([^<]*)</p>', WRITTEN)
    assert len(found) == 2 * WRITTEN.count("<section id=")
    for status, sentence in found:
        assert status in STATUS and sentence.endswith("."), (status, sentence)
        assert not re.match(r"[B-HJ-Z]\b(?![-_.])", sentence), sentence  # a stray letter, such as "X No cosine"


def test_the_first_table_of_the_written_page_has_the_words_and_verdicts_of_its_chapters() -> None:
    table = WRITTEN.partition('<table class="verdicts">')[2].partition("</table>")[0]
    rows = re.findall(r'<a href="#([^"]+)">[^<]*</a> (.*?)<small>', table)
    assert [f"{name}: {title}" for name, title in rows] == re.findall(r"<h2>(.*?)</h2>", WRITTEN)
    told = [each.lower() for each in re.findall(r'<p class="verdict"><b class="[^"]*">([^<]*)\.</b>', WRITTEN)]
    assert re.findall(r'<td class="[^"]*" data-name="[^"]*">([^<]*)</td>', table) == told


def test_a_table_wider_than_a_telephone_scrolls_and_fades_where_it_goes_on() -> None:
    tables = re.findall(r'(<div class="scroll" role="region" tabindex="0"[^>]*>)?\s*<table class="results">', WRITTEN)
    assert tables and all(tables)
    [scroll] = re.findall(r"\n\.scroll \{([^}]*)\}", WRITTEN)
    [hint] = re.findall(r"\n\.scroll::after \{([^}]*)\}", WRITTEN)
    assert "overflow-x: auto" in scroll
    assert "position: sticky; right: 0" in hint and "linear-gradient(to right, transparent" in hint
