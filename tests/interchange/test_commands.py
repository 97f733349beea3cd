"""`diffadapt export` and `diffadapt import`."""

import torch

from diffadapt import OFT
from diffadapt.adapters import read_adapter
from diffadapt.cli.main import main
from diffadapt.files import load_tensors


def test_there_and_back_on_the_command_line(saved, tiny_folder, tmp_path, capsys):
    file, base = str(saved(OFT(block_size=8))), ["--base", str(tiny_folder), "--device", "cpu"]
    assert main(["export", file, "--to", "peft", str(tmp_path / "out"), *base]) == 0
    assert capsys.readouterr().out.split() == [str(tmp_path / "out")]
    assert main(["import", str(tmp_path / "out"), str(tmp_path / "back.safetensors"), *base]) == 0
    printed = capsys.readouterr()
    assert printed.out.split() == [str(tmp_path / "back.safetensors")]
    assert printed.err.startswith("56 layers of self_attention.query")
    ours, back = read_adapter(file)[3], read_adapter(tmp_path / "back.safetensors")[3]
    assert all(torch.equal(ours[key], back[key]) for key in ours)


def test_a_strength_stands_behind_the_adapter_or_in_its_option(saved, tiny_folder, tmp_path):
    file, base = str(saved(OFT(block_size=8))), ["--base", str(tiny_folder), "--device", "cpu"]
    for name, more in (("a", [f"{file}:0.5"]), ("b", [file, "--strength", "0.5"])):
        assert main(["export", *more, "--to", "diff", str(tmp_path / f"{name}.safetensors"), "--float32", *base]) == 0
    (a, header), (b, other) = load_tensors(tmp_path / "a.safetensors"), load_tensors(tmp_path / "b.safetensors")
    assert header == other and header["strength"] == "0.5"
    assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_bringing_a_change_to_a_rank_counts_every_layer(saved, tiny_folder, tmp_path, capsys):
    command = ["export", str(saved(OFT(block_size=8))), str(tmp_path / "a.safetensors"), "--rank", "2"]
    assert main([*command, "--base", str(tiny_folder), "--device", "cpu"]) == 0
    assert any(line.startswith("rank 2 56/56") for line in capsys.readouterr().err.splitlines())


def test_refusals_are_one_sentence(saved, tiny_folder, tmp_path, capsys):
    file, base = str(saved(OFT(block_size=8))), ["--base", str(tiny_folder), "--device", "cpu"]
    assert main(["export", file, "--to", "oft_blocks", str(tmp_path / "out"), *base]) == 2
    assert capsys.readouterr().err.startswith("diffadapt export: oft_blocks cannot be written")
    assert main(["import", file, str(tmp_path / "back.safetensors"), *base]) == 2
    assert "is an adapter of diffadapt already" in capsys.readouterr().err
