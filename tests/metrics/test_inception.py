"""Inception v3: its size and names, its pools, its file. Its weights are not at hand, so its figures are not tested."""

import pytest
import torch

from diffadapt.errors import Refused
from diffadapt.files import save_tensors
from diffadapt.metrics.inception import Block, Inception, Unit, inception_features, load_inception


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return Inception().eval()


def test_it_has_the_parameters_of_inception_v3_without_its_classifiers_under_their_usual_names(network):
    # torchvision's has 27,161,264, of which 2,049,000 in fc and 3,326,696 in AuxLogits
    assert sum(parameter.numel() for parameter in network.parameters()) == 27_161_264 - 2_049_000 - 3_326_696
    names = network.state_dict().keys()
    usual = {
        "Conv2d_1a_3x3.conv.weight", "Mixed_5b.branch3x3dbl_3.bn.running_var", "Mixed_6e.branch7x7dbl_5.conv.weight",
        "Mixed_7a.branch7x7x3_4.bn.bias", "Mixed_7c.branch3x3dbl_3b.conv.weight",
    }  # fmt: skip
    assert usual <= names


def test_pictures_of_any_size_become_pool3(network):
    found = inception_features(network, torch.rand(2, 3, 40, 56))
    assert found.shape == (2, 2048) and found.isfinite().all()


def test_means_leave_the_padding_out_and_the_last_block_takes_the_maximum(network):
    through = Unit(1, 1)
    with torch.no_grad():
        through.conv.weight.fill_(1.0)
    plain = Block({"branch_pool": through.eval()}, (), "mean")
    torch.testing.assert_close(plain(torch.ones(1, 1, 4, 4)), torch.ones(1, 1, 4, 4) / (1 + 1e-3) ** 0.5)
    assert network.Mixed_7b.pool == "mean" and network.Mixed_7c.pool == "max"


def test_a_file_is_read_back_and_another_networks_is_refused(network, tmp_path):
    tensors = {name: value for name, value in network.state_dict().items() if value.is_floating_point()}
    save_tensors(tmp_path / "whole.safetensors", tensors | {"fc.weight": torch.zeros(2, 2)})
    loaded = load_inception(tmp_path / "whole.safetensors").state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in tensors.items())
    first = "Conv2d_1a_3x3.conv.weight"
    save_tensors(tmp_path / "misfit.safetensors", tensors | {first: torch.zeros(32, 1, 3, 3)})
    with pytest.raises(Refused, match=r"another network: Conv2d_1a_3x3.conv.weight has shape \(32, 1, 3, 3\)"):
        load_inception(tmp_path / "misfit.safetensors")
    save_tensors(tmp_path / "other.safetensors", {first: tensors[first]})
    with pytest.raises(Refused, match="it lacks Conv2d_1a_3x3.bn.weight"):
        load_inception(tmp_path / "other.safetensors")
