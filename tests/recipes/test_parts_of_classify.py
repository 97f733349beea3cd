"""Classes before and after each task's loop: what is written, what `fit` gets, what stays of a finished task."""

import json
import time
from dataclasses import asdict
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from diffadapt.adapters import CLoRA, LoRA, Selective, Token
from diffadapt.bases import load_classifier
from diffadapt.config import dump_toml
from diffadapt.data.class_folders import load_classes
from diffadapt.data.class_tasks import split_classes
from diffadapt.data.sequence_record import digest
from diffadapt.errors import Refused
from diffadapt.evaluation.classification import summary
from diffadapt.files import load_tensors
from diffadapt.recipes import classify
from diffadapt.recipes.classify import ClassifyConfig, train_classify
from diffadapt.training import seeds

CONFIG = ClassifyConfig(
    steps=2, batch_size=3, learning_rate=0.01, head_learning_rate=0.07, mask_past=False, smallest_crop=0.5,
    mirror=False, gradient_accumulation=2, roles=("self_attention.value",),
)  # fmt: skip
FOLLOWED = ("say", "attach", "load_adapter", "CrossEntropy", "LabelledBatches", "LabelledPictures", "release", "right")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A transformer that nobody trained, as `save_pretrained` writes it."""
    from transformers import ViTConfig, ViTModel

    torch.manual_seed(0)
    shape = ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, image_size=16, patch_size=8
    )
    place = tmp_path_factory.mktemp("vit")
    ViTModel(shape, add_pooling_layer=False).save_pretrained(place)
    return place


@pytest.fixture
def tasks(tmp_path):
    """Two tasks of two classes with three pictures to learn and one to test."""
    for k, colour in enumerate(("blue", "green", "orange", "red")):
        (tmp_path / "classes" / colour).mkdir(parents=True)
        for i in range(4):
            Image.new("RGB", (16, 16), (60 * k, 20 * i, 90)).save(tmp_path / "classes" / colour / f"{i}.png")
    return split_classes(load_classes(tmp_path / "classes", held_out=1), 2)


@pytest.fixture
def network(checkpoint):
    return load_classifier(checkpoint, 4)


@pytest.fixture
def learn(network, tasks, tmp_path, follow, trained):
    """Trains with a stand-in for the loop; returns all calls, and the run."""

    def learn(method=None, config=CONFIG, **replaced):
        def fit(given) -> dict:
            found = trained(given)
            (given["folder"] / "checkpoints").mkdir()
            return found

        calls = follow(classify, *FOLLOWED, fit=fit, write_classes_report=None, **replaced)
        calls["run"] = train_classify(
            network, tasks, method=method or LoRA(rank=1), out=tmp_path / "runs" / "a", seed=3, config=config,
            watch=print, quiet=True,
        )  # fmt: skip
        return calls

    return learn


def test_classes_write_their_header_before_anything_is_learned(network, tasks, learn, tmp_path):
    calls, out = learn(), tmp_path / "runs" / "a"
    settings = {"seed": 3, "method": {"name": "lora", **asdict(LoRA(rank=1))}, "train": CONFIG}
    order = ["blue", "green", "orange", "red"]
    head = {"base": network.fingerprint, **settings, "order": order, "tasks": 2}
    assert (out / "settings.toml").read_text() == dump_toml(head)
    table = {"folder": str(tmp_path / "classes"), "held_out": 1, "tasks": 2, "order": order}
    job = {"recipe": "classify", "base": network.name, "out": str(out), **settings, "classify": table}
    assert (out / "run.toml").read_text().startswith(dump_toml(job) + "\n")
    assert [each["settings"] for each in calls["fit"]] == [dump_toml(settings)] * 2
    answers = json.loads((out / "classes.json").read_text())["answers"]
    stages = summary(answers)["stages"]
    assert [(each["text"], each["quiet"]) for each in calls["say"]] == [
        ("task 1 of 2: blue, green ...", True), (f"  right: {stages[0]:.3f} of all classes so far", True),
        ("task 2 of 2: orange, red ...", True), (f"  right: {stages[1]:.3f} of all classes so far", True),
        (f"report: {out / 'report.html'}", True),
    ]  # fmt: skip


def test_a_task_of_classes_hands_its_settings_to_attachments_batches_objective_and_loop(
    network, tasks, learn, tmp_path
):
    calls, out = learn(), tmp_path / "runs" / "a"
    adapter, head = calls["attach"]
    assert adapter == {
        "base": network, "method": LoRA(rank=1), "roles": ["self_attention.value"], "tokens": None, "classes": (),
        "seed": seeds.number(3, 0),
    }  # fmt: skip
    assert head["base"] is network and head["method"] == Selective() and head["roles"] == ["head"]
    before = out / "tasks" / "01"
    assert [(each["base"], each["path"]) for each in calls["load_adapter"]] == [
        (network, before / "adapter.safetensors"), (network, before / "head.safetensors"),
    ]  # fmt: skip
    assert calls["CrossEntropy"] == [
        {"first": 0, "last": 2, "mask_past": False}, {"first": 2, "last": 4, "mask_past": False},
    ]  # fmt: skip
    for i, (fit, batches) in enumerate(zip(calls["fit"], calls["LabelledBatches"], strict=True)):
        attached = fit["attachments"]
        assert list(attached) == ["adapter", "head"] and fit["base"] is network is fit["model"]
        layers, rows = fit["groups"]
        assert set(layers) == {"params", "peak"} and set(rows) == {"params", "peak", "weight_decay"}
        assert layers["peak"] == 0.01 and rows["peak"] == 0.07 and rows["weight_decay"] == 0.0
        for group, each in zip((layers, rows), attached.values(), strict=True):
            assert [*map(id, group["params"])] == [*map(id, each.parameters())] and group["params"]
        assert (fit["folder"], fit["seed"], fit["config"]) == (out / "tasks" / f"{i + 1:02d}", 3, CONFIG)
        assert fit["watch"] is print and fit["quiet"] is True
        assert fit["accelerator"] is calls["fit"][0]["accelerator"] and fit["accelerator"] is not None
        pictures, objective = batches.pop("pictures"), batches.pop("objective")
        assert objective is fit["objective"] is fit["batches"].objective
        assert pictures.size == network.size and pictures.labels.tolist() == [2 * i] * 3 + [2 * i + 1] * 3
        assert batches == {
            "network": network, "batch_size": 3, "parts": 2, "seed": 3, "smallest_crop": 0.5, "mirror": False,
        }  # fmt: skip
    drawn = [(each["pictures"], each["first"]) for each in calls["LabelledPictures"]]
    one, two = tasks
    assert drawn == [
        (one.train, 0), (one.test, 0), (two.train, 2), (one.test, 0), (two.test, 2),
    ]  # fmt: skip
    assert all(each["size"] == network.size for each in calls["LabelledPictures"])
    assert [len([*each["attachments"]]) for each in calls["release"]] == [2, 2] and not network.attachments


def test_every_task_is_tested_among_the_classes_known_so_far(network, learn):
    asked = [tuple(each.values()) for each in learn()["right"]]
    assert all(each[0] is network and each[1].shape == (2, 3, 16, 16) for each in asked)
    assert [(each[2].tolist(), each[3]) for each in asked] == [([0, 1], 2), ([0, 1], 4), ([2, 3], 4)]


def test_a_finished_task_of_classes_leaves_its_record_and_the_newest_files_alone(network, tasks, learn, tmp_path):
    before = time.time()
    calls, out = learn(right=lambda given: [True, False]), tmp_path / "runs" / "a"
    last = out / "tasks" / "02"
    assert not [*(out / "tasks" / "01").glob("*.safetensors")] and not [*out.rglob("checkpoints")]
    for name in ("adapter", "head"):
        assert (out / f"{name}.safetensors").read_bytes() == (last / f"{name}.safetensors").read_bytes()
    record = json.loads((out / "classes.json").read_text())
    assert record["answers"] == [[[True, False]], [[True, False], [True, False]]]
    assert record["learned"][1] == {
        "classes": ["orange", "red"], "contents": tasks[1].contents(), "trainable": 3, "change": None,
        "files": {name: digest(last / f"{name}.safetensors") for name in ("adapter", "head")}, "penalty_ratio": None,
    }  # fmt: skip
    metrics = json.loads((out / "metrics.json").read_text())
    assert 0 <= metrics.pop("seconds_total") <= time.time() - before + 0.1
    sizes = sum((last / f"{name}.safetensors").stat().st_size for name in ("adapter", "head"))
    assert metrics == {
        "classify": {
            "tasks": [["blue", "green"], ["orange", "red"]], "tested": [2, 2], **summary(record["answers"]),
        },
        "transformer_parameters": sum(each.numel() for each in network.modules()["vit"].parameters()),
        "trainable_parameters": 3, "stored_bytes": sizes,
    }  # fmt: skip
    seconds = calls["run"].metrics["seconds_total"]
    assert calls["run"].folder == out and seconds == round(seconds, 1)
    assert calls["write_classes_report"] == [{"folder": out}]


def test_a_change_and_a_penalty_of_the_log_are_kept_and_a_task_hardly_learned_is_told_of(learn, tmp_path):
    logs = iter(([{"step": 1, "change": 1.0}], [{"step": 1, "change": 2.0}, {"step": 2, "change": 0.001}]))
    calls = learn(read_log=lambda given: next(logs), penalty_ratio=0.25)
    learned = json.loads((tmp_path / "runs" / "a" / "classes.json").read_text())["learned"]
    assert [(each["change"], each["penalty_ratio"]) for each in learned] == [(1.0, 0.25), (0.001, 0.25)]
    assert [each["folder"].name for each in calls["read_log"]] == ["01", "02"]
    assert any("task 2 was hardly learned" in each["text"] and each["quiet"] is True for each in calls["say"])


def test_layers_by_default_are_the_method_s_without_head_and_input(learn):
    calls = learn(config=ClassifyConfig(**{**vars(CONFIG), "roles": ()}))
    roles = calls["attach"][0]["roles"]
    assert roles and "head" not in roles and "input.tokens" not in roles


def test_a_method_that_keeps_statistics_of_classes_is_shown_batches_and_saved_with_them(learn, tmp_path, follow):
    calls = learn(CLoRA(rank=1, importance="fisher"))
    header = load_tensors(tmp_path / "runs" / "a" / "adapter.safetensors")[1]
    assert header["settings"] == calls["fit"][1]["settings"]
    attached = [each for fit in calls["fit"] for each in fit["attachments"].values()]
    assert all(parameter.grad is None for each in attached for parameter in each.parameters())


def test_without_statistics_the_loop_s_files_stay(learn, tmp_path):
    learn()
    assert "settings" not in load_tensors(tmp_path / "runs" / "a" / "adapter.safetensors")[1]


def test_eight_batches_are_shown(network, learn, follow):
    attached = classify.begin(network, CLoRA(rank=1, importance="fisher"), CONFIG, SimpleNamespace(learned=[]), 3)
    places, asked = [], []
    condition = network.condition(torch.zeros(2, 3, 16, 16), torch.tensor([0, 1]))
    batch = SimpleNamespace(latents=torch.rand(2, 3, 16, 16), timesteps=torch.zeros(2).long(), condition=condition)
    batches = SimpleNamespace(batch=lambda step, part: places.append((step, part)) or batch)

    class Objective:
        def losses(self, model, given):
            asked.append((model, given))
            return model(given.latents, given.timesteps, given.condition).square().mean(1)

    classify.show(network, attached["adapter"], batches, Objective())
    assert places == [(step, 0) for step in range(8)] and asked == [(network, batch)] * 8
    assert all(each.grad is None for a in attached.values() for each in a.parameters())
    for each in reversed([*attached.values()]):
        each.detach()


def test_what_classes_cannot_meet_is_refused_before_anything_is_written(checkpoint, network, tasks, tmp_path, follow):
    with pytest.raises(Refused, match="cannot learn classes"):
        train_classify(network, tasks, method=Token(), out=tmp_path / "run")
    with pytest.raises(Refused, match="the tasks have 4 classes, the head 5"):
        train_classify(load_classifier(checkpoint, 5), tasks, method=LoRA(), out=tmp_path / "run")
    follow(classify, make_accelerator=SimpleNamespace(num_processes=2))
    with pytest.raises(Refused, match="one process"):
        train_classify(network, tasks, method=LoRA(), out=tmp_path / "run")
    assert not (tmp_path / "run").exists() and not network.attachments
