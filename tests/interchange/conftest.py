import copy

import pytest
import torch
from torch import Tensor

from diffadapt.adapters import Attachment, attach


@pytest.fixture
def base(tiny_base):
    """A tiny Stable Diffusion 1.x, freshly loaded: attention on 16, 32 and (text) 32 inputs."""
    return tiny_base


@pytest.fixture
def unet(base):
    """A copy of the base's UNet for another tool to change."""
    return copy.deepcopy(base.denoiser)


@pytest.fixture
def trained(base):
    """Trains, by chance: trained(method, roles, size=...) -> an attachment whose parameters are somewhere else."""

    def make(method, roles=None, *, size: float = 0.3, **more) -> Attachment:
        attachment = attach(base, method, roles, **more)
        generator = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for parameter in attachment.parameters():
                parameter += size * torch.randn(parameter.shape, generator=generator)
        attachment.project_()
        return attachment

    return make


@pytest.fixture
def saved(trained, tmp_path):
    """As `trained`, but saved and taken off: saved(method, roles) -> the adapter file."""

    def make(*what, **how):
        attachment = trained(*what, **how)
        attachment.detach()
        return attachment.save(tmp_path / "adapter.safetensors")

    return make


@pytest.fixture
def draw():
    """The output of a UNet, ours or another tool's, for two fixed inputs."""

    def answer(unet) -> Tensor:
        generator = torch.Generator().manual_seed(1)
        latents, text = torch.randn(2, 4, 16, 16, generator=generator), torch.randn(2, 16, 32, generator=generator)
        with torch.no_grad():
            return unet(latents, torch.tensor([10, 700]), encoder_hidden_states=text).sample

    return answer


@pytest.fixture
def apart():
    """The largest difference of two tensors, as a share of the largest number of the first."""
    return lambda a, b: float((a - b).abs().max() / a.abs().max())
