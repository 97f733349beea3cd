"""A tiny Stable Diffusion XL with two text encoders, saved as diffusers saves it: sampled, trained, exported."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

from diffadapt.adapters import LoRA, Selective, attach, load_adapter
from diffadapt.bases import load_base, single_file
from diffadapt.bases.original_layout import unet_name
from diffadapt.bases.quiet import quiet
from diffadapt.data.styles import load_styles
from diffadapt.errors import Refused
from diffadapt.files import save_tensors
from diffadapt.interchange import export_adapter, import_adapter
from diffadapt.recipes.style import train_style
from diffadapt.sampling.sample import default_line, generate, sample

from ..conftest import make_tokenizer
from .conftest import xl_file


def make_sdxl(place: Path) -> Path:
    from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    torch.manual_seed(0)
    tokenizers = [make_tokenizer(place / f"words-{i}") for i in range(2)]

    def text(width: int) -> CLIPTextConfig:
        return CLIPTextConfig(
            vocab_size=len(tokenizers[0]), hidden_size=width, intermediate_size=32, projection_dim=24,
            num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=16,
            bos_token_id=tokenizers[0].bos_token_id, eos_token_id=tokenizers[0].eos_token_id,
            pad_token_id=tokenizers[0].pad_token_id,
        )  # fmt: skip

    unet = UNet2DConditionModel(
        sample_size=16, in_channels=4, out_channels=4, block_out_channels=(16, 32), layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=16 + 32, attention_head_dim=4, norm_num_groups=8, use_linear_projection=True,
        addition_embed_type="text_time", addition_time_embed_dim=8, projection_class_embeddings_input_dim=24 + 6 * 8,
    )  # fmt: skip
    vae = AutoencoderKL(
        block_out_channels=(8, 16), latent_channels=4, layers_per_block=1, norm_num_groups=4, sample_size=32,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    )  # fmt: skip
    scheduler = EulerDiscreteScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, steps_offset=1, timestep_spacing="leading"
    )
    with quiet():
        StableDiffusionXLPipeline(
            vae=vae, text_encoder=CLIPTextModel(text(16)), text_encoder_2=CLIPTextModelWithProjection(text(32)),
            tokenizer=tokenizers[0], tokenizer_2=tokenizers[1], unet=unet, scheduler=scheduler, add_watermarker=False,
        ).save_pretrained(place / "base")  # fmt: skip
    return place / "base"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_sdxl(tmp_path_factory.mktemp("xl"))


@pytest.fixture
def base(folder):
    base = load_base(folder, device="cpu")
    base.default_steps = 2
    return base


def pixels(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture).astype(int)


@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_pictures_are_those_of_diffusers_own_pipeline(base, folder, guidance):
    from diffusers import StableDiffusionXLPipeline

    with quiet():
        plain = StableDiffusionXLPipeline.from_pretrained(folder, add_watermarker=False)
        plain.set_progress_bar_config(disable=True)
        expected = plain(
            ["a red cat", "a dog"], num_inference_steps=2, guidance_scale=guidance, width=32, height=24,
            generator=[torch.Generator().manual_seed(seed) for seed in (5, 6)],
        ).images  # fmt: skip
    found = sample(base, ["a red cat", "a dog"], seed=5, guidance=guidance, width=32, height=24)
    for one, other in zip(found, expected, strict=True):
        assert one.size == (32, 24) and np.abs(pixels(one) - pixels(other)).max() <= 1


def test_text_pooled_text_and_sizes_reach_the_denoiser(base):
    condition = base.condition(["a red cat", ""])
    assert condition.text.shape == (2, 16, 16 + 32) and condition.pooled_text.shape == (2, 24) and len(condition) == 2
    assert (condition.text[1] == 0).all() and (condition.pooled_text[1] == 0).all()  # the empty prompt of version 1.0
    noisy, steps = torch.randn(2, 4, 12, 16, generator=torch.Generator().manual_seed(0)), torch.tensor([3, 700])
    inputs = base.denoiser_inputs(noisy, steps, condition)
    assert inputs["added_cond_kwargs"]["time_ids"].tolist() == [[24, 32, 0, 0, 24, 32]] * 2
    together = base.denoise(noisy, steps, condition)
    alone = base.denoise(noisy[1:], steps[1:], condition.rows([1]))
    torch.testing.assert_close(together[1:], alone, rtol=1e-4, atol=1e-5)


def test_every_layer_has_a_role(base):
    assert {"size_embedding", "text.self_attention.query", "text_2.self_attention.query", "text_2.projection"} <= {
        *base.roles
    }
    assert len(base.roles["text.self_attention.query"]) == len(base.roles["text_2.self_attention.query"]) == 2


def test_lora_is_trained_sampled_and_exported(base, tmp_path):
    for i, caption in enumerate(("a cat", "a dog")):
        Image.new("RGB", (32, 32), ("navy", "olive")[i]).save(tmp_path / f"{i}.png")
        (tmp_path / f"{i}.txt").write_text(caption)
    before = sample(base, "a cat", seed=0)[0]
    run = train_style(
        base, load_styles(tmp_path, held_out=0), method=LoRA(rank=1), out=tmp_path / "run", steps=2, batch_size=2,
        learning_rate=0.01, warmup=0, checkpoint_every=1, sample_every=1, evaluation_pictures=0, quiet=True,
    )  # fmt: skip
    assert run.report.is_file() and not base.attachments
    after = sample(base, "a cat", seed=0, adapters=[(run.adapter, 1.0)])[0]
    assert (pixels(after) != pixels(before)).any() and (
        pixels(sample(base, "a cat", seed=0)[0]) == pixels(before)
    ).all()
    files, _ = export_adapter(base, run.adapter, tmp_path / "lora.safetensors", to="lora")
    names = load_file(files[0])
    assert names and all(name.startswith("lora_unet_") for name in names)
    with safe_open(files[0], "pt") as file:
        header = file.metadata()
    assert header["modelspec.architecture"] == "stable-diffusion-xl-v1-base/lora"
    assert (header["ss_base_model_version"], header["ss_v2"]) == ("sdxl_base_v1-0", "False")
    attachment = attach(base, LoRA(rank=1), ["text.self_attention.query", "text_2.self_attention.query"])
    for adapter in attachment.adapters.values():
        adapter.up.data.fill_(1.0)
    words = attachment.save(tmp_path / "words.safetensors")
    attachment.detach()
    for to in ("lora", "diff"):
        (file,), _ = export_adapter(base, words, tmp_path / f"words-{to}.safetensors", to=to)
        assert {name.split("_text_model_")[0] for name in load_file(file)} == {"lora_te1", "lora_te2"}
    attachment = attach(base, Selective(train="bias"), ["text_2.norm"])
    for parameter in attachment.parameters():
        parameter.data += 0.1
    norms = attachment.save(tmp_path / "norms.safetensors")
    attachment.detach()
    assert "no names for normalisations" in export_adapter(base, norms, tmp_path / "n.safetensors", to="diff")[1]
    saved = base.save(tmp_path / "saved")
    assert load_base(saved, device="cpu").fingerprint == base.fingerprint


# a layer -> its name in the files of sd-scripts, which has the original checkpoint's names for the UNet of XL
SGM = {
    "unet.down_blocks.0.resnets.0.conv1": "lora_unet_input_blocks_1_0_in_layers_2",
    "unet.down_blocks.0.downsamplers.0.conv": "lora_unet_input_blocks_2_0_op",
    "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k":
        "lora_unet_input_blocks_3_1_transformer_blocks_0_attn2_to_k",
    "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q":
        "lora_unet_middle_block_1_transformer_blocks_0_attn1_to_q",
    "unet.up_blocks.0.attentions.1.transformer_blocks.0.ff.net.2":
        "lora_unet_output_blocks_1_1_transformer_blocks_0_ff_net_2",
    "unet.up_blocks.0.upsamplers.0.conv": "lora_unet_output_blocks_1_2_conv",
    "text_encoder.encoder.layers.0.self_attn.q_proj": "lora_te1_text_model_encoder_layers_0_self_attn_q_proj",
    "text_encoder.encoder.layers.0.self_attn.out_proj": "lora_te1_text_model_encoder_layers_0_self_attn_out_proj",
    "text_encoder_2.text_model.encoder.layers.1.self_attn.out_proj":
        "lora_te2_text_model_encoder_layers_1_self_attn_out_proj",
    "text_encoder_2.text_model.encoder.layers.1.mlp.fc1": "lora_te2_text_model_encoder_layers_1_mlp_fc1",
}  # fmt: skip


def sgm_file(base, path: Path, layers) -> Path:
    """A LoRA of rank 2 and alpha 1 on these layers, as sd-scripts writes it."""
    generator, tensors = torch.Generator().manual_seed(3), {}
    for layer in layers:
        out, inside, *kernel = base.module(layer).weight.shape
        draw = {"down": (2, inside, *kernel), "up": (out, 2, *[1] * len(kernel))}
        for part, shape in draw.items():
            tensors[f"{SGM[layer]}.lora_{part}.weight"] = 0.3 * torch.randn(*shape, generator=generator)
        tensors[f"{SGM[layer]}.alpha"] = torch.tensor(1.0)
    return save_tensors(path, tensors)


def test_a_lora_of_sd_scripts_is_read_layer_by_layer(base, tmp_path):
    (file,), _ = import_adapter(
        base, sgm_file(base, tmp_path / "theirs.safetensors", SGM), tmp_path / "ours.safetensors"
    )
    theirs, ours = load_file(tmp_path / "theirs.safetensors"), load_file(file)
    for layer, name in SGM.items():
        down, up = (theirs[f"{name}.lora_{part}.weight"] for part in ("down", "up"))
        product = 0.5 * up.flatten(1) @ down.flatten(1)  # alpha / rank
        adapter = load_adapter(base, file)
        weight = adapter.adapters[layer].weight(base.module(layer).innermost().weight)
        torch.testing.assert_close((weight - adapter.adapters[layer].innermost().weight).flatten(1), product)
        adapter.detach()
    assert len(ours) >= 2 * len(SGM)


def test_a_lora_of_sd_scripts_draws_what_it_draws_in_diffusers(base, folder, tmp_path):
    from diffusers import StableDiffusionXLPipeline

    attention = [layer for layer in SGM if "attn" in layer or "ff" in layer or "mlp" in layer]
    file = sgm_file(base, tmp_path / "theirs.safetensors", attention)
    with quiet():
        plain = StableDiffusionXLPipeline.from_pretrained(folder, add_watermarker=False)
        plain.set_progress_bar_config(disable=True)
        plain.load_lora_weights(str(tmp_path), weight_name=file.name)
        expected = plain(
            ["a red cat"], num_inference_steps=2, guidance_scale=4.0, width=32, height=24,
            generator=[torch.Generator().manual_seed(5)],
        ).images  # fmt: skip
    (ours,), _ = import_adapter(base, file, tmp_path / "ours.safetensors")
    before = sample(base, "a red cat", seed=5, guidance=4.0, width=32, height=24)[0]
    found = sample(base, "a red cat", seed=5, guidance=4.0, width=32, height=24, adapters=[(ours, 1.0)])[0]
    assert np.abs(pixels(found) - pixels(expected[0])).max() <= 1 < np.abs(pixels(before) - pixels(found)).max()


def test_the_original_names_of_xl_are_those_of_its_checkpoint():
    """Three levels of two blocks, as in the published configuration: places counted by hand."""
    attention = [True, True, False]
    for name, original in {
        "down_blocks.1.attentions.0.proj_in": "input_blocks.4.1.proj_in",
        "down_blocks.2.attentions.1.proj_in": "input_blocks.8.1.proj_in",
        "down_blocks.1.downsamplers.0.conv": "input_blocks.6.0.op",
        "mid_block.resnets.1.conv2": "middle_block.2.out_layers.3",
        "up_blocks.0.attentions.0.proj_out": "output_blocks.0.1.proj_out",
        "up_blocks.1.attentions.2.proj_out": "output_blocks.5.1.proj_out",
        "up_blocks.0.upsamplers.0.conv": "output_blocks.2.2.conv",
        "up_blocks.2.resnets.2.conv_shortcut": "output_blocks.8.0.skip_connection",
        "add_embedding.linear_2": "label_emb.0.2",
        "time_embedding.linear_1": "time_embed.0",
    }.items():
        assert unet_name(f"{name}.weight", 3, attention) == f"{original}.weight"


def test_a_lora_that_leaves_draws_in_diffusers_what_it_draws_here(base, folder, tmp_path):
    from diffusers import StableDiffusionXLPipeline

    roles = ["cross_attention.*", "feed_forward.*", "text.self_attention.*", "text_2.self_attention.*"]
    attachment = attach(base, LoRA(rank=2, alpha=1.0), roles)
    generator = torch.Generator().manual_seed(6)
    for adapter in attachment.adapters.values():
        adapter.up.data = 0.3 * torch.randn(adapter.up.shape, generator=generator)
    found = sample(base, "a red cat", seed=5, guidance=4.0, width=32, height=24)[0]
    saved = attachment.save(tmp_path / "ours.safetensors")
    attachment.detach()
    (file,), _ = export_adapter(base, saved, tmp_path / "theirs.safetensors", to="lora")
    with quiet():
        plain = StableDiffusionXLPipeline.from_pretrained(folder, add_watermarker=False)
        plain.set_progress_bar_config(disable=True)
        plain.load_lora_weights(str(tmp_path), weight_name=file.name)
        generators = [torch.Generator().manual_seed(5)]
        expected = plain("a red cat", num_inference_steps=2, guidance_scale=4.0, width=32, height=24,
                         generator=generators).images[0]  # fmt: skip
    before = sample(base, "a red cat", seed=5, guidance=4.0, width=32, height=24)[0]
    assert np.abs(pixels(found) - pixels(expected)).max() <= 1 < np.abs(pixels(before) - pixels(found)).max()
    (back,), _ = import_adapter(base, file, tmp_path / "back.safetensors")
    again = sample(base, "a red cat", seed=5, guidance=4.0, width=32, height=24, adapters=[(back, 1.0)])[0]
    assert np.abs(pixels(found) - pixels(again)).max() <= 1


def test_a_single_file_gives_the_same_base_as_its_folder(base, folder, tmp_path, capfd):
    file = xl_file(folder, tmp_path / "xl.safetensors", levels=2)
    again = load_base(file, config=folder, device="cpu")
    assert capfd.readouterr() == ("", "")
    assert type(again) is type(base) and again.name == str(file)
    for part in ("unet", "vae", "text_encoder", "text_encoder_2"):
        weights, expected = (getattr(each.pipeline, part).state_dict() for each in (again, base))
        assert weights.keys() == expected.keys()
        assert all(torch.equal(weights[name], expected[name]) for name in weights), part
    assert again.fingerprint == base.fingerprint and again.given == {"base_config": str(folder)}
    pair = [sample(each, "a red cat", seed=0, steps=2, width=32, height=32)[0] for each in (again, base)]
    assert pair[0].tobytes() == pair[1].tobytes()


def test_a_single_file_that_does_not_fit_is_refused_in_a_sentence(folder, tiny_file, tiny_folder, tmp_path):
    file = xl_file(folder, tmp_path / "xl.safetensors", levels=2)
    for path, config in ((file, tiny_folder), (tiny_file, folder)):
        with pytest.raises(Refused, match="is a stable_diffusion(_xl)?, and .* is the configuration of a"):
            load_base(path, config=config, device="cpu")
    tensors = load_file(file)
    for gone, says in (
        ("conditioner.embedders.1.", "holds no second text encoder; expected all of a Stable Diffusion XL model"),
        ("model.diffusion_model.label_emb.0.2.weight", "part.safetensors does not fit the configuration"),
    ):
        save_tensors(tmp_path / "part.safetensors", {k: v for k, v in tensors.items() if not k.startswith(gone)})
        with pytest.raises(Refused, match=says):
            load_base(tmp_path / "part.safetensors", config=folder, device="cpu")


def test_the_configuration_of_a_file_is_that_of_its_kind(folder, tiny_file, tiny_folder, tmp_path, monkeypatch):
    kinds = {
        "stabilityai/stable-diffusion-xl-base-1.0": folder,
        "stable-diffusion-v1-5/stable-diffusion-v1-5": tiny_folder,
    }
    asked = []
    monkeypatch.setattr(single_file, "fetch_configuration", lambda name: asked.append(name) or kinds[name])
    for file in (xl_file(folder, tmp_path / "xl.safetensors", levels=2), tiny_file):
        load_base(file, device="cpu")
    assert asked == list(kinds)


def test_in_float16_the_autoencoder_computes_in_float32_where_it_would_overflow(tmp_path):
    base = load_base(make_sdxl(tmp_path), device="cpu")
    base.default_steps = 2
    base.vae.register_to_config(force_upcast=True)
    with torch.no_grad():  # as the published one: beyond 65504 inside, and norms behind it hide that in float32
        for layer in (base.vae.encoder.conv_in, base.vae.decoder.conv_in):
            layer.weight.mul_(3e5)
            layer.bias.mul_(3e5)
    pixels, line = torch.rand(1, 3, 32, 32), [default_line(base, "a cat", 0)]
    latents = base.encode_pictures(pixels)
    whole = generate(base, line)[0], base.decode_latents(latents)
    base.pipeline.to(torch.float16)
    torch.testing.assert_close(base.encode_pictures(pixels), latents, atol=0.02, rtol=0.02)
    for half, expected in zip((generate(base, line)[0], base.decode_latents(latents)), whole, strict=True):
        assert half.isfinite().all() and (half - expected).abs().mean() < 0.02
    assert base.vae.dtype == torch.float16 and "decode" not in vars(base.vae)
    base.vae.register_to_config(force_upcast=False)  # an autoencoder of which that is said wrongly
    with pytest.raises(Refused, match=r"no numbers in torch.float16; load the base in bfloat16 or float32"):
        base.encode_pictures(pixels)
