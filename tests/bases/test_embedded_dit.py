"""The class-conditional base that ships: a DiTPipeline of diffusers, small, that draws one class unlike another."""

import json

import torch

from diffadapt.bases import load_base
from diffadapt.bases.load import SHIPPED
from diffadapt.metrics import load_features
from diffadapt.sampling.sample import default_line, generate

FOLDER = SHIPPED["embedded-dit"]


def test_plain_diffusers_opens_it():
    from diffusers.pipelines.dit.pipeline_dit import DiTPipeline

    pipeline = DiTPipeline.from_pretrained(FOLDER)
    assert len(pipeline.labels) == 95 and pipeline.transformer.config.sample_size == 16


def test_its_files_are_at_most_15_mb_and_none_is_a_pickle():
    files = [path for path in FOLDER.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 15_000_000
    assert {path.suffix for path in files} <= {".safetensors", ".json", ".md"}


def test_its_pictures_of_a_class_are_nearer_to_that_class_than_to_another():
    """Faces and cars: each picture's features beside the mean of both classes' other pictures."""
    base = load_base("embedded-dit", device="cpu")
    assert base.encoder == "probe" and not base.world
    names = ["face-smiling"] * 6 + ["transport-ground"] * 6
    pictures = torch.stack(generate(base, [default_line(base, name, i, steps=12) for i, name in enumerate(names)]))
    rows = load_features(base.encoder).pictures(pictures)
    likeness = (rows @ rows.T).fill_diagonal_(0)
    own = torch.cat([likeness[:6, :6].sum(1), likeness[6:, 6:].sum(1)]) / 5
    other = torch.cat([likeness[:6, 6:].mean(1), likeness[6:, :6].mean(1)])
    assert int((own > other).sum()) >= 10, (own, other)


def test_its_card_states_what_was_measured():
    facts = json.loads((FOLDER / "measured.json").read_text(encoding="utf-8"))
    assert facts["base"] == load_base("embedded-dit", device="cpu").fingerprint
    card = (FOLDER / "README.md").read_text(encoding="utf-8")
    for distances in facts["frechet_distance"].values():
        assert all(f"{value:.3f}" in card for value in distances.values())
    assert all(f"{ratio:.2f}" in card for ratio in facts["premise"].values())
