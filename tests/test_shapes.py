"""Every JSON file that is read: damaged in any way, it is refused in one sentence and never a traceback."""

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from diffadapt.bases import load_base, load_classifier
from diffadapt.bases.defaults import read_defaults
from diffadapt.data.class_record import ClassRecord
from diffadapt.data.memory_bank import BankSettings, MemoryBank
from diffadapt.data.sequence_record import SequenceRecord
from diffadapt.errors import LONGEST, Refused
from diffadapt.evidence.results import NO_BASE, read_results
from diffadapt.metrics.features import load_features

BANK_SETTINGS = BankSettings(base_fingerprint="a", resolution=8, guidance=1.0, steps=1)
SEQUENCE = {
    "learned": [
        {"name": "mia", "token": "<mia>", "phrase": "<mia> cat", "contents": ["0"], "adapter": "0", "trainable": 1,
         "change": 0.5, "penalty_ratio": None, "losses": {}},
    ],
    "scores": [[0.5]],
}  # fmt: skip
CLASSES = {
    "learned": [{"classes": ["cat"], "contents": "0", "files": {"adapter": "0", "head": "0"}, "trainable": 1}],
    "answers": [[[True]]],
}
RESULTS = {
    "format": 1, "base": {"name": "tiny", "fingerprint": "sha256:1"}, "commit": "abc",
    "units": [{"unit": {"seed": 0}, "scores": {"a": 1}, "seconds": 1.5}],
    "failed": [{"unit": {"seed": 1}, "error": "no", "seconds": 1.0}],
}  # fmt: skip
BANK = {
    "settings": {"base_fingerprint": "a", "resolution": 8, "guidance": 1.0, "steps": 1, "seed": 0},
    "pictures": [{"file": "0.png", "prompt": "a cat", "seed": 0, "sha256": "0"}],
}
DEFAULTS = {"format_version": 1, "default_guidance": 3.0, "default_steps": 9, "encoder": "a", "world": {"nouns": ["a"]}}
# file -> (what reads its folder, the dotted places in it that must have their type); None for those of real folders
FILES: dict[str, tuple[Callable[[Path], Any], Any, tuple[str, ...]]] = {
    "sequence.json": (SequenceRecord.read, SEQUENCE, (
        "learned", "learned.0", "learned.0.name", "learned.0.contents", "learned.0.contents.0", "learned.0.trainable",
        "learned.0.losses", "scores", "scores.0", "scores.0.0",
    )),
    "classes.json": (ClassRecord.read, CLASSES, (
        "learned", "learned.0", "learned.0.classes", "learned.0.files", "learned.0.files.head", "answers",
        "answers.0.0", "answers.0.0.0",
    )),
    "results.json": (lambda folder: read_results(folder, NO_BASE), RESULTS, (
        "format", "base", "base.fingerprint", "commit", "units", "units.0", "units.0.unit", "units.0.scores",
        "units.0.seconds", "failed", "failed.0.error",
    )),
    "bank.json": (lambda folder: MemoryBank(folder, BANK_SETTINGS), BANK, ("settings", "pictures", "pictures.0.seed")),
    "base.json": (read_defaults, DEFAULTS, (
        "format_version", "default_guidance", "default_steps", "encoder", "world.nouns", "world.nouns.0",
    )),
}  # fmt: skip
# of a whole base: each is a file of its folder
OF_A_BASE = {
    "model_index.json": ("_class_name",), "unet/config.json": ("sample_size", "in_channels"),
    "vae/config.json": ("scaling_factor", "latent_channels"), "text_encoder/config.json": ("hidden_size",),
    "tokenizer/tokenizer_config.json": ("model_max_length",), "tokenizer/tokenizer.json": ("model",),
    "scheduler/scheduler_config.json": ("num_train_timesteps", "beta_start", "prediction_type"),
}  # fmt: skip
OF_A_TRANSFORMER = {
    "config.json": ("model_type", "image_size", "hidden_size"),
    "preprocessor_config.json": ("image_mean", "image_mean.0", "image_std"),
}  # fmt: skip
SIZES = ("size", "size.height", "crop_size", "do_center_crop")
NULL = {"tokenizer/tokenizer_config.json: model_max_length", *(f"preprocessor_config.json: {key}" for key in SIZES)}
DEEP = "[" * 3000 + "]" * 3000
WRONG_TOP = {"a list": "[]", "text": '"a"', "null": "null", "a number": "3", "cut": '{"a": ', "deep": "[" * 100_000}
WRONG = {str: 3, int: "64", float: "0.2", bool: "yes", list: {"0": 1}, dict: ["a"]}


def one_sentence(read: Callable[[], Any]) -> None:
    with pytest.raises(Refused) as refused:
        read()
    message = str(refused.value)
    assert "\n" not in message and len(message) <= min(LONGEST, 900), message


def each_damage(content: Any, dotted: str, *, null: bool) -> list[str]:
    """The content as text with one place of another type, null and a deep list."""
    texts = []
    *way, last = (int(key) if key.isdigit() else key for key in dotted.split("."))
    inside = content
    for key in way:
        inside = inside[key]
    for value in (WRONG[type(inside[last])], "DEEP", *([None] if null else [])):
        changed = copy.deepcopy(content)
        place = changed
        for key in way:
            place = place[key]
        place[last] = value
        texts.append(json.dumps(changed).replace('"DEEP"', DEEP))
    return texts


def damage_each(folder: Path, name: str, places: tuple[str, ...], read: Callable[[], Any]) -> None:
    """The file is damaged in every way, one after the other, and read."""
    read()  # as it is, it can be read
    whole = (folder / name).read_text(encoding="utf-8")
    for text in WRONG_TOP.values():
        (folder / name).write_text(text, encoding="utf-8")
        one_sentence(read)
    for place in places:
        for text in each_damage(json.loads(whole), place, null=f"{name}: {place}" not in NULL):
            (folder / name).write_text(text, encoding="utf-8")
            one_sentence(read)


@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_of_ours_is_one_sentence(tmp_path, name):
    read, content, places = FILES[name]
    (tmp_path / "0.png").write_bytes(b"")
    (tmp_path / name).write_text(json.dumps(content), encoding="utf-8")
    damage_each(tmp_path, name, places, lambda: read(tmp_path))


@pytest.mark.parametrize("name", OF_A_BASE)
def test_a_damaged_file_of_a_base_is_one_sentence(tiny_folder, tmp_path, name):
    folder = Path(shutil.copytree(tiny_folder, tmp_path / "base"))
    damage_each(folder, name, OF_A_BASE[name], lambda: load_base(folder, device="cpu"))


@pytest.fixture(scope="module")
def transformer(tmp_path_factory) -> Path:
    from transformers import ViTConfig, ViTModel

    folder = tmp_path_factory.mktemp("vit")
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    ViTModel(ViTConfig(**small, image_size=16, patch_size=8), add_pooling_layer=False).save_pretrained(folder)
    facts = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5], "size": {"height": 16}, "crop_size": 16}
    (folder / "preprocessor_config.json").write_text(json.dumps(facts | {"do_center_crop": True}), encoding="utf-8")
    return folder


@pytest.mark.parametrize("name", OF_A_TRANSFORMER)
@pytest.mark.parametrize("use", ["classifier", "features"])
def test_a_damaged_file_of_a_vision_transformer_is_one_sentence(transformer, tmp_path, name, use):
    folder, places = Path(shutil.copytree(transformer, tmp_path / "vit")), OF_A_TRANSFORMER[name]
    if use == "classifier":
        damage_each(folder, name, places, lambda: load_classifier(folder, 2, device="cpu"))
    else:
        places += SIZES if name == "preprocessor_config.json" else ()
        damage_each(folder, name, places, lambda: load_features(f"dino:{folder}"))
