"""`diffadapt train` up to the point where training begins: settings, folders, refusals."""

import subprocess
from pathlib import Path

import pytest

from diffadapt.cli.main import main
from diffadapt.config import build, tomllib
from diffadapt.recipes.job import RECIPES, read_job
from diffadapt.recipes.own_settings import own_config
from diffadapt.recipes.subject import SubjectConfig

HERE = ["concept.folder=photos/x", "concept.noun=cat"]


def dry(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict:
    code = main(["train", "--dry-run", *arguments])
    shown = capsys.readouterr()
    assert code == 0, shown.err
    assert shown.err == ""
    return tomllib.loads(shown.out)


def test_training_needs_no_config_file(capsys: pytest.CaptureFixture[str]):
    table = dry(capsys, *HERE)
    assert table["base"] == "embedded"
    assert table["out"] == "runs/x"
    assert table["concept"] == {"folder": "photos/x", "noun": "cat", "also": []}
    assert table["method"]["name"] == "lora"


def test_options_win_over_the_file_wherever_they_stand(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    file = tmp_path / "a.toml"
    file.write_text('seed = 3\n[concept]\nfolder = "photos/x"\nnoun = "cat"\n[method]\nname = "lora"\nrank = 2\n')
    table = dry(capsys, "seed=4", str(file), "method.rank=8", "train.steps=7")
    assert (table["seed"], table["method"]["rank"], table["train"]["steps"]) == (4, 8, 7)


def test_the_resolved_config_resolves_to_itself(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    table = dry(capsys, *HERE, "method.name=token", "method.vectors=3", "out=runs/y")
    assert read_job(table).table()["method"] == {"name": "token", "vectors": 3}
    assert build(SubjectConfig, table["train"]) == own_config("embedded", "token")
    (tmp_path / "run.toml").write_text(f"{main_text(capsys, *HERE)}\n[made_by]\ndiffadapt = '1'\n")
    assert dry(capsys, str(tmp_path)) == dry(capsys, *HERE)


def main_text(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    main(["train", "--dry-run", *arguments])
    return capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "nothing to train; give a config file, or concept.folder=FOLDER concept.noun=NOUN"),
        (["concept.folder=x"], "concept.noun is missing (what it is one of, such as cat); add concept.noun=..."),
        ([*HERE, "method.rnak=3"], "unknown option method.rnak; did you mean method.rank?"),
        ([*HERE, "rank=3"], "unknown option rank; did you mean method.rank?"),
        ([*HERE, "train.stesp=3"], "unknown option train.stesp; did you mean train.steps?"),
        ([*HERE, "method.name=lroa"],
         f"method.name: expected {' or '.join(RECIPES['subject'].methods)}, got 'lroa'; did you mean lora?"),
        ([*HERE, "recipe=sbject"],
         f"recipe: expected {' or '.join(RECIPES)}, got 'sbject'; did you mean subject?"),
        ([*HERE, "method=lora"],
         "method is a table with options, such as method.name=lora; got method = 'lora'"),
        ([*HERE, "train.steps=many"], "train.steps: expected a whole number, got 'many'"),
        ([*HERE, "seed=-1"], "seed: expected at least 0 and at most 9223372036854775807, got -1"),
        (["a.toml", "b.toml"], "expected one config file, got a.toml and b.toml; options are written key=value"),
        (["missing.toml"], "no config file or run at 'missing.toml'; give one, or options written key=value"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_sentence_and_code_2(arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]):
    assert main(["train", *arguments]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err == f"diffadapt train: {sentence}\n"


def test_a_missing_folder_of_pictures_is_refused_before_the_base_is_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "concept.folder=none", "concept.noun=cat", "base=no/such-base"]) == 2
    assert "none" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_resume_wants_a_run_and_fresh_wants_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    assert main(["train", *HERE, "out=a", "--resume"]) == 2
    assert "there is no run in a" in capsys.readouterr().err
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "run.toml").write_text("")
    assert main(["train", *HERE, "out=a", "--fresh"]) == 2
    assert "--fresh: a is not empty" in capsys.readouterr().err
    assert (tmp_path / "a" / "run.toml").exists()


def test_a_run_that_was_moved_goes_on_where_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    moved = tmp_path / "moved"
    moved.mkdir()
    (moved / "settings.toml").write_text("")
    (moved / "run.toml").write_text('out = "elsewhere"\nconcept.folder = "photos"\nconcept.noun = "cat"\n')
    assert main(["train", str(moved), "--dry-run"]) == 0
    assert f'out = "{moved}"' in capsys.readouterr().out
    assert main(["train", str(moved), "out=there", "--dry-run"]) == 0
    assert 'out = "there"' in capsys.readouterr().out


def test_both_at_once_are_a_usage_error():
    with pytest.raises(SystemExit) as exit_:
        main(["train", *HERE, "--resume", "--fresh"])
    assert exit_.value.code == 2


def test_the_module_runs_as_a_program(tmp_path: Path):
    import os
    import sys

    import diffadapt

    source = str(Path(diffadapt.__file__).parents[1])
    result = subprocess.run(
        [sys.executable, "-m", "diffadapt", "train", "x.toml"],
        env={**os.environ, "PYTHONPATH": source}, cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("diffadapt train: no config file or run at 'x.toml'; give one")
