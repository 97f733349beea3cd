"""train.compile: the step that torch.compile traces is the step itself, for methods of every kind.

Traced and differentiated as for the real compiler (`aot_eager`); what C++ or Triton make of it is theirs.
"""

import os

import pytest
import torch

from diffadapt.adapters import OFT, LoRA, StyleInject, attach
from diffadapt.adapters.adapter import SideInputs
from diffadapt.bases import load_base
from diffadapt.errors import Failed, Refused
from diffadapt.training import fit
from diffadapt.training.fit import AttachedBase
from diffadapt.training.loop_config import LoopConfig

# OFT and StyleInject take a minute each to trace: they are for COMPILE_ALL=1.
METHODS = [LoRA(rank=2), *([OFT(block_size=4), StyleInject(rank=2)] if os.environ.get("COMPILE_ALL") else [])]


@pytest.fixture
def small_base(tiny_base, tmp_path):
    """`tiny_base` with a UNet of one level: a trace takes as long as there are layers."""
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    tiny_base.pipeline.unet = UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, block_out_channels=(16,), layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D",), mid_block_type=None, up_block_types=("CrossAttnUpBlock2D",),
        cross_attention_dim=32, attention_head_dim=4, norm_num_groups=8,
    )  # fmt: skip
    tiny_base.pipeline.save_pretrained(tmp_path / "small")
    return load_base(tmp_path / "small", device="cpu")


@pytest.fixture(autouse=True)
def traced(monkeypatch):
    monkeypatch.setattr(fit, "COMPILER", "aot_eager")
    yield
    torch._dynamo.reset()


def one_step(base, attachment, *, compiled: bool):
    generator = torch.Generator().manual_seed(0)
    noisy = torch.randn(2, 4, 8, 8, generator=generator)
    timesteps, condition = torch.tensor([10, 700]), base.condition(["a cat", "a dog on a red background"])
    attachment.train()
    attachment.begin(SideInputs.of(condition, timesteps=timesteps))
    prediction = AttachedBase(base, {"adapter": attachment}, compiled=compiled)(noisy, timesteps, condition)
    prediction.square().mean().backward()
    gradients = [parameter.grad.clone() for parameter in attachment.parameters()]
    for parameter in attachment.parameters():
        parameter.grad = None
    return prediction.detach(), gradients


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")  # of torch.compile itself
@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_a_compiled_step_has_the_predictions_and_gradients_of_the_plain_one(small_base, method):
    attachment = attach(small_base, method)
    with torch.no_grad():
        for i, parameter in enumerate(attachment.parameters()):
            parameter += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i))
    attachment.project_()
    plain, compiled = (one_step(small_base, attachment, compiled=on) for on in (False, True))
    torch.testing.assert_close(compiled[0], plain[0], atol=1e-5, rtol=1e-4)
    for ours, theirs in zip(compiled[1], plain[1], strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-3)
    assert not hasattr(small_base.denoiser, "_orig_mod")  # the base stays as it was


def test_what_cannot_be_compiled_is_one_sentence(small_base, monkeypatch):
    def broken(graph, inputs):
        raise RuntimeError("no compiler found")

    monkeypatch.setattr(fit, "COMPILER", broken)
    attachment = attach(small_base, LoRA(rank=1))
    with pytest.raises(Failed, match="torch.compile cannot compile this step .*set compile = false"):
        one_step(small_base, attachment, compiled=True)


def test_a_recipe_with_a_model_of_its_own_is_not_compiled(tmp_path):
    with pytest.raises(Refused, match="compile = true compiles a base's denoiser"):
        fit.fit(
            None, {}, None, None, config=LoopConfig(compile=True), groups=[], folder=tmp_path, accelerator=None,
            settings="", seed=0, model=lambda *_: None,
        )  # fmt: skip
