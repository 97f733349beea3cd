"""The probe that ships: what it says of scenes that this file draws, and how its files are read."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from diffadapt.data.scenes import Scene, World, caption, render, sample_scene
from diffadapt.errors import Refused
from diffadapt.files import save_tensors, write_json
from diffadapt.metrics import ProbeFeatures, load_features, load_probe
from diffadapt.metrics.probe import WEIGHTS, Probe, ProbeShape, split_words


@pytest.fixture(scope="module")
def probe() -> ProbeFeatures:
    features = load_features("probe")
    assert isinstance(features, ProbeFeatures)
    return features


def disc(colour: tuple[float, float, float]) -> torch.Tensor:
    """A sprite that no emoji set holds: a striped disc."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, 72), torch.linspace(-1, 1, 72), indexing="ij")
    alpha = (x.square() + y.square() < 0.9).float()
    stripes = 0.6 + 0.4 * (torch.sin(x * 12) > 0)
    return torch.stack([*(value * stripes * alpha for value in colour), alpha])


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    rng = np.random.default_rng(0)
    return [sample_scene(rng, World(nouns=("cat",), styles=("flat",)), two_objects=0) for _ in range(200)]


@pytest.fixture(scope="module")
def pixels(scenes: list[Scene]) -> torch.Tensor:
    return render(scenes, {("cat", "flat"): disc((0.9, 0.5, 0.1))})[0]


@pytest.mark.parametrize("head", ["background", "position", "size"])
def test_the_probe_names_the_layout_of_a_thing_it_never_saw(probe, scenes, pixels, head):
    named = probe.describe(pixels)[head]
    truth = [scene.background if head == "background" else getattr(scene.objects[0], head) for scene in scenes]
    right = sum(a == b for a, b in zip(named, truth, strict=True)) / len(truth)
    assert right >= 0.9, f"{head}: {right:.2f}"


def test_a_true_caption_is_nearer_than_one_with_a_wrong_background(probe, scenes, pixels):
    others = ["night" if scene.background != "night" else "meadow" for scene in scenes]
    wrong = [dataclasses.replace(scene, background=other) for scene, other in zip(scenes, others, strict=True)]
    seen = probe.pictures(pixels)
    margin = (seen * (probe.texts([caption(s) for s in scenes]) - probe.texts([caption(s) for s in wrong]))).sum(1)
    assert (margin > 0).float().mean() >= 0.95


def test_subject_embeddings_follow_the_thing_and_not_the_background(probe, scenes, pixels):
    other = render(scenes[:50], {("cat", "flat"): disc((0.2, 0.3, 0.9)).flip(1)})[0]
    mine, again, theirs = (probe.subjects(x) for x in (pixels[:50], pixels[50:100], other))
    assert (mine @ again.T).mean() > (mine @ theirs.T).mean() + 0.1


def test_probabilities_sum_to_one_and_describe_names_the_largest(probe, pixels):
    chances, named = probe.probabilities(pixels[:4]), probe.describe(pixels[:4])
    labels = probe.probe.shape.labels
    assert set(named) == {
        "object", "second", "style", "background", "position", "size",
        "colour", "count", "wearing", "relation", "pattern", "drawn",
    }  # fmt: skip
    for head in named:
        torch.testing.assert_close(chances[head].sum(1), torch.ones(4))
        assert named[head] == [labels[head][i] for i in chances[head].argmax(1)]


def test_pictures_of_any_size_are_read(probe):
    assert probe.pictures(torch.rand(2, 3, 90, 200)).shape == (2, 128)


def test_held_out_nouns_and_new_tokens_are_unknown_words(probe):
    words = probe.probe.shape.words
    assert "cat" in words and "fox" not in words and "inked" not in words
    tokens = probe.probe.tokenize(["a <biscuit> cat", "a fox cat"])
    assert torch.equal(tokens[0], tokens[1])


def test_words_are_split_around_tokens_and_punctuation():
    assert split_words("A <my-cat> 3D cat, at night!") == ["a", "<my-cat>", "3d", "cat", "at", "night"]


def test_an_empty_and_an_endless_text_are_read(probe):
    assert probe.texts(["", "cat " * 500]).isfinite().all()


def test_the_probe_is_small_and_states_its_accuracy():
    assert sum(file.stat().st_size for file in WEIGHTS.iterdir()) <= 10_000_000
    accuracy = json.loads((WEIGHTS / "probe.json").read_text())["accuracy"]
    assert accuracy["object"] >= 0.85 and accuracy["background"] >= 0.98  # small, dressed and half-hidden things too


def tiny(folder: Path) -> Path:
    labels = dict.fromkeys(("object", "colour", "count"), ("x", "y"))
    shape = ProbeShape(labels=labels, words=("<pad>", "<unk>", "x"), widths=(4, 4, 4, 8))
    facts = {**dataclasses.asdict(shape), "format_version": 1, "accuracy": {"object": 0.5}}
    write_json(folder / "probe.json", facts)
    weights = Probe(shape).state_dict()
    save_tensors(folder / "probe.safetensors", {k: v.half() for k, v in weights.items() if v.is_floating_point()})
    return folder


def test_a_probe_is_read_back_as_it_was_written(tmp_path: Path):
    probe = load_probe(tiny(tmp_path))
    assert probe.accuracy == {"object": 0.5}
    assert not probe.training and not any(p.requires_grad for p in probe.parameters())
    assert probe.image(torch.rand(2, 3, 64, 64))[1].shape == (2, 128)


def test_a_newer_a_torn_and_a_missing_probe_are_refused(tmp_path: Path):
    with pytest.raises(Refused, match=r"probe\.json"):
        load_probe(tmp_path)
    facts = json.loads((tiny(tmp_path) / "probe.json").read_text())
    write_json(tmp_path / "probe.json", {**facts, "format_version": 99})
    with pytest.raises(Refused, match="newer diffadapt"):
        load_probe(tmp_path)
    write_json(tmp_path / "probe.json", {**facts, "widths": [4, 4, 4, 16]})
    with pytest.raises(Refused, match="do not make a probe"):
        load_probe(tmp_path)
    write_json(tmp_path / "probe.json", facts)
    whole = (tmp_path / "probe.safetensors").read_bytes()
    (tmp_path / "probe.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(Refused, match="not a whole safetensors file"):
        load_probe(tmp_path)
