"""`method.name=X` alone is trained as X should be, on each kind of base; what is said wins."""

import json
import shutil
from dataclasses import fields
from pathlib import Path

import pytest
import torch

from diffadapt.adapters import OFT, LoRA, Selective, Token, attach
from diffadapt.bases import load_base
from diffadapt.config import dump_toml, read_toml
from diffadapt.data.concept import load_concept
from diffadapt.errors import Refused
from diffadapt.files import load_tensors
from diffadapt.recipes.control import train_control
from diffadapt.recipes.distill import train_distill
from diffadapt.recipes.job import base_precision, read_job
from diffadapt.recipes.own_settings import PRESETS, own_config, own_options, own_settings
from diffadapt.recipes.picture_count import count_pictures, in_words
from diffadapt.recipes.sequence import train_sequence
from diffadapt.recipes.style import train_style
from diffadapt.recipes.subject import SubjectConfig, train_subject
from diffadapt.training.learner import draws_as_it_trains

CONFIGS = Path(__file__).parents[2] / "configs"


def job(method, **more):
    return read_job({"concept": {"folder": "x", "noun": "cat"}, "method": {"name": method}, **more})


@pytest.mark.parametrize("base", ["embedded", "stable-diffusion-v1-5/stable-diffusion-v1-5"])
@pytest.mark.parametrize("method", ["lora", "oft", "selective", "perfusion", "token", "c_lora"])
def test_a_method_s_name_brings_its_own_settings_and_what_is_said_wins(base, method):
    own = own_settings(base, method)
    assert own.keys() <= {field.name for field in fields(SubjectConfig)}
    assert job(method, base=base).train == own_config(base, method)
    told = job(method, base=base, train={"steps": 7, "learning_rate": 0.5}).train
    assert (told.steps, told.learning_rate) == (7, 0.5)
    assert told.schedule == own_config(base, method).schedule


@pytest.mark.parametrize("method", ["lora", "oft"])
def test_on_the_embedded_base_a_method_alone_trains_the_layers_that_its_keep_does(method):
    alone = own_config("embedded", method)
    assert alone.roles == own_config("embedded", method, "keep").roles and "residual.conv" in alone.roles
    assert (alone.steps, alone.learning_rate) == (300, 2e-3)  # as docs/presets.md has them
    assert own_config("sd15", method).roles == SubjectConfig().roles


def test_a_copied_and_a_merged_embedded_base_keep_its_settings(tmp_path):
    from diffadapt.bases.load import EMBEDDED

    copied, merged = tmp_path / "copied", tmp_path / "merged"
    copied.mkdir()
    shutil.copy(EMBEDDED / "base.json", copied)  # all of the folder that is looked at
    base = load_base("embedded", device="cpu")
    attach(base, LoRA(rank=1), ["cross_attention.query"]).merge_()
    base.save(merged)
    again = load_base(merged, device="cpu").save(tmp_path / "saved under another name")
    for folder in (copied, merged, again):
        for method in ("lora", "oft", "perfusion"):
            assert job(method, base=str(folder)).train == job(method, base="embedded").train != own_config("x", method)
        preset = {"preset": "quick"}
        assert job("lora", base=str(folder), train=preset).train == job("lora", train=preset).train


def test_a_folder_without_a_small_world_has_the_settings_of_stable_diffusion(tiny_folder):
    assert job("lora", base=str(tiny_folder)).train == own_config("sd15", "lora")


def test_the_rates_that_ruined_a_method_are_not_taken_from_lora():
    assert (job("perfusion").train.learning_rate, job("perfusion").train.schedule) == (0.03, "constant")
    assert job("selective").train.learning_rate == 2e-4
    photos = {name: job(name, base="sd15.safetensors").train for name in ("lora", "oft", "selective")}
    assert {name: config.learning_rate for name, config in photos.items()} == {
        "lora": 1e-4, "oft": 6e-5, "selective": 5e-6,
    }  # fmt: skip
    assert all(config.batch_size == 1 and config.gradient_checkpointing for config in photos.values())


@pytest.mark.parametrize(
    ("file", "base", "method"),
    [
        ("embedded-subject-full", "embedded", "selective"),
        ("embedded-subject-token", "embedded", "token"),
        ("embedded-subject-perfusion", "embedded", "perfusion"),
        ("sd15-subject-lora", "sd15", "lora"),
        ("sd15-subject-oft", "sd15", "oft"),
        ("sd15-subject-perfusion", "sd15", "perfusion"),
    ],
)
def test_the_settings_agree_with_the_configs(file, base, method):
    told = read_toml(CONFIGS / f"{file}.toml")["train"]
    for name, value in own_settings(base, method).items():
        if name in told and name != "steps":
            assert told[name] == value, name


@pytest.mark.parametrize(
    ("method", "mixed", "device", "expected"),
    [
        (LoRA(), "bf16", "cuda", "bfloat16"),
        (LoRA(), "fp16", "cuda:1", "float16"),
        (LoRA(), "no", "cuda", None),
        (LoRA(), "bf16", "cpu", None),
        (Selective(), "bf16", "cuda", None),
    ],
)
def test_a_frozen_base_is_loaded_in_the_precision_that_is_computed_in(method, mixed, device, expected):
    assert base_precision(method, mixed, device) == expected


@pytest.mark.parametrize("method", [LoRA(rank=2), OFT(block_size=8), Token()], ids=lambda method: method.name)
def test_training_on_a_base_in_bfloat16_learns_the_same_within_its_rounding(base, photos, tmp_path, method):
    settings = {"method": method, "steps": 3, "batch_size": 2, "prior_weight": 0, "warmup": 0, "sample_every": 0}
    settings |= {"evaluation_prompts": 0, "quiet": True, "mixed_precision": "bf16"}
    concept, losses = load_concept(photos, "cat"), {}
    for dtype in (torch.float32, torch.bfloat16):
        base.pipeline.to(dtype)
        run = train_subject(base, concept, out=tmp_path / str(dtype), **settings)
        rows = [json.loads(line) for line in (run.folder / "log.jsonl").read_text().splitlines()]
        losses[dtype] = [row["loss"] for row in rows]
        assert all(tensor.dtype == torch.float32 for tensor in load_tensors(run.adapter)[0].values())
    assert losses[torch.bfloat16] == pytest.approx(losses[torch.float32], rel=0.05)


@pytest.mark.parametrize("mixed", ["no", "bf16"])
def test_a_run_draws_and_measures_in_the_precision_that_it_trains_in(tiny_v_base, photos, tmp_path, mixed):
    tiny_v_base.default_steps, rounded, kept = 1, {}, set()

    def note(module, *_):
        at_work = "training" if torch.is_grad_enabled() else "drawing"
        rounded.setdefault(at_work, set()).add(torch.is_autocast_enabled("cpu"))
        kept.add((at_work, torch.is_autocast_cache_enabled()))

    hook = tiny_v_base.denoiser.register_forward_pre_hook(note)
    run = train_subject(
        tiny_v_base, load_concept(photos, "cat"), method=Selective(), out=tmp_path / "run", mixed_precision=mixed,
        steps=1, batch_size=1, warmup=0, prior_pictures=2, sample_every=1, evaluation_prompts=1, quiet=True,
    )  # fmt: skip
    hook.remove()
    assert run.metrics["values"] and rounded == {"training": {mixed == "bf16"}, "drawing": {mixed == "bf16"}}
    assert tiny_v_base.draws_in is None
    assert (("drawing", True) in kept) == (mixed == "no")  # a cast copy of all weights is not kept beside them


def test_every_recipe_that_draws_does_so_in_its_precision(tiny_base):
    draws = draws_as_it_trains(lambda base, **_: base.draws_in)
    in_half = SubjectConfig(mixed_precision="bf16")
    assert draws(tiny_base, config=in_half) is draws(tiny_base, mixed_precision="bf16") is torch.bfloat16
    assert draws(tiny_base, config=in_half, mixed_precision="no") is draws(tiny_base) is None
    for train in (train_subject, train_control, train_style, train_sequence, train_distill):
        assert train.__code__ is draws.__code__, train.__name__


def test_an_ordinary_run_on_a_photo_base_makes_fewer_pictures_than_steps(tmp_path):
    from PIL import Image

    for i in range(3):
        Image.new("RGB", (64, 64), (60 * i, 9, 9)).save(tmp_path / f"{i}.png")
    config = read_toml(CONFIGS / "sd15-subject-lora.toml")
    counts = count_pictures(load_concept(tmp_path, "cat"), read_job(config).train)
    assert counts == {
        "the class, for prior preservation": 100, "the base and the way": 18, "strengths": 24, "evaluation": 107,
    }  # fmt: skip
    assert in_words(counts).startswith("249: 100 for the class, for prior preservation, 18 for")


@pytest.mark.parametrize("base", ["embedded", "sd15.safetensors"])
@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("method", ["lora", "oft", "selective", "perfusion", "token"])
def test_a_preset_sets_training_and_method_and_what_is_said_wins(base, preset, method):
    read = job(method, base=base, train={"preset": preset})
    assert read.preset == preset and read.train == own_config(base, method, preset)
    for name, value in own_options(base, method, preset).items():
        assert getattr(read.method, name) == value
    assert job(method, base=base, train={"preset": preset, "steps": 7}).train.steps == 7


def test_presets_do_what_their_names_say():
    lora = {preset: job("lora", train={"preset": preset}) for preset in ("", *PRESETS)}
    assert lora["quick"].train.steps < lora[""].train.steps
    assert lora["small"].method.rank < lora[""].method.rank < lora["likeness"].method.rank
    assert lora["keep"].train.learning_rate < lora[""].train.learning_rate
    assert lora["likeness"].train.roles != () and lora[""].preset == ""


def test_a_preset_is_printed_with_all_that_it_sets_and_that_is_trained_the_same(tmp_path):
    table = job("oft", train={"preset": "small", "steps": 9}).table()
    assert list(table["train"])[0] == "preset" and table["train"]["preset"] == "small"
    (tmp_path / "run.toml").write_text(dump_toml(table), encoding="utf-8")
    assert read_job(read_toml(tmp_path / "run.toml")).table() == table
    assert "preset" not in job("oft").table()["train"]


def test_presets_that_are_not_there_are_refused():
    with pytest.raises(Refused, match="train.preset: expected quick or likeness or keep or small, got 'best'"):
        job("lora", train={"preset": "best"})
    with pytest.raises(Refused, match="there is no 'keep' for c_lora; there are presets for lora, oft, selective"):
        job("c_lora", train={"preset": "keep"})
    with pytest.raises(Refused, match="is for recipe = subject, got it with recipe = style"):
        read_job({"recipe": "style", "style": {"folder": "x"}, "train": {"preset": "keep"}})
    with pytest.raises(Refused, match="unknown option train.presset; did you mean train.preset"):
        job("lora", train={"presset": "keep"})
