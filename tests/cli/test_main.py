"""How the command line ends: exit codes, one sentence on stderr, a clean stdout; and that its help is instant."""

import errno
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from diffadapt.cli import main as main_module
from diffadapt.cli import merge
from diffadapt.cli.arguments import read_bias
from diffadapt.cli.main import COMMANDS, main
from diffadapt.errors import LONGEST, Failed, Refused
from diffadapt.progress import Steps, say

SOURCE = Path(main_module.__file__).parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(SOURCE)}
MERGE = ["merge", "--adapter", "a.safetensors", "--out", "b"]


def program(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "diffadapt", *arguments]
    return subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_help_text_ends_in_examples_of_that_command(command: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as exit_:
        main([command, "--help"])
    assert exit_.value.code == 0
    head, _, examples = capsys.readouterr().out.partition("\nexamples:\n")
    assert "--debug" in head
    assert f"  diffadapt {command}" in examples
    assert "--help" not in examples


@pytest.mark.parametrize("command", COMMANDS)
def test_every_example_is_accepted_by_the_parser(command: str):
    import shlex

    text = COMMANDS[command].EXAMPLES.replace("\\\n", " ")
    for line in text.strip().splitlines():
        words = shlex.split(line.partition("  #")[0].partition(" > ")[0])
        if words[0] == "diffadapt":
            main_module.parser().parse_args(words[1:])


def test_without_a_command_the_help_is_shown(capsys: pytest.CaptureFixture[str]):
    assert main([]) == 0
    assert "examples:" in capsys.readouterr().out


def test_help_takes_less_than_half_a_second_of_processor_time():
    def once() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert program("train", "--help").returncode == 0
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    assert min(once() for _ in range(3)) < 0.5


def test_help_loads_no_torch():
    code = "import sys; from diffadapt.cli.main import parser; parser().format_help(); print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], env=ENVIRONMENT, capture_output=True, text=True, check=True)
    assert result.stdout == "False\n"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["trian"], "diffadapt: no command 'trian'; did you mean train? see diffadapt --help"),
        (["merge"],
         "diffadapt merge: the following arguments are required: --adapter, --out; see diffadapt merge --help"),
        (["sample", "--seed", "x"],
         "diffadapt sample: argument --seed: invalid int value: 'x'; see diffadapt sample --help"),
        (["demo", "--no-such"], "diffadapt: unrecognized arguments: --no-such; see diffadapt --help"),
    ],
)  # fmt: skip
def test_a_usage_error_is_one_sentence_and_code_2(
    arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
):
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == 2
    assert capsys.readouterr() == ("", sentence + "\n")


@pytest.mark.parametrize("text", ["\x1b[31mred\x07", "a\nb", "x" * 100_000])
@pytest.mark.parametrize("before", [(), ("train", "--"), ("merge", "--strength="), ("evidence", "")])
def test_a_usage_error_shows_no_control_characters_and_is_one_line_that_ends(
    before: tuple[str, ...], text: str, capsys: pytest.CaptureFixture[str]
):
    given = [*before[:-1], (before[-1] if before else "") + text]
    with pytest.raises(SystemExit):
        main(given)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.isprintable() and line.endswith(" --help") and len(line) < LONGEST + 200


@pytest.mark.parametrize("text", ["\x1b[31mred\x07", "x" * 100_000])
def test_what_is_said_shows_no_control_characters_and_ends(text: str, capsys: pytest.CaptureFixture[str]):
    say(text)
    with Steps(text, 1) as steps:
        steps.advance()
    for line in capsys.readouterr().err.splitlines():
        assert line.isprintable() and len(line) < LONGEST + 200


def ending(monkeypatch: pytest.MonkeyPatch, error: BaseException, *more: str) -> int:
    """The exit code of a command that ends in `error`."""

    def run(arguments: object) -> int:
        raise error

    monkeypatch.setattr(merge, "run", run)
    return main([*MERGE, *more])


@pytest.mark.parametrize(
    ("error", "code", "sentence"),
    [
        (Refused("no such\n thing"), 2, "diffadapt merge: no such thing"),
        (Failed("the disk is full"), 1, "diffadapt merge: the disk is full"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (OSError(errno.ENOSPC, "No space left on device", "/x/y"), 1,
         "diffadapt merge: cannot write /x/y: No space left on device"),
        (PermissionError(errno.EACCES, "Permission denied", "/x/y"), 1,
         "diffadapt merge: cannot write /x/y: Permission denied"),
    ],
)  # fmt: skip
def test_an_expected_end_is_one_sentence_without_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: BaseException, code: int, sentence: str
):
    assert ending(monkeypatch, error) == code
    assert capsys.readouterr() == ("", sentence + "\n")


def test_debug_shows_the_traceback_of_a_refusal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    assert ending(monkeypatch, Refused("no"), "--debug") == 2
    assert "Traceback" in capsys.readouterr().err


def test_an_unexpected_error_shows_its_traceback_and_ends_with_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    assert ending(monkeypatch, KeyError("surprise")) == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "Traceback" in shown.err
    assert "KeyError: 'surprise'" in shown.err


def test_an_interrupted_training_says_how_to_resume(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    from diffadapt.cli import train

    def run(arguments: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "run", run)
    assert main(["train", "a b.toml", "seed=1"]) == 130
    assert capsys.readouterr().err == "interrupted; resume with: diffadapt train 'a b.toml' seed=1\n"


def test_a_reader_that_has_seen_enough_is_no_error():
    command = f"{sys.executable} -m diffadapt list methods --json | true; echo ${{PIPESTATUS[0]}}"
    result = subprocess.run(["bash", "-c", command], env=ENVIRONMENT, capture_output=True, text=True, check=True)
    assert result.stderr == ""
    assert result.stdout == "0\n"


@pytest.mark.parametrize("text", ["0.5", "<biscuit>", "<biscuit>=much", "=0.5"])
def test_a_bias_names_its_word(text: str, capsys: pytest.CaptureFixture[str]):
    assert main(["sample", "a cat", "--bias", text]) == 2
    expected = f"diffadapt sample: --bias: expected WORD=NUMBER, such as '<biscuit>=0.5', got {text!r}\n"
    assert capsys.readouterr().err == expected
    assert read_bias(["<a>=0.5", "<b=c>=-1"]) == {"<a>": 0.5, "<b=c>": -1.0}
