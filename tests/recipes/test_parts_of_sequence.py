"""A sequence before and after each task's loop: what is written, what `fit` gets, what stays of a finished task."""

import json
import time
from dataclasses import asdict
from types import SimpleNamespace

import pytest
import torch
from PIL import Image, ImageDraw

from diffadapt.adapters import RANDOM_START, CLoRA, LoRA, Selective, attach, read_adapter
from diffadapt.config import dump_toml
from diffadapt.data.concept import load_concept
from diffadapt.data.sequence import load_sequence
from diffadapt.data.sequence_record import Learned, SequenceRecord, digest
from diffadapt.errors import Refused
from diffadapt.files import load_tensors
from diffadapt.recipes import sequence
from diffadapt.recipes.sequence import SequenceConfig, train_sequence
from diffadapt.training import seeds
from diffadapt.training.replay import Mixed

CONFIG = SequenceConfig(
    steps=2, batch_size=2, prior_pictures=2, prior_weight=0.5, gradient_accumulation=2, snr_gamma=0.5,
    caption_dropout=0.25, templates=("the small {}",), evaluation_pictures=3, pairs=2, replay_pictures=1,
    roles=("cross_attention.key",), learning_rate=0.01, token_learning_rate=0.07, class_noun=True,
    evaluation_features="encoder", evaluation_inception="inception file",
)  # fmt: skip
FOLLOWED = (
    "say", "attach", "load_adapter", "open_run", "open_task", "ConceptPictures", "BankPictures", "class_pictures",
    "Batches", "Texts", "Denoising", "PriorPreservation", "ReplayedPictures", "release",
)  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    """Two tasks of two drawn pictures each."""
    for name, colour in (("mia", "red"), ("otto", "blue")):
        (tmp_path / "characters" / name).mkdir(parents=True)
        for i in range(2):
            picture = Image.new("RGB", (40, 40), colour)
            ImageDraw.Draw(picture).ellipse((8 + i, 8, 30 + i, 30), fill="orange")
            picture.save(tmp_path / "characters" / name / f"{i}.png")
    return tmp_path / "characters"


@pytest.fixture
def learn(base, folder, tmp_path, follow, trained):
    """Trains with stand-ins for the loop, the pictures and the scores; returns all calls, and the run."""

    def learn(config=CONFIG, method=None, name="a", quiet=True, **replaced):
        encoder = SimpleNamespace(name="encoder", subjects=lambda pixels: pixels.mean((2, 3)))
        loop = replaced.pop("fit", trained)

        def fit(given) -> dict:
            found = loop(given)
            (given["folder"] / "checkpoints").mkdir()
            return found

        replaced = {
            "load_features": encoder, "load_inception": "inception", "sample_all": None, "sample_pairs": None,
            "score_row": [0.5], "losses_after": {"concept": 0.1}, "figures": {"sequence": 1},
            "inception_features": lambda given: given["pictures" if "pictures" in given else "pixels"].sum((2, 3)),
            "write_sequence_report": None, **replaced,
        }  # fmt: skip
        calls = follow(sequence, *FOLLOWED, fit=fit, **replaced)
        calls["run"] = train_sequence(
            base, load_sequence(folder, "cat"), method=method or LoRA(rank=1), out=tmp_path / "runs" / name, seed=3,
            config=config, watch=print, quiet=quiet,
        )  # fmt: skip
        return calls

    return learn


def test_a_sequence_writes_its_header_and_each_task_its_own(base, folder, learn, tmp_path):
    calls, out = learn(), tmp_path / "runs" / "a"
    settings = {"seed": 3, "method": {"name": "lora", **asdict(LoRA(rank=1))}, "train": CONFIG}
    of_base = {"base": base.fingerprint, "prediction_type": base.prediction_type, "base_config": ""}
    assert (out / "settings.toml").read_text() == dump_toml({**of_base, **settings})
    table = {"folder": str(folder), "noun": "cat", "order": []}
    job = {"recipe": "sequence", "base": base.name, "out": str(out), **settings, "sequence": table}
    assert (out / "run.toml").read_text().startswith(dump_toml(job) + "\n")
    place = out / "tasks" / "02-otto"
    concept = load_concept(folder / "otto", "cat")
    assert (place / "settings.toml").read_text() == dump_toml({**of_base, **settings, "task": concept.identity()})
    job = {"recipe": "sequence", "base": base.name, "out": str(place), **settings}
    assert (place / "run.toml").read_text().startswith(dump_toml(job) + "\n")
    assert [each["settings"] for each in calls["fit"]] == [dump_toml(settings)] * 2
    said = [(each["text"], each["quiet"]) for each in calls["say"]]
    assert said == [("task 1: mia", True), ("task 2: otto", True), (f"report: {out / 'report.html'}", True)]


def test_a_task_hands_its_settings_to_attachment_sources_objective_and_loop(base, learn, tmp_path):
    calls, out = learn(), tmp_path / "runs" / "a"
    [attached], [loaded], (first, second) = calls["attach"], calls["load_adapter"], calls["fit"]
    assert attached == {
        "base": base, "method": LoRA(rank=1), "roles": ["cross_attention.key"], "tokens": {"<mia>": RANDOM_START},
        "classes": (), "seed": seeds.number(3, 0),
    }  # fmt: skip
    assert loaded["base"] is base and loaded["path"] == out / "tasks" / "01-mia" / "adapter.safetensors"
    for fit, name, target in zip((first, second), ("01-mia", "02-otto"), calls["ConceptPictures"], strict=True):
        attachment = fit["attachments"]["adapter"]
        assert list(fit["attachments"]) == ["adapter"] and fit["on"] == [True] and fit["base"] is base
        cache = target.pop("cache")
        concept = target.pop("concept")
        assert cache.folder is None and concept.token == f"<{name[3:]}>" and not concept.alone
        assert target == {
            "base": base, "resolution": 32, "masked": False, "caption_dropout": 0.25, "templates": ("the small {}",),
            "seed": 3, "process": 0,
        }  # fmt: skip
        layers, words = fit["groups"]
        assert layers["peak"] == 0.01 and words["peak"] == 0.07 and words["weight_decay"] == 0.0
        assert set(layers) == {"params", "peak"} and set(words) == {"params", "peak", "weight_decay"}
        vectors = [each.vectors for each in attachment.words]
        assert [*map(id, words["params"])] == [*map(id, vectors)] and vectors
        assert len(layers["params"]) == len(list(attachment.parameters())) - len(vectors) > 0
        assert (fit["folder"], fit["seed"], fit["config"]) == (out / "tasks" / name, 3, CONFIG)
        assert fit["watch"] is print and fit["quiet"] is True and fit["samples"] is None
        assert fit["log_as"] == {"target": "loss_concept", "class": "loss_prior"}
        assert fit["accelerator"] is first["accelerator"] and fit["batches"].objective is fit["objective"]
    for each in calls["class_pictures"]:
        assert each["base"] is base and each["config"] == CONFIG and each["folder"] == out and each["quiet"] is True
        assert each["accelerator"] is first["accelerator"]
    assert [each["base"] is base and each["cache"].folder is None for each in calls["BankPictures"]] == [True] * 2
    assert [each["snr_gamma"] for each in calls["Denoising"]] == [0.5, 0.5]
    assert {each["schedule"].prediction_type for each in calls["Denoising"]} == {"v_prediction"}
    assert [each["weight"] for each in calls["PriorPreservation"]] == [0.5, 0.5]
    for each in calls["Batches"]:
        assert (each["batch_size"], each["parts"], each["seed"], each["process"]) == (2, 2, 3, 0)
        assert list(each["sources"]) == ["target", "class"] and each["base"] is base
    texts = [set(each["captions"]) for each in calls["Texts"]]
    assert texts[0] == {"a <mia> cat", "the small <mia> cat", "", "a cat"}
    assert texts[1] == {"a <otto> cat", "the small <otto> cat", "", "a cat", "a <mia> cat"}
    assert [len(each["attachments"]) for each in calls["release"]] == [1, 1] and not base.attachments


def test_past_concepts_are_replayed_beside_the_class(base, learn):
    calls = learn()
    [replay] = calls["ReplayedPictures"]
    assert replay == {
        "base": base, "phrases": ["<mia> cat"], "count": 1, "side": 32, "seed": seeds.number(3, 1, 7) % 2**31,
    }  # fmt: skip
    first, second = (each["sources"]["class"] for each in calls["Batches"])
    assert not isinstance(first, Mixed) and isinstance(second, Mixed) and len(second.sources) == 2


def test_a_finished_task_leaves_its_record_features_and_the_newest_adapter_alone(base, learn, tmp_path):
    before = time.time()
    calls, out = learn(), tmp_path / "runs" / "a"
    record = json.loads((out / "sequence.json").read_text())
    adapter = out / "tasks" / "02-otto" / "adapter.safetensors"
    assert not (out / "tasks" / "01-mia" / "adapter.safetensors").exists() and not [*out.rglob("checkpoints")]
    assert (out / "adapter.safetensors").read_bytes() == adapter.read_bytes()
    mia, otto = record["learned"]
    assert (mia["name"], mia["token"], mia["phrase"], mia["trainable"]) == ("mia", "<mia>", "<mia> cat", 3)
    assert (otto["name"], otto["adapter"]) == ("otto", digest(adapter)) and len(otto["contents"]) == 2
    assert mia["change"] is None and mia["penalty_ratio"] is None and mia["losses"] == {"concept": 0.1}
    assert record["scores"] == [[0.5], [0.5]]
    kept, header = load_tensors(out / "tasks" / "01-mia" / "reference.safetensors")
    pixels = calls["losses_after"][0]["concept"].pixels(32)
    assert set(kept) == {"features", "inception"} and header["encoder"] == "encoder"
    assert torch.equal(kept["features"], pixels.mean((2, 3))) and torch.equal(kept["inception"], pixels.sum((2, 3)))
    assert [each["adapter"] for each in calls["sample_all"]] == [
        out / "tasks" / name / "adapter.safetensors" for name in ("01-mia", "02-otto")
    ]
    for each in (*calls["sample_all"], *calls["losses_after"]):
        assert each["base"] is base and each["count"] == 3 and each["seed"] == 3
    assert all(each["quiet"] for each in calls["sample_all"])
    assert [(each["number"], each["encoder"].name) for each in calls["score_row"]] == [(0, "encoder"), (1, "encoder")]
    [pairs], [figures] = calls["sample_pairs"], calls["figures"]
    assert pairs["base"] is base and (pairs["count"], pairs["seed"]) == (2, 3)
    assert figures["base"] is base and figures["inception"] == "inception" and figures["second"] is None
    assert figures["encoder"].name == "encoder" and len(figures["record"].learned) == 2 and pairs["record"]
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["sequence"] == 1 and 0 <= metrics["seconds_total"] <= time.time() - before + 0.1
    assert metrics["seconds_total"] == round(metrics["seconds_total"], 1) == calls["run"].metrics["seconds_total"]
    assert calls["write_sequence_report"] == [{"folder": out}] and calls["run"].folder == out


def test_encoders_are_those_asked_for_or_the_base_s_own_with_a_second_judge_of_the_probe(base, learn):
    loaded = [(each["name"], each["device"]) for each in learn()["load_features"]]
    assert loaded == [("encoder", base.device)]
    plain = SequenceConfig(**{**vars(CONFIG), "evaluation_features": "", "evaluation_inception": "", "pairs": 0})
    base.encoder = "probe"
    calls = learn(plain, name="b")
    assert [each["name"] for each in calls["load_features"]] == ["probe", sequence.SECOND]
    assert {each["device"] for each in calls["load_features"]} == {base.device}
    assert calls["figures"][0]["second"] and calls["figures"][0]["inception"] is None and not calls["sample_pairs"]
    kept, _ = load_tensors(calls["run"].folder / "tasks" / "01-mia" / "reference.safetensors")
    assert set(kept) == {"features", sequence.SECOND} and not calls["load_inception"]
    base.encoder = ""
    assert [each["name"] for each in learn(plain, name="c")["load_features"]] == [sequence.PHOTO_ENCODERS[1]]


def test_concepts_trained_apart_start_from_their_noun_and_are_merged(base, learn, tmp_path):
    config = {**vars(CONFIG), "merge_apart": True, "random_token": False, "replay_pictures": 0, "class_noun": False}
    config |= {"resolution": 16, "roles": ()}
    calls = learn(
        SequenceConfig(**config), Selective(),
        merge_custom_diffusion=lambda given: given["out"].write_bytes(b"merged"),
    )  # fmt: skip
    tasks = tmp_path / "runs" / "a" / "tasks"
    assert [each["tokens"] for each in calls["attach"]] == [{"<mia>": "cat"}, {"<otto>": "cat"}]
    assert [each["seed"] for each in calls["attach"]] == [seeds.number(3, 0), seeds.number(3, 1)]
    assert [each["roles"] for each in calls["attach"]] == [None, None] and not calls["load_adapter"]
    own = [tasks / name / "own.safetensors" for name in ("01-mia", "02-otto")]
    merged = tasks / "02-otto" / "adapter.safetensors"
    assert calls["merge_custom_diffusion"] == [{"base": base, "files": own, "out": merged}]
    assert merged.read_bytes() == b"merged" and list(read_adapter(own[0])[2]) == ["<mia>"]
    assert all(each["concept"].alone and each["resolution"] == 16 for each in calls["ConceptPictures"])


def test_without_prior_preservation_the_loss_is_plain(base, learn):
    calls = learn(SequenceConfig(**{**vars(CONFIG), "prior_weight": 0.0, "replay_pictures": 0}))
    assert not calls["class_pictures"] and not calls["PriorPreservation"] and not calls["ReplayedPictures"]
    assert all(list(each["sources"]) == ["target"] for each in calls["Batches"])


@pytest.mark.parametrize("importance", ["none", "fisher"])
def test_a_method_that_keeps_statistics_is_shown_batches_and_saved_with_them(base, learn, importance, tmp_path):
    method = CLoRA(rank=1, importance=importance) if importance == "fisher" else None
    calls = learn(method=method)
    header = load_tensors(tmp_path / "runs" / "a" / "adapter.safetensors")[1]
    assert (header.get("settings") == calls["fit"][1]["settings"]) == (importance == "fisher")


def test_gradients_are_shown_and_left_nowhere(base, folder):
    attachment = attach(base, CLoRA(rank=1, importance="fisher"), ["cross_attention.key"])
    asked, places = [], []
    model_of = sequence.AttachedBase(base, {"adapter": attachment})
    condition = base.condition(["a cat"])
    batch = SimpleNamespace(latents=torch.ones(1, 4, 8, 8), timesteps=torch.tensor([5]), condition=condition)
    batches = SimpleNamespace(batch=lambda step, part: places.append((step, part)) or batch)

    class Objective:
        def losses(self, model, given):
            asked.append((type(model), given))
            return model(given.latents, given.timesteps, given.condition).square().mean((1, 2, 3))

    sequence.show(base, attachment, batches, Objective(), None)
    assert places == [(step, 0) for step in range(8)] and asked == [(type(model_of), batch)] * 8
    assert all(each.grad is None for each in attachment.parameters())
    attachment.detach()


def test_the_order_of_tasks_is_written_where_it_is_not_the_folder_s(folder):
    assert sequence.chosen_order(load_sequence(folder, "cat")) == []
    assert sequence.chosen_order(load_sequence(folder, "cat", order=("otto", "mia"))) == ["otto", "mia"]
    assert sequence.chosen_order(load_sequence(folder, "cat", order=("mia",))) == ["mia"]


def test_what_a_sequence_cannot_meet_is_refused_before_anything_is_written(base, folder, tmp_path, follow):
    for settings, words in (
        ({"replay_pictures": 1, "prior_weight": 0.0}, "set train.prior_weight above 0"),
        ({"merge_apart": True}, "without replay"),
        ({"merge_apart": True, "random_token": False}, "without replay"),
    ):
        with pytest.raises(Refused, match=words):
            train_sequence(base, load_sequence(folder, "cat"), method=LoRA(), out=tmp_path / "run", **settings)
    with pytest.raises(Refused, match="without replay"):
        train_sequence(
            base, load_sequence(folder, "cat"), method=Selective(), out=tmp_path / "run", merge_apart=True,
            random_token=False, replay_pictures=1,
        )  # fmt: skip
    with pytest.raises(Refused, match="at least one task"):
        train_sequence(base, [], method=LoRA(), out=tmp_path / "run")
    follow(sequence, make_accelerator=SimpleNamespace(num_processes=2))
    with pytest.raises(Refused, match="one process"):
        train_sequence(base, load_sequence(folder, "cat"), method=LoRA(), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_first_task_replays_nothing(base, tmp_path):
    record = SequenceRecord(tmp_path)
    assert sequence.replayed(base, record, SequenceConfig(replay_pictures=1), 3) is None
    record.learned.append(Learned(name="a", token="<a>", phrase="<a>", contents=[], adapter="", trainable=1))
    assert sequence.replayed(base, record, SequenceConfig(), 3) is None
