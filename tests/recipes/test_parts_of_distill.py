"""Distillation before and after the loop: what is written, what `fit` gets, and what is compared in the end."""

import copy
import time
from dataclasses import asdict

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image

from diffadapt.adapters import LoRA
from diffadapt.config import dump_toml
from diffadapt.data.cache import TensorCache, content_key
from diffadapt.data.captioned import load_captioned
from diffadapt.errors import Refused
from diffadapt.recipes import distill
from diffadapt.recipes.distill import DistillConfig, TaughtPictures, pair_up, train_distill
from diffadapt.training.run import Run

CONFIG = DistillConfig(
    steps=3, batch_size=2, sample_every=1, caption_dropout=0.25, gradient_accumulation=2, snr_gamma=0.5,
    learning_rate=0.01, teacher_pictures=2, evaluation_pictures=5, roles=("cross_attention.key",),
)  # fmt: skip
CAPTIONS, TAUGHT = ["a cat", "a dog"], ["eine katze", "ein hund"]
FOLLOWED = (
    "say", "attach", "start_from", "open_run", "CaptionedPictures", "TaughtPictures", "Batches",
    "Texts", "Distillation", "release", "ProgressSamples", "_bank", "refuse_another_space",
)  # fmt: skip


@pytest.fixture
def given(tmp_path):
    """Two pictures under the student's captions."""
    (tmp_path / "given").mkdir()
    for i, caption in enumerate(CAPTIONS):
        Image.new("RGB", (32, 32), (90 * i, 9, 9)).save(tmp_path / "given" / f"{i}.png")
        (tmp_path / "given" / f"{i}.txt").write_text(caption)
    return load_captioned(tmp_path / "given")


@pytest.fixture
def learn(base, tmp_path, follow, trained):
    """Trains with a stand-in for the loop and for what follows; returns all calls, and the run."""

    def learn(teachers=("ink", "oil"), config=CONFIG, pictures=None, source=None, **replaced):
        replaced = {
            "evaluate_distillation": {"values": 1}, "finish": lambda given: Run(given["folder"], given["facts"]),
            **replaced,
        }  # fmt: skip
        calls = follow(distill, *FOLLOWED, fit=trained, **replaced)
        calls["run"] = train_distill(
            base, dict.fromkeys(teachers, base), CAPTIONS, method=LoRA(rank=1), out=tmp_path / "runs" / "a",
            teacher_captions=TAUGHT, pictures=pictures, source=source, seed=3, config=config, watch=print, quiet=True,
        )  # fmt: skip
        return calls

    return learn


@pytest.mark.parametrize("source", [None, {"folder": "teacher"}])
def test_a_distillation_writes_its_header_before_anything_is_learned(base, learn, given, tmp_path, source):
    pictures = given if source else None
    calls, out = learn(pictures=pictures, source=source), tmp_path / "runs" / "a"
    settings = {"seed": 3, "method": {"name": "lora", **asdict(LoRA(rank=1))}, "train": CONFIG}
    identity = {
        "teachers": dict.fromkeys(("ink", "oil"), base.fingerprint),
        "captions": content_key("a cat\neine katze", "a dog\nein hund"), "pictures": given.identity() if source else "",
    }  # fmt: skip
    identity["teachers_predict"] = "v_prediction, v_prediction"
    of_base = {"base": base.fingerprint, "prediction_type": base.prediction_type, "base_config": ""}
    assert (out / "settings.toml").read_text() == dump_toml({**of_base, **settings, "distill": identity})
    job = {"recipe": "distill", "base": base.name, "out": str(out), **settings}
    job |= {"distill": source} if source else {}
    assert (out / "run.toml").read_text().startswith(dump_toml(job) + "\n")
    assert source or "[distill]" not in (out / "run.toml").read_text()
    assert calls["fit"][0]["settings"] == dump_toml(settings)
    assert all(each["quiet"] is True for each in calls["say"])
    assert [each["text"] for each in calls["say"]] == [
        f"sampling 2 pictures of the teacher into {out / 'teachers' / name}" for name in ("ink", "oil")
    ]


def test_a_distillation_hands_its_settings_to_attachment_sources_objective_and_loop(base, learn, given, tmp_path):
    calls, out = learn(pictures=given), tmp_path / "runs" / "a"
    [attached], [fit], [objective] = calls["attach"], calls["fit"], calls["Distillation"]
    assert attached == {
        "base": base, "method": LoRA(rank=1), "roles": ["cross_attention.key"], "tokens": None, "classes": (),
        "seed": 3,
    }  # fmt: skip
    attachment = fit["attachments"]["adapter"]
    assert calls["start_from"] == [{"attachments": {"adapter": attachment}, "place": ""}]
    assert [(each["base"], each["name"], each["teacher"]) for each in calls["refuse_another_space"]] == [
        (base, "ink", base), (base, "oil", base),
    ]  # fmt: skip
    for name, bank, taught in zip(("ink", "oil"), calls["_bank"], calls["TaughtPictures"], strict=True):
        assert bank == {
            "teacher": base, "folder": out / "teachers" / name, "prompts": TAUGHT, "config": CONFIG, "quiet": True,
            "accelerator": fit["accelerator"],
        }  # fmt: skip
        assert taught["base"] is base and taught["captions"] == CAPTIONS and taught["dropout"] == 0.25
        assert taught["bank"].prompts == TAUGHT and taught["cache"].folder == out / "cache"
    for each in calls["CaptionedPictures"]:
        assert each.pop("cache") is calls["TaughtPictures"][0]["cache"]
        assert each == {
            "base": base, "pictures": {"": given}, "resolution": 32, "caption_dropout": 0.25, "seed": 3, "process": 0,
        }  # fmt: skip
    names = ["ink", "ink, given pictures", "oil", "oil, given pictures"]
    assert list(objective["teachers"]) == names and objective["snr_gamma"] == 0.5
    assert objective["schedule"].prediction_type == "v_prediction"
    assert objective["teachers"]["ink"] is objective["teachers"]["ink, given pictures"]
    [batches] = calls["Batches"]
    assert batches["base"] is base and batches["objective"] is fit["objective"] and list(batches["sources"]) == names
    assert (batches["batch_size"], batches["parts"], batches["seed"], batches["process"]) == (2, 2, 3, 0)
    assert calls["Texts"][0]["base"] is base and set(calls["Texts"][0]["captions"]) == {"a cat", "a dog", ""}
    assert batches["texts"]._kept is not None
    [samples] = calls["ProgressSamples"]
    assert samples["prompts"] == samples["base_prompts"] == CAPTIONS and samples["seed"] == 3
    assert samples["base"] is base and samples["folder"] == out
    [group] = fit["groups"]
    assert group["peak"] == 0.01 and [*map(id, group["params"])] == [*map(id, attachment.parameters())]
    assert (fit["folder"], fit["seed"], fit["watch"], fit["quiet"], fit["config"]) == (out, 3, print, True, CONFIG)
    assert fit["base"] is base and fit["batches"].objective is fit["objective"] and fit["samples"].seed == 3
    assert fit["log_as"] == {"ink": "loss_ink", "oil": "loss_oil"} and fit["accelerator"].is_main_process
    assert calls["release"] == [{"base": base, "attachments": [attachment]}] and not base.attachments


def test_after_the_loop_a_distillation_is_finished_and_compared(base, learn, tmp_path):
    out, before = tmp_path / "runs" / "a", time.time()
    calls = learn(["ink"])
    [end] = calls["finish"]
    assert end["folder"] == out and end["samples"] is calls["fit"][0]["samples"] and end["quiet"] is True
    assert end["facts"] == {"trainable_parameters": 3, "resumed_at": 0} and calls["fit"][0]["log_as"] is None
    assert before <= end["started"] <= time.time() and calls["run"].folder == out
    assert not calls["evaluate_distillation"] and end["measure"]() == {"values": 1}
    assert calls["evaluate_distillation"] == [{
        "base": base, "teachers": {"ink": base}, "as_taught": dict(zip(CAPTIONS, TAUGHT, strict=True)),
        "adapters": [(out / "adapter.safetensors", 1.0)], "most": 5, "seed": 3, "features": "",
        "out": out / "compared", "quiet": True,
    }]  # fmt: skip


def test_nothing_is_sampled_or_compared_where_that_is_off(learn):
    off = {"sample_every": 0, "evaluation_pictures": 0, "roles": ()}
    calls = learn(config=DistillConfig(**{**vars(CONFIG), **off}))
    assert calls["finish"][0]["measure"] is None and calls["finish"][0]["samples"] is None
    assert calls["fit"][0]["samples"] is None and calls["attach"][0]["roles"] is None


def test_a_second_process_distils_and_writes_nothing(learn, tmp_path, second_process, given):
    calls, out = learn(pictures=given, make_accelerator=second_process), tmp_path / "runs" / "a"
    assert second_process.waited == len(["ink", "oil", "the end"]) and calls["run"] == Run(out) and not calls["finish"]
    assert not (out / "settings.toml").exists() and not (out / "cache").exists()
    assert calls["fit"][0]["samples"] is None and calls["fit"][0]["quiet"] is True
    assert calls["CaptionedPictures"][0]["process"] == 1 == calls["Batches"][0]["process"]


def test_the_teacher_is_asked_in_its_own_words(base):
    asked = distill.teacher_of(base, {"x": "a cat"})
    assert torch.equal(asked.condition(["x", ""]).token_ids, base.condition(["a cat", ""]).token_ids)
    assert asked.denoise == base.denoise and asked.schedule.prediction_type == base.prediction_type


def test_captions_pair_up_one_to_one():
    assert pair_up(["a", "b", "a"], ["x", "y", "x"]) == {"a": "x", "b": "y"} and pair_up(["a"], None) == {"a": "a"}
    for own, other, words in (([], None, "got 0 captions"), (["a"], ["x", "y"], "and 2 for the teacher"),
                              (["a"], [], "and 0 for"), (["a", "a"], ["x", "y"], "two counterparts")):  # fmt: skip
        with pytest.raises(Refused, match=words):
            pair_up(own, other)


def test_a_teacher_of_other_latents_is_refused(base, follow):
    other = copy.deepcopy(base)
    distill.refuse_another_space(base, "ink", other)
    with torch.no_grad():
        next(other.vae.parameters()).add_(1)
    with pytest.raises(Refused, match="another VAE"):
        distill.refuse_another_space(base, "ink", other)
    other = copy.deepcopy(base)
    other.vae.register_to_config(scaling_factor=0.5)
    with pytest.raises(Refused, match="another VAE"):
        distill.refuse_another_space(base, "ink", other)


def test_a_given_picture_without_its_pair_is_refused(given):
    distill._refuse_unpaired(given, {"a cat": "x", "a dog": "y"})
    with pytest.raises(Refused, match=r"caption of 1.png, 'a dog'"):
        distill._refuse_unpaired(given, {"a cat": "x"})


def test_a_teacher_s_pictures_start_from_their_numbers(base, tmp_path, follow):
    calls = follow(distill, "default_line", "generate", "BankSettings", "say")
    bank = distill._bank(
        base, tmp_path / "bank", ["x", "y"], DistillConfig(teacher_pictures=3), Accelerator(cpu=True), True
    )
    lines = [(each["base"], each["prompt"], each["seed"]) for each in calls["default_line"]]
    assert lines == [(base, "x", 0), (base, "y", 1), (base, "x", 2)] and len(calls["say"]) == 1
    assert [(each["base"], each["batch"]) for each in calls["generate"]] == [(base, 3)]
    [settings] = calls["BankSettings"]
    assert settings["base_fingerprint"] == base.drawing_fingerprint and settings["resolution"] == 32
    assert (settings["guidance"], settings["steps"]) == (base.default_guidance, base.default_steps)
    distill._bank(base, tmp_path / "bank", ["x", "y"], DistillConfig(teacher_pictures=3), Accelerator(cpu=True), True)
    assert len(calls["say"]) == 1  # nothing is missing
    source = TaughtPictures(base, bank, ["a cat", "a dog"], dropout=0.5, cache=TensorCache(None))
    assert source.base is base and source.bank is bank and source.dropout == 0.5 and source.cache.folder is None
    rows = source.pick(np.random.default_rng(0), 400, 0)
    assert 120 < sum(caption == "" for _, caption in rows) < 280


def test_a_teacher_s_pictures_are_sampled_by_the_first_process_alone(base, tmp_path, follow):
    calls, settings = follow(distill, "generate"), DistillConfig(teacher_pictures=3)

    class Waiting:
        is_main_process, waited = False, 0

        def wait_for_everyone(self) -> None:
            self.waited += 1
            distill._bank(base, tmp_path / "bank", ["x"], settings, Accelerator(cpu=True), True)

    process = Waiting()
    bank = distill._bank(base, tmp_path / "bank", ["x"], settings, process, True)
    assert process.waited == 1 and len(bank) == 3 and len(calls["generate"]) == 1
