import json

import pytest
import torch

from diffadapt.adapters import LoRA, attach, load_adapter, read_adapter
from diffadapt.errors import Refused
from diffadapt.files import load_tensors, save_tensors


@pytest.fixture
def file(base, tmp_path):
    attachment = attach(base, LoRA(rank=2), ["cross_attention.*"], tokens={"<biscuit>": "cat"})
    path = attachment.save(tmp_path / "a.safetensors", {"note": "for the test"})
    attachment.detach()
    return path


def rewritten(path, **header):
    tensors, old = load_tensors(path)
    return save_tensors(path, tensors, {**old, **header})


def test_the_header_says_what_made_it(base, file):
    method, roles, tokens, tensors, header = read_adapter(file)
    assert method == LoRA(rank=2) and roles == ["cross_attention.*"] and tokens == {"<biscuit>": "cat"}
    assert header["base_fingerprint"] == base.fingerprint and header["note"] == "for the test"
    assert {"format_version", "diffadapt_version", "created", "base"} <= header.keys()
    assert all(key.startswith(("unet.", "text_encoder.")) for key in tensors)
    assert json.loads(header["config"])["rank"] == 2


@pytest.mark.parametrize(
    ("header", "says"),
    [
        ({"base_fingerprint": "sha256:0"}, "was trained on base .* load that base"),
        ({"format_version": "99"}, "format version 99.*update diffadapt"),
        ({"method": "lore"}, "method 'lore'; known: lora"),
        ({"format": "pt"}, "not an adapter of diffadapt"),
        ({"config": json.dumps({"rank": 1})}, "does not fit base"),
        ({"config": json.dumps({"rang": 1})}, "header that cannot be read"),
        ({"tokens": "{"}, "header that cannot be read"),
    ],
)
def test_files_that_cannot_be_honoured_are_refused(base, file, header, says):
    rewritten(file, **header)
    with pytest.raises(Refused, match=says):
        load_adapter(base, file)
    assert not base.attachments


def test_a_sibling_of_the_base_can_be_asked_for(base, file):
    rewritten(file, base_fingerprint="sha256:0")
    load_adapter(base, file, any_base=True).detach()


def test_a_file_cut_short_is_refused(base, file):
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(Refused, match="not a whole safetensors file"):
        load_adapter(base, file)


def test_a_missing_file_is_refused(base, tmp_path):
    with pytest.raises(Refused, match="no file at"):
        load_adapter(base, tmp_path / "no.safetensors")


def test_an_unknown_role_is_refused_with_the_known_ones(base):
    with pytest.raises(Refused, match="cross_attention.key"):
        attach(base, LoRA(), ["cross_atention.key"])


def test_a_missing_tensor_is_named(base, file):
    tensors, header = load_tensors(file)
    name = min(tensors)
    del tensors[name]
    save_tensors(file, tensors, header)
    with pytest.raises(Refused, match=f"lacks 1 tensor.*{name}"):
        load_adapter(base, file)
    assert not base.attachments and torch.is_grad_enabled()
