"""A style before and after the loop: what is written, what `fit` gets, and what is measured in the end."""

import json
import time
from dataclasses import asdict, replace

import pytest
import torch
from PIL import Image

from diffadapt.adapters import LoRA
from diffadapt.config import dump_toml
from diffadapt.data.class_folders import load_classes
from diffadapt.data.styles import load_styles
from diffadapt.errors import Refused
from diffadapt.evaluation.chain_of_forgetting import OWN
from diffadapt.recipes import style
from diffadapt.recipes.style import StyleConfig, train_style
from diffadapt.training.run import Run
from diffadapt.training.sources import Fetched

CONFIG = StyleConfig(
    steps=3, batch_size=2, sample_every=1, caption_dropout=0.25, gradient_accumulation=2, snr_gamma=0.5,
    learning_rate=0.01, evaluation_pictures=5, preference="hps:x", roles=("cross_attention.key",),
)  # fmt: skip
FOLLOWED = (
    "say", "attach", "start_from", "open_run", "CaptionedPictures", "Batches", "Texts",
    "Denoising", "retained", "premise_of", "release", "ProgressSamples",
)  # fmt: skip


@pytest.fixture
def pictures(tmp_path):
    """Two styles of three captioned pictures."""
    for name, colour in (("ink", "navy"), ("oil", "olive")):
        (tmp_path / "styles" / name).mkdir(parents=True)
        for i, caption in enumerate(("a cat", "a dog", "a red apple")):
            Image.new("RGB", (32, 32), colour).save(tmp_path / "styles" / name / f"{i}.png")
            (tmp_path / "styles" / name / f"{i}.txt").write_text(caption)
    return tmp_path / "styles"


@pytest.fixture
def learn(base, tmp_path, follow, trained):
    """Trains with a stand-in for the loop and for what follows; returns all calls, and the run."""

    def learn(styles, config=CONFIG, **replaced):
        replaced = {
            "collapse": "one branch", "evaluate_style": {"features": "probe"}, "chain_of_forgetting": {"chain": 1},
            "load_features": "encoder", "finish": lambda given: Run(given["folder"], given["facts"]), **replaced,
        }  # fmt: skip
        calls = follow(style, *FOLLOWED, fit=trained, **replaced)
        calls["run"] = train_style(
            base, styles, method=LoRA(rank=1), out=tmp_path / "runs" / "a", seed=3, config=config, watch=print,
            quiet=True,
        )  # fmt: skip
        return calls

    return learn


def test_a_style_writes_its_header_before_anything_is_learned(base, pictures, learn, tmp_path):
    styles, out = load_styles(pictures, held_out=1), tmp_path / "runs" / "a"
    styles.notes.append("a note")
    calls = learn(styles)
    settings = {"seed": 3, "method": {"name": "lora", **asdict(LoRA(rank=1))}, "train": CONFIG}
    of_base = {"base": base.fingerprint, "prediction_type": base.prediction_type, "base_config": ""}
    head = {**of_base, **settings, "style": style._identity(styles)}
    assert (out / "settings.toml").read_text() == dump_toml(head)
    table = {"folder": str(pictures / "ink"), "also": [str(pictures / "oil")], "held_out": 1}
    job = {"recipe": "style", "base": base.name, **base.given, "out": str(out), **settings, "style": table}
    assert (out / "run.toml").read_text().startswith(dump_toml(job) + "\n")
    assert calls["fit"][0]["settings"] == dump_toml(settings)
    said = [(each["text"], each["quiet"]) for each in calls["say"]]
    assert said == [*((f"note: {note}", True) for note in styles.notes), ("note: one branch", True)]
    assert json.loads((out / "concept" / "crops.json").read_text()) == [
        {"file": f"{name}/{i}.png", "caption": caption}
        for name in ("ink", "oil") for i, caption in enumerate(("a cat", "a dog"))
    ]  # fmt: skip
    assert sorted(file.name for file in (out / "concept").glob("*.png")) == ["00.png", "01.png", "02.png", "03.png"]
    with Image.open(out / "concept" / "03.png") as last:
        assert last.size == (32, 32) and last.getpixel((9, 9)) == (128, 128, 0)


def test_a_style_hands_its_settings_to_attachment_source_objective_and_loop(base, pictures, learn, tmp_path):
    on, kept = [], style.retained

    def retained(given):
        on.append([each.enabled for each in base.attachments])
        return kept(**given)

    styles, out = load_styles(pictures, held_out=1), tmp_path / "runs" / "a"
    calls = learn(styles, retained=retained, premise_of={"premise": 1})
    [attached], [fit], [asked] = calls["attach"], calls["fit"], calls["retained"]
    assert attached == {
        "base": base, "method": LoRA(rank=1), "roles": ["cross_attention.key"], "tokens": None, "classes": (),
        "seed": 3,
    }  # fmt: skip
    attachment = fit["attachments"]["adapter"]
    assert calls["start_from"] == [{"attachments": {"adapter": attachment}, "place": ""}]
    [source] = calls["CaptionedPictures"]
    source.pop("cache")
    assert source == {
        "base": base, "pictures": styles.pictures, "resolution": 32, "caption_dropout": 0.25, "seed": 3, "process": 0,
    }  # fmt: skip
    assert list((out / "cache").iterdir())
    [denoising] = calls["Denoising"]
    assert denoising["schedule"].prediction_type == "v_prediction" and denoising["snr_gamma"] == 0.5
    assert denoising["learned_variance"] == base.learned_sigma
    assert asked["base"] is base and asked["objective"] is fit["objective"] and asked["config"] == CONFIG
    assert asked["folder"] == out and asked["accelerator"] is fit["accelerator"] and asked["quiet"] is True
    assert asked["resolution"] == 32 and list(asked["sources"]) == ["target"]
    assert on == [[False]] and fit["on"] == [True]
    [premise] = calls["premise_of"]
    assert premise == {"base": base, "sources": asked["sources"], "seed": 3, "quiet": True}
    [batches] = calls["Batches"]
    assert batches["base"] is base and batches["objective"] is fit["objective"]
    assert batches["sources"] is asked["sources"]
    assert (batches["batch_size"], batches["parts"], batches["seed"], batches["process"]) == (2, 2, 3, 0)
    assert calls["Texts"][0]["base"] is base and set(calls["Texts"][0]["captions"]) == {"a cat", "a dog", ""}
    [samples] = calls["ProgressSamples"]
    assert samples["prompts"] == samples["base_prompts"] == ["a cat", "a dog"] * 2
    assert samples["base"] is base and samples["folder"] == out and samples["seed"] == 3
    [group] = fit["groups"]
    assert group["peak"] == 0.01 and [*map(id, group["params"])] == [*map(id, attachment.parameters())]
    assert (fit["folder"], fit["seed"], fit["watch"], fit["quiet"], fit["config"]) == (out, 3, print, True, CONFIG)
    assert fit["base"] is base and fit["batches"].objective is fit["objective"] and fit["samples"].seed == 3
    assert fit["log_as"] == {"memory": "loss_memory", "teacher": "loss_teacher"}
    assert calls["release"] == [{"base": base, "attachments": [attachment]}] and not base.attachments


def test_after_the_loop_a_style_is_finished_and_measured(base, pictures, learn, tmp_path):
    styles, out, before = load_styles(pictures, held_out=1), tmp_path / "runs" / "a", time.time()
    calls = learn(styles, premise_of={"premise": 1})
    [end] = calls["finish"]
    assert calls["collapse"] == [{"folder": out, "method": LoRA(rank=1)}] and calls["run"].folder == out
    assert end["folder"] == out and end["samples"] is calls["fit"][0]["samples"] and end["quiet"] is True
    assert end["facts"] == {"trainable_parameters": 3, "resumed_at": 0, "premise": 1, "notes": ["one branch"]}
    assert before <= end["started"] <= time.time()
    assert not calls["evaluate_style"] and end["measure"]() == {"features": "probe"}
    [asked] = calls["evaluate_style"]
    assert asked["base"] is base and asked["reference"] == styles.held_out and asked["quiet"] is True
    assert {name: asked[name] for name in ("adapters", "most", "preference", "seed", "out")} == {
        "adapters": [(out / "adapter.safetensors", 1.0)], "most": 5, "preference": "hps:x", "seed": 3,
        "out": out / "styles",
    }  # fmt: skip
    assert not calls["chain_of_forgetting"]


@pytest.mark.parametrize("switched", [0, 4])
def test_class_folders_are_a_transfer_whose_forgetting_is_measured(base, pictures, learn, tmp_path, switched):
    classes, out = load_classes(pictures, held_out=1), tmp_path / "runs" / "a"
    config = replace(CONFIG, switch_pictures=switched, resolution=16, sample_every=0)
    calls = learn(classes, config, collapse="", evaluate_style={"features": "probe"})
    assert 'recipe = "transfer"' in (out / "run.toml").read_text()
    assert f'[transfer]\nfolder = "{pictures}"\nheld_out = 1\n' in (out / "run.toml").read_text()
    [end] = calls["finish"]
    assert "notes" not in end["facts"] and not calls["say"] and end["samples"] is None
    assert calls["retained"][0]["resolution"] == 16 == calls["CaptionedPictures"][0]["resolution"]
    assert end["measure"]() == {"features": "probe", "chain_of_forgetting": {"chain": 1}}
    [asked] = calls["chain_of_forgetting"]
    target = asked.pop("target")
    assert target.shape == (2, 3, 16, 16) and OWN // 2 > 1
    expected = [part.pixels([0], 16)[0] for part in classes.held_out.values()]
    assert torch.equal(target, torch.stack(expected))
    assert asked == {
        "base": base, "adapters": [(out / "adapter.safetensors", 1.0)], "captions": ["ink", "oil"],
        "encoder": "encoder" if switched else None, "switched": switched, "seed": 3, "quiet": True,
    }  # fmt: skip
    encoders = [(each["name"], each["device"]) for each in calls["load_features"]]
    assert encoders == [("probe", base.device)] * bool(switched)


def test_without_held_out_pictures_or_without_a_number_of_them_nothing_is_measured(pictures, learn, tmp_path):
    assert learn(load_styles(pictures, held_out=0))["finish"][0]["measure"] is None
    (tmp_path / "runs" / "a").rename(tmp_path / "runs" / "b")
    unmeasured = replace(CONFIG, evaluation_pictures=0, roles=())
    calls = learn(load_styles(pictures, held_out=1), unmeasured)
    assert calls["finish"][0]["measure"] is None and calls["attach"][0]["roles"] is None


def test_a_second_process_learns_a_style_and_writes_nothing(pictures, learn, tmp_path, second_process):
    calls = learn(load_styles(pictures, held_out=1), make_accelerator=second_process)
    out = tmp_path / "runs" / "a"
    assert second_process.waited == 1 and calls["run"] == Run(out) and not calls["finish"] and not calls["collapse"]
    assert not (out / "settings.toml").exists() and not (out / "concept").exists() and not (out / "cache").exists()
    assert calls["fit"][0]["samples"] is None and calls["fit"][0]["quiet"] is True
    assert calls["CaptionedPictures"][0]["process"] == 1 == calls["Batches"][0]["process"]


class Streamed(style.Shards):
    """Shards without files."""

    def __init__(self, paths) -> None:
        self.paths, self.notes = paths, []

    def identity(self) -> str:
        return "abc"


def test_shards_are_streamed_by_every_process_and_leave_nothing_to_measure_by(base, learn, tmp_path, follow):
    class Source:
        def __init__(self, given) -> None:
            self.given = given

        def first_captions(self, count: int) -> list[str]:
            return [f"a cat {i}" for i in range(count)]

        def captions(self) -> list[str]:
            return []

        def fetch(self, index: int):
            return Fetched(torch.zeros(4, 8, 8))

    shards = Streamed([tmp_path / "tars" / "0.tar"])
    calls = learn(shards, StreamedPictures=Source)
    [given] = calls["StreamedPictures"]
    assert given == {
        "base": base, "shards": shards, "resolution": 32, "caption_dropout": 0.25, "seed": 3, "process": 0,
        "processes": 1,
    }  # fmt: skip
    assert calls["Texts"][0]["captions"] is None and calls["finish"][0]["measure"] is None
    assert calls["fit"][0]["samples"].prompts == [f"a cat {i}" for i in range(6)]
    out = tmp_path / "runs" / "a"
    assert 'shards = "1 shards abc"' in (out / "settings.toml").read_text()
    table = f'[style]\nfolder = "{tmp_path / "tars"}"\nshards = true\n'
    assert table in (out / "run.toml").read_text() and not style._doubts(shards, LoRA())


def test_captions_are_the_classes_of_a_base_that_has_classes(pictures):
    class WithClasses:
        own_classes, name = ("cat",), "dit"

    assert style._new_classes(WithClasses, load_styles(pictures, held_out=1)) == ["a cat", "a dog"]
    assert style._new_classes(WithClasses, load_classes(pictures, held_out=1)) == ["ink", "oil"]
    with pytest.raises(Refused, match="shards do not say theirs"):
        style._new_classes(WithClasses, Streamed([]))
