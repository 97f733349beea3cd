"""PEFT directories, held against PEFT itself."""

import json

import pytest
import torch
from peft import OFTConfig, PeftModel, get_peft_model

from diffadapt import IA3, OFT, Refused, Selective, export_adapter, import_adapter, load_adapter
from diffadapt.adapters import read_adapter
from diffadapt.files import load_tensors, save_tensors

ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
CASES = {
    "blocks of 8": (OFT(block_size=8), None),
    "4 blocks": (OFT(blocks=4), None),
    "shared": (OFT(block_size=8, share_blocks=True), None),
    "coft": (OFT(block_size=8, constraint="peft", radius=0.5), None),
    "coft of another kind": (OFT(block_size=8, constraint="angle", radius=20), None),
    "1x1 convolutions": (OFT(block_size=8), ["attention.project_*", "residual.shortcut"]),
    "feed-forward": (OFT(block_size=16), ["feed_forward.*", "cross_attention.key"]),
}


def made_by_peft(unet, folder, *, size=0.3, **config):
    """A PEFT directory of OFT with random rotations, and the PEFT model that wrote it."""
    model = get_peft_model(unet, OFTConfig(**{"target_modules": ATTENTION, "oft_block_size": 8, **config})).eval()
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "oft_R" in name:
                parameter += size * torch.randn(parameter.shape, generator=generator)
    model.save_pretrained(folder)
    return model


def rewritten(folder, **config):
    path = folder / "adapter_config.json"
    values = {**json.loads(path.read_text()), **config}
    path.write_text(json.dumps({key: value for key, value in values.items() if value != "left out"}))


@pytest.mark.parametrize("case", CASES)
def test_peft_answers_as_we_do_with_what_we_wrote(base, unet, saved, draw, apart, tmp_path, case):
    file = saved(*CASES[case])
    (folder,), _ = export_adapter(base, file, tmp_path / "out", to="peft")
    plain = draw(base.denoiser)
    load_adapter(base, file)
    ours, theirs = draw(base.denoiser), draw(PeftModel.from_pretrained(unet, folder).eval())
    assert apart(ours, theirs) < 1e-5
    assert apart(ours, plain) > 100 * apart(ours, theirs)


def test_what_is_written_says_that_it_is_exact(base, saved, tmp_path):
    export_adapter(base, saved(OFT(block_size=8)), tmp_path / "out", to="peft")
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["use_cayley_neumann"] is False and config["coft"] is False
    assert "mid_block.attentions.0.transformer_blocks.0.attn1.to_out.0" in config["target_modules"]


def test_the_sign_is_minus_for_the_exact_transform_and_plus_for_the_series(base, unet, saved, draw, apart, tmp_path):
    """Our file with the flag turned round makes PEFT draw the inverse, to what the series is apart."""
    file = saved(OFT(block_size=8), size=0.01)
    (folder,), _ = export_adapter(base, file, tmp_path / "out", to="peft")
    rewritten(folder, use_cayley_neumann=True, peft_version="0.21.2")
    theirs = draw(PeftModel.from_pretrained(unet, folder).eval())
    attachment = load_adapter(base, file)
    assert apart(theirs, draw(base.denoiser)) > 1e-3
    attachment.strength = -1
    assert apart(theirs, draw(base.denoiser)) < 1e-5


def test_a_strength_is_written_into_the_rotation(base, unet, saved, draw, apart, tmp_path):
    file = saved(OFT(block_size=8))
    (folder,), _ = export_adapter(base, file, tmp_path / "out", to="peft", strength=0.4)
    load_adapter(base, file).strength = 0.4
    assert apart(draw(base.denoiser), draw(PeftModel.from_pretrained(unet, folder).eval())) < 1e-5


def test_beyond_1_no_ball_is_written_since_peft_would_pull_the_rotation_back(base, unet, saved, draw, apart, tmp_path):
    file = saved(OFT(block_size=8, constraint="peft", radius=0.5))
    (folder,), _ = export_adapter(base, file, tmp_path / "out", to="peft", strength=2)
    load_adapter(base, file).strength = 2
    assert apart(draw(base.denoiser), draw(PeftModel.from_pretrained(unet, folder).eval())) < 1e-5


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`")  # PEFT's, of transformers
def test_the_text_encoder_has_a_directory_of_its_own(base, saved, tmp_path):
    roles = ["text.self_attention.*", "cross_attention.key"]
    file = saved(OFT(block_size=8), roles)
    written, _ = export_adapter(base, file, tmp_path / "out", to="peft")
    assert written == [tmp_path / "out", tmp_path / "out" / "text_encoder"]
    prompts = ["a cat", "a dog on a red background"]
    theirs = PeftModel.from_pretrained(base.text_encoder, written[1]).eval()
    with torch.no_grad():
        answer = theirs(base.tokenize(prompts)).last_hidden_state
        base.pipeline.text_encoder = theirs.unload()
        attachment = load_adapter(base, file)
        torch.testing.assert_close(base.condition(prompts).text, answer, rtol=1e-5, atol=1e-5)
    attachment.detach()
    import_adapter(base, tmp_path / "out", tmp_path / "back.safetensors")
    same(base, file, tmp_path / "back.safetensors")


def same(base, file, other):
    """Two adapter files that say the same, bit for bit."""
    (method, roles, _, tensors, header), (m, r, _, t, h) = read_adapter(file), read_adapter(other)
    assert method == m and base.select(roles) == base.select(r) and tensors.keys() == t.keys()
    assert all(torch.equal(tensors[key], t[key]) for key in tensors)
    assert header["base_fingerprint"] == h["base_fingerprint"]


@pytest.mark.parametrize("case", [case for case in CASES if not case.startswith("coft")])
def test_there_and_back_is_the_same_file_bit_for_bit(base, saved, tmp_path, case):
    method, roles = CASES[case]
    file = saved(method, roles or method.default_roles(base.roles))
    export_adapter(base, file, tmp_path / "out", to="peft")
    files, note = import_adapter(base, tmp_path / "out", tmp_path / "back.safetensors")
    same(base, file, *files)
    assert "from a PEFT directory" in note and "series" not in note
    assert read_adapter(files[0])[4]["note"] == note


def test_coft_there_and_back_stays_coft(base, saved, tmp_path):
    method = OFT(block_size=8, constraint="peft", radius=0.5)
    file = saved(method)
    export_adapter(base, file, tmp_path / "out", to="peft")
    import_adapter(base, tmp_path / "out", tmp_path / "back.safetensors")
    again, _, _, tensors, _ = read_adapter(tmp_path / "back.safetensors")
    assert again == method
    for key, value in read_adapter(file)[3].items():
        torch.testing.assert_close(tensors[key], value, rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"block_share": True},
        {"oft_block_size": 0, "r": 4},
        {"coft": True, "eps": 0.8},
        {"target_modules": ["to_q", "proj_in"]},
        {"target_modules": r".*down_blocks.*attn2\.to_[kv]"},
    ],
    ids=lambda config: ", ".join(config) or "plain",
)
def test_we_answer_as_peft_does_with_what_it_wrote(base, unet, draw, apart, tmp_path, config):
    theirs = draw(made_by_peft(unet, tmp_path / "theirs", use_cayley_neumann=False, **config))
    files, note = import_adapter(base, tmp_path / "theirs", tmp_path / "ours.safetensors")
    assert not base.attachments
    load_adapter(base, files[0])
    assert apart(draw(base.denoiser), theirs) < 1e-5
    assert ("stay as they are" in note) == ("down" in str(config))


def test_a_peft_constraint_becomes_ours(base, unet, tmp_path):
    made_by_peft(unet, tmp_path / "theirs", use_cayley_neumann=False, coft=True, eps=0.8)
    import_adapter(base, tmp_path / "theirs", tmp_path / "ours.safetensors")
    method, _, _, tensors, _ = read_adapter(tmp_path / "ours.safetensors")
    assert (method.constraint, method.radius) == ("peft", 0.8)
    for q in tensors.values():  # the file lay outside: PEFT draws inside and saves what the optimizer left
        assert ((2**0.5) * q.norm(dim=1)).max() <= 0.8 / len(q) ** 0.5 * (1 + 1e-6)


@pytest.mark.parametrize("terms", [5, 6])
def test_a_series_file_is_read_within_the_difference_that_the_note_states(base, unet, draw, apart, tmp_path, terms):
    config = {"use_cayley_neumann": True, "num_cayley_neumann_terms": terms, "size": 0.02}
    theirs = draw(made_by_peft(unet, tmp_path / "theirs", **config))
    files, note = import_adapter(base, tmp_path / "theirs", tmp_path / "ours.safetensors")
    plain = draw(base.denoiser)
    load_adapter(base, files[0])
    ours = draw(base.denoiser)
    stated = float(note.split("at most ")[1].split(";")[0])
    assert f"series of {terms} terms" in note and "orthogonal group" not in note
    assert 0 < stated < {5: 1e-3, 6: 1e-4}[terms]
    assert apart(ours, theirs) < max(30 * stated, 1e-5)  # through some thirty layers
    assert apart(ours, plain) > 10 * apart(ours, theirs)


def test_a_series_that_left_the_orthogonal_group_is_named(base, unet, tmp_path):
    made_by_peft(unet, tmp_path / "theirs", size=0.3)
    _, note = import_adapter(base, tmp_path / "theirs", tmp_path / "ours.safetensors")
    assert "left the orthogonal group" in note and "above 0.01" in note


def test_a_series_of_an_old_peft_is_read_with_a_remark(base, unet, tmp_path):
    made_by_peft(unet, tmp_path / "theirs", size=0.01)
    rewritten(tmp_path / "theirs", peft_version="left out")
    _, note = import_adapter(base, tmp_path / "theirs", tmp_path / "ours.safetensors")
    assert "PEFT before 0.18" in note


def test_names_are_read_with_and_without_peft_s_own_marks(base, saved, tmp_path):
    file = saved(OFT(block_size=8))
    (folder,), _ = export_adapter(base, file, tmp_path / "out", to="peft")
    tensors, _ = load_tensors(folder / "adapter_model.safetensors")

    def renamed(key):
        return key.removeprefix("base_model.model.").replace(".oft_R.weight", ".oft_R.default.weight")

    save_tensors(folder / "adapter_model.safetensors", {renamed(key): value for key, value in tensors.items()})
    import_adapter(base, folder / "adapter_model.safetensors", tmp_path / "back.safetensors")
    same(base, file, tmp_path / "back.safetensors")


REFUSED_TO_WRITE = {
    "a PEFT directory is written for lora, dora, ia3 and oft, and this adapter is selective; --to diff": (
        Selective(),
        ["cross_attention.out"],
    ),
    r"conv1 is a convolution.*distort; use --to diff": (OFT(block_size=4), ["residual.conv"]),
    "no gain per neuron.*rescale; use --to diff": (OFT(block_size=8, rescale="joint"), None),
}


@pytest.mark.parametrize("says", REFUSED_TO_WRITE)
def test_what_peft_cannot_hold_is_refused(base, saved, tmp_path, says):
    file = saved(*REFUSED_TO_WRITE[says])
    with pytest.raises(Refused, match=says):
        export_adapter(base, file, tmp_path / "out", to="peft")
    assert not (tmp_path / "out").exists() and not base.attachments


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"peft_type": "BOFT"}, "PEFT directory of BOFT; diffadapt reads those of LORA and OFT"),
        ({"oft_block_size": "left out"}, "earlier versions of PEFT.*train it again"),
    ],
)
def test_other_and_old_configs_are_refused(base, unet, tmp_path, change, says):
    made_by_peft(unet, tmp_path / "theirs")
    rewritten(tmp_path / "theirs", **change)
    with pytest.raises(Refused, match=says):
        import_adapter(base, tmp_path / "theirs", tmp_path / "ours.safetensors")


@pytest.mark.parametrize(
    ("key", "shape", "says"),
    [
        ("base_model.model.conv_in.oft_r", (2, 4, 4), "earlier versions of PEFT"),
        ("base_model.model.blocks.7.to_q.oft_R.weight", (2, 28), "a layer 'blocks.7.to_q', which base .* not have"),
        ("base_model.model.conv_in.oft_R.weight", (9, 6), "conv_in is a convolution.*distort"),
        ("base_model.model.conv_in.bias", (16,), "holds base_model.model.conv_in.bias, which is no part of OFT"),
        ("base_model.model.mid_block.attentions.0.proj_in.oft_R.weight", (2, 27), "holds no rotations"),
        ("base_model.model.mid_block.attentions.0.proj_in.oft_R.weight", (3, 28), "does not fit base.*proj_in.q"),
        ("base_model.model.mid_block.attentions.0.proj_in.oft_R.weight", (2, 120), "blocks of the sizes 8, 16"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(base, unet, tmp_path, key, shape, says):
    made_by_peft(unet, tmp_path / "theirs")
    path = tmp_path / "theirs" / "adapter_model.safetensors"
    save_tensors(path, {**load_tensors(path)[0], key: torch.zeros(shape)})
    with pytest.raises(Refused, match=says):
        import_adapter(base, tmp_path / "theirs", tmp_path / "ours.safetensors")
    assert not (tmp_path / "ours.safetensors").exists() and not base.attachments


def test_a_pickle_in_a_peft_directory_is_refused(base, unet, tmp_path):
    made_by_peft(unet, tmp_path / "theirs")
    (tmp_path / "theirs" / "adapter_model.safetensors").rename(tmp_path / "theirs" / "adapter_model.bin")
    with pytest.raises(Refused, match="pickle.*safe_serialization=True"):
        import_adapter(base, tmp_path / "theirs", tmp_path / "ours.safetensors")


def test_an_empty_folder_and_tensors_without_their_config_are_refused(base, unet, tmp_path):
    made_by_peft(unet, tmp_path / "theirs")
    with pytest.raises(Refused, match="no PEFT directory: there is no adapter_config.json"):
        import_adapter(base, tmp_path, tmp_path / "ours.safetensors")
    (tmp_path / "theirs" / "adapter_config.json").unlink()
    with pytest.raises(Refused, match="without its adapter_config.json, which says which of two signs"):
        import_adapter(base, tmp_path / "theirs" / "adapter_model.safetensors", tmp_path / "ours.safetensors")


def test_parts_that_were_trained_otherwise_are_refused(base, saved, tmp_path):
    file = saved(OFT(block_size=8), ["text.self_attention.*", "cross_attention.key"])
    export_adapter(base, file, tmp_path / "out", to="peft")
    rewritten(tmp_path / "out" / "text_encoder", use_cayley_neumann=True)
    with pytest.raises(Refused, match="have different settings"):
        import_adapter(base, tmp_path / "out", tmp_path / "back.safetensors")


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`")
@pytest.mark.parametrize("strength", [1.0, 0.3])
def test_peft_answers_as_we_do_with_our_gains(base, unet, saved, draw, apart, tmp_path, strength):
    file = saved(IA3(), ["self_attention.*", "residual.*", "feed_forward.*"])
    plain = draw(base.denoiser)
    (folder,), _ = export_adapter(base, file, tmp_path / "out", to="peft", strength=strength)
    load_adapter(base, file).strength = strength
    assert apart(draw(base.denoiser), draw(PeftModel.from_pretrained(unet, folder).eval())) < 2e-6
    assert apart(draw(base.denoiser), plain) > 1e-3
