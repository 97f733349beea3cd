"""Diffusion Transformers: diffusers' layout, class names as prompts, other classes on the same base."""

import json

import pytest
import torch

from diffadapt.adapters import OFT, LoRA, attach, load_adapter
from diffadapt.bases import load_base
from diffadapt.errors import Refused
from diffadapt.sampling.sample import sample

CLASSES = {"0": "cat, house cat", "1": "dog", "2": "apple"}


def make_folder(place):
    """A random DiT for 16x16 pictures as published checkpoints are: one embedding, copied into every block."""
    from diffusers import AutoencoderKL, DDIMScheduler, DiTPipeline, DiTTransformer2DModel

    torch.manual_seed(0)
    transformer = DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=2, sample_size=8,
        num_embeds_ada_norm=3,
    )  # fmt: skip
    first, second = transformer.transformer_blocks
    second.norm1.emb.load_state_dict(first.norm1.emb.state_dict())
    vae = AutoencoderKL(
        block_out_channels=(8, 16), latent_channels=4, layers_per_block=1, norm_num_groups=4, sample_size=16,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    )  # fmt: skip
    scheduler = DDIMScheduler(beta_schedule="linear", beta_start=1e-4, beta_end=2e-2, clip_sample=False)
    pipeline = DiTPipeline(transformer, vae, scheduler)
    pipeline.register_to_config(id2label=CLASSES)  # as the published model_index.json has it
    pipeline.save_pretrained(place)
    (place / "base.json").write_text(json.dumps({"format_version": 1, "default_guidance": 1.5, "default_steps": 3}))
    return place


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    from diffadapt.bases.quiet import quiet

    with quiet():
        return make_folder(tmp_path_factory.mktemp("dit") / "base")


@pytest.fixture
def base(folder):
    return load_base(folder, device="cpu")


def prediction(base, prompts=("cat", "")) -> torch.Tensor:
    noisy = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return base.denoise(noisy, torch.tensor([3, 800]), base.condition(prompts))


def test_the_prediction_is_diffusers_own_without_the_variance(base, folder):
    from diffusers import DiTTransformer2DModel

    own = DiTTransformer2DModel.from_pretrained(folder / "transformer")
    noisy = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        both = own(noisy, timestep=torch.tensor([3, 800]), class_labels=torch.tensor([0, 3])).sample
    assert torch.equal(prediction(base), both[:, :4])


def test_its_pictures_are_those_of_diffusers_pipeline_without_guidance(base, folder):
    from diffusers import DiTPipeline

    (mine,) = sample(base, "dog", seed=5, guidance=1.0, steps=3)
    pipeline = DiTPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(
        [1], guidance_scale=1.0, num_inference_steps=3, generator=[torch.Generator().manual_seed(5)]
    ).images[0]  # fmt: skip
    assert mine.size == (16, 16) and base.resolution == 16
    difference = torch.tensor(list(mine.tobytes())).int() - torch.tensor(list(theirs.tobytes())).int()
    assert difference.abs().max() <= 1


def test_guidance_goes_from_the_null_class_to_the_named_one(base):
    pictures = {scale: sample(base, "dog", seed=5, guidance=scale, steps=3)[0].tobytes() for scale in (1.0, 3.0)}
    assert pictures[1.0] != pictures[3.0]


def test_prompts_are_class_names_and_the_empty_one_is_the_null_class(base):
    assert base.classes == ("cat", "dog", "apple")
    assert base.condition(["house cat", "dog", ""]).class_labels.tolist() == [0, 1, 3]
    with pytest.raises(Refused, match="names of its classes"):
        base.condition(["a photo of a cat"])


def test_equal_embeddings_of_the_blocks_are_one_module_and_are_saved_as_copies(base, tmp_path, folder):
    first, second = base.denoiser.transformer_blocks
    assert first.norm1.emb is second.norm1.emb and len(base.roles["class_embedding"]) == 1
    base.save(tmp_path / "saved")
    again = load_base(tmp_path / "saved", device="cpu")
    assert again.fingerprint == base.fingerprint and torch.equal(prediction(again), prediction(base))
    assert second.norm1.emb is first.norm1.emb


@pytest.mark.parametrize("method", [LoRA(rank=2), OFT(block_size=4)])
def test_methods_stand_on_it_as_on_any_base(base, method, tmp_path):
    before = prediction(base)
    attachment = attach(base, method)
    with torch.no_grad():
        for parameter in attachment.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
    trained = prediction(base)
    attachment.save(tmp_path / "a.safetensors")
    attachment.detach()
    assert torch.equal(prediction(base), before) and not torch.equal(trained, before)
    load_adapter(base, tmp_path / "a.safetensors")
    assert torch.equal(prediction(base), trained)


def test_other_classes_start_as_the_null_class_which_keeps_its_trained_row(base, folder):
    null = prediction(base, ("", ""))
    base.replace_classes_(["rose", "tulip"])
    assert base.classes == ("rose", "tulip") and base.condition(["tulip", ""]).class_labels.tolist() == [1, 2]
    assert torch.equal(prediction(base, ("", "")), null) and torch.equal(prediction(base, ("rose", "tulip")), null)
    again = load_base(folder, device="cpu")
    assert again.fingerprint != base.fingerprint
    again.replace_classes_(["rose", "tulip"])
    assert again.fingerprint == base.fingerprint


@pytest.mark.parametrize("names", [[], ["rose", "rose"], ["rose", ""]])
def test_class_names_that_cannot_be_told_apart_are_refused(base, names):
    with pytest.raises(Refused, match="different class names"):
        base.replace_classes_(names)


def test_a_saved_base_keeps_its_new_classes(base, tmp_path):
    base.replace_classes_(["rose", "tulip"])
    base.save(tmp_path / "flowers")
    assert load_base(tmp_path / "flowers", device="cpu").classes == ("rose", "tulip")


def test_another_size_than_its_own_is_refused(base):
    with pytest.raises(Refused, match="makes pictures of 16x16"):
        sample(base, "dog", width=32, height=32)
