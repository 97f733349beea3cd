"""The identity of a run: pictures, captions, how the base was loaded; and what is refused before it begins."""

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from diffadapt.adapters import LoRA
from diffadapt.bases import load_base
from diffadapt.bases.original_layout import save_single_file
from diffadapt.config import read_toml
from diffadapt.data.concept import load_concept
from diffadapt.data.sequence import load_sequence
from diffadapt.data.sequence_record import Learned, SequenceRecord
from diffadapt.errors import Refused
from diffadapt.files import file_digest, write_atomic
from diffadapt.recipes import classify, control, distill, sequence, style, subject
from diffadapt.recipes.job import RECIPES, read_job
from diffadapt.recipes.subject import SubjectConfig, train_subject

FAST = SubjectConfig(
    steps=6, batch_size=2, warmup=2, prior_pictures=3, checkpoint_every=2, sample_every=0, evaluation_prompts=0
)


def test_edited_captions_and_another_prediction_are_another_run(base, photos, tmp_path):
    settings = {"method": LoRA(rank=1), "config": FAST, "quiet": True, "steps": 1, "prior_weight": 0}
    (photos / "0.txt").write_text("a cat on red")
    train_subject(base, load_concept(photos, "cat"), out=tmp_path / "run", **settings)
    (photos / "0.txt").write_text("a cat on blue")
    with pytest.raises(Refused, match="holds a run with other settings .*on red.*on blue"):
        train_subject(base, load_concept(photos, "cat"), out=tmp_path / "run", **settings)
    (photos / "0.txt").write_text("a cat on red")
    base.pipeline.scheduler.register_to_config(prediction_type="epsilon")
    with pytest.raises(Refused, match="holds a run with other settings .*v_prediction.*epsilon"):
        train_subject(base, load_concept(photos, "cat"), out=tmp_path / "run", **settings)


def test_a_run_remembers_how_its_base_was_loaded(tiny_v_folder, photos, tmp_path):
    base = load_base(tiny_v_folder, device="cpu", prediction_type="epsilon")
    base.default_steps = 1
    settings = {"method": LoRA(rank=1), "config": FAST, "quiet": True, "steps": 1, "prior_weight": 0}
    train_subject(base, load_concept(photos, "cat"), out=tmp_path / "run", **settings)
    job = read_job(read_toml(tmp_path / "run" / "run.toml"))
    assert job.top.prediction_type == "epsilon" and job.load_base("cpu").prediction_type == "epsilon"


def test_what_would_teach_nothing_is_refused_before_anything_is_written(base, photos, tmp_path):
    settings = {"method": LoRA(rank=1), "config": FAST, "quiet": True, "out": tmp_path / "run"}
    (photos / "1.txt").write_text("on red " * 20 + "a <biscuit> cat")
    with pytest.raises(Refused, match="1.png is cut before <biscuit>"):
        train_subject(base, load_concept(photos, "cat"), **settings)
    (photos / "1.txt").unlink()
    mask = Image.new("L", (48, 40), 0)
    for box in ((0, 16, 3, 24), (45, 16, 48, 24)):
        mask.paste(255, box)
    mask.save(photos / "2-masklabel.png")
    with pytest.raises(Refused, match="the mask of 2.png is empty inside the square crop"):
        train_subject(base, load_concept(photos, "cat"), masked=True, **settings)
    assert not (tmp_path / "run").exists() and not base.attachments


# --- of every recipe --------------------------------------------------------------------------------------------------

FEW = {"steps": 2, "batch_size": 1, "sample_every": 0}
NO_PRIOR = {**FEW, "prior_weight": 0.0}
KINDS = {  # recipe -> its table of data, with folders below the test's own; its settings
    "subject": ({"folder": "data/mia", "noun": "cat"}, NO_PRIOR),
    "sequence": ({"folder": "data", "noun": "cat"}, {**NO_PRIOR, "evaluation_features": "probe"}),
    "control": ({"folder": "data/mia", "signals": "canny", "held_out": 1}, FEW),
    "style": ({"folder": "data/mia", "held_out": 1}, FEW),
    "transfer": ({"folder": "data", "held_out": 1}, FEW),
    "distill": ({"folder": "a", "captions": "captions.txt"}, {**FEW, "teacher_pictures": 1}),
    "classify": ({"folder": "data", "held_out": 1, "tasks": 1}, {"steps": 2}),
}
OF_CLASSES = ("transfer", "classify")  # whose captions are names of folders


class AtTheLoop(Exception):
    """Ends a recipe where it would begin to learn."""


@pytest.fixture(scope="module")
def bases(tiny_folder, tmp_path_factory) -> Path:
    """A base as a single file, two folders of configuration that say the same, and a vision transformer."""
    from transformers import ViTConfig, ViTModel

    place = tmp_path_factory.mktemp("bases")
    for name in "ab":
        shutil.copytree(tiny_folder, place / name)
        (place / name / "base.json").write_text(json.dumps({"default_guidance": 1.0, "default_steps": 1}))
    save_single_file(load_base(tiny_folder, device="cpu"), place / "base.safetensors")
    shape = ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, image_size=16, patch_size=8
    )
    ViTModel(shape, add_pooling_layer=False).save_pretrained(place / "vit")
    return place


@pytest.fixture
def begin(bases, tmp_path, monkeypatch):
    """Runs the job of a recipe as far as the loop; further keys are those at the top of its file."""
    for module in (classify, control, distill, sequence, style, subject):

        def reached(*_, **__):
            raise AtTheLoop

        monkeypatch.setattr(module, "fit", reached)
    for name in ("mia", "otto"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for i in range(4):
            Image.new("RGB", (32, 32), (80 * i, 0, 200)).save(tmp_path / "data" / name / f"{i}.png")
            (tmp_path / "data" / name / f"{i}.txt").write_text("a cat on red")
    (tmp_path / "captions.txt").write_text("a cat\na dog\n")

    def begin(recipe: str, **top):
        data, train = KINDS[recipe]
        paths = {"folder": str((bases if recipe == "distill" else tmp_path) / data["folder"])}
        paths |= {"captions": str(tmp_path / data["captions"])} if "captions" in data else {}
        base = {"base": str(bases / "vit")} if recipe == "classify" else {"base": str(bases / "base.safetensors")}
        base |= {} if recipe == "classify" else {"base_config": str(bases / "a"), "prediction_type": "epsilon"}
        table = {"recipe": recipe, **base, "out": str(tmp_path / "runs" / "a"), **top}
        table |= {RECIPES[recipe].table: {**data, **paths}, "method": {"name": "lora", "rank": 1}, "train": train}
        read_job(table).run("cpu")

    return begin


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_same_call_goes_on_and_so_does_the_run_file(begin, tmp_path, recipe):
    for _ in range(2):
        with pytest.raises(AtTheLoop):
            begin(recipe)
    with pytest.raises(AtTheLoop):
        read_job(read_toml(tmp_path / "runs" / "a" / "run.toml")).run("cpu")


@pytest.mark.parametrize("recipe", RECIPES)
def test_an_edited_caption_is_another_run(begin, tmp_path, recipe):
    with pytest.raises(AtTheLoop):
        begin(recipe)
    if recipe in OF_CLASSES:
        (tmp_path / "data" / "mia").rename(tmp_path / "data" / "anna")
    (tmp_path / "captions.txt").write_text("a cat\na blue dog\n")
    for path in tmp_path.glob("data/*/1.txt"):
        path.write_text("a cat on blue")
    with pytest.raises(Refused, match="holds a run with other settings .*; choose another out folder, or repeat"):
        begin(recipe)


@pytest.mark.parametrize("recipe", [name for name in RECIPES if name != "distill"])
def test_an_edited_picture_is_another_run(begin, tmp_path, recipe):
    with pytest.raises(AtTheLoop):
        begin(recipe)
    Image.new("RGB", (32, 32), "white").save(tmp_path / "data" / "mia" / "0.png")
    with pytest.raises(Refused, match="holds a run with other settings"):
        begin(recipe)


@pytest.mark.parametrize("recipe", [name for name in RECIPES if name != "classify"])
def test_another_prediction_and_another_configuration_of_the_base_are_another_run(begin, bases, recipe):
    with pytest.raises(AtTheLoop):
        begin(recipe)
    with pytest.raises(Refused, match="it has 'prediction_type = \"epsilon\"', you asked for .*v_prediction"):
        begin(recipe, prediction_type="v_prediction")
    with pytest.raises(Refused, match="it has 'base_config = .*/a\"', you asked for 'base_config = .*/b\"'"):
        begin(recipe, base_config=str(bases / "b"))


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_run_that_was_begun_before_all_of_this_was_noted_goes_on(begin, tmp_path, recipe):
    with pytest.raises(AtTheLoop):
        begin(recipe)
    for mark in tmp_path.glob("runs/a/tasks/*/settings.toml"):
        mark.unlink()
    mark = tmp_path / "runs" / "a" / "settings.toml"
    later = ("prediction_type", "base_config", "teachers_predict")
    lines = [line for line in mark.read_text().splitlines(keepends=True) if not line.startswith(later)]
    mark.write_text("".join(lines))
    with pytest.raises(AtTheLoop):
        begin(recipe)
    with pytest.raises(Refused, match="holds a run with other settings"):
        begin(recipe, seed=1)


def test_a_teacher_that_predicts_something_else_is_another_teacher(base, tiny_v_folder, tmp_path, monkeypatch):
    def reached(*_, **__):
        raise AtTheLoop

    monkeypatch.setattr(distill, "fit", reached)
    settings = {"method": LoRA(rank=1), "quiet": True, "teacher_pictures": 1, "sample_every": 0}
    teachers = [load_base(tiny_v_folder, device="cpu", prediction_type=kind) for kind in (None, "epsilon")]
    for _ in range(2):
        with pytest.raises(AtTheLoop):
            distill.train_distill(base, {"ink": teachers[0]}, ["a cat"], out=tmp_path / "a", **settings)
    with pytest.raises(Refused, match='teachers_predict = "v_prediction".*teachers_predict = "epsilon"'):
        distill.train_distill(base, {"ink": teachers[1]}, ["a cat"], out=tmp_path / "a", **settings)


def test_the_caption_of_a_task_that_is_cut_is_told_and_refused_where_its_word_is_cut(begin, tmp_path, capsys):
    (tmp_path / "data" / "otto" / "2.txt").write_text("on red " * 20 + "a <otto>")
    with pytest.raises(Refused, match="2.png is cut before <otto>"):
        begin("sequence")
    assert not (tmp_path / "runs").exists()
    (tmp_path / "data" / "otto" / "2.txt").unlink()
    (tmp_path / "data" / "mia" / "0.txt").write_text("a <mia> on " + "red " * 20)
    with pytest.raises(AtTheLoop):
        begin("sequence")
    assert "0.png: its caption is too long" in capsys.readouterr().err


def test_the_captions_of_a_learned_task_are_part_of_its_record(tmp_path):
    place = tmp_path / "data" / "mia"
    place.mkdir(parents=True)
    Image.new("RGB", (32, 32)).save(place / "0.png")
    (place / "0.txt").write_text("a cat on red")
    adapter = write_atomic(tmp_path / "a" / "tasks" / "01-mia" / "adapter.safetensors", "weights")
    [task] = load_sequence(tmp_path / "data", "cat")
    facts = {"name": "mia", "token": "<mia>", "phrase": "<mia>", "contents": task.contents(), "trainable": 1}
    for captions in (None, task.captions()):
        SequenceRecord(
            tmp_path / "a", [Learned(**facts, adapter=file_digest(adapter), captions=captions)], [[0.5]]
        ).write()
        (place / "0.txt").write_text("a cat on red")
        assert SequenceRecord.read(tmp_path / "a").in_order([task]) == []
        (place / "0.txt").write_text("a cat on blue")
        if captions is None:  # a record from before captions were noted
            assert SequenceRecord.read(tmp_path / "a").in_order([task]) == []
    with pytest.raises(Refused, match="the captions in .*mia are not those that task 'mia' was learned from; put them"):
        SequenceRecord.read(tmp_path / "a").in_order([task])
