"""Result files: one an invocation, added and never edited, without paths."""

import json
from pathlib import Path

import pytest

from diffadapt.errors import Refused
from diffadapt.evidence.results import NO_BASE, Finished, ResultFile, commit_of, identity, read_results, without_paths

FACTS = {"claim": "TOY-1", "commit": "abc1234", "base": {"name": "tiny", "fingerprint": "sha256:1"}}


def test_a_unit_is_the_same_whatever_the_order_of_its_fields():
    assert identity({"a": 1, "b": 0.001}) == identity({"b": 1e-3, "a": 1}) != identity({"a": 1, "b": 0.002})


def test_what_is_written_is_read_again(tmp_path: Path):
    file = ResultFile(tmp_path, FACTS)
    assert not list(tmp_path.iterdir())  # an invocation that does nothing leaves nothing
    file.add(Finished({"seed": 0}, {"scores": [0.5]}, 1.5))
    file.add_failed({"seed": 1}, "ValueError: no", 0.1)
    stored = read_results(tmp_path, "sha256:1")
    assert [*stored.finished.values()] == [Finished({"seed": 0}, {"scores": [0.5]}, 1.5)]
    assert [*stored.failed.values()] == [({"seed": 1}, "ValueError: no")]
    assert stored.facts("commit") == ["abc1234"]


def test_every_invocation_has_its_own_file_and_the_oldest_result_counts(tmp_path: Path):
    first = ResultFile(tmp_path, FACTS)
    first.add(Finished({"seed": 0}, {"score": 1}, 1.0))
    before = first.path.read_bytes()
    second = ResultFile(tmp_path, FACTS)
    second.add(Finished({"seed": 0}, {"score": 2}, 1.0))
    third = ResultFile(tmp_path, FACTS)
    third.add(Finished({"seed": 1}, {"score": 3}, 1.0))
    assert len({first.path, second.path, third.path}) == 3 and first.path.read_bytes() == before
    assert [each.scores["score"] for each in read_results(tmp_path, "sha256:1").finished.values()] == [1, 3]


def test_results_of_another_base_do_not_count(tmp_path: Path):
    ResultFile(tmp_path, FACTS).add(Finished({"seed": 0}, {}, 1.0))
    assert not read_results(tmp_path, "sha256:2").finished


def test_a_unit_that_succeeded_later_no_longer_counts_as_failed(tmp_path: Path):
    file = ResultFile(tmp_path, FACTS)
    file.add_failed({"seed": 0}, "ValueError: no", 0.1)
    file.add(Finished({"seed": 0}, {}, 1.0))
    assert not read_results(tmp_path, "sha256:1").failed


def test_a_newer_format_and_a_broken_file_are_refused(tmp_path: Path):
    (tmp_path / "a.json").write_text(json.dumps({"format": 99}))
    with pytest.raises(Refused, match="newer diffadapt"):
        read_results(tmp_path, "sha256:1")
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(Refused, match="not JSON"):
        read_results(tmp_path, "sha256:1")


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("no file /home/me/data/fox.png, alas", "no file fox.png, alas"),
        ("cannot read '/a/b c'", "cannot read 'b c'"),
        ("runs/evidence/x and 1/2 and https://a.b/c stay", "runs/evidence/x and 1/2 and https://a.b/c stay"),
        (r"no file C:\data\fox.png", "no file fox.png"),
    ],
)
def test_absolute_paths_are_cut_to_their_last_part(text: str, kept: str):
    assert without_paths(text) == kept


def test_outside_of_a_clone_the_commit_is_not_known(tmp_path: Path):
    assert commit_of(tmp_path) == ("unknown", True)


def test_what_does_not_count_is_told_and_never_merged(tmp_path: Path):
    for facts in ({}, {"base": {"fingerprint": "sha256:2"}}, {"measures": 2}):
        ResultFile(tmp_path, FACTS | facts).add(Finished({"seed": 0}, {"of": str(facts)}, 1.0))
    stored = read_results(tmp_path, "sha256:1")
    assert [each.scores for each in stored.finished.values()] == [{"of": "{}"}]
    assert stored.elsewhere == {
        "on another base (sha256:2)": 1,
        "by definition 2, which measured something else": 1,
    }
    assert list(read_results(tmp_path, "sha256:1", 2).elsewhere.values()) == [1, 1]


def test_what_stands_on_no_base_counts_on_every_one(tmp_path: Path):
    ResultFile(tmp_path, FACTS).add(Finished({"seed": 0}, {}, 1.0))
    assert len(read_results(tmp_path, NO_BASE).finished) == 1


def test_a_unit_that_is_not_a_number_somewhere_is_refused(tmp_path: Path):
    file = ResultFile(tmp_path, FACTS)
    file.add(Finished({"seed": 0, "rate": 0.5}, {}, 1.0))
    file.path.write_text(file.path.read_text().replace("0.5", "NaN"))
    with pytest.raises(Refused, match=r"units\[0\]: unit: rate: expected .* got nan"):
        read_results(tmp_path, "sha256:1")
