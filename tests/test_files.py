"""The ground: numbers, text, shapes and messages of every file, whoever reads it."""

import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from diffadapt.errors import LONGEST, Failed, Refused, printable
from diffadapt.files import is_there, load_tensors, read_json, save_tensors, sweep, text_lines, write_atomic
from diffadapt.shapes import DEEPEST, Maybe, hold

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_values_that_are_no_numbers_are_neither_read_nor_written(tmp_path, value, dtype):
    tensors = {"fine": torch.ones(2), "a.down": torch.tensor([1.0, value], dtype=dtype)}
    with pytest.raises(Failed, match="a.down holds values that are not numbers.*is not written"):
        save_tensors(tmp_path / "a.safetensors", tensors)
    assert not list(tmp_path.iterdir())
    save_file(tensors, tmp_path / "a.safetensors")
    with pytest.raises(Refused, match=r"a.safetensors: a.down holds values that are not numbers \(nan or infinity\)"):
        load_tensors(tmp_path / "a.safetensors")


def test_complex_tensors_are_refused(tmp_path):
    save_file({"a": torch.ones(2, dtype=torch.complex64)}, tmp_path / "a.safetensors")
    with pytest.raises(Refused, match="a holds complex numbers"):
        load_tensors(tmp_path / "a.safetensors")


def test_an_interrupted_write_leaves_no_temporary_file_and_the_old_one_whole(tmp_path, monkeypatch):
    write_atomic(tmp_path / "a.json", "old")

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_atomic(tmp_path / "a.json", "new")
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"] and (tmp_path / "a.json").read_text() == "old"


@pytest.fixture
def gone() -> int:
    """The number of a process that has ended."""
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    return process.pid


def test_leftovers_of_processes_that_are_gone_are_swept_and_nothing_else(tmp_path, gone):
    (tmp_path / "inner").mkdir()
    here, day = platform.node(), 86_400
    dead = tmp_path / "inner" / f".a.safetensors.{here}.{gone}.tmp"
    folder = tmp_path / f".merged.{here}.{gone}.tmp"
    old = tmp_path / f".d.json.elsewhere.{gone}.tmp"
    link = tmp_path / f".link.{here}.{gone}.tmp"
    kept = [tmp_path / f".b.json.{here}.{os.getpid()}.tmp", tmp_path / f".c.json.elsewhere.{gone}.tmp"]
    kept += [tmp_path / ".mine.tmp", tmp_path / "c.json", tmp_path / f"e.{here}.{gone}.tmp", link]
    (folder / "unet").mkdir(parents=True)
    link.symlink_to(tmp_path / "inner")
    for path in (dead, old, folder / "unet" / "config.json", *kept[:-1]):
        path.write_text("x")
    os.utime(old, (time.time() - 2 * day, time.time() - 2 * day))
    assert sorted(sweep(tmp_path)) == sorted([folder, old])
    assert sweep(tmp_path, deep=True) == [dead]
    assert all(path.exists() for path in kept)


def test_a_write_sweeps_the_folder_that_it_writes_to(tmp_path, gone):
    """A memory bank, an export and a merge lie in folders that no run claims."""
    left = [tmp_path / f".{name}.{platform.node()}.{gone}.tmp" for name in ("a.png", "merged")]
    left[0].write_text("x")
    (left[1] / "unet").mkdir(parents=True)
    below = tmp_path / "photos" / left[0].name  # a folder of its own
    below.parent.mkdir()
    below.write_text("x")
    write_atomic(tmp_path / "b.png", b"x")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b.png", "photos"] and below.exists()


@pytest.mark.parametrize("text", ["x" * 5000, "a\0b", "~nobody-of-that-name/x", "\ud800"])
def test_a_text_that_can_name_no_file_names_none(text):
    assert is_there(text) is False


def test_only_line_feeds_end_lines():
    assert text_lines("a\u2028b\r\nc\x85d\re\n") == ["a\u2028b", "c\x85d", "e"]
    assert text_lines("") == [] and text_lines("a\n\nb") == ["a", "", "b"]


SHAPE = {
    "name": str, "sizes": [int], "pair": Maybe([float, float]), "more": Maybe((None, {str: (int, float)}))
}  # fmt: skip


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ([], r"x: expected a table, got \[\] \(a list\)"),
        (None, r"x: expected a table, got nothing \(null\)"),
        ({"sizes": []}, "x: name is missing, expected text"),
        ({"name": 3, "sizes": []}, r"x: name: expected text, got 3 \(a whole number\)"),
        ({"name": "a", "sizes": 3}, r"x: sizes: expected a list, got 3"),
        ({"name": "a", "sizes": [1, "2"]}, r"x: sizes\[1\]: expected a whole number, got '2' \(text\)"),
        ({"name": "a", "sizes": [True]}, r"sizes\[0\]: expected a whole number, got True \(true or false\)"),
        ({"name": "a", "sizes": [], "pair": [1.5]}, r"x: pair: expected a list of 2, got \[1.5\] \(a list\)"),
        ({"name": "a", "sizes": [], "pair": [1.5, 10**400]}, r"x: pair\[1\]: expected a number, got 10000"),
        ({"name": "a", "sizes": [], "more": {"b": NAN}}, "more: b: expected a number, got nan"),
        ({"name": "a" * 9, "sizes": "b" * 100_000}, "got 'bbbb"),
    ],
)
def test_a_value_of_another_shape_is_refused_with_its_place(value, says):
    with pytest.raises(Refused, match=says) as refused:
        hold(value, SHAPE, "x")
    assert len(str(refused.value)) < 200


def test_a_value_of_the_shape_passes():
    for value in (
        {"name": "a", "sizes": [1], "more": {"b": 2.5}},
        {"name": "", "sizes": [], "more": None, "other": []},
    ):
        assert hold(value, SHAPE, "x") is value


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "nul", '{"a": 1', "\x00"])
def test_what_is_not_json_is_one_sentence(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(Refused, match="a.json is not JSON") as refused:
        read_json(tmp_path / "a.json")
    assert len(str(refused.value)) < 300


def test_deep_nesting_is_refused_by_a_shape(tmp_path):
    deep: dict = {}
    shape: dict = {}
    shape[str] = shape  # any depth
    for _ in range(DEEPEST + 2):
        deep = {"a": deep}
    with pytest.raises(Refused, match=f"more than {DEEPEST} deep"):
        hold(deep, shape, "x")


def test_json_in_another_encoding_is_refused_and_utf_8_is_read_whatever_the_locale(tmp_path):
    (tmp_path / "a.json").write_bytes(json.dumps({"a": "é"}, ensure_ascii=False).encode("cp1252"))
    with pytest.raises(Refused, match="is not UTF-8 .byte 0xe9"):
        read_json(tmp_path / "a.json")
    (tmp_path / "a.json").write_bytes(b"\xef\xbb\xbf" + json.dumps({"a": "é"}, ensure_ascii=False).encode())
    code = f"from diffadapt.files import read_json; print(ascii(read_json({str(tmp_path / 'a.json')!r})['a']))"
    environment = {**os.environ, "PYTHONUTF8": "0", "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0"}
    environment["PYTHONPATH"] = str(Path(__file__).parent.parent / "src")
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "'\\xe9'", done.stderr


@pytest.mark.parametrize("kind", [Refused, Failed])
def test_a_message_shows_control_characters_and_is_not_endless(kind):
    message = str(kind("a file \x1b[31mred\x07 \u202eevil " + "x" * 100_000))
    assert "\x1b" not in message and "\x07" not in message and "\u202e" not in message
    assert "\\x1b[31mred\\x07 \\u202eevil" in message and len(message) <= LONGEST + 10
    assert printable("une tête, 犬") == "une tête, 犬"
