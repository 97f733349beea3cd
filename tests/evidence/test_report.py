"""The report of fabricated results: verdicts, tables, plots and pictures on one page, and as Markdown."""

import re
from pathlib import Path

import pytest
from PIL import Image

from diffadapt.cli.main import main
from diffadapt.errors import Refused
from diffadapt.evidence import Evidence, Finished, Settings
from diffadapt.evidence.report import write_report
from diffadapt.evidence.results import ResultFile
from diffadapt.metrics import Interval
from diffadapt.report.evidence_page import interval_text

FACTS = {
    "commit": "abc1234", "uncommitted_changes": False, "base": {"name": "tiny", "fingerprint": "sha256:1"},
    "hardware": "a machine", "torch": "2", "diffusers": "0.3", "command": "diffadapt evidence run TOY-1 --data DATA",
}  # fmt: skip


@pytest.fixture
def evidence(folder: Path) -> Evidence:
    return Evidence(folder, folder / "results", "sha256:1", Settings(seeds=(0, 1), base="tiny"))


def fill(folder: Path, units: list[dict]) -> None:
    file = ResultFile(folder / "results" / "TOY-1", FACTS)
    for unit in units:
        file.add(Finished(unit, {"score": unit["rate"]}, 2.0))


TUNED = [{"stage": "tune", "rate": rate} for rate in (1, 2, 3)]
TESTED = [{"stage": "test", "rate": 3, "seed": seed} for seed in (0, 1)]


def test_what_is_not_finished_is_undecided(evidence: Evidence):
    assert [each.verdict.paper.sentence for each in write_report(evidence, ["TOY-1", "TOY-2"])[1]] == [
        "It has 0 units finished and 3 of this stage to do.",
        "It waits for TOY-1.",
    ]
    fill(evidence.folder, TUNED)
    (chapter,) = write_report(evidence, ["TOY-1"])[1]
    assert chapter.verdict.paper.status == "undecided" and chapter.verdict.goal.sentence.startswith(
        "It has 3 units finished and 2 of"
    )


def test_the_page_holds_everything_and_needs_nothing(evidence: Evidence):
    fill(evidence.folder, [*TUNED, *TESTED])
    ResultFile(evidence.folder / "results" / "TOY-1", FACTS).add_failed({"rate": 9}, "ValueError: <odd>", 0.1)
    pictures = evidence.folder / "pictures" / "TOY-1"
    pictures.mkdir(parents=True)
    Image.new("RGB", (200, 100), "red").save(pictures / "toy.png")
    page, _ = write_report(evidence, ["TOY-1", "TOY-2"])
    html, text = page.read_text(), page.with_name("report.md").read_text()
    for part in (
        "Rate 3 over 2 seeds.",
        "page 1",
        "a goal",
        "abc1234",
        "a machine",
        "1,234",
        "Read 5 units.",
        "--data DATA",
        "An older toy was undecided by today",
    ):
        assert part in html and part in text, part
    assert "0.25 [0.12, 0.38]" in html and "0.25 [0.12, 0.38]" in text
    assert html.count("<svg") == 2 and "data:image/webp" in html and "&lt;odd&gt;" in html
    assert "![A toy](pictures/TOY-1/toy.png)" in text and "a \\| b" in text
    assert not re.findall(r"(?:src|href)=\"(?!data:|#)", html) and "<script" not in html
    assert str(evidence.folder) not in html + text


def test_the_command_prints_the_verdicts(folder: Path, tiny_folder: Path, capsys):
    command = ["--base", str(tiny_folder), "--device", "cpu", "--folder", str(folder)]
    assert main(["evidence", "report", *command]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].split()[:4] == ["TOY-1", "undecided", "goal", "undecided"]
    assert Path(said[-1]) == folder / "report.html"
    assert main(["evidence", "list", *command]) == 0
    assert "waits for TOY-1" in capsys.readouterr().out
    assert main(["evidence", "run", "all", "--dry-run", *command]) == 0
    assert "stage tune, rate 2" in capsys.readouterr().out
    assert main(["evidence", "run", "TOY-9", *command]) == 2
    assert main(["evidence", "list", "--seeds", "one", *command]) == 2
    assert "whole numbers" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("interval", "text"),
    [
        ((0.6213, 0.5801, 0.6622), "0.621 [0.580, 0.662]"),
        ((1234.5, 1100.0, 1300.0), "1234 [1100, 1300]"),
        ((0.5, 0.5, 0.5), "0.500 [0.500, 0.500]"),
    ],
)
def test_an_interval_has_the_decimals_that_its_width_is_worth(interval: tuple[float, ...], text: str):
    value, low, high = interval
    assert interval_text(Interval(value=value, low=low, high=high, n=3)) == text


@pytest.mark.parametrize("name", ["report.md", "report.html"])
def test_a_report_of_something_else_is_not_overwritten(evidence: Evidence, name: str):
    write_report(evidence, ["TOY-1"])
    before = (evidence.folder / name).read_bytes()
    (evidence.folder / name).write_bytes(b"# My own report\n")
    with pytest.raises(Refused, match=f"{name} is a report of something else; move it away"):
        write_report(evidence, ["TOY-1"])
    assert (evidence.folder / name).read_bytes() == b"# My own report\n"
    (evidence.folder / name).write_bytes(before)
    write_report(evidence, ["TOY-1"])
