"""The analyses of Diff-Tuning: the loss by noise level, the switch-model curve, the distance of merged weights."""

import pytest
import torch

from diffadapt.adapters import OFT, DiffFit, LoRA, Selective, attach
from diffadapt.errors import Refused
from diffadapt.evaluation.chain_of_forgetting import (
    chain_of_forgetting,
    loss_by_noise,
    losses_at,
    own_latents,
    switch_curve,
)
from diffadapt.evaluation.geometry import weight_distance
from diffadapt.metrics.frechet import fid
from diffadapt.sampling.sample import default_line, generate


class Colours:
    """Pictures (N, 3, H, W) by the colours of their quarters, (N, 12)."""

    def pictures(self, pictures: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.adaptive_avg_pool2d(pictures, 2).flatten(1)


def moved(attachment):
    with torch.no_grad():
        for parameter in attachment.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
    return attachment


def test_each_bin_asks_for_its_own_share_of_the_noise_levels_from_the_data_on(tiny_base):
    asked = []
    tiny_base.denoiser.register_forward_pre_hook(
        lambda _, args, kwargs: asked.append(kwargs["timestep"]), with_kwargs=True
    )
    latents = torch.randn(3, 4, 8, 8)
    found = loss_by_noise(tiny_base, latents, bins=5)
    quantile = tiny_base.noise_schedule.noise_ratio().argsort().argsort() / 1000
    bins = (quantile[torch.stack(asked)] * 5).long()
    assert bins.tolist() == [[i] * 3 for i in range(5)]
    assert found[2] == pytest.approx(float(losses_at(tiny_base, latents, asked[2], seed=2).mean()))


def test_the_loss_of_an_adapter_that_changes_nothing_is_the_bases(tiny_base):
    latents = torch.randn(2, 4, 8, 8)
    before = loss_by_noise(tiny_base, latents)
    attachment = attach(tiny_base, LoRA(rank=2))
    assert torch.equal(loss_by_noise(tiny_base, latents), before)
    moved(attachment)
    assert not torch.isclose(loss_by_noise(tiny_base, latents), before).any()


@pytest.mark.parametrize("method", [LoRA(rank=2), OFT(block_size=4), Selective(), DiffFit()])
def test_the_weights_distance_is_that_of_the_merged_base_from_the_untouched_one(tiny_base, method):
    before = [parameter.double().clone() for parameter in tiny_base.denoiser.parameters()]
    attachment = moved(attach(tiny_base, method))
    found = weight_distance([attachment])
    attachment.merge_()
    after = [parameter.double() for parameter in tiny_base.denoiser.parameters()]
    expected = sum(float((a - b).square().sum()) for a, b in zip(after, before, strict=True))
    assert found["squared"] == pytest.approx(expected, rel=1e-5) and expected > 0
    assert found["mean_squared"] == pytest.approx(found["squared"] / found["parameters"])
    if method == Selective():
        assert found["parameters"] == sum(len(each.flatten()) for each in before)


def test_the_switch_model_curve_goes_from_the_adapted_base_to_the_untouched_one(tiny_base):
    prompts, colours = ["a cat", "a dog", "a red apple"], Colours()
    reference = torch.rand(6, 12, generator=torch.Generator().manual_seed(0))
    lines = [default_line(tiny_base, prompt, 3 + i, steps=4) for i, prompt in enumerate(prompts)]

    def distance() -> float:
        return round(fid(colours.pictures(torch.stack(generate(tiny_base, lines, batch=3))), reference), 5)

    untouched = distance()
    moved(attach(tiny_base, LoRA(rank=2)))
    curve = switch_curve(
        tiny_base, prompts, reference, colours, shares=(0.0, 0.5, 1.0), seed=3, steps=4, batch=3,
    )  # fmt: skip
    assert (
        curve[0] == [0.0, distance()] and curve[2] == [1.0, untouched] and curve[1][1] not in (curve[0][1], untouched)
    )


def test_the_whole_analysis_tells_source_from_target(tiny_v_base, tmp_path, capsys):
    file = moved(attach(tiny_v_base, LoRA(rank=2))).save(tmp_path / "a.safetensors")
    tiny_v_base.attachments[0].detach()
    pictures = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    found = chain_of_forgetting(
        tiny_v_base, [(file, 1.0)], pictures, ["a cat", "a dog"], Colours(), switched=3, quiet=False
    )
    told = capsys.readouterr().err.splitlines()
    assert told[-1] == "where it forgot 87/87"  # 32 pictures, 4 x 10 levels, 3 pictures at 5 shares
    assert found["levels"][0] == 0.05 and len(found["levels"]) == 10
    for name in ("source", "target"):
        assert len(found[name]["base"]) == 10 and found[name]["base"] != found[name]["adapted"]
    latents = tiny_v_base.encode_pictures(pictures)
    assert found["target"]["base"] == pytest.approx(loss_by_noise(tiny_v_base, latents).tolist(), abs=1e-5)
    assert [share for share, _ in found["switch_curve"]] == [0.0, 0.1, 0.2, 0.5, 1.0]
    assert found["weight_distance"]["squared"] > 0 and not tiny_v_base.attachments


def test_the_bases_own_pictures_are_not_made_with_an_adapter_on(tiny_base):
    attach(tiny_base, LoRA(rank=2))
    with pytest.raises(Refused, match="made without an adapter"):
        own_latents(tiny_base)
