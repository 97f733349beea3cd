"""Sampling and measuring with a control signal: in Python, in prompt lines and on the command line."""

from pathlib import Path

import pytest
import torch
from PIL import Image, ImageChops, ImageDraw

from diffadapt.adapters import Hint, LoRA, attach
from diffadapt.adapters.hint import HintAdapter
from diffadapt.cli.main import main
from diffadapt.data.control_pairs import ControlPairs
from diffadapt.errors import Refused
from diffadapt.evaluation.evaluate_control import evaluate_control
from diffadapt.recipes.control import train_control
from diffadapt.sampling.sample import PromptLine, parse_prompt_line, sample


def signal(seed: int = 0) -> torch.Tensor:
    return torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(seed))


def same(a: Image.Image, b: Image.Image) -> bool:
    return ImageChops.difference(a, b).getbbox() is None


@pytest.fixture
def hint(base):
    attachment = attach(base, Hint(channels=(4, 8, 8)))
    with torch.no_grad():
        for parameter in attachment.parameters():
            parameter += 0.5 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    return attachment


def test_guidance_keeps_the_signal_in_both_branches(base, hint, monkeypatch):
    told: list[torch.Tensor] = []
    receive = HintAdapter.receive

    def listening(self, side):
        told.append(side.control["hint"])
        receive(self, side)

    monkeypatch.setattr(HintAdapter, "receive", listening)
    sample(base, ["a cat", "a dog"], control=[signal(1), signal(2)], guidance=3.0, steps=2)
    assert len(told) == 1 and told[0].shape == (4, 3, 32, 32)
    assert torch.equal(told[0][:2], told[0][2:]) and torch.equal(told[0][1], signal(2))
    sample(base, "a cat", control=signal(1), guidance=1.0, steps=2)
    assert told[1].shape == (1, 3, 32, 32)


def test_the_picture_follows_the_signal_and_strength_zero_is_the_base(base, hint, tmp_path):
    path = hint.save(tmp_path / "hint.safetensors")
    hint.detach()
    plain = sample(base, "a cat", steps=3)[0]
    one, other = (sample(base, "a cat", adapters=[(path, 1.0)], control=signal(i), steps=3)[0] for i in (1, 2))
    assert not same(one, other) and not same(one, plain)
    assert same(sample(base, "a cat", adapters=[(path, 0.0)], control=signal(1), steps=3)[0], plain)


def test_a_signal_may_be_a_file_a_picture_or_a_tensor(base, hint, tmp_path):
    picture = Image.new("RGB", (32, 32), "black")
    ImageDraw.Draw(picture).rectangle((4, 4, 20, 28), fill="white")
    picture.save(tmp_path / "s.png")
    tensor = torch.zeros(3, 32, 32)
    tensor[:, 4:29, 4:21] = 1
    controls = (tmp_path / "s.png", str(tmp_path / "s.png"), picture, tensor)
    pictures = [sample(base, "a cat", control=control, steps=2)[0] for control in controls]
    assert all(same(pictures[0], each) for each in pictures[1:])
    line = parse_prompt_line(f"a cat --cn {tmp_path / 's.png'} --s 2")
    assert line == PromptLine(prompt="a cat", steps=2, control=str(tmp_path / "s.png"))
    assert same(sample(base, line, control=signal())[0], pictures[0])  # a prompt's own signal wins


@pytest.mark.parametrize(
    ("control", "says"),
    [
        (None, r"'a cat' has none; give one: control=\.\.\., --control FILE"),
        (torch.rand(3, 64, 64), "signal given is 64x64, the picture 32x32; resize"),
        (torch.rand(1, 32, 32), r"\(1, 32, 32\).*expected \(3, height, width\)"),
        (torch.full((3, 32, 32), 2.0), r"in \[2, 2\]; expected"),
        ([torch.rand(3, 32, 32)] * 2, "got 2 control signals for 1 prompts"),
        ("nowhere.png", "no picture at nowhere.png"),
    ],
)
def test_a_signal_that_is_missing_or_does_not_fit_is_refused(base, hint, control, says):
    with pytest.raises(Refused, match=says):
        sample(base, "a cat", control=control, steps=2)


def test_a_signal_that_nothing_follows_is_refused(base):
    attach(base, LoRA(rank=1))
    with pytest.raises(Refused, match="nothing attached follows one"):
        sample(base, "a cat", control=signal(), steps=2)


# --- measuring --------------------------------------------------------------------------------------------------------


def pairs_of(count: int, kind: str | None = "canny") -> ControlPairs:
    pictures = torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    signals = torch.stack([signal(i).round() for i in range(count)])
    return ControlPairs.in_memory(pictures, signals, ["a cat"] * count, signal=kind)


def test_consistency_comes_with_intervals_raw_values_and_the_bases_figures(base, hint, tmp_path):
    pytest.importorskip("cv2")
    path = hint.save(tmp_path / "hint.safetensors")
    hint.detach()
    found = evaluate_control(base, pairs_of(3), adapters=[(path, 1.0)], steps=2, out=tmp_path / "pictures")
    row = found["values"]["iou"]
    assert row["low"] <= row["value"] <= row["high"] and row["n"] == 3 and row["better"] == "higher"
    assert row["value"] == pytest.approx(sum(found["items"]["iou"]) / 3)
    assert row["base"] == pytest.approx(sum(found["base_items"]["iou"]) / 3)
    assert found["values"]["fid"]["low"] is None and found["features"] == "probe"
    assert found["protocol"] == {"signal": "canny", "pairs": 3, "seed": 0, "steps": 2, "guidance": None}
    assert len(list((tmp_path / "pictures").glob("*.png"))) == 3 and not base.attachments


def test_of_one_pair_all_is_measured_but_the_frechet_distance(base, hint, tmp_path):
    pytest.importorskip("cv2")
    path = hint.save(tmp_path / "hint.safetensors")
    hint.detach()
    found = evaluate_control(base, pairs_of(1), adapters=[(path, 1.0)], steps=1)["values"]
    assert "fid" not in found and found["iou"]["n"] == 1 and found["iou"]["low"] is None


def test_without_a_known_signal_or_features_only_the_rest_is_measured(base, hint, tmp_path):
    path = hint.save(tmp_path / "hint.safetensors")
    hint.detach()
    settings = {"adapters": [(path, 1.0)], "steps": 1, "compare_base": False}
    assert evaluate_control(base, pairs_of(2, None), **settings)["values"].keys() == {"fid"}
    base.world = None  # as of a base of photographs, from which segmentation is not read
    found = evaluate_control(base, pairs_of(2, "segmentation"), features="probe", **settings)
    assert found["values"].keys() == {"fid"} and found["protocol"]["signal"] is None
    with pytest.raises(Refused, match="nothing would be measured"):
        evaluate_control(base, pairs_of(2, None), features="", **settings)


# --- the command line -------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "photos"
    place.mkdir()
    for i in range(4):
        picture = Image.new("RGB", (32, 32), "blue")
        ImageDraw.Draw(picture).ellipse((4 + i, 4, 24, 24 + i), fill="orange")
        picture.save(place / f"{i}.png")
        (place / f"{i}.txt").write_text("a cat")
    return place


def arguments(base_folder: Path, folder: Path, out: Path, *more: str) -> list[str]:
    return [
        "train", "recipe=control", f"base={base_folder}", f"pairs.folder={folder}", "pairs.signals=canny",
        "pairs.held_out=1", f"out={out}", "train.steps=2", "train.batch_size=1", "train.sample_every=0",
        "train.checkpoint_every=1", *more, "--device=cpu",
    ]  # fmt: skip


def test_trained_resumed_and_sampled_from_the_command_line(tiny_v_folder, folder, tmp_path, capsys):
    pytest.importorskip("cv2")
    out = tmp_path / "run"
    assert main(arguments(tiny_v_folder, folder, out, "method.name=oft", "method.blocks=4")) == 0
    assert (out / "hint.safetensors").is_file() and (out / "cache").is_dir()
    assert main(["train", str(out), "--device=cpu"]) == 0  # run.toml says all that is needed to go on
    assert str(out / "report.html") in capsys.readouterr().out
    signal_file = tmp_path / "edges.png"
    Image.new("RGB", (32, 32)).save(signal_file)
    common = ["--base", str(tiny_v_folder), "--steps", "1", "--device", "cpu", "--out", str(tmp_path / "pictures")]
    assert main(["sample", "a cat", "a dog", "--adapter", f"{out}:0.5", "--control", str(signal_file), *common]) == 0
    assert main(["sample", f"a cat --cn {signal_file}", "--adapter", str(out), *common]) == 0
    assert len(capsys.readouterr().out.split()) == 3
    assert main(["sample", "a cat", "--adapter", str(out), *common]) == 2
    assert "--control FILE" in capsys.readouterr().err
    assert main(["merge", "--base", str(tiny_v_folder), "--adapter", str(out), "--out", str(tmp_path / "m")]) == 2
    assert "only `sample` takes it" in capsys.readouterr().err


def test_a_control_net_is_trained_and_sampled_like_the_rest(tiny_v_folder, folder, tmp_path, capsys):
    pytest.importorskip("cv2")
    out = tmp_path / "run"
    assert main(arguments(tiny_v_folder, folder, out, "method.name=controlnet", "method.blocks=1")) == 0
    assert not (out / "hint.safetensors").exists()
    Image.new("RGB", (32, 32)).save(tmp_path / "edges.png")
    more = ["--control", str(tmp_path / "edges.png"), "--steps", "1", "--device", "cpu", "--out", str(tmp_path / "p")]
    assert main(["sample", "a cat", "--base", str(tiny_v_folder), "--adapter", str(out), *more]) == 0
    assert main(["inspect", str(out / "adapter.safetensors")]) == 0
    assert "diffadapt controlnet" in capsys.readouterr().out


def test_the_recipe_and_its_options_are_listed(capsys):
    assert main(["list"]) == 0
    assert "control signal" in capsys.readouterr().out
    assert main(["list", "options", "controlnet", "control"]) == 0
    told = capsys.readouterr().out
    assert "pairs.signals" in told and "train.hint_learning_rate" in told and "method.blocks" in told
    assert main(["list", "options", "lora", "controll"]) == 2
    assert "did you mean control" in capsys.readouterr().err


def test_in_python_a_folder_and_its_files_are_the_same(base, tmp_path):
    run = train_control(
        base, pairs_of(2), method=LoRA(rank=1), out=tmp_path / "a", quiet=True, steps=2, batch_size=1, sample_every=0,
        learning_rate=0.05,
    )  # fmt: skip
    files = [(run.adapter, 1.0), (run.folder / "hint.safetensors", 1.0)]
    one, other = (
        sample(base, "a cat", adapters=chosen, control=signal(), steps=2)[0] for chosen in ([(run.folder, 1.0)], files)
    )
    assert same(one, other)
    with pytest.raises(Refused, match="no adapter at"):
        sample(base, "a cat", adapters=[(tmp_path, 1.0)], control=signal())
