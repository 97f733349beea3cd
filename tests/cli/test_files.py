"""sample, merge, inspect and list: what they read and where they write, without a trained base."""

import json
from pathlib import Path

import pytest
import torch

from diffadapt.adapters import OFT, LoRA, Token, attach
from diffadapt.cli.arguments import new_folder, split_adapter
from diffadapt.cli.evaluate import first_token, table
from diffadapt.cli.main import main
from diffadapt.cli.sample import next_number, read_prompts
from diffadapt.errors import Refused
from diffadapt.files import load_tensors, save_tensors

HEADER = {
    "format": "diffadapt",
    "format_version": "1",
    "method": "lora",
    "config": '{"rank": 2, "alpha": null, "dropout": 0.0}',
    "roles": '["cross_attention.key"]',
    "tokens": '{"<biscuit>": "cat"}',
    "base": "somebody/base",
    "base_fingerprint": "sha256:0123456789abcdef",
    "diffadapt_version": "0.1.0",
    "created": "2026-11-21T00:00:00+00:00",
}


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    tensors = {"unet.a.to_k.down": torch.zeros(2, 8), "unet.a.to_k.up": torch.zeros(4, 2)}
    return save_tensors(tmp_path / "run" / "adapter.safetensors", tensors, HEADER)


def test_an_adapter_is_a_file_or_a_run_with_or_without_a_strength(adapter: Path):
    assert split_adapter(str(adapter)) == (adapter, 1.0)
    assert split_adapter(f"{adapter}:0.5") == (adapter, 0.5)
    assert split_adapter(f"{adapter.parent}:-1", 0.3) == (adapter, -1.0)
    assert split_adapter(str(adapter.parent), 0.3) == (adapter, 0.3)


def test_a_file_name_with_a_colon_is_taken_whole(adapter: Path):
    odd = adapter.rename(adapter.with_name("a:0.5"))
    assert split_adapter(str(odd)) == (odd, 1.0)
    assert split_adapter(f"{odd}:0.25") == (odd, 0.25)


def test_a_missing_adapter_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for text in ("no.safetensors:0.5", "no.safetensors:much", str(tmp_path)):
        with pytest.raises(Refused, match="no adapter at"):
            split_adapter(text)
    assert main(["merge", "--adapter", "no.safetensors", "--out", str(tmp_path / "b")]) == 2
    assert capsys.readouterr().err.startswith("diffadapt merge: no adapter at no.safetensors; expected")


def test_merging_never_writes_into_a_folder_in_use(adapter: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["merge", "--adapter", str(adapter), "--out", str(adapter.parent)]) == 2
    assert "exists already" in capsys.readouterr().err
    assert new_folder(str(adapter.parent / "new")) == adapter.parent / "new"


def test_inspect_says_what_an_adapter_is(adapter: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["inspect", str(adapter)]) == 0
    text = capsys.readouterr().out
    for line in ("method: lora", "  rank: 2", "  alpha: none", "base: somebody/base", "roles: cross_attention.key",
                 "  <biscuit>: cat", "  values: 24", "layers: unet.a.to_k"):  # fmt: skip
        assert line in text.splitlines()


def test_inspect_prints_json(adapter: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["inspect", str(adapter), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["config"] == {"rank": 2, "alpha": None, "dropout": 0.0}
    assert facts["sizes"]["dtypes"] == ["float32"]


def test_inspect_describes_a_run(adapter: Path, capsys: pytest.CaptureFixture[str]):
    (adapter.parent / "run.toml").write_text('base = "embedded"\n[train]\nsteps = 5\n')
    assert main(["inspect", str(adapter.parent), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["state"] == "finished"
    assert facts["settings"]["train"] == {"steps": 5}
    assert facts["adapter"]["method"] == "lora"


def test_inspect_measures_what_a_method_moves(tiny_base, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for method in (LoRA(rank=2), OFT(block_size=4), Token()):
        attachment = attach(tiny_base, method, tokens={"<biscuit>": "cat"} if isinstance(method, Token) else None)
        with torch.no_grad():
            for parameter in attachment.parameters():
                parameter.add_(0.1)
        attachment.save(tmp_path / f"{method.name}.safetensors")
        attachment.detach()
    found = {}
    for asked in ("lora", "lora --strength 0.5", "lora --strength 0", "oft", "token"):
        name, *options = asked.split()
        assert main(["inspect", str(tmp_path / f"{name}.safetensors"), "--json", *options]) == 0
        found[asked] = json.loads(capsys.readouterr().out)["movement"]
    cosines = [found[asked]["all layers"]["cosine_change"] for asked in list(found)[:4]]
    assert cosines[0] > cosines[1] > 100 * cosines[3] and cosines[2] == 0
    assert cosines[0] == max(row["cosine_change"] for role, row in found["lora"].items() if "attention" in role)
    assert found["lora"]["strength"] == 1 and found["token"] == "none; every weight stays the base's own"

    assert main(["inspect", str(tmp_path / "oft.safetensors")]) == 0
    text = capsys.readouterr().out
    assert "movement\n  strength: 1.0\n  all layers: energy " in text and "\n  cross_attention.key: energy " in text


def test_inspect_loads_a_base_from_elsewhere_only_when_it_is_named(
    adapter: Path, tiny_folder: Path, capsys: pytest.CaptureFixture[str]
):
    assert main(["inspect", str(adapter)]) == 0
    assert "movement: not measured; name the base to load for it: --base somebody/base" in capsys.readouterr().out
    assert main(["inspect", str(adapter), "--base", str(tiny_folder)]) == 2
    assert "was trained on base 'somebody/base'" in capsys.readouterr().err
    tensors, header = load_tensors(adapter)
    other = save_tensors(adapter, tensors, header | {"base": str(tiny_folder)})  # a base of that name, but another one
    assert main(["inspect", str(other)]) == 0
    assert "movement: not measured: " in capsys.readouterr().out


def test_inspect_describes_a_foreign_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    file = save_tensors(tmp_path / "x.safetensors", {"lora_unet_a.lora_down.weight": torch.zeros(1)}, {"ss_v": "1"})
    assert main(["inspect", str(file)]) == 0
    assert "note: not an adapter of diffadapt" in capsys.readouterr().out
    file = save_tensors(tmp_path / "c.safetensors", {"x": torch.zeros(1)}, {"format": "diffadapt controlnet"})
    assert main(["inspect", str(file)]) == 0
    assert "note: a ControlNet, which sample takes as an adapter" in capsys.readouterr().out


@pytest.mark.parametrize("content", [b"", b"not safetensors at all", None])
def test_inspect_refuses_what_is_no_safetensors_file(
    tmp_path: Path, content: bytes | None, capsys: pytest.CaptureFixture[str]
):
    file = tmp_path / "x.safetensors"
    if content is not None:
        file.write_bytes(content)
    assert main(["inspect", str(file)]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert str(file) in shown.err
    assert shown.err.count("\n") == 1


def test_inspect_refuses_a_newer_format(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    file = save_tensors(tmp_path / "x.safetensors", {"a.b": torch.zeros(1)}, {**HEADER, "format_version": "2"})
    assert main(["inspect", str(file)]) == 2
    assert "update diffadapt" in capsys.readouterr().err


def test_list_names_methods_and_their_options(capsys: pytest.CaptureFixture[str]):
    assert main(["list"]) == 0
    text = capsys.readouterr().out
    assert "bases:\n  embedded" in text
    assert "  lora" in text
    assert main(["list", "options", "lora"]) == 0
    text = capsys.readouterr().out
    assert "concept.folder = (required)" in text
    assert "method.rank = 4" in text
    assert "train.steps = " in text
    assert main(["list", "options", "token", "--json"]) == 0
    names = [row["name"] for row in json.loads(capsys.readouterr().out)]
    assert "method.vectors" in names
    assert "method.rank" not in names


def test_every_option_says_what_it_is(capsys: pytest.CaptureFixture[str]):
    for method in ("lora", "selective", "token"):
        main(["list", "options", method, "--json"])
        for row in json.loads(capsys.readouterr().out):
            assert row["doc"], row["name"]


def test_an_unknown_list_or_method_names_the_nearest(capsys: pytest.CaptureFixture[str]):
    assert main(["list", "methds"]) == 2
    assert "did you mean methods?" in capsys.readouterr().err
    assert main(["list", "options", "loar"]) == 2
    assert "did you mean lora?" in capsys.readouterr().err


def test_a_prompt_file_is_read_line_by_line_without_comments(tmp_path: Path):
    file = tmp_path / "prompts.txt"
    file.write_bytes(b"\xef\xbb\xbf# comment\n a cat --s 3 \r\n\n\na dog\n")
    assert read_prompts(str(file)) == ["a cat --s 3", "a dog"]


@pytest.mark.parametrize("content", [None, b"", b"# only this\n", b"caf\xe9"])
def test_a_prompt_file_without_prompts_is_refused(tmp_path: Path, content: bytes | None):
    file = tmp_path / "prompts.txt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(Refused, match="prompts.txt"):
        read_prompts(str(file))


@pytest.mark.parametrize(
    "arguments",
    [[], ["a cat", "--batch", "0"], ["a cat", "--adapter", "none.safetensors"], ["a cat", "--out", __file__]],
)
def test_sampling_the_impossible_is_refused_before_a_base_is_loaded(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
):
    assert main(["sample", *arguments, "--base", "no/such-base"]) == 2
    assert "such-base" not in capsys.readouterr().err


def test_pictures_are_numbered_on_and_never_overwritten(tmp_path: Path):
    assert next_number(tmp_path / "none") == 0
    for name in ("0003.png", "0010.PNG", "cat.png", "\u00b2.png", "a-sheet-0090.png"):
        (tmp_path / name).touch()
    assert next_number(tmp_path) == 11
    (tmp_path / "sheet-0011.png").touch()  # its pictures were moved away
    assert next_number(tmp_path) == 12


def test_the_token_comes_from_the_adapter_unless_it_is_ambiguous():
    assert first_token([{}]) is None
    assert first_token([{"<a>": "cat", "<a>_1": "cat"}, {}]) == "<a>"
    with pytest.raises(Refused, match="--token"):
        first_token([{"<a>": "cat"}, {"<b>": "dog"}])


def test_figures_are_printed_beside_the_base():
    row = {"value": 0.51234, "low": 0.4, "high": 0.6, "n": 3, "base": None, "better": "higher"}
    lines = table({"values": {"subject_fidelity": row}, "features": "probe"}).splitlines()
    assert lines[1].split() == ["subject_fidelity", "0.5123", "0.4000", "to", "0.6000", "-", "higher"]
    assert lines[2] == "features: probe"


def test_floor_and_perfect_renderings_stand_beside_the_figures_that_have_them():
    followed = {"value": 0.8, "low": 0.7, "high": 0.9, "base": 0.85, "perfect": 0.95, "better": "higher"}
    drift = {"value": 0.05, "low": 0.04, "high": 0.06, "base": None, "floor": 0.012, "better": "lower"}
    lines = table({"values": {"followed": followed, "drift_features": drift}}).splitlines()
    assert lines[0].split() == ["metric", "value", "95", "%", "interval", "base", "floor", "perfect", "better"]
    assert lines[1].split()[-4:] == ["0.8500", "-", "0.9500", "higher"]
    assert lines[2].split()[-4:] == ["-", "0.0120", "-", "lower"]
