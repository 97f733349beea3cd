"""Textual inversion in and out: words of other tools, and files that nothing overwrites."""

import pytest
import torch

from diffadapt import LoRA, Refused, Token, export_adapter, import_adapter, load_adapter
from diffadapt.adapters import read_adapter
from diffadapt.files import load_tensors, save_tensors

VECTORS = torch.randn(2, 32, generator=torch.Generator().manual_seed(4))


@pytest.mark.parametrize(
    ("key", "tensor", "token", "word"),
    [
        ("emb_params", VECTORS, None, "<my-word>"),
        ("clip_l", VECTORS, "<fox>", "<fox>"),
        ("<biscuit>", VECTORS, None, "<biscuit>"),
        ("<biscuit>", VECTORS[0], None, "<biscuit>"),
        ("plain", VECTORS.half(), None, "<plain>"),
    ],
)
def test_a_word_is_read_in_each_of_its_forms(base, tmp_path, key, tensor, token, word):
    theirs = save_tensors(tmp_path / "my word.safetensors", {key: tensor})
    (file,), note = import_adapter(base, theirs, tmp_path / "ours.safetensors", token=token)
    method, _, tokens, tensors, header = read_adapter(file)
    rows = tensor.float().reshape(-1, 32)
    assert method == Token(vectors=len(rows)) and list(tokens)[0] == word and header["note"] == note
    assert torch.equal(tensors["text_encoder.embeddings.token_embedding.vectors"], rows)


def test_a_word_here_is_what_it_is_in_diffusers(base, tmp_path):
    theirs = save_tensors(tmp_path / "word.safetensors", {"<biscuit>": VECTORS})
    (file,), _ = import_adapter(base, theirs, tmp_path / "ours.safetensors")
    attachment = load_adapter(base, file)
    with torch.no_grad():
        ours = base.condition(["a <biscuit> cat"]).text
        attachment.detach()
        base.pipeline.load_textual_inversion(str(theirs))
        torch.testing.assert_close(base.condition(["a <biscuit> cat"]).text, ours)


@pytest.mark.parametrize(
    ("tensors", "says"),
    [
        ({"clip_l": VECTORS, "clip_g": torch.ones(2, 64)}, "for 2 text encoder.s., and .* has 1"),
        ({"emb_params": torch.ones(1, 768)}, "width 768, and the text encoder of .* has 32"),
        ({"emb_params": torch.ones(20, 32)}, "has 20 vectors; a token of diffadapt has 1 to 16"),
    ],
)
def test_words_of_other_bases_are_refused(base, tmp_path, tensors, says):
    theirs = save_tensors(tmp_path / "word.safetensors", tensors)
    with pytest.raises(Refused, match=says):
        import_adapter(base, theirs, tmp_path / "ours.safetensors")
    assert not base.attachments and not (tmp_path / "ours.safetensors").exists()


@pytest.mark.parametrize(
    "tensors",
    [
        {"emb_params": VECTORS, "clip_g": VECTORS.clone()},
        {"clip_g": VECTORS},
        {"clip_l": VECTORS, "clip_g": torch.ones(1, 2, 3)},
    ],
)
def test_files_that_are_almost_textual_inversion_are_refused(base, tmp_path, tensors):
    theirs = save_tensors(tmp_path / "word.safetensors", tensors)
    with pytest.raises(Refused, match="word.safetensors"):
        import_adapter(base, theirs, tmp_path / "ours.safetensors")


def test_a_token_goes_with_a_word_only(base, saved, tmp_path):
    export_adapter(base, saved(LoRA(rank=2)), tmp_path / "lora.safetensors")
    with pytest.raises(Refused, match="a token goes with textual inversion"):
        import_adapter(base, tmp_path / "lora.safetensors", tmp_path / "ours.safetensors", token="<fox>")


def test_words_that_differ_in_signs_or_case_go_into_files_of_their_own(base, saved, tmp_path):
    tokens = {"<rex>": "cat", "[rex]": "red", "<!>": "dog"}
    file = saved(LoRA(rank=2), tokens=tokens)
    written, _ = export_adapter(base, file, tmp_path / "out.safetensors")
    names = ["out.safetensors", "out-rex.safetensors", "out-rex-2.safetensors", "out-word.safetensors"]
    assert [path.name for path in written] == names
    assert [next(iter(load_tensors(path)[0])) for path in written[1:]] == list(tokens)


@pytest.mark.parametrize("to", ["lora", "diff", "peft"])
def test_an_existing_file_of_a_word_is_not_overwritten_and_nothing_is_written(base, saved, tmp_path, to):
    file = saved(LoRA(rank=2), tokens={"<biscuit>": "cat"})
    own = save_tensors(tmp_path / "out-biscuit.safetensors", {"mine": torch.ones(1)})
    out = tmp_path / ("out" if to == "peft" else "out.safetensors")
    with pytest.raises(Refused, match=r"out-biscuit.safetensors, where a new word would go, exists already"):
        export_adapter(base, file, out, to=to)
    assert not out.exists() and list(load_tensors(own)[0]) == ["mine"]
