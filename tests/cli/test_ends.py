"""The command line's input and how it is stopped: flags anywhere, texts that are no paths, signals, memory."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from diffadapt.cli import main as main_module
from diffadapt.cli import merge
from diffadapt.cli.arguments import split_adapter
from diffadapt.cli.main import main
from diffadapt.errors import Refused
from diffadapt.training.checkpoint import checkpoints

SOURCE = Path(main_module.__file__).parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(SOURCE)}
MERGE = ["merge", "--adapter", "a.safetensors", "--out", "b"]


def test_options_behind_a_flag_count(capsys):
    given = ["concept.folder=photos", "--dry-run", "concept.noun=cat", "train.steps=7"]
    assert main(["train", *given]) == 0
    printed = capsys.readouterr().out
    assert 'noun = "cat"' in printed and "steps = 7" in printed


def test_an_unknown_flag_is_still_an_error(capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["train", "concept.folder=photos", "--dry", "--nonsense", "concept.noun=cat"])
    assert exit_.value.code == 2 and "--nonsense" in capsys.readouterr().err


def test_a_home_folder_is_written_out_once_where_the_config_is_read(capsys, monkeypatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    names = ["concept.folder=~/photos", "concept.noun=cat", "out=~/run", "train.memory_bank=~/bank"]
    names += ['concept.also=["~/other=dog"]', "base_config=~/config", "base=~/base.safetensors"]
    assert main(["train", *names, "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert "~" not in printed and printed.count('"/home/somebody/') == 6


@pytest.mark.parametrize(
    "command",
    [
        "check {} --noun cat", "check biscuit --noun cat --base no.safetensors --out {}", "masks {} --noun cat",
        "sample cat --prompts {}",
        "sample cat --base no/such --out {} --adapter {}", "inspect {}", "compare {} {} --out {}",
        "demo --out {} nonsense=1", "merge --adapter {} --out {}", "covariance --captions {}",
        "evidence list --folder {}",
        "import {} {}.safetensors", "export {} {}", "evaluate --adapter {} --concept {} --noun cat", "plan {}",
        "train {}",
        "train recipe=subject concept.folder={} concept.noun=cat out={}",
        "train recipe=subject concept.folder=biscuit concept.also=['{}=dog'] concept.noun=cat",
        "train recipe=control pairs.folder={}", "train recipe=style style.folder={}",
        "train recipe=style style.folder={} style.shards=true", "train recipe=transfer transfer.folder={}",
        "train recipe=sequence sequence.folder={} sequence.noun=cat", "train recipe=classify classify.folder={}",
        "train recipe=distill distill.folder={} distill.captions={}",
    ],
)  # fmt: skip
def test_a_home_of_nobody_is_a_path_where_nothing_is_and_one_sentence(capsys, command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (64, 64), "red").save((tmp_path / "biscuit").mkdir() or tmp_path / "biscuit" / "0.png")
    code = main(command.replace("{}", "~nobody-of-that-name/x").replace("'", '"').split(" "))
    error = capsys.readouterr().err
    assert "Traceback" not in error and code in (0, 2), error
    assert code == 0 or error.count("\n") == 1


@pytest.mark.parametrize("text", ["a cat " * 2000, "a\0b", "x=" + "y" * 5000])
@pytest.mark.parametrize(
    "command",
    [["train"], ["inspect"], ["sample", "x", "--adapter"], ["sample", "x", "--base"], ["compare", "runs/a"]],
    ids=" ".join,
)
def test_long_free_text_is_no_path_and_one_sentence(capsys, command, text):
    assert main([*command, text]) == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error and error.count("\n") == 1 and len(error) < 2500


def test_a_strength_behind_a_text_that_is_no_file_is_read(tmp_path):
    (tmp_path / "a.safetensors").write_text("")
    assert split_adapter(f"{tmp_path / 'a.safetensors'}:0.5")[1] == 0.5
    with pytest.raises(Refused, match="no adapter at"):
        split_adapter("~nobody-of-that-name/a:0.5")


@pytest.mark.parametrize(
    "more", [["--seed", "-1"], ["--seed", str(2**63)], ["--width", "0"], ["--height", "999999996"]]
)
def test_numbers_that_cannot_be_are_one_sentence(capsys, tiny_folder, more, tmp_path):
    command = ["sample", "a cat", "--base", str(tiny_folder), "--device", "cpu", "--out", str(tmp_path / "out")]
    assert main([*command, *more]) == 2
    assert "Traceback" not in capsys.readouterr().err and not (tmp_path / "out").exists()


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_options_that_are_no_finite_numbers_are_refused(capsys, value):
    given = ["concept.folder=photos", "concept.noun=cat", f"train.learning_rate={value}", "--dry-run"]
    assert main(["train", *given]) == 2
    assert "train.learning_rate: expected a finite number" in capsys.readouterr().err


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: 1 bytes"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_too_little_memory_is_one_sentence(monkeypatch, capsys, error):
    def run(_):
        raise error

    monkeypatch.setattr(merge, "run", run)
    assert main(MERGE) == 1
    assert "this machine is out of memory; take a smaller batch" in capsys.readouterr().err


STOPPED = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the suite was started in the background
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # ignored under nohup
from diffadapt.cli import main as cli, train
def run(arguments):
    from diffadapt.files import write_atomic
    print("ready", flush=True)
    while True:
        write_atomic(sys.argv[1] + "/a.json", "x" * 1000)
train.run = run
sys.exit(cli.main(["train", "concept.noun=cat"]))
"""


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, 130)], ids=lambda n: str(n)
)
def test_a_signal_ends_in_a_sentence_its_exit_code_and_no_leftovers(tmp_path, number, code):
    command = [sys.executable, "-c", STOPPED, str(tmp_path)]
    process = subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    time.sleep(0.2)
    process.send_signal(number)
    try:
        _, error = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == code, error
    what = "interrupted" if number == signal.SIGINT else f"stopped by {number.name}"
    assert error.strip() == f"{what}; resume with: diffadapt train concept.noun=cat"
    assert not list(tmp_path.glob(".*.tmp")) and (tmp_path / "a.json").read_text() == "x" * 1000


TRAINING = """
import signal, sys
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # ignored under nohup
from diffadapt.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_a_training_that_is_stopped_twice_in_the_middle_ends_with_the_same_bits(tiny_v_folder, tmp_path):
    (tmp_path / "biscuit").mkdir()
    for i, colour in enumerate(("red", "blue")):
        Image.new("RGB", (40, 40), colour).save(tmp_path / "biscuit" / f"{i}.png")
    settings = [
        f"base={tiny_v_folder}", f"concept.folder={tmp_path / 'biscuit'}", "concept.noun=cat", "method.name=lora",
        "method.rank=1", "train.steps=60", "train.batch_size=1", "train.prior_weight=0", "train.checkpoint_every=4",
        "train.sample_every=0", "train.evaluation_prompts=0",
    ]  # fmt: skip

    def program(name: str) -> subprocess.Popen:
        command = [sys.executable, "-c", TRAINING, "train", *settings, f"out={tmp_path / name}"]
        return subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    for number, code, step in ((signal.SIGTERM, 143, 6), (signal.SIGHUP, 129, 22)):
        process, log = program("stopped"), tmp_path / "stopped" / "log.jsonl"
        while process.poll() is None and not (log.exists() and f'"step": {step},' in log.read_text()):
            time.sleep(0.002)
        process.send_signal(number)
        _, error = process.communicate(timeout=60)
        assert process.returncode == code, error
        command = f"diffadapt train {' '.join(settings)} out={tmp_path / 'stopped'}"
        assert error.splitlines()[-1] == f"stopped by {number.name}; resume with: {command}"
        assert "Traceback" not in error and not list(tmp_path.rglob(".*.tmp"))
        steps = [int(place.name[5:]) for place in checkpoints(tmp_path / "stopped" / "checkpoints")]
        assert step - 4 < steps[-1] < 60 and not any(each % 4 for each in steps)
    process = program("stopped")
    _, error = process.communicate(timeout=120)
    assert process.returncode == 0 and "resumed at step" in error, error
    assert main_module.main(["train", *settings, f"out={tmp_path / 'whole'}"]) == 0
    stopped, whole = (load_file(tmp_path / name / "adapter.safetensors") for name in ("stopped", "whole"))
    assert stopped.keys() == whole.keys() and all(torch.equal(stopped[key], whole[key]) for key in whole)


def test_a_hang_up_that_nohup_ignores_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with main_module.stopped_by_signals():
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
            assert signal.getsignal(signal.SIGTERM) not in (signal.SIG_IGN, signal.SIG_DFL)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_path_that_the_terminal_s_encoding_lacks_is_printed_all_the_same():
    code = "import sys; from diffadapt.cli import main as m, merge; merge.run = lambda a: print('\\u72ac') or 0; " + (
        f"sys.exit(m.main({MERGE!r}))"
    )
    environment = {**ENVIRONMENT, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stdout.strip() == "\\u72ac", done.stderr


def test_torch_is_not_loaded_for_a_help_text():
    code = (
        "import sys, diffadapt.cli.main as m; m.parser(); print('torch' in sys.modules, 'safetensors' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "False False", done.stderr
