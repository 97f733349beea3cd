"""The identity of a run: pictures, captions, how the base was loaded; and what is refused before it begins."""

import pytest
from PIL import Image

from diffadapt.adapters import LoRA
from diffadapt.bases import load_base
from diffadapt.config import read_toml
from diffadapt.data.concept import load_concept
from diffadapt.errors import Refused
from diffadapt.recipes.job import read_job
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
