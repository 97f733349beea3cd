"""The demo: two trainings of one character and a page about both, on a tiny base."""

from pathlib import Path

import pytest

from diffadapt.cli.demo import SAMPLE_EVERY, tables, unfinished
from diffadapt.cli.main import main
from diffadapt.errors import Refused
from diffadapt.recipes.job import Job, read_job
from diffadapt.recipes.own_settings import own_config

SMALL = [
    "concept.noun=cat", "method.block_size=4", "train.steps=2", "train.roles=cross_attention.*",
    "train.prior_pictures=2", "train.sample_every=0", "train.evaluation_prompts=0",
]  # fmt: skip


def jobs(*settings: str) -> list[Job]:
    return [read_job(table) for table in tables(Path("demo"), Path("demo/tuli"), settings)]


def test_the_demo_trains_oft_and_beside_it_lora_alike():
    oft, lora = jobs()
    assert (oft.method.name, lora.method.name) == ("oft", "lora")
    assert (oft.out, lora.out) == (Path("demo/run"), Path("demo/lora"))
    same = {key: value for key, value in vars(oft.train).items() if key != "learning_rate"}
    assert same.items() <= vars(lora.train).items()


def test_the_demo_is_the_preset_quick_with_samples_on_the_way():
    for demo in jobs():
        table = {"concept": vars(demo.data), "method": {"name": demo.method.name}}
        quick = read_job({**table, "train": {"preset": "quick", "sample_every": SAMPLE_EVERY}})
        assert (demo.method, demo.train) == (quick.method, quick.train)
        assert demo.train.sample_every not in (0, own_config("embedded", demo.method.name, "quick").sample_every)


def test_settings_are_for_both_except_for_what_belongs_to_the_method():
    oft, lora = jobs("train.steps=7", "seed=3", "train.learning_rate=0.5", "method.rescale=joint", "out=there")
    assert (oft.train.steps, oft.top.seed, lora.train.steps, lora.top.seed) == (7, 3, 7, 3)
    assert (oft.train.learning_rate, oft.method.rescale, oft.out) == (0.5, "joint", Path("there"))
    assert (lora.train.learning_rate, lora.out) == (jobs()[1].train.learning_rate, Path("demo/lora"))


def test_another_method_takes_the_place_of_oft():
    first, lora = jobs("method.name=lora", "method.rank=2")
    assert (first.method.rank, lora.method.rank) == (2, 8)


def test_a_mistake_is_refused_before_anything_is_trained(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(Refused, match="unknown option train.stpes"):
        jobs("train.stpes=3")
    assert main(["demo", "--out", str(tmp_path), "method.rank=8"]) == 2
    assert "method.rank" in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_both_are_trained_reported_and_compared_and_what_is_done_is_kept(
    tiny_v_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    command = ["demo", "--out", str(tmp_path), f"base={tiny_v_folder}", *SMALL]
    assert main(command) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"pictures: {tmp_path / 'tuli'}",
        f"report of OFT: {tmp_path / 'run' / 'report.html'}",
        f"report of LoRA: {tmp_path / 'lora' / 'report.html'}",
        f"side by side: {tmp_path / 'comparison.html'}",
    ]
    page = (tmp_path / "comparison.html").read_text(encoding="utf-8")
    assert "OFT beside LoRA" in page
    assert len([*(tmp_path / "memory_banks").iterdir()]) == 1  # made once, for both
    (tmp_path / "comparison.html").unlink()
    assert main(command) == 0
    assert capsys.readouterr().err.count("resumed at step 2 of 2") == 2
    assert (tmp_path / "comparison.html").is_file()


def test_a_demo_goes_on_or_starts_anew(tmp_path: Path):
    assert unfinished(tmp_path) == tmp_path / "demo"
    (tmp_path / "demo" / "run").mkdir(parents=True)
    (tmp_path / "demo" / "run" / "report.html").touch()  # the first training alone is not all
    assert unfinished(tmp_path) == tmp_path / "demo"
    (tmp_path / "demo" / "comparison.html").touch()
    assert unfinished(tmp_path) == tmp_path / "demo-2"


def test_a_page_and_pictures_of_the_users_are_left_as_they_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    mine = [tmp_path / "comparison.html", tmp_path / "tuli" / "0.png"]
    for file in mine:
        file.parent.mkdir(exist_ok=True)
        file.write_text("mine")
        assert main(["demo", "--out", str(tmp_path)]) == 2
        assert f"{file} exists already" in capsys.readouterr().err and file.read_text() == "mine"
        file.unlink()
    assert not (tmp_path / "run").exists()
