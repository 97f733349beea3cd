"""Words, pictures, latents and predictions agree with diffusers' own pipeline."""

import copy

import pytest
import torch
from torch import nn

from diffadapt.bases import load_base
from diffadapt.conditioning import Conditioning
from diffadapt.errors import Refused

BOTH = pytest.mark.parametrize("fixture", ["tiny_base", "tiny_v_base"])


@BOTH
def test_prompts_are_encoded_as_the_pipeline_does(fixture, request):
    base = request.getfixturevalue(fixture)
    prompts = ["a photo of a cat", "", "a red dog on a blue background " * 5]  # the last one is cut
    text = base.condition(prompts).text
    assert text.shape == (3, 16, 32) and base.tokenize(prompts).dtype == torch.long
    theirs = base.pipeline.encode_prompt(prompts[:2], "cpu", 1, False)[0]
    assert torch.equal(text[:2], theirs)


@BOTH
def test_pictures_are_decoded_as_the_pipeline_does(fixture, request):
    base = request.getfixturevalue(fixture)
    generator = torch.Generator().manual_seed(3)
    latents = torch.randn(2, 4, 8, 8, generator=generator)
    theirs = base.pipeline.vae.decode(latents / base.vae.config.scaling_factor, return_dict=False)[0]
    pixels = base.decode_latents(latents)
    assert pixels.shape == (2, 3, 32, 32) and pixels.dtype == torch.float32
    assert pixels.min() >= 0 and pixels.max() <= 1
    torch.testing.assert_close(pixels, base.pipeline.image_processor.postprocess(theirs, output_type="pt"))


@BOTH
def test_encoded_pictures_are_the_same_each_time_and_of_the_latents_shape(fixture, request):
    base = request.getfixturevalue(fixture)
    pixels = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    latents = base.encode_pictures(pixels)
    assert latents.shape == (2, 4, 8, 8) and not latents.requires_grad
    assert torch.equal(latents, base.encode_pictures(pixels))
    assert torch.equal(latents[1:], base.encode_pictures(pixels[1:])) or torch.allclose(
        latents[1:], base.encode_pictures(pixels[1:]), atol=1e-5
    )


def test_scale_and_shift_of_the_autoencoder_are_applied_and_undone(tiny_base):
    pixels = torch.rand(1, 3, 32, 32)
    plain = tiny_base.vae.encode(2 * pixels - 1).latent_dist.mode()
    torch.testing.assert_close(tiny_base.encode_pictures(pixels), plain * 0.18215)
    tiny_base.vae.register_to_config(shift_factor=0.5)
    torch.testing.assert_close(tiny_base.encode_pictures(pixels), (plain - 0.5) * 0.18215)
    torch.testing.assert_close(
        tiny_base.decode_latents(tiny_base.encode_pictures(pixels)),
        (tiny_base.vae.decode(plain).sample / 2 + 0.5).clamp(0, 1),
    )


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 4, 32, 32), (1, 3, 33, 32)])
def test_pictures_of_a_wrong_shape_are_refused(tiny_base, shape):
    with pytest.raises(Refused, match="expected pixels"):
        tiny_base.encode_pictures(torch.zeros(shape))


def test_pictures_in_another_range_are_refused(tiny_base):
    with pytest.raises(Refused, match=r"expected pixels in \[0, 1\], got -1 to -1"):
        tiny_base.encode_pictures(torch.full((1, 3, 32, 32), -1.0))


@BOTH
def test_denoise_is_the_unet_and_carries_gradient_to_the_text_only_when_asked(fixture, request):
    base = request.getfixturevalue(fixture)
    noisy, timesteps = torch.randn(2, 4, 8, 8), torch.tensor([3, 900])
    text = base.condition(["a cat", "a dog"]).text
    assert not text.requires_grad
    predicted = base.denoise(noisy, timesteps, Conditioning(text=text))
    assert predicted.shape == noisy.shape and not predicted.requires_grad
    assert torch.equal(predicted, base.denoiser(noisy, timesteps, text).sample)
    base.denoise(noisy, timesteps, Conditioning(text=text.requires_grad_())).square().mean().backward()
    assert text.grad is not None and text.grad.abs().sum() > 0


# diffusers' multistep solver calls numpy in a way that numpy 2 deprecates.
@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning")
@BOTH
def test_the_pipeline_samples_without_progress_bars(fixture, request, capfd):
    base = request.getfixturevalue(fixture)
    pictures = base.pipeline("a red cat", num_inference_steps=3, output_type="pt").images
    assert pictures.shape == (1, 3, 32, 32) and torch.isfinite(pictures).all()
    assert capfd.readouterr() == ("", "")


def test_a_token_of_several_vectors_is_spelled_out(tiny_base):
    tokenizer = copy.deepcopy(tiny_base.tokenizer)
    tokenizer.add_tokens(["<biscuit>", "<biscuit>_1"])
    tiny_base.pipeline.tokenizer = tokenizer
    assert tiny_base.pipeline.tokenizer is tokenizer
    known = len(tokenizer)
    assert tiny_base.tokenize(["a <biscuit> cat"])[0, 2:4].tolist() == [known - 2, known - 1]


def test_a_base_with_new_tokens_merged_is_saved_with_them(tiny_base, tmp_path):
    path = "text_encoder.embeddings.token_embedding"
    table, tokenizer = tiny_base.module(path), copy.deepcopy(tiny_base.tokenizer)
    tokenizer.add_tokens(["<biscuit>"])
    longer = nn.Embedding.from_pretrained(torch.cat([table.weight, torch.full((1, 32), 0.5)]))
    tiny_base.replace_(path, longer)
    tiny_base.pipeline.tokenizer = tokenizer
    tiny_base.save(tmp_path / "merged")
    again = load_base(tmp_path / "merged", device="cpu")
    assert torch.equal(again.condition(["a <biscuit> cat"]).text, tiny_base.condition(["a <biscuit> cat"]).text)
    assert again.fingerprint != tiny_base.fingerprint


def test_class_nouns_must_be_in_a_small_world_and_only_make_tokens_elsewhere(tiny_base, tiny_v_base):
    tiny_v_base.check_noun("cat")
    tiny_base.check_noun("stuffed animal")
    with pytest.raises(Refused, match="did you mean.*cat"):
        tiny_v_base.check_noun("catt")
    for base in (tiny_base, tiny_v_base):
        with pytest.raises(Refused, match="class noun"):
            base.check_noun(" ")


def test_large_pictures_go_through_the_autoencoder_one_at_a_time_with_the_same_result(tiny_base):
    rows: list[int] = []
    tiny_base.vae.decoder.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    latents = torch.randn(3, tiny_base.vae.config.latent_channels, 8, 8, generator=torch.Generator().manual_seed(0))
    together = tiny_base.decode_latents(latents)
    assert rows == [3]
    tiny_base.denoiser.register_to_config(sample_size=256 // tiny_base.downsampling)
    tiny_base.move_(tiny_base.device, tiny_base.dtype)
    torch.testing.assert_close(tiny_base.decode_latents(latents), together)
    assert rows == [3, 1, 1, 1]


def test_sides_are_multiples_of_what_the_pipeline_takes_and_the_autoencoder_divides_by(tiny_base):
    assert tiny_base.downsampling == 4 and tiny_base.side_step == 8
