"""Perfusion: what it refuses, and what its files weigh."""

import math

import pytest
import torch
from perfusion_cases import CAPTIONS, concept, exact, given, prepared, projections
from PIL import Image

from diffadapt.adapters import Perfusion, SideInputs, attach, load_adapter
from diffadapt.bases.covariance import Covariance
from diffadapt.bases.measure_covariance import measure_covariance
from diffadapt.data.concept import load_concept
from diffadapt.errors import Refused
from diffadapt.evaluation.evaluate import evaluate
from diffadapt.sampling.sample import sample


@pytest.fixture
def base(tiny_base):
    return prepared(tiny_base)


@pytest.mark.parametrize(
    ("tokens", "sentence"),
    [
        ({"<x>": "tabby"}, r"'tabby' is \d+ tokens of the base .* common word of one token"),
        ({"<x>": "red cat"}, r"'red cat' is 2 tokens"),
        ({"<x>": "cat", "<y>": "dog"}, "one new word.* got <x>, <y>"),
        ({}, "at least one new token"),
    ],
)
def test_a_concept_is_one_word_of_a_category_of_one_token(base, tokens, sentence):
    with pytest.raises(Refused, match=sentence):
        attach(base, Perfusion(), tokens=tokens)
    assert not base.attachments


def test_a_base_without_a_covariance_says_how_to_measure_it(tiny_base, monkeypatch, tmp_path):
    monkeypatch.setenv("DIFFADAPT_CACHE", str(tmp_path))
    with pytest.raises(Refused, match="has no covariance yet, expected at .* diffadapt covariance --base"):
        attach(tiny_base, Perfusion(), tokens={"<x>": "cat"})


def test_the_covariance_of_another_encoder_is_refused(tiny_base, monkeypatch, tmp_path):
    monkeypatch.setenv("DIFFADAPT_CACHE", str(tmp_path))
    other = Covariance(matrix=torch.eye(32).double(), facts={"encoder": "sha256:0", "corpus": "x", "pooled": "y"})
    other.save(tiny_base.covariance_file)
    with pytest.raises(Refused, match=r"measured on another text encoder \(sha256:0\)"):
        tiny_base.covariance()


def test_a_concept_learned_under_another_covariance_is_refused(base, tmp_path):
    path = concept(base).save(tmp_path / "x.safetensors")
    base.attachments[-1].detach()
    base._covariance = measure_covariance(base, CAPTIONS[:-1])
    with pytest.raises(Refused, match="learned under covariance sha256:.*, the base has sha256:"):
        load_adapter(base, path)
    assert not base.attachments


def test_other_roles_are_refused(base):
    with pytest.raises(Refused, match=r"attn2.to_q is neither"):
        attach(base, Perfusion(), ["cross_attention.*"], tokens={"<x>": "cat"})
    with pytest.raises(Refused, match="add the role cross_attention.value"):
        attach(base, Perfusion(), ["cross_attention.key"], tokens={"<x>": "cat"})


def test_prompts_have_to_come_first_and_be_as_many(base):
    attachment = concept(base)
    _, adapter = projections(attachment, "value")[0]
    with pytest.raises(Refused, match="has no prompts yet"):
        adapter(torch.zeros(1, 16, 32))
    with pytest.raises(Refused, match="needs text"):
        attachment.begin(SideInputs(token_ids=base.tokenize(["a <x>"])))
    text = given(base, ["a <x>"])
    with pytest.raises(Refused, match="got 1 prompts for a batch of 2 rows"):
        adapter(text.expand(2, -1, -1))


@pytest.mark.parametrize("settings", [{"key_lock": "none"}, {"temperature": 0.0}, {"ema": 1.5}, {"gate": "soft"}])
def test_settings_out_of_range_are_refused(base, settings):
    with pytest.raises(Refused, match=next(iter(settings))):
        attach(base, Perfusion(**settings), tokens={"<x>": "cat"})


@pytest.mark.parametrize("bias", [math.nan, math.inf, -math.inf])
def test_a_gate_s_bias_that_is_not_a_number_is_refused_in_sample_and_evaluate(base, tmp_path, bias):
    Image.new("RGB", (32, 32), "red").save(tmp_path / "0.png")
    attached = {"adapters": [(concept(base), 1.0)], "bias": {"<x>": bias}}
    with pytest.raises(Refused, match="the bias for '<x>' must be a finite number"):
        sample(base, "a <x> cat", steps=1, **attached)
    few = {"prompts": 1, "per_prompt": 1, "drift_count": 1, "steps": 1, "features": ["probe"]}
    with pytest.raises(Refused, match="the bias for '<x>' must be a finite number"):
        evaluate(base, load_concept(tmp_path, "cat"), **attached, **few)


def test_16_saved_and_loaded_it_is_the_same_bit_for_bit(base, tmp_path):
    attachment = concept(base, Perfusion(bias=0.5, key_lock="trained"))
    before = {name: value.clone() for name, value in attachment.state_dict().items()}
    path = attachment.save(tmp_path / "x.safetensors")
    attachment.detach()
    again = load_adapter(base, path)
    assert again.method == attachment.method and before.keys() == again.state_dict().keys()
    assert all(torch.equal(before[name], value) for name, value in again.state_dict().items())


def test_16_locked_keys_are_regenerated_and_not_stored(tiny_base):
    base = exact(tiny_base)
    attachment = concept(base)
    assert not any("key" in name for name in attachment.state_dict())
    text = attachment.shared.anchor.expand(1, 16, -1)
    given(base, ["a <x>"], text)
    for _, adapter in projections(attachment, "key"):
        stored = adapter.layer.weight @ attachment.shared.category  # what o*_K would have been
        regenerated = adapter(text)[0, -1] / attachment.shared.opened[0, -1]
        torch.testing.assert_close(regenerated, stored, atol=1e-6, rtol=0)
