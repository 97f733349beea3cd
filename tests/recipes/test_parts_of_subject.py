"""A subject before and after the loop: what is written, what `fit` gets, and what is measured in the end."""

import time

import pytest

from diffadapt.adapters import LoRA, Token
from diffadapt.config import dump_toml
from diffadapt.data.concept import load_concept
from diffadapt.data.joined import join_concepts
from diffadapt.errors import Refused
from diffadapt.recipes import subject
from diffadapt.recipes.plan import Plan
from diffadapt.recipes.subject import SubjectConfig, train_subject
from diffadapt.training.run import Run

CONFIG = SubjectConfig(
    steps=3, batch_size=2, prior_pictures=2, checkpoint_every=1, keep_checkpoints=0, sample_every=1, select=2,
    evaluation_prompts=3, evaluation_pictures=2, caption_dropout=0.25, gradient_accumulation=2, snr_gamma=0.5,
    prior_weight=0.5, roles=("cross_attention.key",), templates=("the small {}",),
)  # fmt: skip
COUNTED = Plan(what="it", roles={"key": 2}, parameters=3, adapter_bytes=4, pictures={"it": 2}, disk_bytes=5)
FOLLOWED = (
    "say", "attach", "start_from", "open_run", "write_pictures", "ConceptPictures",
    "BankPictures", "Batches", "Texts", "Denoising", "PriorPreservation", "premise_of", "release", "retained",
)  # fmt: skip


@pytest.fixture
def learn(base, photos, tmp_path, follow, trained):
    """Trains with a stand-in for the loop and for what follows; returns all calls, and the run."""
    concept = load_concept(photos, "cat")
    concept.notes.append("a note")

    def learn(name: str = "a", method=None, config=CONFIG, **replaced):
        calls = follow(
            subject, *FOLLOWED, "class_pictures", fit=trained, select_step={"chosen": 2}, load_encoders=None,
            subject_samples="samples", evaluate={"values": 1}, caption_notes=["cut"], count=COUNTED,
            finish=lambda given: Run(given["folder"], given["facts"]), **replaced,
        )  # fmt: skip
        run = train_subject(
            base, concept, method=method or LoRA(rank=1), out=tmp_path / "runs" / name, seed=3, config=config,
            watch=print, quiet=True,
        )  # fmt: skip
        return {**calls, "run": run, "concept": concept}

    return learn


def test_a_subject_writes_its_header_before_anything_is_learned(base, learn, tmp_path):
    calls = learn()
    out, concept = tmp_path / "runs" / "a", calls["concept"]
    settings = {"seed": 3, "method": {"name": "lora", **vars(LoRA(rank=1))}, "train": CONFIG}
    pictures = {
        "folder": "biscuit", "noun": "cat", "token": "<biscuit>", "contents": list(concept.contents),
        "captions": concept.captions(),
    }  # fmt: skip
    of_base = {"base": base.fingerprint, "prediction_type": base.prediction_type, "base_config": ""}
    head = {**of_base, **settings, "concept": pictures}
    assert (out / "settings.toml").read_text() == dump_toml(head)
    table = {"folder": str(concept.folder), "noun": "cat", "token": "<biscuit>", "also": []}
    job = {"recipe": "subject", "base": base.name, **base.given, "out": str(out), **settings, "concept": table}
    assert (out / "run.toml").read_text().startswith(dump_toml(job) + "\n")
    assert calls["fit"][0]["settings"] == dump_toml(settings)
    [shown] = calls["write_pictures"]
    assert shown["folder"] == out and shown["pictures"].equal(concept.pixels(32))
    assert shown["table"] == concept.crop_table()
    assert [(each["text"], each["quiet"]) for each in calls["say"]] == [
        ("note: a note", True), ("note: cut", True), *((line, True) for line in COUNTED.lines()),
    ]  # fmt: skip
    assert [each["attachment"] for each in calls["count"]] == [calls["fit"][0]["attachments"]["adapter"]]


def test_a_subject_hands_its_settings_to_attachment_sources_objective_and_loop(base, learn, tmp_path):
    calls = learn()
    out, concept = tmp_path / "runs" / "a", calls["concept"]
    [attached], [fit] = calls["attach"], calls["fit"]
    assert attached["base"] is base and attached["method"] == LoRA(rank=1) and attached["seed"] == 3
    assert attached["roles"] == ["cross_attention.key"] and attached["tokens"] == {"<biscuit>": "cat"}
    attachment = fit["attachments"]["adapter"]
    assert calls["start_from"] == [{"attachments": {"adapter": attachment}, "place": ""}]
    [target] = calls["ConceptPictures"]
    cache = target.pop("cache")
    assert target == {
        "base": base, "concept": concept, "resolution": 32, "masked": False, "caption_dropout": 0.25,
        "templates": ("the small {}",), "seed": 3, "process": 0,
    }  # fmt: skip
    assert list((out / "cache").iterdir())
    [bank], [of_class] = calls["BankPictures"], calls["class_pictures"]
    assert bank["base"] is base and bank["cache"] is cache
    assert bank["bank"].folder.parent == tmp_path / "runs" / "memory_banks"
    assert of_class["folder"] == out and of_class["quiet"] is True and of_class["config"] == CONFIG
    assert of_class["accelerator"] is fit["accelerator"] and of_class["concept"] is concept
    assert calls["Denoising"][0]["snr_gamma"] == 0.5 and calls["PriorPreservation"][0]["weight"] == 0.5
    assert not calls["retained"]
    [premise] = calls["premise_of"]
    assert premise["base"] is base and list(premise["sources"]) == ["target", "class"]
    assert premise["seed"] == 3 and premise["quiet"] is True
    [batches] = calls["Batches"]
    assert batches["base"] is base and batches["objective"] is fit["objective"]
    assert batches["sources"] is premise["sources"] and batches["texts"].base is base
    assert (batches["batch_size"], batches["parts"], batches["seed"], batches["process"]) == (2, 2, 3, 0)
    assert {"a cat", "a <biscuit> cat", "the small <biscuit> cat", ""} == set(calls["Texts"][0]["captions"])
    assert fit["base"] is base and fit["batches"].objective is fit["objective"] and fit["config"] == CONFIG
    assert (fit["folder"], fit["seed"], fit["samples"], fit["watch"], fit["quiet"]) == (out, 3, "samples", print, True)
    assert fit["on"] == [True] and calls["release"] == [{"base": base, "attachments": [attachment]}]
    assert calls["subject_samples"] == [{"base": base, "concept": concept, "folder": out, "seed": 3}] * 2
    assert not base.attachments


def test_after_the_loop_a_subject_chooses_its_step_and_is_finished_and_measured(base, learn, tmp_path):
    before = time.time()
    calls = learn()
    out, concept, [end] = tmp_path / "runs" / "a", calls["concept"], calls["finish"]
    assert calls["select_step"] == [
        {"base": base, "concept": concept, "folder": out, "prompts": 2, "seed": 3, "quiet": True}
    ]
    assert before <= end["started"] <= time.time() and calls["run"].folder == out
    assert (end["folder"], end["samples"], end["quiet"]) == (out, "samples", True)
    assert end["facts"] == {"trainable_parameters": 3, "resumed_at": 0, "selection": {"chosen": 2}}
    assert not calls["evaluate"] and end["measure"]() == {"values": 1}
    [asked] = calls["evaluate"]
    assert {name: asked[name] for name in ("adapters", "out", "prompts", "per_prompt", "drift_count", "seed")} == {
        "adapters": [(out, 1.0)], "out": out, "prompts": 3, "per_prompt": 2, "drift_count": 6, "seed": 3,
    }  # fmt: skip
    assert asked["base"] is base and asked["concept"] is concept and asked["quiet"] is True


def test_what_is_switched_off_is_not_done(base, learn):
    off = {"select": 0, "evaluation_prompts": 0, "sample_every": 0, "prior_weight": 0.0, "train_token": True}
    calls = learn(config=SubjectConfig(**{**vars(CONFIG), **off, "roles": (), "resolution": 16}))
    assert not calls["select_step"] and calls["finish"][0]["measure"] is None
    assert calls["fit"][0]["samples"] is None and not calls["class_pictures"] and not calls["PriorPreservation"]
    [kept], [fit] = calls["retained"], calls["fit"]
    assert kept["resolution"] == 16 == calls["ConceptPictures"][0]["resolution"] and kept["quiet"] is True
    assert kept["objective"] is fit["objective"] and list(kept["sources"]) == ["target"]
    assert kept["folder"] == fit["folder"] and kept["accelerator"] is fit["accelerator"] and kept["base"] is base
    assert kept["config"] == fit["config"] and calls["attach"][0]["roles"] is None
    assert calls["write_pictures"][0]["pictures"].shape[-1] == 16


def test_a_memory_that_is_not_used_is_named_beside_prior_preservation_too(learn):
    config = SubjectConfig(**{**vars(CONFIG), "prior_weight": 1.0})
    assert [each["config"] for each in learn(config=config, say_unused=None)["say_unused"]] == [config]


def test_a_second_process_trains_and_writes_nothing(base, learn, tmp_path, second_process):
    learn("first")  # makes the class pictures
    calls = learn("a", make_accelerator=second_process)
    out = tmp_path / "runs" / "a"
    assert second_process.waited == 2  # for the class pictures, and for the end
    assert not calls["open_run"] and not calls["finish"] and not calls["select_step"] and calls["run"] == Run(out)
    assert not (out / "cache").exists() and not (out / "run.toml").exists()
    assert calls["fit"][0]["samples"] is None and calls["fit"][0]["quiet"] is True
    assert calls["ConceptPictures"][0]["process"] == 1 == calls["Batches"][0]["process"]


def test_the_memory_is_asked_for_while_the_attachment_is_off(base, learn):
    on = []
    learn(
        config=SubjectConfig(**{**vars(CONFIG), "prior_weight": 0.0}),
        retained=lambda given: on.append([each.enabled for each in base.attachments]) or given["objective"],
    )  # fmt: skip
    assert on == [[False]]


def test_concepts_learned_together_are_measured_one_by_one(base, photos, tmp_path, follow):
    other = tmp_path / "waffle"
    other.mkdir()
    (other / "0.png").write_bytes((photos / "0.png").read_bytes())
    both = join_concepts([load_concept(photos, "cat"), load_concept(other, "dog")])
    calls = follow(subject, evaluate={"values": 1})
    found = subject._measure(base, both, tmp_path, SubjectConfig(evaluation_prompts=20), 3, True)
    assert found == {"values": 1, "also": {"<waffle>": 1}}
    assert [each["out"] for each in calls["evaluate"]] == [tmp_path, None]
    assert [each["concept"] for each in calls["evaluate"]] == list(both.parts)
    assert {each["drift_count"] for each in calls["evaluate"]} == {25}


def test_what_cannot_be_met_is_refused_before_the_first_file(base, photos, follow):
    concept = load_concept(photos, "cat")

    def refuse(**settings):
        subject.refuse_what_does_not_fit(base, concept, LoRA(), SubjectConfig(**settings))

    for settings, words in (
        ({"masked": True}, "has a mask"),
        ({"select": 2, "keep_checkpoints": 2}, "select chooses"),
        ({"select": 2, "keep_checkpoints": 0, "checkpoint_every": 0}, "select chooses"),
        ({"templates": ("a",)}, "template 'a'"),
        ({"templates": ("{} {}",)}, "template"),
        ({"train_token": False}, "rare word"),
        ({"objective": "difftuning"}, "prior_weight=0"),
    ):
        with pytest.raises(Refused, match=words):
            refuse(**settings)
    calls = follow(subject, load_encoders=None)
    refuse(prior_weight=0.0, objective="difftuning", templates=("a {}",))
    assert not calls["load_encoders"]
    refuse(select=2, keep_checkpoints=0, checkpoint_every=1)
    assert calls["load_encoders"] == [{"base": base, "names": ()}]
    with pytest.raises(Refused, match="leave train_token on"):
        subject.refuse_what_does_not_fit(base, concept, Token(), SubjectConfig(train_token=False))
