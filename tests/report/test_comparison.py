"""A run beside its copy with other figures: what the page shows, how sure it is, and what does not compare."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import diffadapt as da
from diffadapt.cli.main import main
from diffadapt.errors import Refused
from diffadapt.files import save_tensors, write_json
from diffadapt.report import compare, write_report
from diffadapt.report.comparison import _figure_table, read_comparison
from diffadapt.report.verdict import Figure, read_figures
from diffadapt.training.run import Run

from .conftest import PROMPTS, UNRELATED
from .test_run_report import Reader

Change = Callable[[dict[str, Any]], None]


def change_json(path: Path, change: Change) -> None:
    content = json.loads(path.read_text())
    change(content)
    write_json(path, content)


def as_method(run: Path, method: str, base: str = "sha256:0") -> Path:
    """Says in the adapter's header which method and base it is of."""
    header = {"format": "diffadapt", "method": method, "base": "embedded", "base_fingerprint": base}
    save_tensors(run / "adapter.safetensors", {"a": torch.zeros(8, 4)}, header)
    return run


@pytest.fixture
def pair(run: Path, tmp_path: Path) -> list[Path]:
    """The same run as OFT, with rotated neurons and more drift, and as LoRA."""
    other = shutil.copytree(run, tmp_path / "lora")

    def rotated(metrics: dict[str, Any]) -> None:
        metrics["values"]["drift_features"] |= {"value": 0.15, "low": 0.12, "high": 0.19}
        metrics["values"]["subject_fidelity"] |= {"value": 0.79, "low": 0.76, "high": 0.82}
        for row in metrics["weight_drift"]:
            row |= {"cosine_change": 2e-7, "norm_change": 1e-7, "energy_change": 3e-7}
        metrics["trainable_parameters"] = 69_120

    change_json(run / "metrics.json", rotated)
    return [as_method(run, "oft"), as_method(other, "lora")]


def read(runs: list[Path], out: Path) -> Reader:
    return Reader(compare(runs, out).read_text(encoding="utf-8"))


def test_the_page_is_one_file_with_every_part_in_order(pair: list[Path], tmp_path: Path) -> None:
    page = read(pair, tmp_path / "page.html")
    parts = ("OFT beside LoRA", "was shown", "was learned", "else changed", "Figures", "Cost and geometry")
    places = [page.words.index(part) for part in parts]
    assert places == sorted(places)
    assert not page.of("script") and all(picture["src"].startswith("data:") for picture in page.of("img"))
    assert all(attributes.get("href", "data:").startswith("data:") for _, attributes in page.tags)


def test_every_column_shows_the_same_prompts(pair: list[Path], asked: list[str], tmp_path: Path) -> None:
    alts = [picture["alt"] for picture in read(pair, tmp_path / "page.html").of("img")]
    unrelated = [row[0] for row in json.loads((pair[0] / "metrics.json").read_text())["drift_pictures"]]
    shown = [prompt for prompt in unrelated if f"{prompt} (base)" in alts]
    assert len(unrelated) == UNRELATED and len(shown) == 6
    assert len(alts) == 5 + PROMPTS * 3 + 6 * 3  # concept; all prompts and six unrelated ones: the base and both runs
    for column in ("base", "OFT", "LoRA"):
        assert {f"{prompt} ({column})" for prompt in [*asked, *shown]} <= {*alts}


def test_figures_costs_and_geometry_stand_in_tables(pair: list[Path], tmp_path: Path) -> None:
    words = read(pair, tmp_path / "page.html").words
    assert "subject fidelity 0.431 0.790 [0.760, 0.820] 0.812 [0.784, 0.837] higher" in words
    assert "trainable parameters 69,120 48,128" in words
    assert "adapter file 201 kB 201 kB training 2 min 31 s 2 min 31 s" in words
    assert "largest change of the cosine of two neurons 2e-07" in words


def test_what_rounding_leaves_of_nothing_is_no_figure_with_an_exponent(pair: list[Path], tmp_path: Path) -> None:
    def turned(metrics: dict[str, Any]) -> None:
        for row in metrics["weight_drift"]:
            row |= {"cosine_change": 3e-10, "norm_change": 2e-9, "energy_change": -4e-12}

    change_json(pair[0] / "metrics.json", turned)
    written = read(pair, tmp_path / "page.html"), Reader(write_report(pair[0]).read_text(encoding="utf-8"))
    for page in written:
        assert "\u22480" in page.words and not re.findall(r"\de-(?:0[89]|[1-9]\d)", page.words)


def test_the_sentence_says_who_learned_more_and_who_changed_more(pair: list[Path], tmp_path: Path) -> None:
    words = read(pair, tmp_path / "page.html").words
    undecided = "Whether OFT or LoRA learned the <biscuit> cat better is not decided. Subject fidelity OFT 0.790"
    assert undecided in words and "0.837], the base 0.431." in words
    assert "OFT changed the rest more than LoRA. Drift features OFT 0.15" in words


Three = tuple[float, float, float]  # value, low, high
HELD = (0.7, 0.65, 0.75)  # an alignment or diversity whose interval holds the base's, which is 0.7


def figures(
    fidelity: Three, drift: Three, alignment: Three | None = HELD, diversity: Three = HELD, second: Three | None = None
) -> dict[str, Figure]:
    def entry(numbers: Three, **more: Any) -> dict[str, Any]:
        return dict(zip(("value", "low", "high"), numbers, strict=True)) | more

    values = {
        "class_leakage": entry((0.5, 0.4, 0.6), base=0.4, better="near base"),
        "drift_features": entry(drift, better="lower"),
        "subject_fidelity": entry(fidelity, base=0.3, better="higher"),
        "diversity": entry(diversity, base=0.7, better="near base"),
    }
    if alignment:
        values["text_alignment"] = entry(alignment, base=0.7, better="higher")
    if second:
        values["subject_fidelity (second)"] = entry(second, base=0.3, better="higher")
    return {each.name: each for each in read_figures({"values": values})}


def said_of(first: dict[str, Figure], second: dict[str, Figure]) -> list[str]:
    """What is said of A and B but of the rest, which both leave alike."""
    return [each.text for each in read_comparison({"A": first, "B": second}, "it") if "the rest" not in each.text]


@pytest.mark.parametrize(
    ("first", "second", "sentences"),
    [
        (((0.7, 0.6, 0.8), (0.2, 0.1, 0.3)), ((0.5, 0.4, 0.55), (0.02, 0.01, 0.03)),
         ["A learned it better than B", "A changed the rest more than B"]),
        (((0.5, 0.4, 0.62), (0.2, 0.1, 0.3)), ((0.7, 0.6, 0.8), (0.25, 0.15, 0.35)),
         ["Whether A or B learned it better is not decided", "whether A or B changed the rest more is not decided"]),
        (((0.35, 0.2, 0.5), (0.2, 0.1, 0.3)), ((0.2, 0.1, 0.25), (0.02, 0.01, 0.03)),
         ["None is shown to have learned it", "A changed the rest more than B"]),
    ],
)  # fmt: skip
def test_the_sentence_is_no_more_certain_than_the_intervals(first: Any, second: Any, sentences: list[str]) -> None:
    claims = read_comparison({"A": figures(*first), "B": figures(*second)}, "it")
    assert [claim.text for claim in claims] == sentences


MORE, LESS, IT = (0.7, 0.6, 0.8), (0.5, 0.4, 0.55), (0.01, 0.005, 0.015)
FELL = (0.4, 0.35, 0.45)  # of an alignment or a diversity


@pytest.mark.parametrize(
    ("held", "price"),
    [
        ({"alignment": FELL}, "B is better at text alignment"),
        ({"diversity": FELL}, "B is better at diversity"),
        ({"diversity": (1.0, 0.95, 1.05)}, "B is better at diversity"),  # more variety than the base's is no aim
        ({"alignment": FELL, "diversity": FELL}, "B is better at text alignment and diversity"),
    ],
)
def test_the_more_alike_is_not_called_better_where_prompts_or_variety_do_not_hold(held: Any, price: str) -> None:
    said = said_of(figures(MORE, IT, **held), figures(LESS, IT))
    assert said == ["A took on it more than B, at a price", price]
    claims = read_comparison({"A": figures(MORE, IT, **held), "B": figures(LESS, IT)}, "it")
    assert price.split()[-1] in claims[1].evidence


def test_the_more_alike_is_not_called_better_where_another_follows_prompts_better_than_it_and_the_base() -> None:
    said = said_of(figures(MORE, IT), figures(LESS, IT, alignment=(0.9, 0.85, 0.95)))
    assert said == ["A took on it more than B, at a price", "B is better at text alignment"]


def test_what_fell_in_both_is_a_price_as_well() -> None:
    said = said_of(figures(MORE, IT, alignment=FELL), figures(LESS, IT, alignment=FELL))
    assert said[0] == "A took on it more than B, at a price"
    assert said[1] == "text alignment of A did not hold, and no other run is shown to be better"


def test_better_prompts_are_told_where_the_likeness_is_not_decided() -> None:
    said = said_of(figures(MORE, IT), figures((0.65, 0.58, 0.72), IT, alignment=FELL))
    assert said == ["Whether A or B learned it better is not decided", "A is better at text alignment"]


def test_nobody_is_called_better_where_no_prompts_were_measured() -> None:
    said = said_of(figures(MORE, IT, alignment=None), figures(LESS, IT, alignment=None))
    assert said == ["A took on it more than B; whether the prompts still hold was not measured"]


def test_what_one_of_two_judges_sees_between_runs_is_not_decided() -> None:
    assert said_of(figures(MORE, IT, second=MORE), figures(LESS, IT, second=LESS)) == ["A learned it better than B"]
    for second in ((LESS, (0.5, 0.42, 0.6)), ((0.32, 0.29, 0.35), (0.1, 0.05, 0.15))):  # the base's is 0.3
        said = said_of(figures(MORE, IT, second=second[0]), figures(LESS, IT, second=second[1]))
        assert said == ["Whether A or B learned it better is not decided, as not all judges see it"]


def test_floor_and_perfect_renderings_stand_beside_the_figures_that_have_them() -> None:
    drift = {"value": 0.05, "low": 0.04, "high": 0.06, "floor": 0.012, "better": "lower"}
    followed = {"value": 0.8, "low": 0.7, "high": 0.9, "base": 0.85, "perfect": 0.95, "better": "higher"}
    read_ = {each.name: each for each in read_figures({"values": {"drift_features": drift, "followed": followed}})}
    table = _figure_table({"A": read_, "B": read_})
    assert list(table.columns) == ["figure", "base", "floor", "perfect", "A", "B", "better"]
    told = {row[0]: row[1:4] for row in table.rows}
    assert told == {"drift features": [None, 0.012, None], "followed": [0.85, None, 0.95]}
    assert "floor" not in _figure_table({"A": figures((0.7, 0.6, 0.8), (0.2, 0.1, 0.3))}).columns


def test_of_three_only_those_that_reach_the_best_are_undecided() -> None:
    it = (0.01, 0.005, 0.015)
    measured = {
        "A": figures((0.5, 0.4, 0.55), it),
        "B": figures((0.7, 0.6, 0.8), it),
        "C": figures((0.65, 0.58, 0.72), (0.3, 0.2, 0.4)),
    }
    texts = [claim.text for claim in read_comparison(measured, "it")]
    assert texts == ["Whether B or C learned it better is not decided", "C changed the rest more than A and B"]


@pytest.mark.parametrize("order", [("close", "far"), ("far", "close")])
def test_of_a_distance_the_smaller_is_the_better(order: tuple[str, str]) -> None:
    def style(value: float, low: float, high: float) -> dict[str, Figure]:
        row = {"value": value, "low": low, "high": high, "base": 0.9, "better": "lower", "kind": "fidelity"}
        held = {"value": 0.3, "low": 0.28, "high": 0.32, "base": 0.3, "better": "higher", "kind": "alignment"}
        return {each.name: each for each in read_figures({"values": {"style_distance": row, "text_alignment": held}})}

    runs = {"close": style(0.2, 0.15, 0.25), "far": style(0.6, 0.55, 0.65)}
    [claim] = read_comparison({name: runs[name] for name in order}, "the style")
    assert claim.text == "close learned the style better than far"


def test_runs_that_were_measured_differently_are_shown_and_not_ranked(pair: list[Path], tmp_path: Path) -> None:
    change_json(pair[1] / "metrics.json", lambda it: it.update(protocol={"prompts": 6}))
    words = read(pair, tmp_path / "page.html").words
    assert "Which run learned more is not said: they were measured differently" in words
    assert "learned the <biscuit> cat" not in words and "changed the rest more" not in words


def test_a_word_that_stands_for_its_noun_compares_with_one_before_it(pair: list[Path], tmp_path: Path) -> None:
    def alone(it: dict[str, Any]) -> None:
        it["prompts"] = [prompt.replace("<biscuit> cat", "<biscuit>") for prompt in it["prompts"]]

    change_json(pair[1] / "samples" / "prompts.json", alone)
    assert "OFT beside LoRA" in read(pair, tmp_path / "page.html").words


def test_nothing_is_said_about_what_was_not_measured(pair: list[Path], tmp_path: Path) -> None:
    (pair[0] / "metrics.json").unlink()
    page = read(pair, tmp_path / "page.html")
    assert "learned the" not in page.words and "measured differently" in page.words
    assert "subject fidelity 0.431 \u2013 0.812 [0.784, 0.837] higher" in page.words


def test_runs_of_one_method_are_told_apart_by_their_folders(pair: list[Path], tmp_path: Path) -> None:
    as_method(pair[0], "lora")
    assert "biscuit run beside lora" in read(pair, tmp_path / "page.html").words


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda run: as_method(run, "lora", base="sha256:1"), "different bases"),
        (lambda run: (run / "concept" / "00.png").unlink(), "different pictures"),
        (lambda run: change_json(run / "samples" / "prompts.json", lambda it: it["seeds"].reverse()), "other prompts"),
        (lambda run: (run / "adapter.safetensors").unlink(), "no finished adapter"),
    ],
)
def test_runs_that_do_not_compare_are_refused(
    pair: list[Path], tmp_path: Path, change: Callable[[Path], Any], said: str
) -> None:
    change(pair[1])
    with pytest.raises(Refused, match=said):
        compare(pair, tmp_path / "page.html")


def test_two_different_runs_are_needed(pair: list[Path], tmp_path: Path) -> None:
    with pytest.raises(Refused, match="two or more runs, got 1"):
        compare(pair[:1], tmp_path / "page.html")
    with pytest.raises(Refused, match="given twice"):
        compare([pair[0], pair[0]], tmp_path / "page.html")


def test_python_takes_runs_as_training_returned_them(pair: list[Path], tmp_path: Path) -> None:
    of_folders, of_runs = tmp_path / "folders.html", tmp_path / "runs.html"
    assert da.compare(pair, of_folders) == of_folders
    da.compare([Run(folder) for folder in pair], of_runs)
    assert of_runs.read_bytes() == of_folders.read_bytes()


def test_the_command_writes_the_page_once(pair: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "page.html"
    assert main(["compare", *map(str, pair), "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"{out}\n" and out.is_file()
    assert main(["compare", *map(str, pair), "--out", str(out)]) == 2
    assert "nothing is overwritten" in capsys.readouterr().err
