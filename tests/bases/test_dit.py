"""Diffusion Transformers: diffusers' layout, class names as prompts, other classes on the same base."""

import pytest
import torch

from diffadapt.adapters import OFT, LoRA, Selective, attach, load_adapter
from diffadapt.bases import load_base
from diffadapt.errors import Refused
from diffadapt.sampling.sample import sample


@pytest.fixture
def folder(tiny_dit_folder):
    return tiny_dit_folder


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


def moved(attachment, size: float = 0.3):
    with torch.no_grad():
        for parameter in attachment.parameters():
            parameter += size * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
    return attachment


def test_new_classes_start_as_the_null_class_which_keeps_its_trained_row(base):
    null, own, name = prediction(base, ("", "")), prediction(base, ("cat", "dog")), base.fingerprint
    attachment = attach(base, LoRA(rank=2), classes=["rose", "tulip"])
    assert base.classes == ("cat", "dog", "apple", "rose", "tulip") and base.fingerprint == name
    assert torch.equal(prediction(base, ("", "")), null) and torch.equal(prediction(base, ("rose", "tulip")), null)
    assert torch.equal(prediction(base, ("cat", "dog")), own)
    attachment.detach()
    assert base.classes == ("cat", "dog", "apple")
    with pytest.raises(Refused, match="'rose' is no class"):
        base.condition(["rose"])


def test_the_rows_of_new_classes_train_where_a_batch_has_them_and_nowhere_else(base):
    attachment = attach(base, Selective(train="bias"), classes=["rose", "tulip"])
    (rows,) = (p for name, p in attachment.named_parameters() if name.endswith("class_embedder.embedding_table.rows"))
    for prompts, touched in ((("", ""), [True, False, False]), (("tulip", "tulip"), [False, False, True])):
        rows.grad = None
        noisy = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
        base.denoise(noisy, torch.tensor([3, 800]), base.condition(prompts)).square().mean().backward()
        assert (rows.grad.abs().sum(1) > 0).tolist() == touched


def test_at_strength_zero_a_new_class_is_the_untouched_null_class(base):
    null, dog = prediction(base, ("", "")), prediction(base, ("dog", "dog"))
    attachment = moved(attach(base, Selective(), classes=["rose", "dog"]))
    assert not torch.equal(prediction(base, ("rose", "")), null)
    attachment.strength = 0.0
    assert torch.equal(prediction(base, ("rose", "")), null)
    assert torch.equal(prediction(base, ("dog", "dog")), dog)  # a name that both have is the base's own now


def test_an_adapter_file_brings_its_classes(base, folder, tmp_path):
    moved(attach(base, LoRA(rank=2), classes=["rose", "tulip"])).save(tmp_path / "a.safetensors")
    trained = prediction(base, ("tulip", ""))
    again = load_base(folder, device="cpu")
    load_adapter(again, tmp_path / "a.safetensors")
    assert torch.equal(prediction(again, ("tulip", "")), trained)


def test_a_merged_base_is_saved_with_its_old_and_new_classes_in_the_published_layout(base, tmp_path):
    attachment = moved(attach(base, LoRA(rank=2), classes=["rose", "tulip"]))
    prompts = ("tulip", ""), ("cat", "rose")
    trained = [prediction(base, each) for each in prompts]
    attachment.merge_()
    for each, expected in zip(prompts, trained, strict=True):
        torch.testing.assert_close(prediction(base, each), expected, atol=1e-5, rtol=1e-5)
    base.save(tmp_path / "flowers")
    again = load_base(tmp_path / "flowers", device="cpu")
    assert again.classes == ("cat", "dog", "apple", "rose", "tulip")
    for each, expected in zip(prompts, trained, strict=True):
        torch.testing.assert_close(prediction(again, each), expected, atol=1e-5, rtol=1e-5)
    attachment.unmerge_()
    assert all(torch.equal(prediction(base, e), t) for e, t in zip(prompts, trained, strict=True))


@pytest.mark.parametrize("names", [["rose", "rose"], ["rose", ""]])
def test_class_names_that_cannot_be_told_apart_are_refused(base, names):
    with pytest.raises(Refused, match="different class names"):
        attach(base, LoRA(rank=2), classes=names)


def test_new_classes_are_refused_where_there_is_no_place_for_them(base, tiny_base):
    attach(base, LoRA(rank=2), classes=["rose"])
    with pytest.raises(Refused, match="another attachment has brought new classes"):
        attach(base, LoRA(rank=2), classes=["tulip"])
    with pytest.raises(Refused, match="not conditioned on classes"):
        attach(tiny_base, LoRA(rank=2), classes=["rose"])


def test_another_size_than_its_own_is_refused(base):
    with pytest.raises(Refused, match="makes pictures of 16x16"):
        sample(base, "dog", width=32, height=32)
