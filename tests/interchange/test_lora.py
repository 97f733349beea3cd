"""LoRA out and in, held against PEFT and diffusers on a small Stable Diffusion on disk."""

import json

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file

from diffadapt import OFT, DoRA, LoRA, Refused, Selective, export_adapter, import_adapter, load_adapter
from diffadapt.adapters import read_adapter
from diffadapt.bases import load_base
from diffadapt.files import load_tensors, save_tensors
from diffadapt.interchange.names import kohya_name

EVERYWHERE = [
    "self_attention.*", "cross_attention.*", "feed_forward.*", "attention.*", "residual.*", "resample.conv",
    "input.conv", "output.conv", "time_embedding", "text.self_attention.*", "text.feed_forward.*",
]  # fmt: skip
UNEVEN = LoRA(
    rank=3,
    alpha=2.0,
    ranks=("unet.mid_block.*=2", "text_encoder.*=1"),
    alphas=("unet.mid_block.*.attn1.*=0.5", "unet.conv_in=3.5"),
)
CASES = {
    "attention": (LoRA(rank=2), None),
    "alpha": (LoRA(rank=4, alpha=1), ["cross_attention.*", "feed_forward.*"]),
    "everywhere, uneven": (UNEVEN, EVERYWHERE),
}
DORA = {
    "dora": (DoRA(rank=2), None),
    "dora everywhere, uneven": (
        DoRA(rank=3, alpha=2.0, ranks=UNEVEN.ranks, alphas=UNEVEN.alphas),
        EVERYWHERE,
    ),
}
PROMPTS = ["a cat", "a dog on a red background"]


def words(base):
    with torch.no_grad():
        return base.condition(PROMPTS).text


@pytest.fixture
def loaded(tiny_folder):
    """diffusers' own pipeline of the same base, with a LoRA file loaded by diffusers."""

    def load(file):
        pipeline = load_base(tiny_folder, device="cpu").pipeline
        pipeline.load_lora_weights(str(file.parent), weight_name=file.name)
        return pipeline

    return load


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`")
@pytest.mark.parametrize("strength", [1.0, -0.4])
@pytest.mark.parametrize("case", CASES)
def test_diffusers_answers_as_we_do_with_what_we_wrote(base, saved, draw, apart, loaded, tmp_path, case, strength):
    file = saved(*CASES[case])
    (out,), _ = export_adapter(base, file, tmp_path / "o.safetensors", dtype=torch.float32, strength=strength)
    plain, plain_words, ids = draw(base.denoiser), words(base), base.tokenize(PROMPTS)
    theirs = loaded(out)
    load_adapter(base, file).strength = strength
    ours = draw(base.denoiser)
    assert apart(ours, draw(theirs.unet)) < 2e-6
    assert apart(ours, plain) > 1e-3
    with torch.no_grad():
        assert apart(words(base), theirs.text_encoder(ids).last_hidden_state) < 2e-6
    assert torch.equal(words(base), plain_words) == (case != "everywhere, uneven")


def test_the_file_has_kohya_s_keys_shapes_and_minimum_of_metadata(base, saved, tmp_path):
    file = saved(UNEVEN, EVERYWHERE, tokens={"<biscuit>": "cat"})
    written, note = export_adapter(base, file, tmp_path / "out.safetensors")
    assert [path.name for path in written] == ["out.safetensors", "out-biscuit.safetensors"]
    tensors, header = load_tensors(written[0])
    shapes = {
        "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_out_0.lora_down.weight": (2, 32),
        "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_out_0.lora_up.weight": (32, 2),
        "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_out_0.alpha": (),
        "lora_unet_down_blocks_0_resnets_0_conv1.lora_down.weight": (3, 16, 3, 3),
        "lora_unet_down_blocks_0_resnets_0_conv1.lora_up.weight": (16, 3, 1, 1),
        "lora_te_text_model_encoder_layers_1_self_attn_q_proj.lora_down.weight": (1, 32),
        "lora_te_text_model_encoder_layers_1_mlp_fc1.lora_up.weight": (64, 1),
    }
    assert {key: tuple(tensors[key].shape) for key in shapes} == shapes
    assert (
        len(tensors) == 3 * len(read_adapter(file)[3].keys() - {"text_encoder.embeddings.token_embedding.vectors"}) / 2
    )
    assert {value.dtype for key, value in tensors.items() if key.endswith("weight")} == {torch.float16}
    minimum = {"ss_v2", "ss_base_model_version", "ss_network_module", "ss_network_dim", "ss_network_alpha"}
    assert minimum | {"ss_network_args"} <= header.keys() and header["ss_base_model_version"] == "sd_v1"
    assert header["ss_network_dim"] == "Dynamic" and json.loads(header["ss_network_args"])["conv_dim"] == "Dynamic"
    assert header["modelspec.architecture"] == "stable-diffusion-v1/lora"
    assert header["modelspec.trigger_phrase"] == "<biscuit>" and header["modelspec.prediction_type"] == "epsilon"
    assert "sd-scripts passes over 4 of its" in note and "unet.conv_in" in note and "alphas differ by layer" in note
    assert {float(tensors[key]) for key in tensors if key.endswith(".alpha")} == {2.0}


def same(base, file, other):
    (method, roles, _, tensors, _), (m, r, _, t, _) = read_adapter(file), read_adapter(other)
    assert base.select(roles) == base.select(r) and tensors.keys() == t.keys()
    assert all(torch.equal(tensors[key], t[key]) for key in tensors)
    assert {path: method.alpha_of(path) for path in base.select(roles)} == {p: m.alpha_of(p) for p in base.select(r)}


def same_weights(base, file, other):
    ours, theirs = load_adapter(base, file), load_adapter(base, other)
    for path, adapter in ours.adapters.items():
        weight = adapter.innermost().weight
        torch.testing.assert_close(theirs.adapters[path].weight(weight), adapter.weight(weight), rtol=0, atol=1e-6)
    theirs.detach()
    ours.detach()


@pytest.mark.parametrize("to", ["lora", "peft"])
@pytest.mark.parametrize("case", CASES | DORA)
def test_there_and_back_is_the_same_bit_for_bit(base, saved, tmp_path, case, to):
    method, roles = (CASES | DORA)[case]
    file = saved(method, roles or method.default_roles(base.roles))
    out = tmp_path / ("out" if to == "peft" else "out.safetensors")
    export_adapter(base, file, out, to=to, dtype=torch.float32)
    (back,), note = import_adapter(base, out, tmp_path / "back.safetensors")
    if "uneven" in case and to == "lora":  # the alphas are in the matrices then
        same_weights(base, file, back)
    else:
        same(base, file, back)
    assert "every value, rank and alpha is kept" in note and read_adapter(back)[4]["note"] == note


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`")
@pytest.mark.parametrize("strength", [1.0, 0.3])
@pytest.mark.parametrize("case", CASES | DORA)
def test_peft_answers_as_we_do_with_what_we_wrote(base, unet, saved, draw, apart, tmp_path, case, strength):
    file = saved(*(CASES | DORA)[case])
    folders, _ = export_adapter(base, file, tmp_path / "out", to="peft", strength=strength)
    text = load_base(base.name, device="cpu").text_encoder if len(folders) > 1 else None
    load_adapter(base, file).strength = strength
    assert apart(draw(base.denoiser), draw(PeftModel.from_pretrained(unet, folders[0]).eval())) < 2e-6
    if text is not None:
        theirs = PeftModel.from_pretrained(text, folders[1]).eval()
        with torch.no_grad():
            assert apart(words(base), theirs(base.tokenize(PROMPTS)).last_hidden_state) < 2e-6


def peft_model(unet, **config):
    """A PEFT model of the UNet whose matrices are somewhere."""
    model = get_peft_model(unet, LoraConfig(**{"target_modules": ["to_q", "to_out.0", "proj_in", "conv1"], **config}))
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


@pytest.mark.parametrize(
    "config",
    [
        {"r": 3},
        {"r": 4, "lora_alpha": 1, "rank_pattern": {"attn2.to_q": 2}, "alpha_pattern": {"to_out.0": 5, "conv1": 0.5}},
        {"r": 5, "lora_alpha": 3, "use_rslora": True, "lora_dropout": 0.1},
        {"r": 3, "lora_alpha": 5, "use_dora": True},
    ],
    ids=["plain", "patterns", "rslora", "dora"],
)
def test_we_answer_as_peft_does_with_what_it_wrote(base, unet, draw, apart, tmp_path, config):
    model = peft_model(unet, **config)
    model.save_pretrained(tmp_path / "theirs")
    (file,), _ = import_adapter(base, tmp_path / "theirs", tmp_path / "ours.safetensors")
    plain = draw(base.denoiser)
    load_adapter(base, file)
    assert apart(draw(base.denoiser), draw(model)) < 2e-6
    assert apart(draw(base.denoiser), plain) > 1e-3


@pytest.fixture
def diffusers_file(tiny_folder, tmp_path):
    """(pipeline with a LoRA of diffusers, the file that diffusers saved): pytorch_lora_weights.safetensors."""

    def make(*, metadata=True, **config):
        from peft.utils import get_peft_model_state_dict

        pipeline = load_base(tiny_folder, device="cpu").pipeline
        config = LoraConfig(r=3, target_modules=["to_q", "to_k", "to_out.0"], **config)
        text = LoraConfig(r=2, target_modules=["q_proj", "out_proj"])
        pipeline.unet.add_adapter(config)
        pipeline.text_encoder.add_adapter(text)
        generator = torch.Generator().manual_seed(5)
        with torch.no_grad():
            for part in (pipeline.unet, pipeline.text_encoder):
                for name, parameter in part.named_parameters():
                    if "lora_" in name:
                        parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
        more = {"unet_lora_adapter_metadata": config.to_dict(), "text_encoder_lora_adapter_metadata": text.to_dict()}
        type(pipeline).save_lora_weights(
            tmp_path / "theirs",
            unet_lora_layers=get_peft_model_state_dict(pipeline.unet, adapter_name="default"),
            text_encoder_lora_layers=get_peft_model_state_dict(pipeline.text_encoder, adapter_name="default"),
            **(more if metadata else {}),
        )
        return pipeline, tmp_path / "theirs" / "pytorch_lora_weights.safetensors"

    return make


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`")
@pytest.mark.parametrize("config", [{}, {"lora_alpha": 6, "alpha_pattern": {"to_out.0": 1}}], ids=["plain", "alphas"])
def test_we_answer_as_diffusers_does_with_its_file(base, draw, apart, diffusers_file, tmp_path, config):
    pipeline, theirs = diffusers_file(metadata=bool(config), **({"lora_alpha": 3} | config))
    (file,), _ = import_adapter(base, theirs, tmp_path / "ours.safetensors")
    load_adapter(base, file)
    assert apart(draw(base.denoiser), draw(pipeline.unet)) < 2e-6
    with torch.no_grad():
        theirs_words = pipeline.text_encoder(base.tokenize(PROMPTS)).last_hidden_state
    # diffusers' text encoder had alpha 8 and rank 2 while it was made; only its metadata say so
    assert (apart(words(base), theirs_words) < 2e-6) == bool(config)


def _of_022(key):
    return key.replace(".lora_A.", ".lora.down.").replace(".lora_B.", ".lora.up.")


def _before(key):
    key = (
        key.replace(".to_out.0.lora_", ".to_out.lora_").replace(".q_proj.", ".to_q.").replace(".out_proj.", ".to_out.")
    )
    name, _, rest = key.partition(".lora_")
    head, _, last = name.rpartition(".")
    head += "" if name.startswith("text") else ".processor"
    return f"{head}.{last}_lora.{'down' if rest.startswith('A') else 'up'}.weight"


OLDER = {
    "0.15 to 0.21": lambda key: (
        _of_022(key).replace(".lora.", ".lora_linear_layer.") if key.startswith("text") else _of_022(key)
    ),
    "before": _before,
    "before, without the part": lambda key: _before(key).removeprefix("unet."),
    "with PEFT's adapter name": lambda key: key.replace(".weight", ".default.weight"),
}


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`")
@pytest.mark.parametrize("names", OLDER)
def test_older_names_of_diffusers_are_the_same_adapter(base, diffusers_file, tmp_path, names):
    _, theirs = diffusers_file(metadata=False)
    import_adapter(base, theirs, tmp_path / "new.safetensors")
    old = save_tensors(tmp_path / "old.safetensors", {OLDER[names](k): v for k, v in load_file(theirs).items()})
    import_adapter(base, old, tmp_path / "back.safetensors")
    same(base, tmp_path / "new.safetensors", tmp_path / "back.safetensors")


def test_diffusers_itself_reads_the_older_names_that_the_test_above_makes(diffusers_file, loaded, draw, tmp_path):
    pipeline, theirs = diffusers_file(metadata=False, lora_alpha=3)
    tensors = {_before(k): v for k, v in load_file(theirs).items() if k.startswith("unet.")}
    old = save_tensors(tmp_path / "old.safetensors", tensors)
    assert torch.equal(draw(loaded(old).unet), draw(pipeline.unet))


def test_the_middle_convolution_of_locon_is_multiplied_in(base, draw, apart, tmp_path):
    layer = base.module("unet.mid_block.resnets.0.conv1")
    draws = torch.Generator().manual_seed(2)
    down, mid, up = (torch.randn(*s, generator=draws) for s in ((3, 32, 1, 1), (2, 3, 3, 3), (32, 2, 1, 1)))
    name = "lora_unet_mid_block_resnets_0_conv1"
    parts = {"lora_down.weight": down, "lora_mid.weight": mid, "lora_up.weight": up, "alpha": torch.tensor(1.0)}
    theirs = save_tensors(tmp_path / "locon.safetensors", {f"{name}.{key}": value for key, value in parts.items()})
    (file,), _ = import_adapter(base, theirs, tmp_path / "ours.safetensors")
    attachment = load_adapter(base, file)
    x = torch.randn(1, 32, 8, 8, generator=draws)
    with torch.no_grad():
        conv = torch.nn.functional.conv2d
        expected = layer(x) + 0.5 * conv(conv(conv(x, down), mid, padding=1), up)
        assert apart(expected, attachment.adapters["unet.mid_block.resnets.0.conv1"](x)) < 1e-6


def test_oft_brought_to_a_rank_is_as_far_as_the_note_says_and_exact_at_full_rank(base, saved, draw, apart, tmp_path):
    file = saved(OFT(block_size=8), size=0.1)
    stated = []
    for rank in (2, 8, 32):
        out = tmp_path / f"{rank}.safetensors"
        _, note = export_adapter(base, file, out, rank=rank, dtype=torch.float32)
        stated.append(float(note.split(" by ")[1].split(" of ")[0]))
        (back,), _ = import_adapter(base, out, tmp_path / f"back-{rank}.safetensors")
        exact, near = load_adapter(base, file), load_adapter(base, back)
        exact.detach()
        lost, whole = 0.0, 0.0
        for path, adapter in near.adapters.items():
            weight = adapter.innermost().weight
            with torch.no_grad():
                change = exact.adapters[path].weight(weight) - weight
                lost += float((adapter.weight(weight) - weight - change).square().sum())
                whole += float(change.square().sum())
        assert (lost / whole) ** 0.5 == pytest.approx(stated[-1], rel=0.06, abs=1e-5)
        near.detach()
    assert 1 > stated[0] > stated[1] > stated[2] and stated[2] < 1e-5


@pytest.mark.parametrize(
    ("method", "roles", "more", "says"),
    [
        (OFT(block_size=8), None, {}, r"is oft, not a LoRA; give the rank.*--rank.*--to diff"),
        (OFT(block_size=8), None, {"rank": 0}, "whole number from 1 up"),
        (Selective(), ["norm"], {"rank": 2}, r"which a LoRA cannot hold; use --to diff"),
        (Selective(train="bias"), ["feed_forward.*"], {"rank": 2}, "changes the bias of unet.*use --to diff"),
        (LoRA(rank=2), None, {"strength": 0}, "changes nothing at strength 0"),
        (LoRA(rank=2), None, {"to": "diff", "rank": 2}, "a rank goes with --to lora"),
    ],
)
def test_what_no_lora_can_hold_is_refused(base, saved, tmp_path, method, roles, more, says):
    with pytest.raises(Refused, match=says):
        export_adapter(base, saved(method, roles), tmp_path / "out.safetensors", **more)
    assert not (tmp_path / "out.safetensors").exists() and not base.attachments


REFUSED_TO_READ = {
    "lora_unet_conv_in.hada_w1_a": "LoHa",
    "lora_unet_conv_in.lokr_w1": "LoKr",
    "lora_unet_conv_in.diff": r"weight differences \(\.diff\)",
    "lora_unet_conv_in.b_norm": "weight differences",
    "lora_unet_conv_in.oft_blocks": "oft_blocks",
    "lora_unet_conv_in.on_input": "IA3",
    "bundle_emb.cat.string_to_param.*": "words bundled into it",
    "lora_te2_text_model_encoder_layers_0_mlp_fc1.lora_up.weight": "it is of SDXL, and this base is not",
    "lora_unet_nowhere.lora_up.weight": "a layer 'lora_unet_nowhere', which base .* does not have",
}


@pytest.mark.parametrize("key", REFUSED_TO_READ)
def test_what_is_not_read_is_called_by_its_name(base, saved, tmp_path, key):
    (out,), _ = export_adapter(base, saved(LoRA(rank=2)), tmp_path / "out.safetensors")
    other = save_tensors(tmp_path / "other.safetensors", {**load_tensors(out)[0], key: torch.ones(2, 2)})
    with pytest.raises(Refused, match=REFUSED_TO_READ[key]):
        import_adapter(base, other, tmp_path / "ours.safetensors")
    assert not (tmp_path / "ours.safetensors").exists() and not base.attachments


@pytest.mark.parametrize(
    ("part", "value", "says"),
    [
        ("lora_up.weight", None, "has no up matrix"),
        ("lora_up.weight", torch.ones(16, 3), "which do not match"),
        ("lora_up.weight", torch.ones(7, 2), "was it trained on another base"),
        ("lora_down.weight", torch.ones(2, 9), "was it trained on another base"),
        ("lora_down.weight", torch.ones(()), "which do not match"),
        ("alpha", torch.ones(3), "expected one number"),
        ("bias", torch.ones(16), "no part of LoRA"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(base, saved, tmp_path, part, value, says):
    (out,), _ = export_adapter(base, saved(LoRA(rank=2)), tmp_path / "out.safetensors")
    tensors, _ = load_tensors(out)
    name = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
    tensors = {key: each for key, each in tensors.items() if key != f"{name}.{part}"}
    other = save_tensors(tmp_path / "other.safetensors", tensors | ({} if value is None else {f"{name}.{part}": value}))
    with pytest.raises(Refused, match=says):
        import_adapter(base, other, tmp_path / "ours.safetensors")
    assert not base.attachments


def lycoris_weight(w0, tensors, name):
    """LyCORIS' own formula: W' = dora_scale (W0 + alpha / r B A) / ||W0 + alpha / r B A||, over what comes in."""
    down, up = tensors[f"{name}.lora_down.weight"], tensors[f"{name}.lora_up.weight"]
    update = tensors[f"{name}.alpha"] / len(down) * (up.flatten(1) @ down.flatten(1))
    v = w0 + update.view_as(w0)
    scale = tensors[f"{name}.dora_scale"]
    assert scale.shape == (len(w0), *[1] * (w0.ndim - 1))
    return scale * v / v.flatten(1).norm(dim=1).view_as(scale)


@pytest.mark.parametrize("strength", [1.0, 0.3])
def test_doras_file_is_what_lycoris_computes_and_the_note_says_who_reads_it_otherwise(base, saved, tmp_path, strength):
    file = saved(*DORA["dora everywhere, uneven"])
    (out,), note = export_adapter(base, file, tmp_path / "out.safetensors", dtype=torch.float32, strength=strength)
    assert "ComfyUI (0.3) divides by the norms of the untouched weights" in note and "--to diff" in note
    tensors, _ = load_tensors(out)
    attachment = load_adapter(base, file)
    attachment.strength = strength
    for path, adapter in attachment.layers.items():
        w0 = adapter.innermost().weight
        theirs = lycoris_weight(w0, tensors, kohya_name(path))
        torch.testing.assert_close(adapter.weight(w0), theirs, atol=1e-6, rtol=1e-5)


def test_layers_without_a_magnitude_are_lora_in_a_file_of_dora(base, saved, tmp_path):
    file = saved(*DORA["dora"])
    (out,), _ = export_adapter(base, file, tmp_path / "out.safetensors", dtype=torch.float32)
    tensors, _ = load_tensors(out)
    name = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
    left = {key: value for key, value in tensors.items() if key != f"{name}.dora_scale"}
    other = save_tensors(tmp_path / "other.safetensors", left)
    (back,), _ = import_adapter(base, other, tmp_path / "back.safetensors")
    adapter = load_adapter(base, back).layers["unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"]
    w0 = adapter.innermost().weight
    update = tensors[f"{name}.lora_up.weight"] @ tensors[f"{name}.lora_down.weight"]
    torch.testing.assert_close(adapter.weight(w0), w0 + update, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("shape", "says"), [((1, 32), "a norm for each of its inputs"), ((32,), r"magnitudes of shape \(32,\)")]
)
def test_magnitudes_that_mean_something_else_are_refused(base, saved, tmp_path, shape, says):
    (out,), _ = export_adapter(base, saved(*DORA["dora"]), tmp_path / "out.safetensors")
    name = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q.dora_scale"
    other = save_tensors(tmp_path / "other.safetensors", {**load_tensors(out)[0], name: torch.ones(shape)})
    with pytest.raises(Refused, match=says):
        import_adapter(base, other, tmp_path / "ours.safetensors")


def test_dora_at_strength_0_is_nothing_to_write(base, saved, tmp_path):
    with pytest.raises(Refused, match="changes nothing at strength 0"):
        export_adapter(base, saved(*DORA["dora"]), tmp_path / "out.safetensors", strength=0)
