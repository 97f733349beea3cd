"""The second moment of a text encoder: what it is, where it is found, and when it is refused."""

import pytest
import torch
from safetensors.torch import save_file

from diffadapt.bases import load_base
from diffadapt.bases.covariance import Covariance, SecondMoment, load_covariance
from diffadapt.bases.measure_covariance import measure_covariance, without_padding
from diffadapt.data.prompts import world_captions
from diffadapt.errors import Refused

CAPTIONS = [f"a {a} {b} on the {c}" for a in ("red", "blue", "flat") for b in ("cat", "dog", "apple") for c in "abcdef"]


def test_12_the_mean_energy_of_the_sample_is_its_dimension(tiny_base):
    c = measure_covariance(tiny_base, CAPTIONS)
    ids = tiny_base.tokenize(CAPTIONS)
    with torch.no_grad():
        tokens = tiny_base.encode_ids(ids)[without_padding(ids, tiny_base.tokenizer.eos_token_id)].double()
    ridged = c.matrix + c.ridge * torch.eye(32).double()
    energy = (tokens * c.solve(tokens)).sum(1).mean()
    torch.testing.assert_close(energy, torch.trace(torch.linalg.solve(ridged, c.matrix)), rtol=1e-6, atol=0)
    assert c.ridge > 0 or float(energy) == pytest.approx(32, rel=1e-6)
    assert torch.equal(c.matrix, c.matrix.T) and c.facts["tokens"] == len(tokens)


def test_12_measured_batch_by_batch_it_is_the_same(tiny_base):
    whole, parts = (measure_covariance(tiny_base, CAPTIONS, batch=size) for size in (64, 7))
    torch.testing.assert_close(whole.matrix, parts.matrix, rtol=0, atol=1e-7)  # the encoder itself is float32
    text, kept = torch.randn(10, 4, 8).double(), torch.ones(10, 4, dtype=torch.bool)
    one, many = SecondMoment(8), SecondMoment(8)
    one.add(text, kept)
    for row in text:
        many.add(row[None], kept[:1])
    torch.testing.assert_close(one.matrix(), many.matrix(), rtol=0, atol=1e-10)


def test_padding_behind_the_first_end_does_not_count(tiny_base):
    ids = tiny_base.tokenize(["a cat", "a photo of a dog", ""])
    assert without_padding(ids, tiny_base.tokenizer.eos_token_id).sum(1).tolist() == [4, 7, 2]


def test_a_well_conditioned_matrix_is_left_alone_and_another_gets_the_least_ridge_that_helps():
    scales = torch.logspace(0, 4, 16).double()
    assert Covariance(matrix=scales.diag()).ridge == 0
    poor = Covariance(matrix=torch.logspace(-9, 2, 16).double().diag())
    values = torch.linalg.eigvalsh(poor.matrix + poor.ridge * torch.eye(16).double())
    assert float(values[-1] / values[0]) == pytest.approx(1e6, rel=1e-6)


def test_a_file_brings_it_back_with_the_same_fingerprint(tiny_base, tmp_path):
    c = measure_covariance(tiny_base, CAPTIONS)
    again = load_covariance(c.save(tmp_path / "c.safetensors"))
    torch.testing.assert_close(again.matrix, c.matrix, rtol=1e-6, atol=1e-6)
    assert again.facts == c.facts and again.fingerprint == c.fingerprint
    assert measure_covariance(tiny_base, CAPTIONS[1:]).fingerprint != c.fingerprint


def test_the_embedded_base_ships_what_its_own_captions_give():
    base = load_base("embedded")
    shipped, again = base.covariance(), measure_covariance(base, world_captions(base))
    assert again.fingerprint == shipped.fingerprint
    torch.testing.assert_close(again.matrix, shipped.matrix, rtol=1e-3, atol=1e-4)


def test_what_is_no_second_moment_is_refused(tiny_base, tmp_path):
    with pytest.raises(Refused, match="tokens cannot tell 32 directions apart; give 1600 or more"):
        measure_covariance(tiny_base, CAPTIONS[:3])
    from diffadapt.files import save_tensors

    file = save_tensors(tmp_path / "other.safetensors", {"x": torch.zeros(2)}, {"format": "diffadapt"})
    with pytest.raises(Refused, match="holds no covariance"):
        load_covariance(file)
    header = {"format": "diffadapt-covariance", "format_version": "1"}
    file = tmp_path / "nan.safetensors"  # not as we write it: we refuse to
    save_file({"second_moment": torch.full((2, 2), float("nan"))}, file, header)
    with pytest.raises(Refused, match="second_moment holds values that are not numbers"):
        load_covariance(file)
    file = save_tensors(tmp_path / "new.safetensors", {}, {**header, "format_version": "9"})
    with pytest.raises(Refused, match="format version 9; update diffadapt"):
        load_covariance(file)


def test_captions_of_a_base_with_ordinary_language_have_to_be_given(tiny_base):
    with pytest.raises(Refused, match="give a text file with a caption on each line"):
        world_captions(tiny_base)
