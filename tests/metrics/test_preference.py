"""Preference models: PickScore and HPS as CLIPs on disk, and the stand-in that says what it is."""

import pytest
import torch

from diffadapt.errors import Refused
from diffadapt.metrics.preference import load_preference

PROMPTS = ["a cat", "a dog", "a red cat"]


def pictures() -> torch.Tensor:
    return torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def test_pickscore_is_clips_own_logit_of_each_picture_and_its_prompt(clip):
    from transformers import CLIPModel, CLIPTokenizer

    pixels = pictures()
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)
    tokens = CLIPTokenizer.from_pretrained(clip)(PROMPTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        logits = CLIPModel.from_pretrained(clip).eval()(pixel_values=(pixels - mean) / std, **tokens).logits_per_image
    model = load_preference(f"pickscore:{clip}")
    torch.testing.assert_close(model.scores(pixels, PROMPTS), logits.diagonal(), atol=1e-5, rtol=1e-4)
    assert model.title == "pickscore"


def test_hps_is_the_cosine_without_a_scale(clip):
    pixels = pictures()
    picked, cosine = (load_preference(f"{kind}:{clip}").scores(pixels, PROMPTS) for kind in ("pickscore", "hps"))
    ratio = picked / cosine
    torch.testing.assert_close(ratio, ratio[:1].expand(3), rtol=1e-4, atol=0)
    assert cosine.abs().max() <= 1 and ratio[0] > 1


def test_the_stand_in_says_that_it_is_one_and_is_surer_of_a_scene_than_of_noise():
    from diffadapt.bases import load_base
    from diffadapt.sampling.sample import default_line, generate

    model, base = load_preference("probe"), load_base("embedded", device="cpu")
    (scene,) = generate(base, [default_line(base, "a cat on a red background", 0, steps=6)])
    noise = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0))
    sure, unsure = model.scores(torch.stack([scene, noise]), ["a cat on a red background"] * 2)
    assert 0 <= unsure < sure <= 1
    assert model.title == "preference_stand_in" and "a stand-in for preference" in model.meaning


@pytest.mark.parametrize(
    ("name", "says"),
    [("imagereward:somewhere", "ImageReward is a BLIP"), ("nothing", "unknown preference model 'nothing'")],
)
def test_what_is_no_known_model_is_refused(name, says):
    with pytest.raises(Refused, match=says):
        load_preference(name)


def test_a_model_that_is_not_there_is_refused_by_its_name(tmp_path):
    with pytest.raises(Refused, match="cannot load clip:"):
        load_preference(f"pickscore:{tmp_path}")
