"""Every definition is put to a null and an oracle; one that fails, or has none, does not run."""

import re
import shutil
from pathlib import Path

import pytest

from diffadapt.cli.main import main
from diffadapt.errors import Refused
from diffadapt.evidence import Design, Settings, calibrate, claim_names, load_claim, simulated

FOLDER = Path(__file__).parents[2] / "evidence"


@pytest.mark.parametrize("name", claim_names(FOLDER))
def test_a_definition_finds_nothing_in_its_null_and_all_in_its_oracle(name: str):
    found = calibrate(FOLDER, name)
    assert found.passed, f"{name}: {found}; {found.oracle.paper.sentence} {found.oracle.goal.sentence}"


def change(folder: Path, old: str, new: str) -> None:
    file = folder / "toy_1.py"
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new))
    shutil.rmtree(folder / "__pycache__", ignore_errors=True)  # which is told from a new file by whole seconds and size


def test_what_finds_a_difference_between_a_contender_and_itself_fails(folder: Path):
    assert calibrate(folder, "TOY-1").passed
    other = folder.parent / "biased"
    folder.rename(other)
    change(other, 'x = tested[0].scores["score"] - 1.5', 'x = tested[0].scores["score"] - 1.0')  # a bias of .5
    found = calibrate(other, "TOY-1")
    assert found.quiet == 0 and not found.passed and found.oracle.paper.status == "reproduced"


@pytest.mark.parametrize(("odd", "experiments", "passed"), [(0.0, 30, True), (0.05, 100, True), (0.3, 500, False)])
def test_the_null_is_drawn_until_it_is_clear_how_often_it_is_quiet(folder: Path, odd, experiments, passed):
    """A definition that finds something in a share of its nulls."""
    change(folder, '{"score": 1.5}', f'{{"score": 1.5 + (float(torch.rand((), generator=generator)) < {odd})}}')
    change(folder, "import math\n", "import math\nimport torch\n")
    found = calibrate(folder, "TOY-1")
    assert found.experiments == experiments and found.passed == passed and abs(found.quiet - 1 + odd) < 0.05


def test_what_cannot_see_the_claim_when_it_holds_fails(folder: Path):
    change(folder, 'if tested[0].scores["score"] > 1', 'if tested[0].scores["score"] > 9')
    found = calibrate(folder, "TOY-1")
    assert found.quiet == 1 and not found.passed


def test_a_definition_that_fails_is_not_run(folder: Path, tiny_folder: Path, capsys):
    change(folder, 'if tested[0].scores["score"] > 1', 'if tested[0].scores["score"] > 9')
    command = ["evidence", "run", "TOY-1", "--base", str(tiny_folder), "--device", "cpu", "--folder", str(folder)]
    assert main([*command, "--out", str(folder / "runs")]) == 2
    assert "TOY-1 cannot decide and is not run" in capsys.readouterr().err
    assert not (folder / "results").exists()


def test_a_definition_without_a_null_is_refused(folder: Path):
    change(folder, 'null=lambda unit, generator: {"score": 1.5}, oracle', "null=None, oracle")
    with pytest.raises(Refused, match="TOY-1 has no null"):
        load_claim(folder, "TOY-1")


def test_a_definition_without_an_oracle_is_refused(folder: Path):
    text = (folder / "toy_1.py").read_text()
    (folder / "toy_1.py").write_text(re.sub(r"oracle=lambda unit: [^\n]*", "oracle=None,", text))
    with pytest.raises(Refused, match="TOY-1 has no oracle"):
        load_claim(folder, "TOY-1")


def test_the_page_of_all_calibrations_is_printed_and_a_failure_is_named(folder: Path, tiny_folder: Path, capsys):
    assert main(["evidence", "calibrate", "TOY-1", "--folder", str(folder)]) == 0
    page = capsys.readouterr().out.splitlines()
    assert page[0].startswith("# Null and oracle") and page[-1] == "| TOY-1 | 100% of 30 | reproduced, met |"
    change(folder, 'if tested[0].scores["score"] > 1', 'if tested[0].scores["score"] > 9')
    copy = folder.parent / "failing"
    folder.rename(copy)
    assert main(["evidence", "calibrate", "TOY-1", "--folder", str(copy)]) == 1
    assert "cannot decide: TOY-1" in capsys.readouterr().err


def test_a_design_may_say_what_each_kind_of_unit_takes():
    design = Design(resampled="", margin="", half_width=None, pilot="", seconds=lambda unit: 2.0 * unit["steps"])
    assert design.seconds_of({"steps": 3}) == 6.0


def test_the_null_scores_the_units_of_all_stages(folder: Path):
    units = [each.unit for each in simulated(folder, "TOY-1", Settings(seeds=(0, 1)))]
    assert [unit["stage"] for unit in units] == ["tune"] * 3 + ["test"] * 2 and units[-1]["rate"] == 3


def test_the_budget_is_known_before_anything_is_run(folder: Path, tiny_folder: Path, capsys):
    command = ["--base", str(tiny_folder), "--device", "cpu", "--folder", str(folder), "--seeds", "0,1"]
    assert main(["evidence", "list", *command]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[1].split()[:4] == ["TOY-1", "5", "0.00", "0.250"], said
    assert "by hand" in said[3]  # what the hours rest on
    assert "of 25 that a round may take" in said[-1]
