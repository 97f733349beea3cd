"""Control before and after the loop: what is written, what `fit` gets, and what is measured in the end."""

import json
import time
from dataclasses import asdict

import pytest
import torch
from PIL import Image

from diffadapt.adapters import LoRA
from diffadapt.config import dump_toml
from diffadapt.controls import SIGNALS
from diffadapt.data.control_pairs import ControlPairs, load_control_pairs
from diffadapt.recipes import control
from diffadapt.recipes.control import ControlConfig, train_control
from diffadapt.training.run import Run

CONFIG = ControlConfig(
    steps=3, batch_size=2, sample_every=1, caption_dropout=0.25, gradient_accumulation=2, snr_gamma=0.5,
    learning_rate=0.01, hint_learning_rate=0.07, sample_pairs=2, evaluation_pairs=3, roles=("cross_attention.key",),
)  # fmt: skip
FOLLOWED = (
    "say", "attach", "start_from", "open_run", "write_pictures", "PairPictures", "Batches",
    "Texts", "Denoising", "retained", "premise_of", "release", "ControlSamples",
)  # fmt: skip


def made_up(seed: int, count: int, signal: str | None = "canny") -> ControlPairs:
    generator = torch.Generator().manual_seed(seed)
    pictures, signals = (torch.rand(count, 3, 32, 32, generator=generator) for _ in range(2))
    return ControlPairs.in_memory(pictures, signals, [f"a cat {seed}{i}" for i in range(count)], signal=signal)


@pytest.fixture
def learn(base, tmp_path, follow, trained):
    """Trains with a stand-in for the loop and for what follows; returns all calls, and the run."""

    def learn(pairs, held_out=None, config=CONFIG, **replaced):
        replaced = {
            "evaluate_control": {"values": 1}, "finish": lambda given: Run(given["folder"], given["facts"]), **replaced,
        }  # fmt: skip
        calls = follow(control, *FOLLOWED, fit=trained, **replaced)
        calls["run"] = train_control(
            base, pairs, method=LoRA(rank=1), out=tmp_path / "runs" / "a", held_out=held_out, seed=3, config=config,
            watch=print, quiet=True,
        )  # fmt: skip
        return calls

    return learn


def test_control_writes_its_header_before_anything_is_learned(base, learn, tmp_path):
    pairs, held_out, out = made_up(1, 4), made_up(2, 8), tmp_path / "runs" / "a"
    pairs.notes.append("a note")
    calls = learn(pairs, held_out)
    settings = {"seed": 3, "method": {"name": "lora", **asdict(LoRA(rank=1))}, "train": CONFIG}
    identities = {"identity": pairs.identity(), "held_out": held_out.identity()}
    of_base = {"base": base.fingerprint, "prediction_type": base.prediction_type, "base_config": ""}
    head = {**of_base, **settings, "pairs": identities}
    assert (out / "settings.toml").read_text() == dump_toml(head)
    table = {**pairs.source, "held_out": 8}
    job = {"recipe": "control", "base": base.name, **base.given, "out": str(out), **settings, "pairs": table}
    assert (out / "run.toml").read_text().startswith(dump_toml(job) + "\n")
    assert calls["fit"][0]["settings"] == dump_toml(settings)
    assert [(each["text"], each["quiet"]) for each in calls["say"]] == [("note: a note", True)]
    [shown] = calls["write_pictures"]
    first = held_out.first(6)
    pictures, signals = first.read(range(6), 32)
    assert shown["folder"] == out and torch.equal(shown["pictures"], torch.cat([pictures, signals], 3))
    assert shown["table"] == [{"file": each.name, "caption": each.caption} for each in first.pairs]


def test_control_hands_its_settings_to_attachments_source_objective_and_loop(base, learn, tmp_path):
    on, kept = [], control.retained

    def retained(given):
        on.append([each.enabled for each in base.attachments])
        return kept(**given)

    pairs, held_out, out = made_up(1, 4), made_up(2, 8), tmp_path / "runs" / "a"
    calls = learn(pairs, held_out, retained=retained, premise_of={"premise": 1})
    (adapter, hint), [fit], [asked] = calls["attach"], calls["fit"], calls["retained"]
    assert adapter == {
        "base": base, "method": LoRA(rank=1), "roles": ["cross_attention.key"], "tokens": None, "classes": (),
        "seed": 3,
    }  # fmt: skip
    assert hint["base"] is base and hint["method"].name == "hint" and hint["roles"] is None and hint["seed"] == 3
    assert calls["start_from"] == [{"attachments": fit["attachments"], "place": ""}]
    [source] = calls["PairPictures"]
    cache = source.pop("cache")
    assert source == {
        "base": base, "pairs": pairs, "resolution": 32, "caption_dropout": 0.25, "seed": 3, "process": 0,
    }  # fmt: skip
    assert cache.folder is None and not (out / "cache").exists()  # pairs in memory
    [denoising] = calls["Denoising"]
    assert denoising["schedule"].prediction_type == "v_prediction" and denoising["snr_gamma"] == 0.5
    assert asked["base"] is base and asked["objective"] is fit["objective"] and asked["config"] == CONFIG
    assert asked["folder"] == out and asked["accelerator"] is fit["accelerator"] and asked["quiet"] is True
    assert asked["resolution"] == 32 and asked["signal"] is SIGNALS["canny"] and asked["cache"] is cache
    assert list(asked["sources"]) == ["target"] and on == [[False, False]] and fit["on"] == [True, True]
    assert calls["premise_of"] == [{"base": base, "sources": asked["sources"], "seed": 3, "quiet": True}]
    [batches] = calls["Batches"]
    assert batches["base"] is base and batches["objective"] is fit["objective"]
    assert batches["sources"] is asked["sources"]
    assert (batches["batch_size"], batches["parts"], batches["seed"], batches["process"]) == (2, 2, 3, 0)
    assert calls["Texts"] == [{"base": base, "captions": None}]
    [samples] = calls["ControlSamples"]
    assert samples["base"] is base and samples["folder"] == out and samples["seed"] == 3
    assert samples["pairs"].captions() == ["a cat 20", "a cat 21"]
    assert [group["peak"] for group in fit["groups"]] == [0.01, 0.07]
    assert (fit["folder"], fit["seed"], fit["watch"], fit["quiet"], fit["config"]) == (out, 3, print, True, CONFIG)
    assert fit["base"] is base and fit["batches"].objective is fit["objective"] and fit["samples"].seed == 3
    assert fit["log_as"] == {"memory": "loss_memory", "teacher": "loss_teacher"}
    [released] = calls["release"]
    assert released["base"] is base and [*released["attachments"]] == [*fit["attachments"].values()]
    assert not base.attachments


def test_after_the_loop_control_is_finished_and_measured_on_held_out_pairs(base, learn, tmp_path):
    out, before = tmp_path / "runs" / "a", time.time()
    curve = {"curve": 1}
    samples = type("Samples", (), {"convergence": lambda self: curve})()
    calls = learn(made_up(1, 4), made_up(2, 8), premise_of={"premise": 1}, ControlSamples=samples)
    [end] = calls["finish"]
    assert end["folder"] == out and end["samples"] is samples and end["quiet"] is True
    assert end["facts"] == {"trainable_parameters": 3, "resumed_at": 0, "premise": 1, "curve": 1}
    assert before <= end["started"] <= time.time() and calls["run"].folder == out
    assert not calls["evaluate_control"] and end["measure"]() == {"values": 1}
    [asked] = calls["evaluate_control"]
    assert asked["base"] is base and asked["pairs"].captions() == ["a cat 20", "a cat 21", "a cat 22"]
    assert asked["adapters"] == [(out, 1.0)] and asked["seed"] == 3 and asked["quiet"] is True


def test_without_held_out_pairs_the_first_are_shown_and_nothing_is_measured(learn, tmp_path):
    config = ControlConfig(**{**vars(CONFIG), "roles": ()})
    calls = learn(made_up(1, 4, signal=None), config=config)
    assert calls["finish"][0]["measure"] is None and calls["attach"][0]["roles"] is None
    assert calls["ControlSamples"][0]["pairs"].captions() == ["a cat 10", "a cat 11"]
    assert calls["retained"][0]["signal"] is None and len(calls["write_pictures"][0]["pictures"]) == 4
    written = (tmp_path / "runs" / "a" / "run.toml").read_text()
    assert "held_out = 0" in written and 'held_out = ""' in (tmp_path / "runs" / "a" / "settings.toml").read_text()


def test_nothing_is_sampled_or_measured_where_that_is_off(learn):
    config = ControlConfig(**{**vars(CONFIG), "sample_every": 0, "evaluation_pairs": 0})
    calls = learn(made_up(1, 4), made_up(2, 8), config)
    [end] = calls["finish"]
    assert end["measure"] is None and end["samples"] is None and calls["fit"][0]["samples"] is None
    assert end["facts"] == {"trainable_parameters": 3, "resumed_at": 0}


@pytest.mark.parametrize("main", [True, False])
def test_latents_of_files_are_kept_by_the_first_process_which_alone_writes(learn, tmp_path, second_process, main):
    (tmp_path / "pairs").mkdir()
    for i in range(3):
        Image.new("RGB", (32, 32), (90 * i, 9, 9)).save(tmp_path / "pairs" / f"{i}.png")
        (tmp_path / "pairs" / f"{i}.txt").write_text("a cat")
    pairs = load_control_pairs(tmp_path / "pairs", "canny")
    config = ControlConfig(**{**vars(CONFIG), "resolution": 16})
    calls = learn(pairs, config=config, **({} if main else {"make_accelerator": second_process}))
    out = tmp_path / "runs" / "a"
    assert (out / "cache").exists() == (out / "run.toml").exists() == (out / "concept").exists() == main
    assert len(calls["finish"]) == main and (calls["fit"][0]["samples"] is not None) == main
    assert calls["PairPictures"][0]["process"] == calls["Batches"][0]["process"] == (not main)
    assert calls["fit"][0]["quiet"] is True and second_process.waited == (not main)
    assert calls["retained"][0]["resolution"] == 16 == calls["PairPictures"][0]["resolution"]
    if main:
        assert calls["write_pictures"][0]["pictures"].shape == (3, 3, 16, 32)
        assert json.loads((out / "concept" / "crops.json").read_text())[0]["caption"] == "a cat"
    else:
        assert calls["run"] == Run(out)
