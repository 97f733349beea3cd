"""The distillation recipe: teachers of one or two text encoders, one or several, and what is refused."""

import json
import shutil

import pytest
import torch
from PIL import Image

from diffadapt.adapters import LoRA, Selective, StyleInject, attach, load_adapter
from diffadapt.bases import load_base
from diffadapt.data.captioned import load_captioned
from diffadapt.errors import Refused
from diffadapt.evaluation.evaluate_distillation import evaluate_distillation
from diffadapt.files import load_tensors
from diffadapt.recipes.distill import pair_up, train_distill
from diffadapt.recipes.job import read_job

FEW = {
    "steps": 2, "batch_size": 2, "sample_every": 0, "checkpoint_every": 1, "evaluation_pictures": 0,
    "teacher_pictures": 3, "quiet": True,
}  # fmt: skip
CAPTIONS = ["a cat", "a dog", "a red apple"]


@pytest.fixture
def teacher(tiny_v_folder):
    """A sibling of `tiny_v_base` whose UNet was moved."""
    base = load_base(tiny_v_folder, device="cpu")
    base.default_steps = 1
    with torch.no_grad():
        for i, parameter in enumerate(base.denoiser.parameters()):
            parameter += 0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i))
    return base


@pytest.fixture
def student(tiny_v_base):
    tiny_v_base.default_steps = 1
    return tiny_v_base


def test_a_run_measures_and_resumes_to_the_same_bits(student, teacher, tmp_path):
    settings = {**FEW, "method": StyleInject(rank=2), "steps": 3, "caption_dropout": 0.5, "evaluation_pictures": 2}
    run = train_distill(student, {"ink": teacher}, CAPTIONS, out=tmp_path / "whole", **settings)
    measured = {"style_distance", "text_alignment", "loss_teacher", "loss_own"}
    assert set(run.metrics["values"]) == measured and run.report.is_file()
    told = run.metrics["held_out_loss"]["teacher"]
    by_level = [after - before for after, before in zip(told["adapted"], told["base"], strict=True)]
    assert sum(by_level) / 5 == pytest.approx(run.metrics["values"]["loss_teacher"]["value"], abs=1e-6)
    assert (run.folder / "compared" / "01-ink.png").is_file() and not student.attachments

    def stop(step: int, loss: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_distill(student, {"ink": teacher}, CAPTIONS, out=tmp_path / "stopped", watch=stop, **settings)
    resumed = train_distill(student, {"ink": teacher}, CAPTIONS, out=tmp_path / "stopped", **settings)
    one, other = (load_tensors(each.adapter)[0] for each in (run, resumed))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_the_comparison_with_teachers_counts_every_picture(student, teacher, capsys):
    taught = {"a cat": "a cat", "a dog": "a dog"}
    evaluate_distillation(student, {"ink": teacher, "oil": teacher}, taught, adapters=[], quiet=False)
    assert capsys.readouterr().err.splitlines()[-1].startswith("compare 8/8")  # base, student and two teachers


def test_training_brings_the_students_predictions_to_the_teachers(student, teacher, tmp_path):
    run = train_distill(
        student, {"ink": teacher}, CAPTIONS, method=Selective(), out=tmp_path / "a", **FEW | {"steps": 24},
        learning_rate=1e-3, warmup=0, caption_dropout=0.0,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    noisy = torch.randn(8, 4, 8, 8, generator=generator)
    timesteps, prompts = torch.randint(0, 1000, (8,), generator=generator), (CAPTIONS * 3)[:8]

    def distance() -> float:
        with torch.no_grad():
            target = teacher.denoise(noisy, timesteps, teacher.condition(prompts))
            return (student.denoise(noisy, timesteps, student.condition(prompts)) - target).square().mean().item()

    before = distance()
    attachment = load_adapter(student, run.adapter)
    assert distance() < 0.7 * before
    attachment.detach()


def test_a_teacher_with_another_text_encoder_is_given_each_caption_in_its_own_words(student, teacher, tmp_path):
    with torch.no_grad():
        for parameter in teacher.text_encoder.parameters():
            parameter.mul_(1.1)
    heard = []
    condition = teacher.condition
    teacher.condition = lambda prompts: heard.extend(prompts) or condition(prompts)
    theirs = [caption[::-1] for caption in CAPTIONS]
    train_distill(
        student, {"ink": teacher}, CAPTIONS, teacher_captions=theirs, method=LoRA(rank=1), out=tmp_path / "a", **FEW,
        caption_dropout=0.0,
    )  # fmt: skip
    assert set(heard) - {""} == set(theirs)  # "" is guidance's, when the teacher makes pictures


def test_several_teachers_and_given_pictures_go_into_one_adapter(student, teacher, tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i, caption in enumerate(CAPTIONS):
        Image.new("RGB", (32, 32), (40 * i, 90, 200)).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(caption)
    run = train_distill(
        student, {"ink": teacher, "same": teacher}, CAPTIONS, pictures=load_captioned(folder), method=LoRA(rank=1),
        out=tmp_path / "a", **FEW | {"batch_size": 4, "evaluation_pictures": 2},
    )  # fmt: skip
    rows = [json.loads(line) for line in (run.folder / "log.jsonl").read_text().splitlines()]
    assert all({"loss_ink", "loss_same"} <= set(row) for row in rows)
    assert {"style_distance (ink)", "style_distance (same)"} <= set(run.metrics["values"])
    Image.new("RGB", (32, 32), (7, 7, 7)).save(folder / "1.png")
    with pytest.raises(Refused, match="other settings"):
        train_distill(
            student, {"ink": teacher, "same": teacher}, CAPTIONS, pictures=load_captioned(folder),
            method=LoRA(rank=1), out=tmp_path / "a", **FEW | {"batch_size": 4, "evaluation_pictures": 2},
        )  # fmt: skip
    (folder / "0.txt").write_text("a dog on a blue background")
    with pytest.raises(Refused, match=r"0\.png, 'a dog on a blue background', is not among the captions"):
        train_distill(
            student, {"ink": teacher}, CAPTIONS, pictures=load_captioned(folder), method=LoRA(rank=1),
            out=tmp_path / "b", **FEW,
        )  # fmt: skip


def test_a_job_file_says_it_all(tiny_v_folder, teacher, tmp_path):
    teacher.save(tmp_path / "ink")
    (tmp_path / "captions.txt").write_text("\n".join(CAPTIONS))
    table = {"folder": str(tmp_path / "ink"), "captions": str(tmp_path / "captions.txt")}
    top = {"recipe": "distill", "base": str(tiny_v_folder), "out": str(tmp_path / "run")}
    train = {key: value for key, value in FEW.items() if key != "quiet"} | {"steps": 1, "teacher_pictures": 1}
    run = read_job({**top, "distill": table, "train": train}).run("cpu")
    assert (run.folder / "adapter.safetensors").is_file()
    (tmp_path / "captions.txt").unlink()
    with pytest.raises(Refused, match=r"cannot read .*captions\.txt"):
        read_job({**top, "distill": table, "train": train}).run("cpu")


# --- what is refused --------------------------------------------------------------------------------------------------


def test_captions_that_do_not_pair_up_are_refused():
    assert pair_up(["a", "b"], ["x", "y"]) == {"a": "x", "b": "y"} and pair_up(["a"], None) == {"a": "a"}
    with pytest.raises(Refused, match="got 2 captions for the student and 1 for the teacher; pass one for each"):
        pair_up(["a", "b"], ["x"])
    with pytest.raises(Refused, match="'a' has two counterparts"):
        pair_up(["a", "a"], ["x", "y"])


def test_a_teacher_of_another_vae_or_resolution_is_refused(student, teacher, tiny_base, tiny_v_folder, tmp_path):
    def distil(other) -> None:
        train_distill(student, {"ink": other}, CAPTIONS, method=LoRA(rank=1), out=tmp_path / "a", **FEW)

    with pytest.raises(Refused, match="'ink' has another VAE"):
        distil(tiny_base)
    shutil.copytree(tiny_v_folder, tmp_path / "larger")
    config = json.loads((tmp_path / "larger" / "unet" / "config.json").read_text())
    (tmp_path / "larger" / "unet" / "config.json").write_text(json.dumps({**config, "sample_size": 16}))
    with pytest.raises(Refused, match="works at 64 pixels, the student at 32"):
        distil(load_base(tmp_path / "larger", device="cpu"))
    assert not student.attachments and not (tmp_path / "a").exists()


def test_the_teacher_is_left_as_it_was(student, teacher, tmp_path):
    before = {name: value.clone() for name, value in teacher.denoiser.state_dict().items()}
    attachment = attach(teacher, LoRA(rank=1))
    attachment.detach()
    train_distill(student, {"ink": teacher}, CAPTIONS, method=LoRA(rank=1), out=tmp_path / "a", **FEW)
    assert all(torch.equal(before[name], value) for name, value in teacher.denoiser.state_dict().items())
    assert all(parameter.grad is None for parameter in teacher.denoiser.parameters())
