"""The report reads what a run writes: one real folder, through the layout and the shapes it was written with."""

import json

import pytest
from PIL import Image

from diffadapt.adapters import LoRA
from diffadapt.data.concept import load_concept
from diffadapt.files import read_json
from diffadapt.recipes.subject import train_subject
from diffadapt.report.run_folder import read_run_folder
from diffadapt.run_layout import RunLayout
from diffadapt.shapes import LOG_LINE, METRICS, hold


@pytest.fixture
def run(base, tmp_path):
    """Two steps with samples, a checkpoint, a choice of the step and an evaluation."""
    (tmp_path / "biscuit").mkdir()
    for i, colour in enumerate(("red", "blue")):
        Image.new("RGB", (40, 40), colour).save(tmp_path / "biscuit" / f"{i}.png")
    return train_subject(
        base, load_concept(tmp_path / "biscuit", "cat"), method=LoRA(rank=1), out=tmp_path / "run", quiet=True,
        steps=2, batch_size=1, warmup=0, prior_pictures=1, sample_every=1, checkpoint_every=1, keep_checkpoints=0,
        select=1, evaluation_prompts=1, evaluation_pictures=2,
    )  # fmt: skip


def test_everything_that_a_run_writes_is_read_back(run):
    layout, read = RunLayout(run.folder), read_run_folder(run.folder)
    assert not read.remarks and read.complete and read.last_step == read.steps == 2
    assert [row["step"] for row in read.log] == [1, 2] and read.setting("learning_rate") == 2e-3
    assert read.metrics == run.metrics == read_json(layout.metrics, METRICS)
    assert {"selection", "seconds_train", "seconds_total", "adapter_bytes", "weight_drift"} <= read.metrics.keys()
    assert list(read.samples) == [1, 2] and list(read.strengths) == [0.25, 0.5, 0.75, 1.0]
    count = len(read.prompts["prompts"])
    assert {len(files) for files in (*read.samples.values(), *read.strengths.values(), read.base_samples)} == {count}
    assert len(read.concept) == len(read.crops) == 2 and read.crops[0]["caption"] == "a <biscuit> cat"
    assert read.adapter == layout.adapter and read.metadata["method"] == "lora"
    assert read.last_checkpoint == layout.checkpoints / "step-000002" and layout.last_adapter.is_file()
    found = {path.relative_to(run.folder).parts[0] for path in run.folder.rglob("*")}
    known = {path.relative_to(run.folder).parts[0] for path in (
        layout.run, layout.settings, layout.log, layout.metrics, layout.selection, layout.report, layout.adapter,
        layout.last_adapter, layout.checkpoints, layout.concept, layout.samples,
    )}  # fmt: skip
    assert found - known == {"cache", "drift"}  # latents, and the evaluation's pictures
    for line in layout.log.read_text().splitlines():
        hold(json.loads(line), LOG_LINE, "log.jsonl")
    page = layout.report.read_text()
    assert "&lt;biscuit&gt;" in page and "LoRA" in page
