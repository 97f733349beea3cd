"""A tiny Stable Diffusion 3 with and without its T5 encoder, saved as diffusers saves it: flow matching end to end."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from diffadapt.adapters import OFT, LoRA, attach
from diffadapt.bases import load_base
from diffadapt.bases.quiet import quiet
from diffadapt.data.styles import load_styles
from diffadapt.errors import Refused
from diffadapt.interchange import export_adapter, import_adapter
from diffadapt.recipes.style import train_style
from diffadapt.sampling.sample import sample

from ..conftest import WORDS, make_tokenizer


def make_t5_tokenizer():
    from transformers import T5Tokenizer

    pieces = [(f"▁{word}", -1.0) for word in WORDS]
    return T5Tokenizer(vocab=[("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), *pieces], extra_ids=0)


def make_sd3(place: Path, *, t5: bool) -> Path:
    """A random Stable Diffusion 3 for 32x32 pictures: two blocks, the second with the extra attention of 3.5."""
    from diffusers import (
        AutoencoderKL,
        FlowMatchEulerDiscreteScheduler,
        SD3Transformer2DModel,
        StableDiffusion3Pipeline,
    )
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection, T5Config, T5EncoderModel

    torch.manual_seed(0)
    tokenizers = [make_tokenizer(place / f"words-{i}") for i in range(2)]

    def text(width: int) -> CLIPTextConfig:
        return CLIPTextConfig(
            vocab_size=len(tokenizers[0]), hidden_size=width, intermediate_size=32, projection_dim=width // 2,
            num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=16,
            bos_token_id=tokenizers[0].bos_token_id, eos_token_id=tokenizers[0].eos_token_id,
            pad_token_id=tokenizers[0].pad_token_id,
        )  # fmt: skip

    transformer = SD3Transformer2DModel(
        sample_size=16, patch_size=2, in_channels=4, out_channels=4, num_layers=2, attention_head_dim=8,
        num_attention_heads=2, joint_attention_dim=64, caption_projection_dim=16, pooled_projection_dim=8 + 16,
        pos_embed_max_size=12, dual_attention_layers=(1,), qk_norm="rms_norm",
    )  # fmt: skip
    vae = AutoencoderKL(
        block_out_channels=(8, 16), latent_channels=4, layers_per_block=1, norm_num_groups=4, sample_size=32,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, scaling_factor=1.5,
        shift_factor=0.06, use_quant_conv=False, use_post_quant_conv=False,
    )  # fmt: skip
    third = third_words = None
    if t5:
        third_words = make_t5_tokenizer()
        config = T5Config(
            vocab_size=len(third_words), d_model=64, d_kv=16, d_ff=32, num_layers=2, num_heads=4,
            feed_forward_proj="gated-gelu",
        )  # fmt: skip
        third = T5EncoderModel(config)
    with quiet():
        StableDiffusion3Pipeline(
            transformer=transformer, scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0), vae=vae,
            text_encoder=CLIPTextModelWithProjection(text(16)), tokenizer=tokenizers[0],
            text_encoder_2=CLIPTextModelWithProjection(text(32)), tokenizer_2=tokenizers[1],
            text_encoder_3=third, tokenizer_3=third_words,
        ).save_pretrained(place / "base")  # fmt: skip
    return place / "base"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Path]:
    return {t5: make_sd3(tmp_path_factory.mktemp("sd3"), t5=t5) for t5 in (False, True)}


@pytest.fixture
def base(folders):
    base = load_base(folders[True], device="cpu")
    base.default_steps = 2
    return base


def pixels(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture).astype(int)


def their_pipeline(folder: Path):
    from diffusers import StableDiffusion3Pipeline

    with quiet():
        without = {} if (folder / "text_encoder_3").is_dir() else {"text_encoder_3": None, "tokenizer_3": None}
        plain = StableDiffusion3Pipeline.from_pretrained(folder, **without)
        plain.set_progress_bar_config(disable=True)
    return plain


def theirs(pipeline, guidance: float = 4.0, negative: str = ""):
    with quiet():
        return pipeline(
            ["a red cat", "a dog"], negative_prompt=[negative] * 2, num_inference_steps=2, guidance_scale=guidance,
            width=32, height=24,
            generator=[torch.Generator().manual_seed(seed) for seed in (5, 6)],
        ).images  # fmt: skip


def ours(base, guidance: float = 4.0, **more):
    return sample(base, ["a red cat", "a dog"], seed=5, guidance=guidance, width=32, height=24, **more)


def furthest(found, expected) -> int:
    return max(np.abs(pixels(a) - pixels(b)).max() for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("t5", [False, True])
@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_pictures_are_those_of_diffusers_own_pipeline(folders, t5, guidance):
    base = load_base(folders[t5], device="cpu")
    base.default_steps = 2
    found = ours(base, guidance)
    assert found[0].size == (32, 24) and furthest(found, theirs(their_pipeline(folders[t5]), guidance)) <= 1


def test_a_negative_prompt_reaches_the_pipeline(base, folders):
    pipeline = their_pipeline(folders[True])
    expected = theirs(pipeline, negative="blue apple")
    assert furthest(ours(base, negative="blue apple"), expected) <= 1 < furthest(theirs(pipeline), expected)


def test_the_text_is_that_of_all_three_encoders(base, folders):
    condition = base.condition(["a red cat", ""])
    assert condition.text.shape == (2, 16 + 256, 64) and condition.pooled_text.shape == (2, 8 + 16)
    expected = their_pipeline(folders[True]).encode_prompt(["a red cat", ""], None, None)
    torch.testing.assert_close(condition.text, expected[0])
    torch.testing.assert_close(condition.pooled_text, expected[2])
    without = load_base(folders[False], device="cpu").condition(["a red cat"])
    assert without.text.shape == (1, 16 + 256, 64) and (without.text[:, 16:] == 0).all()


def test_training_mixes_on_the_straight_line_that_sampling_walks(base, monkeypatch):
    """A denoiser that knows the one picture x_0 and tells e - x_0 from x_t by the training schedule samples x_0."""
    x0 = torch.randn(1, 4, 12, 16, generator=torch.Generator().manual_seed(3))
    schedule = base.noise_schedule

    def forward(hidden_states, timestep, **_):
        s = (timestep / schedule.length)[:, None, None, None]
        velocity = (hidden_states - x0) / s  # x_t = (1 - s) x_0 + s e, so e - x_0 = (x_t - x_0) / s
        return (velocity,)

    noise, steps = torch.randn(2, 4, 12, 16, generator=torch.Generator().manual_seed(4)), torch.tensor([100, 900])
    noisy = schedule.add_noise(x0.expand(2, -1, -1, -1), noise, steps)
    torch.testing.assert_close(noisy[0], 0.9 * x0[0] + 0.1 * noise[0])
    torch.testing.assert_close(forward(noisy, steps)[0], schedule.target(x0.expand(2, -1, -1, -1), noise, steps))
    monkeypatch.setattr(base.denoiser, "forward", forward)
    picture = sample(base, "a cat", seed=0, guidance=1.0, steps=5, width=32, height=24)[0]
    wanted = (base.decode_latents(x0)[0] * 255).round().permute(1, 2, 0).numpy()
    assert np.abs(pixels(picture) - wanted).max() <= 1


def test_latents_are_shifted_and_scaled_as_the_transformer_saw_them(base):
    picture = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    encoded = base.vae.encode(2 * picture - 1).latent_dist.mode()
    torch.testing.assert_close(base.encode_pictures(picture), (encoded - 0.06) * 1.5)


def test_every_layer_has_a_role_and_text_reaches_the_picture_by_cross_attention(base):
    assert base.prediction_type == "flow" and base.resolution == 32 and base.side_step == 4
    blocks = ["transformer.transformer_blocks.0", "transformer.transformer_blocks.1"]
    assert base.roles["cross_attention.key"] == tuple(f"{block}.attn.add_k_proj" for block in blocks)
    assert base.roles["self_attention.query"] == (
        f"{blocks[0]}.attn.to_q", f"{blocks[1]}.attn.to_q", f"{blocks[1]}.attn2.to_q"
    )  # fmt: skip
    assert {"text.projection", "text_2.self_attention.key", "text_3.feed_forward.in"} <= {*base.roles}
    assert not any(parameter.requires_grad for parameter in base.pipeline.text_encoder_3.parameters())
    noisy, steps = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0)), torch.tensor([3, 700])
    condition = base.condition(["a red cat", "a dog"])
    before = base.denoise(noisy, steps, condition)
    for path in base.roles["cross_attention.value"]:
        layer = base.module(path)
        layer.weight.data.zero_()
        layer.bias.data.zero_()
    # Without the text's values its words reach the picture by the pooled text and by the attention's weights alone.
    assert not torch.equal(base.denoise(noisy, steps, condition), before)


def test_sizes_beyond_the_known_places_are_refused(base):
    with pytest.raises(Refused, match="up to 48 px a side, not 52x32"):
        sample(base, "a cat", width=52, height=32)


def test_a_missing_t5_folder_is_named(folders, tmp_path):
    place = shutil.copytree(folders[True], tmp_path / "base")
    shutil.rmtree(place / "text_encoder_3")
    with pytest.raises(Refused, match="has no text_encoder_3"):
        load_base(place, device="cpu")
    index = json.loads((place / "model_index.json").read_text())
    index |= {"text_encoder_3": [None, None], "tokenizer_3": [None, None]}
    (place / "model_index.json").write_text(json.dumps(index))
    assert load_base(place, device="cpu").pipeline.text_encoder_3 is None


@pytest.mark.parametrize("method", [LoRA(rank=1), OFT(blocks=4)], ids=["lora", "oft"])
def test_an_adapter_is_trained_and_sampled(base, tmp_path, method):
    for i, caption in enumerate(("a cat", "a dog")):
        Image.new("RGB", (32, 32), ("navy", "olive")[i]).save(tmp_path / f"{i}.png")
        (tmp_path / f"{i}.txt").write_text(caption)
    before = sample(base, "a cat", seed=0)[0]
    run = train_style(
        base, load_styles(tmp_path, held_out=0), method=method, out=tmp_path / "run", steps=4, batch_size=2,
        learning_rate=0.05, warmup=0, checkpoint_every=2, sample_every=2, evaluation_pictures=0, quiet=True,
        gradient_checkpointing=True, caption_dropout=0.2,
    )  # fmt: skip
    assert run.report.is_file() and not base.attachments
    after = sample(base, "a cat", seed=0, adapters=[(run.adapter, 1.0)])[0]
    assert (pixels(after) != pixels(before)).any()
    assert (pixels(sample(base, "a cat", seed=0)[0]) == pixels(before)).all()
    saved = base.save(tmp_path / "saved")
    assert load_base(saved, device="cpu").fingerprint == base.fingerprint


def test_flow_is_learned(base):
    """Steps of LoRA on one picture: the flow-matching loss at fixed noise falls by a half."""
    attachment = attach(base, LoRA(rank=8), ["self_attention.*", "feed_forward.*", "input.conv", "output.*"])
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(1, 4, 1, 1, generator=generator).expand(8, -1, 16, 16)
    noise, steps = torch.randn(8, 4, 16, 16, generator=generator), torch.arange(50, 850, 100)
    condition = base.condition(["a cat"] * 8).detach()
    schedule = base.noise_schedule
    noisy, target = schedule.add_noise(latents, noise, steps), schedule.target(latents, noise, steps)
    optimizer = torch.optim.Adam([p for each in attachment.adapters.values() for p in each.parameters()], lr=0.03)
    losses = []
    for _ in range(60):
        loss = (base.denoise(noisy, steps, condition) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0], losses[::10]


def test_a_lora_leaves_for_diffusers_and_comes_back(base, folders, tmp_path):
    attachment = attach(base, LoRA(rank=2, alpha=6.0), ["self_attention.*", "cross_attention.*"])
    generator = torch.Generator().manual_seed(1)
    for adapter in attachment.adapters.values():
        adapter.up.data.copy_(torch.randn(adapter.up.shape, generator=generator))
    own = attachment.save(tmp_path / "own.safetensors")
    attachment.detach()
    (file,), note = export_adapter(base, own, tmp_path / "lora.safetensors", dtype=torch.float32, strength=0.5)
    assert note == "" and "transformer.transformer_blocks.1.attn2.to_q" in str(sorted(_names(file)))
    pipeline = their_pipeline(folders[True])
    with quiet():
        pipeline.load_lora_weights(tmp_path, weight_name=file.name)
    expected = theirs(pipeline)
    assert furthest(ours(base), expected) > 8  # it does something
    assert furthest(ours(base, adapters=[(own, 0.5)]), expected) <= 1
    (back, *_), _ = import_adapter(base, file, tmp_path / "back.safetensors")
    assert furthest(ours(base, adapters=[(back, 1.0)]), expected) <= 1


def _names(file: Path) -> set[str]:
    from safetensors import safe_open

    with safe_open(file, "pt") as opened:
        return set(opened.keys())
