"""The classification recipe end to end on a tiny transformer: what is learned, what is kept, resuming, refusals."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageDraw

from diffadapt.adapters import CLoRA, LoRA, PromptPool, Selective, Token, load_adapter
from diffadapt.bases import load_classifier
from diffadapt.config import read_toml
from diffadapt.data.class_folders import load_classes
from diffadapt.data.class_tasks import split_classes
from diffadapt.errors import Refused
from diffadapt.files import load_tensors
from diffadapt.recipes import classify
from diffadapt.recipes.classify import ClassifyConfig, train_classify
from diffadapt.recipes.job import read_job

FAST = ClassifyConfig(steps=8, batch_size=6, warmup=0, checkpoint_every=2, learning_rate=5e-3, mirror=False)
METHOD = CLoRA(rank=2, penalty_weight=1.0)
COLOURS = ("red", "blue", "green", "orange")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """A transformer that nobody trained, as `save_pretrained` writes it."""
    from transformers import ViTConfig, ViTModel

    torch.manual_seed(0)
    shape = ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, image_size=16, patch_size=8
    )
    place = tmp_path_factory.mktemp("vit")
    ViTModel(shape, add_pooling_layer=False).save_pretrained(place)
    return place


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four classes of four pictures each, which differ in colour."""
    for colour in COLOURS:
        draw(tmp_path / "classes", colour)
    return tmp_path / "classes"


def draw(folder: Path, colour: str) -> None:
    (folder / colour).mkdir(parents=True)
    for i in range(4):
        picture = Image.new("RGB", (16, 16), colour)
        ImageDraw.Draw(picture).rectangle((2 * i, 2, 2 * i + 3, 6), fill="white")
        picture.save(folder / colour / f"{i}.png")


def tasks_of(folder: Path, count: int = 2, **more):
    return split_classes(load_classes(folder, held_out=2), count, **more)


def learn(checkpoint, folder, out, method=METHOD, **more):
    tasks = tasks_of(folder)
    return train_classify(
        load_classifier(checkpoint, tasks[-1].last), tasks, method=method, out=out, config=FAST, quiet=True, **more
    )


def test_classes_are_learned_in_tasks_and_only_figures_and_weights_are_kept(checkpoint, folder, tmp_path):
    run = learn(checkpoint, folder, tmp_path / "runs" / "a")
    found = run.metrics["classify"]
    assert found["tasks"] == [["blue", "green"], ["orange", "red"]] and found["tested"] == [4, 4]
    assert [len(row) for row in found["scores"]] == [1, 2]
    assert found["scores"][0][0] == 1.0  # two colours are no riddle
    assert found["forgetting"] == pytest.approx(found["scores"][0][0] - found["scores"][1][0])
    assert not list(run.folder.rglob("*.png")) and not list(run.folder.rglob("checkpoints"))
    assert {path.name for path in run.folder.glob("*.safetensors")} == {"adapter.safetensors", "head.safetensors"}
    page = (run.folder / "report.html").read_text(encoding="utf-8")
    assert "4 classes in 2 tasks" in page and "orange, red" in page
    name = next(key for key in bits(run) if key.endswith("q_proj.tasks"))
    assert int(bits(run)[name]) == 1  # one task is folded, the last is not


def test_what_is_tested_is_the_moving_average_that_is_saved(checkpoint, folder, tmp_path, monkeypatch):
    seen = {}

    def noted(network, task, last):
        seen.update({name: p.detach().clone() for name, p in network.attachments[0].named_parameters()})
        return original(network, task, last)

    original = classify.tested
    monkeypatch.setattr(classify, "tested", noted)
    tasks = tasks_of(folder, 1)
    network = load_classifier(checkpoint, tasks[-1].last)
    averaged = replace(FAST, ema_decay=0.9)
    run = train_classify(network, tasks, method=LoRA(rank=2), out=tmp_path / "a", config=averaged, quiet=True)
    saved = {name: tensor.float() for name, tensor in bits(run).items()}
    assert seen and all(
        any(tensor.shape == value.shape and torch.allclose(tensor, value) for tensor in saved.values())
        for value in seen.values()
    )


def bits(run, name: str = "adapter") -> dict[str, torch.Tensor]:
    return load_tensors(run.folder / f"{name}.safetensors")[0]


def test_the_network_is_left_as_it_was(checkpoint, folder, tmp_path):
    network = load_classifier(checkpoint, 4)
    before = {k: v.clone() for module in network.modules().values() for k, v in module.state_dict().items()}
    train_classify(network, tasks_of(folder), method=METHOD, out=tmp_path / "a", config=FAST, quiet=True)
    after = {k: v for module in network.modules().values() for k, v in module.state_dict().items()}
    assert not network.attachments and all(torch.equal(after[k], before[k]) for k in before)


def test_with_past_logits_masked_a_task_leaves_the_heads_rows_of_past_classes_bit_for_bit(checkpoint, folder, tmp_path):
    rows = {}

    def look(step: int, _: float) -> None:
        rows[len(rows)] = network.module("head.linear").values["weight"].detach().clone()

    network = load_classifier(checkpoint, 4)
    for mask in (True, False):
        rows.clear()
        train_classify(
            network, tasks_of(folder), method=METHOD, out=tmp_path / str(mask), config=FAST, quiet=True,
            watch=look, mask_past=mask, weight_decay=0.1,
        )  # fmt: skip
        learned, end = rows[FAST.steps - 1], rows[2 * FAST.steps - 1]
        assert torch.equal(end[:2], learned[:2]) == mask
        assert not torch.equal(end[2:], learned[2:]) and not learned[2:].any()


class Stopped(Exception):
    pass


@pytest.mark.parametrize("at", [4, 8, 12])  # inside the first task, at its end, inside the second
def test_an_interrupted_training_ends_with_the_same_bits(checkpoint, folder, tmp_path, at):
    expected = learn(checkpoint, folder, tmp_path / "a")
    seen = []

    def stop(step: int, _: float) -> None:
        seen.append(step)
        if len(seen) == at:
            raise Stopped

    with pytest.raises(Stopped):
        learn(checkpoint, folder, tmp_path / "b", watch=stop)
    found = learn(checkpoint, folder, tmp_path / "b")
    for name in ("adapter", "head"):
        assert all(torch.equal(value, bits(found, name)[key]) for key, value in bits(expected, name).items())
    assert found.metrics["classify"] == expected.metrics["classify"]


@pytest.mark.parametrize(
    ("method", "layers"),
    [
        (LoRA(rank=1), 8), (Selective(), 17), (CLoRA(rank=1, importance="fisher"), 6),
        (CLoRA(rank=1, importance="inputs"), 6), (PromptPool(pool=3, chosen=1), 1),
    ],
)  # fmt: skip
def test_baselines_learn_classes_by_the_same_recipe(checkpoint, folder, tmp_path, method, layers):
    run = learn(checkpoint, folder, tmp_path / "a", method)
    attachment = load_adapter(load_classifier(checkpoint, 4), run.adapter)
    assert attachment.method == method and len(attachment.adapters) == layers


def test_a_lambda_that_kills_learning_is_warned_of(checkpoint, folder, tmp_path, capsys):
    for weight in (1e12, 1.0):
        tasks = tasks_of(folder)
        train_classify(
            load_classifier(checkpoint, 4), tasks, method=CLoRA(rank=2, penalty_weight=weight),
            out=tmp_path / f"{weight:g}", config=FAST, steps=40,
        )  # fmt: skip
        told = "".join(capsys.readouterr())
        assert ("task 2 was hardly learned" in told) == (weight > 1)


def test_a_config_trains_and_the_runs_own_file_goes_on_with_it(checkpoint, folder, tmp_path):
    table = {
        "recipe": "classify", "base": str(checkpoint), "out": str(tmp_path / "a"), "seed": 2,
        "classify": {"folder": str(folder), "tasks": 2, "held_out": 2},
        "method": {"name": "c_lora", "rank": 2}, "train": {"steps": 2, "batch_size": 4},
    }  # fmt: skip
    run = read_job(table).run("cpu")
    again = read_job(read_toml(run.folder / "run.toml")).run("cpu")
    assert again.metrics["classify"] == run.metrics["classify"]
    order = [name for names in run.metrics["classify"]["tasks"] for name in names]
    assert order == [name for task in tasks_of(folder, seed=2) for name in task.classes]


def test_one_task_learns_all_classes_together(checkpoint, folder, tmp_path):
    network = load_classifier(checkpoint, 4)
    run = train_classify(network, tasks_of(folder, 1), method=METHOD, out=tmp_path / "a", config=FAST, quiet=True)
    assert run.metrics["classify"]["forgetting"] == 0.0 and len(run.metrics["classify"]["scores"]) == 1


def test_a_training_whose_files_or_pictures_were_changed_does_not_go_on(checkpoint, folder, tmp_path):
    run = learn(checkpoint, folder, tmp_path / "a")
    head = run.folder / "tasks" / "02" / "head.safetensors"
    kept = head.read_bytes()
    head.write_bytes(kept + b" ")
    with pytest.raises(Refused, match="was changed since task 2"):
        learn(checkpoint, folder, tmp_path / "a")
    head.write_bytes(kept)
    learn(checkpoint, folder, tmp_path / "a")
    shutil.copy(folder / "red" / "0.png", folder / "blue" / "0.png")
    with pytest.raises(Refused, match=r"pictures of task 1 \(blue"):
        learn(checkpoint, folder, tmp_path / "a")
    record = json.loads((run.folder / "classes.json").read_text(encoding="utf-8"))
    assert len(record["learned"]) == 2  # nothing is lost


def test_what_cannot_be_learned_is_refused_in_a_sentence(checkpoint, folder, tmp_path):
    tasks = tasks_of(folder)
    with pytest.raises(Refused, match="the tasks have 4 classes, the head 3"):
        train_classify(load_classifier(checkpoint, 3), tasks, method=METHOD, out=tmp_path / "a", quiet=True)
    with pytest.raises(Refused, match="cannot learn classes"):
        train_classify(load_classifier(checkpoint, 4), tasks, method=Token(), out=tmp_path / "a", quiet=True)
    with pytest.raises(Refused, match="other settings"):
        learn(checkpoint, folder, tmp_path / "b")
        learn(checkpoint, folder, tmp_path / "b", CLoRA(rank=1))


@pytest.mark.parametrize(
    ("count", "order", "message"),
    [
        (3, (), "cannot be split into 3 equal tasks; choose 1 or 2"),
        (4, (), "leave one class for each"),
        (2, ("red", "blue", "red", "green"), "'red' appears twice in classify.order"),
        (1, ("red", "pink"), "names 'pink', which is no class"),
    ],
)
def test_classes_that_make_no_tasks_are_refused_in_a_sentence(folder, count, order, message):
    with pytest.raises(Refused, match=message):
        tasks_of(folder, count, order=order)


def test_one_class_only_or_one_without_test_pictures_is_refused(folder):
    (folder / "train").mkdir()
    for colour in COLOURS:
        (folder / colour).rename(folder / "train" / colour)
    shutil.copytree(folder / "train" / "red", folder / "test" / "red")
    with pytest.raises(Refused, match="'blue' in .* has no picture to test with"):
        tasks_of(folder)
    for colour in COLOURS[1:]:
        shutil.rmtree(folder / "train" / colour)
    with pytest.raises(Refused, match="holds 1 classes; expected a folder for each of two or more"):
        tasks_of(folder)


def test_seeds_shuffle_the_classes_and_zero_keeps_the_folders_order(folder):
    orders = [[name for task in tasks_of(folder, seed=seed) for name in task.classes] for seed in (0, 1, 2)]
    assert orders[0] == sorted(COLOURS) and orders[1] != orders[0] != orders[2] and sorted(orders[2]) == orders[0]


def test_folders_that_hold_no_transformer_are_refused_in_a_sentence(checkpoint, tmp_path):
    with pytest.raises(Refused, match="no vision transformer at"):
        load_classifier(tmp_path / "nothing", 2)
    for name, text in (("other", '{"model_type": "bert"}'), ("weightless", '{"model_type": "vit"}')):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(text, encoding="utf-8")
        with pytest.raises(Refused, match="model of type 'bert'|holds no model.safetensors"):
            load_classifier(tmp_path / name, 2)
