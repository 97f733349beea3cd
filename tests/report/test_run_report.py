"""The report of a real run: whole, interrupted, damaged, hostile."""

import dataclasses
import json
import shlex
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffadapt.errors import Refused
from diffadapt.report import write_report
from diffadapt.report.run_folder import read_run_folder
from diffadapt.report.run_pictures import concept_pictures
from diffadapt.report.run_plots import CHANGES
from diffadapt.run_layout import RunLayout

from .conftest import PROMPTS, STEPS, STOPPED_AT, UNRELATED

VOID = {"meta", "link", "img", "br", "wbr", "hr", "input"}


class Reader(HTMLParser):
    """Collects tags and text, and holds every end tag against the start tag that it must close."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.text: list[str] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {key: value or "" for key, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {key: value or "" for key, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] != "style":
            self.text.append(data)

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.text).split())

    def of(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.tags if name == tag]


def read(folder: Path) -> Reader:
    return Reader(write_report(folder).read_text(encoding="utf-8"))


def test_the_page_lies_in_the_run_folder_and_is_well_formed(run: Path) -> None:
    path = write_report(run)
    assert path == run / "report.html"
    page = Reader(path.read_text(encoding="utf-8"))
    assert len(page.of("h1")) == 1 and len(page.of("title")) == 1


def test_the_page_needs_nothing_from_anywhere(run: Path) -> None:
    page = read(run)
    text = (run / "report.html").read_text(encoding="utf-8")
    assert not page.of("script") and not page.of("iframe") and not page.of("object")
    for _, attributes in page.tags:
        for key in ("src", "href", "srcset", "xlink:href", "data", "action"):
            assert attributes.get(key, "data:,").startswith(("data:", "#"))
        assert not any(key.startswith("on") for key in attributes)
    assert "@import" not in text and "url(" not in text and "http://" not in text and "https://" not in text


def test_every_part_is_there_in_its_order(run: Path) -> None:
    words = read(run).words
    parts = [
        "<biscuit> cat",
        "The concept",
        "While it learned",
        "By strength",
        "What else changed",
        "How training went",
        "Geometry of the neurons",
        "Loss by noise level",
        "Fidelity:",
        "Drift:",
        "Where the weights moved",
        "Cost and circumstances",
        "Configuration",
        "Use it",
    ]
    places = [words.index(part) for part in parts]
    assert places == sorted(places)


def test_the_verdict_says_what_was_learned_and_forgotten_with_intervals(run: Path) -> None:
    words = read(run).words
    assert "It took on the <biscuit> cat, at a price. Subject fidelity 0.812 (95 % interval 0.784 to 0.837)" in words
    assert "A plain cat is no more like it than before, as far as could be measured. Class leakage 0.437" in words
    assert "Pictures of unrelated prompts moved away from the base's. Drift features 0.031" in words
    assert "On its own prompts, text alignment and diversity fell" in words


def test_text_is_escaped_everywhere(run: Path) -> None:
    hostile = "<script>alert('x')</script> \"&amp; <b>"
    prompts = json.loads((run / "samples" / "prompts.json").read_text())
    prompts |= {"prompts": [hostile] * PROMPTS, "token": hostile, "noun": hostile}
    (run / "samples" / "prompts.json").write_text(json.dumps(prompts))
    metrics = json.loads((run / "metrics.json").read_text())
    metrics["values"] = {hostile: {"value": 1, "unit": hostile, "meaning": hostile, "better": hostile}}
    metrics["weight_drift"] = [{"layer": hostile, "role": hostile, "relative_frobenius": 0.1}]
    metrics["not_measured"] = [{"layer": hostile, "reason": hostile}, 3, {"layer": None}]
    metrics["drift_pictures"] = [[hostile, "drift/base/00.png", "drift/adapted/00.png"]]
    (run / "metrics.json").write_text(json.dumps(metrics))
    (run / "run.toml").write_text("made_by = {hardware = '''" + hostile + "'''}\n")
    page = read(run)
    assert not page.of("script") and page.words.count("alert('x')") > 8


def test_every_picture_has_its_own_alt_text_and_size(run: Path, asked: list[str]) -> None:
    pictures = read(run).of("img")
    # concept, the opening picture, four pairs below it, every prompt by the base and 5 columns, by 5 strengths, pairs
    assert len(pictures) == 5 + 1 + 4 * 2 + PROMPTS * 6 + PROMPTS * 5 + UNRELATED * 2
    assert all(picture["alt"] and int(picture["width"]) and int(picture["height"]) for picture in pictures)
    assert any(f"{asked[-1]} (final, step {STEPS})" in picture["alt"] for picture in pictures)


def test_the_first_pictures_say_their_prompt_seed_and_strength_beside_the_base_s(run: Path, asked: list[str]) -> None:
    words = read(run).words
    assert f"{asked[-1]} (seed {PROMPTS - 1}; the base, the adapter at strength 1)" in words
    assert words.index("at strength 1)") < words.index("The concept")


def test_pictures_of_a_chosen_step_are_not_called_those_of_the_last(run: Path, asked: list[str]) -> None:
    metrics = json.loads((run / "metrics.json").read_text())
    (run / "metrics.json").write_text(json.dumps(metrics | {"selection": {"chosen": STEPS - 2, "last": STEPS}}))
    alts = [picture["alt"] for picture in read(run).of("img")]
    assert f"{asked[0]} (final)" in alts and not any("final, step" in alt for alt in alts)
    shutil.rmtree(run / "samples" / "strength-1")
    alts = [picture["alt"] for picture in read(run).of("img")]
    assert f"{asked[0]} (step {STEPS})" in alts and not any("final" in alt for alt in alts)


def test_more_than_a_hundred_pictures_stand_over_their_own_captions(run: Path) -> None:
    for path in (run / "concept").glob("*.png"):
        path.unlink()
    crops = []
    for i in range(102):
        Image.new("RGB", (8, 8), (i, 0, 0)).save(run / "concept" / f"{i:02d}.png")
        crops.append({"file": f"{i}.png", "caption": f"class {i}"})
    found = concept_pictures(dataclasses.replace(read_run_folder(run), crops=crops), 8)
    assert [caption for _, caption, *_ in found] == [f"class {i}" for i in range(102)]
    assert [int(picture.alt.split()[2].rstrip(":")) for picture, *_ in found] == [*range(1, 103)]
    assert [file.stem for file in read_run_folder(run).concept][-3:] == ["99", "100", "101"]


def test_what_the_base_was_loaded_with_stands_in_the_lines_to_copy(run: Path) -> None:
    text = (run / "run.toml").read_text()
    given = 'prediction_type = "v_prediction"\nbase_config = "a folder"\n'
    rest = [line for line in text.splitlines() if not line.startswith(("prediction_type", "base_config"))]
    (run / "run.toml").write_text(given + "\n".join(rest))
    words = read(run).words
    assert words.count("--base-config 'a folder' --prediction-type v_prediction") == 2  # sample and merge
    assert "config='a folder', prediction_type='v_prediction')" in words


def test_plots_describe_themselves_and_tables_have_headers(run: Path) -> None:
    page = read(run)
    plots = [plot for plot in page.of("svg") if plot.get("role") == "img"]
    assert len(plots) == 4 and all(plot["aria-label"] for plot in plots)
    assert all(header.get("scope") for header in page.of("th"))
    assert len(page.of("caption")) == len(page.of("table"))


def test_the_geometry_of_the_neurons_is_drawn_where_it_was_logged(run: Path) -> None:
    assert "Geometry of the neurons" in read(run).words
    plot = next(svg for svg in read(run).of("svg") if "hyperspherical" in svg.get("aria-label", ""))
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    ends = ", ".join(f"{name} {abs(log[-1][key]):.2g}" for key, name, _ in CHANGES)
    assert f"at the end {ends}" in plot["aria-label"] and "cosines" in ends
    for changes in ({}, dict.fromkeys(("energy_change", "cosine_change", "norm_change"), 0.0)):
        kept = [{key: value for key, value in row.items() if not key.endswith("_change")} | changes for row in log]
        (run / "log.jsonl").write_text("\n".join(map(json.dumps, kept)))
        assert "Geometry of the neurons" not in read(run).words


def test_every_role_says_how_far_it_moved_and_what_became_of_its_neurons(run: Path) -> None:
    row = {"relative_frobenius": 0.25, "angle_degrees": 5.0, "energy": 9.0, "cosine_change": 0.125, "norm_change": 0.5}
    rows = [
        row | {"layer": "a", "role": "self_attention.key", "energy_change": 0.02},
        row | {"layer": "b", "role": "self_attention.key", "energy_change": -0.03, "relative_frobenius": 0.75},
        {"layer": "c", "role": "norm", "relative_frobenius": 0.1, "angle_degrees": None, "energy": None},
    ]
    skipped = {"layer": "unet.conv_in", "role": "input.conv", "reason": "its change depends on the input"}
    metrics = json.loads((run / "metrics.json").read_text())
    (run / "metrics.json").write_text(json.dumps(metrics | {"weight_drift": rows, "not_measured": [skipped]}))
    words = read(run).words
    assert "self_attention.key 2 layers 50 % 5.00\u00b0 0.125 0.500 \u22120.030 norm 1 layer 10 % \u2013" in words
    assert "b 75 % 5.00\u00b0 0.125 0.500 \u22120.030 a 25 % 5.00\u00b0 0.125 0.500 +0.020 c" in words
    assert "Not measured: unet.conv_in , its change depends on the input." in words


def test_layers_that_were_not_measured_for_one_reason_are_one_line(run: Path) -> None:
    skipped = [{"layer": f"unet.{i}.to_k", "role": "", "reason": "its change depends on the input"} for i in range(5)]
    metrics = json.loads((run / "metrics.json").read_text())
    (run / "metrics.json").write_text(json.dumps(metrics | {"weight_drift": [], "not_measured": skipped}))
    assert "Not measured: unet.0.to_k and 4 more layers, its change depends on the input." in read(run).words


def test_a_word_of_its_own_unmoved_pictures_and_a_chosen_step_are_told(run: Path) -> None:
    prompts = json.loads((run / "samples" / "prompts.json").read_text())
    (run / "samples" / "prompts.json").write_text(json.dumps(prompts | {"phrase": "<biscuit>"}))
    metrics = json.loads((run / "metrics.json").read_text())
    for name, row in metrics["values"].items():
        if name.startswith("drift"):
            row |= {"value": 0.0, "low": 0.0, "high": 0.0}
    selection = {"chosen": 75, "last": 200, "steps": [{}] * 8}
    (run / "metrics.json").write_text(json.dumps(metrics | {"selection": selection}))
    words = read(run).words
    assert "It took on the <biscuit>, at a price. Subject" in words and "<biscuit> cat. Subject" not in words
    assert "Pictures of unrelated prompts are the base's own. Drift features 0" in words
    assert "Step 75 was chosen among the checkpoints" in words and "Step 200, the last one" in words
    (run / "metrics.json").write_text(json.dumps(metrics | {"selection": selection | {"chosen": 200}}))
    assert "was chosen among" not in read(run).words


def test_a_run_that_moved_no_weight_says_so(run: Path) -> None:
    metrics = json.loads((run / "metrics.json").read_text())
    (run / "metrics.json").write_text(json.dumps(metrics | {"weight_drift": [], "not_measured": []}))
    assert "Where the weights moved Nowhere: every weight is the base's own." in read(run).words
    del metrics["weight_drift"], metrics["not_measured"]
    (run / "metrics.json").write_text(json.dumps(metrics))
    assert "Where the weights moved" not in read(run).words


def test_small_pictures_are_kept_exactly_and_drawn_as_squares(run: Path) -> None:
    import base64
    import io

    first = read(run).of("img")[9]
    assert first["class"] == "pixels" and first["alt"].startswith("Training picture 1")
    embedded = Image.open(io.BytesIO(base64.b64decode(first["src"].partition(",")[2]))).convert("RGB")
    assert np.array_equal(np.asarray(embedded), np.asarray(Image.open(run / "concept" / "00.png")))


def test_large_pictures_are_shrunk_and_the_page_stays_below_three_megabytes(run: Path) -> None:
    grain = np.random.default_rng(0).normal(0, 12, (512, 512, 3))  # photographs have grain, drawings have not
    for file in run.rglob("*.png"):
        pixels = np.asarray(Image.open(file).convert("RGB").resize((512, 512))).astype(float) + grain
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file, compress_level=0)
    page = read(run)
    assert (run / "report.html").stat().st_size < 3_000_000
    assert {int(picture["width"]) for picture in page.of("img")} == {256}
    assert not any(picture.get("class") for picture in page.of("img"))


def test_an_interrupted_run_says_so_and_shows_what_there_is(trained: Path, tmp_path: Path) -> None:
    words = read(Path(shutil.copytree(trained / "stopped", tmp_path / "stopped"))).words
    assert f"has not finished: it is at step {STOPPED_AT} of {STEPS}" in words
    assert "checkpoints/step-000004" in words and "While it learned" in words
    assert "It took on" not in words and "By strength" not in words and "Use it" not in words


@pytest.mark.parametrize(
    "kept", ["run.toml", "log.jsonl", "metrics.json", "samples/prompts.json", "concept/00.png", "adapter.safetensors"]
)
def test_any_one_part_alone_makes_a_report(run: Path, tmp_path: Path, kept: str) -> None:
    alone = tmp_path / "alone"
    (alone / kept).parent.mkdir(parents=True)
    (alone / kept).write_bytes((run / kept).read_bytes())
    assert len(read(alone).of("h1")) == 1


@pytest.mark.parametrize(
    "broken",
    ["run.toml", "metrics.json", "samples/prompts.json", "concept/crops.json", "concept/00.png", "adapter.safetensors"],
)
def test_a_file_cut_short_is_left_out(run: Path, broken: str) -> None:
    content = (run / broken).read_bytes()
    # Half of a table may be a whole one.
    end = content.rindex(b"=") + 1 if broken == "run.toml" else len(content) // 2 + 1
    (run / broken).write_bytes(content[:end])
    words = read(run).words
    assert "While it learned" in words
    assert Path(broken).suffix == ".png" or f"{Path(broken).name} is not whole" in words


@pytest.mark.parametrize("value", [None, [], 3, "x", {"values": [1]}, {"values": {"a": None, "b": {"value": "high"}}}])
def test_odd_metrics_are_no_reason_to_fail(run: Path, value: object) -> None:
    (run / "metrics.json").write_text(json.dumps(value))
    assert "nothing was measured" in read(run).words


def test_a_torn_last_log_line_and_a_repeated_step_are_tolerated(run: Path) -> None:
    with open(run / "log.jsonl", "a") as log:
        log.write(f'{{"step": {STEPS}, "loss": 0.5}}\n{{"step": {STEPS + 1}, "lo')
    assert "1 line of log.jsonl could not be read" in read(run).words


def test_a_loss_that_is_no_number_is_said(run: Path) -> None:
    with open(run / "log.jsonl", "a") as log:
        log.write(f'{{"step": {STEPS + 1}, "loss": NaN, "loss_by_timestep": [[3, NaN]]}}\n')
    assert f"no longer a number at step {STEPS + 1}" in read(run).words


def test_the_final_pictures_are_the_ones_at_strength_one_when_the_last_samples_are_older(
    run: Path, asked: list[str]
) -> None:
    for file in RunLayout(run).step_samples(STEPS).iterdir():
        file.unlink()
    alts = [picture["alt"] for picture in read(run).of("img")]
    assert f"{asked[-1]} (final)" in alts and f"{asked[-1]} (step {STEPS - 1})" in alts


def test_a_missing_picture_leaves_a_gap_and_shifts_nothing(run: Path, asked: list[str]) -> None:
    (RunLayout(run).step_samples(STEPS) / "00.png").unlink()
    page = read(run)
    alts = [picture["alt"] for picture in page.of("img")]
    assert f"{asked[1]} (final, step {STEPS})" in alts
    assert f"{asked[0]} (final, step {STEPS})" not in alts
    assert len([span for span in page.of("span") if span.get("class") == "gap"]) == 1


def test_pictures_outside_the_run_folder_are_not_shown(run: Path, tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "secret.png")
    metrics = json.loads((run / "metrics.json").read_text())
    metrics["drift_pictures"] = [["p", "../secret.png", "drift/adapted/00.png"], ["p", 3, None], "odd"]
    (run / "metrics.json").write_text(json.dumps(metrics))
    assert "What else changed" not in read(run).words


def test_the_snippets_hold_the_real_path_quoted_for_their_language(run: Path) -> None:
    words = read(run).words
    path = str((run / "adapter.safetensors").resolve())
    assert f"--adapter '{path}:0.8'" in words  # the folder's name has a space
    assert f"adapters=[('{path}', 0.8)]" in words
    base = shlex.quote(read_run_folder(run).setting("base"))
    assert f"diffadapt merge --base {base} --out merged \\ --adapter '{path}'" in words


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="no run folder"):
        write_report(tmp_path)
    with pytest.raises(Refused, match="no folder"):
        write_report(tmp_path / "nowhere")


def test_the_page_of_a_run_that_goes_on_says_how_far_it_is_and_loads_itself_again(run: Path) -> None:
    (run / "adapter.safetensors").unlink()
    page = write_report(run, running=True).read_text(encoding="utf-8")
    assert '<meta http-equiv="refresh"' in page and "when this page was written" in page
    assert "of steps were left" in page and "has not finished" not in page
    page = write_report(run).read_text(encoding="utf-8")
    assert 'http-equiv="refresh"' not in page and "has not finished" in page
