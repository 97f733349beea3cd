"""Weight differences, and words beside them."""

import pytest
import torch

from diffadapt import OFT, Hint, LoRA, Perfusion, Refused, Selective, Token, export_adapter, load_adapter
from diffadapt.bases.measure_covariance import measure_covariance
from diffadapt.files import load_tensors
from diffadapt.interchange.names import kohya_name

CASES = {
    "oft": (OFT(block_size=8), None),
    "oft with gains, on convolutions too": (OFT(block_size=4, rescale="joint"), ["residual.*", "cross_attention.*"]),
    "lora": (LoRA(rank=2), ["self_attention.*", "resample.conv", "text.self_attention.*"]),
    "full": (Selective(), ["norm", "output.conv", "text.norm", "cross_attention.out"]),
    "bias": (Selective(train="bias"), ["feed_forward.*"]),
    "bias of norms": (Selective(train="bias"), ["norm"]),
}


@pytest.mark.parametrize("strength", [1.0, 0.4])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("case", CASES)
def test_the_base_plus_the_difference_is_the_merged_base(base, saved, tmp_path, case, dtype, strength):
    file = saved(*CASES[case])
    (out,), _ = export_adapter(base, file, tmp_path / "out.safetensors", to="diff", strength=strength, dtype=dtype)
    tensors, header = load_tensors(out)
    assert {value.dtype for value in tensors.values()} == {dtype} and header["strength"] == f"{strength:g}"
    names = {kohya_name(path): path for paths in base.roles.values() for path in paths}
    added = {}
    for key, change in tensors.items():
        name, _, suffix = key.partition(".")
        parameter = f"{names[name]}.{'bias' if suffix in ('diff_b', 'b_norm') else 'weight'}"
        before = base.module(names[name]).get_parameter(parameter.rpartition(".")[2])
        assert change.shape == before.shape and (suffix.endswith("norm") == ("norm" in names[name]))
        added[parameter] = before + change.float()
    attachment = load_adapter(base, file)
    attachment.strength = strength
    attachment.merge_()
    for path in attachment.adapters:
        for name, merged in base.module(path).named_parameters(recurse=False):
            if f"{path}.{name}" in added:
                size = float((merged - added.pop(f"{path}.{name}")).abs().max())
                assert size <= (1e-3 if dtype == torch.float16 else 2e-6) * max(1, float(merged.abs().max()))
    assert not added


@pytest.mark.parametrize("train", ["bias", "full"])
def test_weight_and_bias_of_a_normalisation_are_written_as_the_pair_that_other_tools_read(base, saved, tmp_path, train):
    file = saved(Selective(train=train), ["norm", "text.norm", "feed_forward.out"])
    (out,), _ = export_adapter(base, file, tmp_path / "out.safetensors", to="diff")
    written: dict[str, set[str]] = {}
    for key in load_tensors(out)[0]:
        name, _, suffix = key.partition(".")
        written.setdefault(name, set()).add(suffix)
    norms = {kohya_name(path) for role in ("norm", "text.norm") for path in base.roles[role]}
    others = {kohya_name(path) for path in base.roles["feed_forward.out"]}
    assert written.keys() == norms | others
    assert all(written[name] == {"w_norm", "b_norm"} for name in norms)
    assert all(written[name] == ({"diff_b"} if train == "bias" else {"diff", "diff_b"}) for name in others)


def test_the_note_says_which_normalisations_comfyui_passes_over(base, saved, tmp_path):
    file = saved(Selective(), ["norm", "text.norm"])
    _, note = export_adapter(base, file, tmp_path / "out.safetensors", to="diff")
    paths = base.roles["text.norm"]
    assert f"passes over {len(paths)} layers, the first {paths[0]}; diffadapt merge reaches it" in note
    (tmp_path / "adapter.safetensors").unlink()
    _, note = export_adapter(base, saved(Selective(), ["norm"]), tmp_path / "more.safetensors", to="diff")
    assert "passes over" not in note


def test_words_are_written_as_textual_inversion(base, saved, tmp_path):
    file = saved(LoRA(rank=2), tokens={"<biscuit>": "cat", "<style>": "red"})
    written, _ = export_adapter(base, file, tmp_path / "out.safetensors", to="diff", strength=0.5)
    assert [path.name for path in written] == ["out.safetensors", "out-biscuit.safetensors", "out-style.safetensors"]
    attachment = load_adapter(base, file)
    attachment.strength = 0.5
    rows = attachment.adapters["text_encoder.embeddings.token_embedding"].rows()
    for row, word, path in zip(rows, attachment.tokens, written[1:], strict=True):
        assert torch.equal(load_tensors(path)[0][word], row[None])
    attachment.detach()


def test_diffusers_reads_a_word_of_several_vectors(base, saved, tmp_path):
    file = saved(Token(vectors=3), tokens={"<biscuit>": "cat"})
    (path,), _ = export_adapter(base, file, tmp_path / "out.safetensors", to="diff")
    attachment = load_adapter(base, file)
    with torch.no_grad():
        ours = base.condition(["a <biscuit> cat"]).text
        attachment.detach()
        base.pipeline.load_textual_inversion(str(path))
        torch.testing.assert_close(base.condition(["a <biscuit> cat"]).text, ours)


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"to": "oft_blocks"}, r"oft_blocks cannot be written.*turn the outputs.*--to diff reaches the same tools"),
        ({"to": "kohya"}, "no format 'kohya'; known: lora .*, peft .*, diff "),
        ({"to": "diff", "strength": 0}, "changes nothing at strength 0"),
        ({"to": "diff", "dtype": torch.bfloat16}, "float16 or float32, which keep small turns"),
    ],
)
def test_what_cannot_be_written_is_refused(base, saved, tmp_path, more, says):
    file = saved(OFT(block_size=8))
    with pytest.raises(Refused, match=says):
        export_adapter(base, file, tmp_path / "out.safetensors", **more)
    assert not (tmp_path / "out.safetensors").exists() and not base.attachments


def test_names_are_new_and_say_what_they_are(base, saved, tmp_path):
    file = saved(OFT(block_size=8))
    with pytest.raises(Refused, match="exists already"):
        export_adapter(base, file, file, to="diff")
    with pytest.raises(Refused, match=r"ends in \.safetensors"):
        export_adapter(base, file, tmp_path / "out", to="diff")


def test_perfusion_whose_gate_looks_at_the_prompt_is_refused(base, saved, tmp_path):
    captions = [f"{a} {size} {noun} on {ground}" for a in ("a", "the") for size in ("small", "flat", "red")
                for noun in ("cat", "dog", "apple") for ground in ("red", "blue", "flat")]  # fmt: skip
    base._covariance = measure_covariance(base, captions)
    file = saved(Perfusion(), tokens={"<x>": "cat"})
    with pytest.raises(Refused, match=r"on unet\..* depends on its input, .* use it in diffadapt"):
        export_adapter(base, file, tmp_path / "out.safetensors", to="diff")
    assert not list(tmp_path.glob("out*")) and not base.attachments


def test_an_effect_that_depends_on_the_input_is_refused(base, saved, tmp_path):
    with pytest.raises(Refused, match="HintAdapter on unet.conv_in depends on its input"):
        export_adapter(base, saved(Hint(channels=(4, 8, 8))), tmp_path / "out.safetensors", to="diff")
