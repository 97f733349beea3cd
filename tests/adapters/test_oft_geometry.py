"""OFT's claims about its rotations and the neurons they turn; look-alikes must fail the same tests."""

import math
import re

import pytest
import torch
from torch import Tensor, nn

from diffadapt.adapters import OFT, Adapter, Hint
from diffadapt.adapters.oft import OFTAdapter, skew

ORTHOGONAL = 5e-6  # the largest entry of R^T R - I in float32
COSINES, NORMS, ENERGY = 1e-6, 2e-6, 1e-6  # what a rotation may change in float32; norms and energy as shares
LAYERS = {
    "linear": lambda: nn.Linear(64, 48),
    "square": lambda: nn.Linear(64, 64),  # where a rotation of the outputs would fit too
    "convolution": lambda: nn.Conv2d(8, 40, 3, padding=1),
}
SETTINGS = {
    "blocks of 4": {"block_size": 4},
    "4 blocks": {"blocks": 4},
    "one block": {"blocks": 1},
    "shared": {"blocks": 4, "share_blocks": True},
}
every_layer = pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
every_setting = pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def turned(layer: nn.Module, angle: float = 0.5, **settings) -> OFTAdapter:
    """An adapter whose blocks turn by up to `angle` radians."""
    adapter = OFT(**settings).build(layer, "here", "", torch.Generator())
    assert isinstance(adapter, OFTAdapter)
    with torch.no_grad():
        adapter.q.normal_(generator=torch.Generator().manual_seed(1))
        adapter.q *= math.tan(angle / 2) / spectral(adapter)[:, None]
    return adapter


def spectral(adapter: OFTAdapter) -> Tensor:
    return torch.linalg.matrix_norm(skew(adapter.q.detach(), adapter.block_size), 2)


def defect(rotations: Tensor) -> float:
    """The largest entry of R^T R - I, without rounding of its own."""
    r = rotations.detach().double()
    return float((r.mT @ r - torch.eye(r.shape[-1])).abs().max())


def matrix(rotations: Tensor) -> Tensor:
    return torch.block_diag(*rotations.detach())


# --- the rotation -----------------------------------------------------------------------------------------------------


@every_layer
@every_setting
def test_the_start_is_the_identity_bit_for_bit(layer, settings):
    layer = layer()
    adapter = OFT(**settings).build(layer, "here", "", torch.Generator())
    assert torch.equal(adapter.rotations(), torch.eye(adapter.block_size).expand_as(adapter.rotations()))
    assert torch.equal(adapter.weight(layer.weight), layer.weight)
    x = torch.randn(7, 64) if isinstance(layer, nn.Linear) else torch.randn(2, 8, 5, 5)
    assert torch.equal(adapter(x), layer(x))


@pytest.mark.parametrize("size", [2, 16, 32, 64, 160, 320])
@pytest.mark.parametrize("norm", [0.1, 1.0, 10.0, 50.0])
@pytest.mark.parametrize("planes", [1, 2, None], ids=["one plane", "two planes", "all planes"])
def test_the_rotation_is_orthogonal_however_large_q_is(size, norm, planes):
    """The few planes are the hard case: eigenvalues of I - Q of length 1 beside some of length 50."""
    adapter = turned(nn.Linear(size, 4), blocks=1)
    generator = torch.Generator().manual_seed(size)
    for _ in range(3):
        q = torch.randn(size, size, generator=generator)
        if planes is not None:
            u, v = torch.linalg.qr(q)[0][:, : 2 * min(planes, size // 2)].chunk(2, 1)
            q = u @ v.T
        q = q - q.T
        q *= norm / torch.linalg.matrix_norm(q, 2)
        with torch.no_grad():
            adapter.q.copy_(q[torch.triu_indices(size, size, 1).unbind()][None])
        assert defect(adapter.rotations()) <= ORTHOGONAL


def test_the_rotation_is_orthogonal_to_twelve_digits_in_float64():
    assert defect(turned(nn.Linear(64, 4), angle=3.0, blocks=2).double().rotations()) <= 1e-12


@pytest.mark.parametrize("angle", [0.1, 1.5, 3.0])
@every_setting
def test_every_block_is_a_rotation_and_no_reflection(settings, angle):
    determinants = torch.linalg.det(turned(nn.Linear(64, 48), angle, **settings).rotations().double())
    assert (determinants - 1).abs().max() <= 1e-4


@pytest.mark.parametrize("settings", [{}, {"weight_decay": 0.1}], ids=["plain", "weight decay"])
def test_q_is_skew_after_every_optimizer_step(settings):
    adapter = turned(nn.Linear(32, 8), block_size=8)
    optimizer = torch.optim.AdamW([adapter.q], lr=0.1, **settings)
    for _ in range(5):
        optimizer.zero_grad()
        adapter(torch.randn(16, 32)).square().mean().backward()
        nn.utils.clip_grad_norm_([adapter.q], 1e-3)
        optimizer.step()
        q = skew(adapter.q, 8)
        assert torch.equal(q, -q.mT) and (q.abs().sum((1, 2)) > 0).all()


@every_setting
def test_the_opposite_q_is_the_inverse_rotation(settings):
    adapter = turned(nn.Linear(64, 48), angle=2.0, **settings)
    forth, weight = adapter.rotations().detach(), adapter.layer.weight
    there = adapter.weight(weight).detach()
    with torch.no_grad():
        adapter.q.neg_()
    assert (adapter.rotations() - forth.mT).abs().max() <= ORTHOGONAL
    assert (adapter.weight(there) - weight).abs().max() <= ORTHOGONAL


@pytest.mark.parametrize("strength", [-3.0, -1.0, -0.3, 0.1, 0.5, 2.0, 10.0])
def test_the_rotation_is_orthogonal_at_every_strength(strength):
    adapter = turned(nn.Linear(64, 48), angle=1.0, block_size=16)
    adapter.strength = strength
    assert defect(adapter.rotations()) <= ORTHOGONAL


def test_strength_minus_one_is_the_inverse_and_two_is_the_rotation_of_two_q():
    adapter = turned(nn.Linear(64, 48), angle=1.0, block_size=16)
    full = adapter.rotations().detach()
    adapter.strength = -1.0
    assert (adapter.rotations() - full.mT).abs().max() <= ORTHOGONAL
    adapter.strength = 2.0
    q, identity = 2 * skew(adapter.q.detach(), 16), torch.eye(16)
    expected = torch.linalg.solve(identity - q, identity + q)
    assert (adapter.rotations() - expected).abs().max() <= 1e-6
    mixture = identity + 2 * (full - identity)
    assert (mixture - expected).abs().max() > 0.1 and defect(mixture) > 0.1  # what strength is not


# --- its blocks -------------------------------------------------------------------------------------------------------


@every_setting
def test_nothing_lies_outside_the_blocks_and_shared_ones_are_equal(settings):
    adapter = turned(nn.Linear(64, 64, bias=False), **settings)
    r = adapter.weight(torch.eye(64)).T  # W' = I R^T
    b, blocks = adapter.block_size, r.view(adapter.blocks, adapter.block_size, adapter.blocks, adapter.block_size)
    inside = blocks.diagonal(dim1=0, dim2=2).movedim(-1, 0)  # (r, b, b)
    assert torch.equal(r, torch.block_diag(*inside)) and (b == 1 or (inside != 0).all())
    equal = all(torch.equal(block, inside[0]) for block in inside)
    assert equal == (adapter.share_blocks or adapter.blocks == 1)


def test_one_block_is_the_dense_cayley_transform():
    adapter = turned(nn.Linear(24, 8), blocks=1)
    q = torch.zeros(24, 24)
    q[torch.ones(24, 24).triu(1).bool()] = adapter.q[0].detach()  # the strict upper triangle, row by row
    q, identity = q - q.T, torch.eye(24)
    expected = (identity + q) @ torch.linalg.inv(identity - q)
    torch.testing.assert_close(adapter.rotations()[0], expected, atol=1e-6, rtol=0)
    weight = adapter.layer.weight
    torch.testing.assert_close(adapter.weight(weight), weight @ expected.T, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"blocks": 8}, 960),  # the paper's example: 128 * 15 / 2, against 2048 of LoRA of rank 8
        ({"blocks": 1}, 128 * 127 // 2),
        ({"block_size": 32}, 128 * 31 // 2),
        ({"block_size": 32, "share_blocks": True}, 32 * 31 // 2),
        ({"block_size": 32, "rescale": "joint"}, 128 * 31 // 2 + 128),
    ],
)
def test_parameters_are_as_many_as_the_formula_says(settings, expected):
    adapter = OFT(**settings).build(nn.Linear(128, 128), "here", "", torch.Generator())
    assert trainable(adapter) == expected


@pytest.fixture(scope="module")
def stable_diffusion():
    """The shapes of Stable Diffusion 1.5's denoiser, without weights."""
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        return UNet2DConditionModel(sample_size=64, cross_attention_dim=768)


@pytest.mark.parametrize(("blocks", "millions"), [(2, 29.5), (4, 16.3), (8, 9.7), (16, 6.4)])
def test_the_papers_table_of_parameters_is_met(stable_diffusion, blocks, millions):
    """Its table 3: attention and the feed-forwards' first layers, the hint, and a time embedding that stays unused."""
    listed = re.compile(r".*\.(to_q|to_k|to_v|to_out\.0|ff\.net\.0\.proj)")
    layers = [layer for path, layer in stable_diffusion.named_modules() if listed.fullmatch(path)]
    assert len(layers) == 144
    adapters = [OFT(blocks=blocks).build(layer, "here", "", torch.Generator()) for layer in layers]
    hint = Hint.for_downsampling(8).build(stable_diffusion.conv_in, "here", "", torch.Generator())
    turned, hinted = sum(map(trainable, adapters)), trainable(hint)
    embedding = sum(p.numel() for p in stable_diffusion.time_embedding.parameters())
    assert (round(hinted / 1e6, 3), round(embedding / 1e6, 3)) == (1.086, 2.051)
    assert round((turned + hinted + embedding) / 1e6, 1) == millions


def trainable(adapter: Adapter) -> int:
    return sum(p.numel() for _, p in adapter.own_parameters())


# --- the neurons ------------------------------------------------------------------------------------------------------


def cosines(weight: Tensor) -> Tensor:
    w = nn.functional.normalize(weight.detach().flatten(1).double())
    return w @ w.T


def norms(weight: Tensor) -> Tensor:
    return weight.detach().flatten(1).double().norm(dim=1)


def energy(weight: Tensor) -> float:
    """The sum over all ordered pairs of neurons of 1 / |u_i - u_j|."""
    w = nn.functional.normalize(weight.detach().flatten(1).double())
    return float(2 * (1 / nn.functional.pdist(w)).sum())


def cosine_change(before: Tensor, after: Tensor) -> float:
    return float((cosines(after) - cosines(before)).abs().max())


def energy_change(before: Tensor, after: Tensor) -> float:
    return abs(energy(after) / energy(before) - 1)


@every_layer
@every_setting
@pytest.mark.parametrize("strength", [1.0, -2.0, 0.3])
def test_no_angle_between_neurons_no_norm_and_no_energy_changes(layer, settings, strength):
    layer = layer()
    adapter = turned(layer, angle=1.5, **settings)
    adapter.strength = strength
    after = adapter.weight(layer.weight)
    assert (after - layer.weight).norm() > 0.1 * layer.weight.norm()
    assert cosine_change(layer.weight, after) <= COSINES
    assert (norms(after) / norms(layer.weight) - 1).abs().max() <= NORMS
    assert energy_change(layer.weight, after) <= ENERGY


def test_the_energy_stays_to_ten_digits_in_float64():
    adapter = turned(nn.Linear(64, 48), angle=1.5, block_size=16).double()
    assert energy_change(adapter.layer.weight, adapter.weight(adapter.layer.weight)) <= 1e-10


def test_a_rotation_of_the_outputs_and_noise_change_the_angles_a_hundred_times_as_much():
    """The tests above have teeth: two changes of the same size as the rotation's, or smaller, do not pass them."""
    layer = nn.Linear(64, 64)
    adapter = turned(layer, angle=0.1, block_size=16)
    weight, turn = layer.weight.detach(), matrix(adapter.rotations())
    inputs = adapter.weight(weight).detach()
    noise = torch.randn(weight.shape, generator=torch.Generator().manual_seed(2))
    for wrong in (turn @ weight, weight + noise * (inputs - weight).norm() / noise.norm()):
        assert (wrong - weight).norm() <= 1.2 * (inputs - weight).norm()
        assert cosine_change(weight, wrong) >= 100 * max(COSINES, cosine_change(weight, inputs))
        assert (norms(wrong) / norms(weight) - 1).abs().max() >= 100 * NORMS
        assert energy_change(weight, wrong) > ENERGY


# --- the gain ---------------------------------------------------------------------------------------------------------


@every_layer
def test_the_gain_starts_at_one_exactly_and_stays_positive(layer):
    adapter = OFT(block_size=4, rescale="joint").build(layer(), "here", "", torch.Generator())
    assert torch.equal(adapter._gain(), torch.ones(len(adapter.layer.weight)))
    optimizer = torch.optim.SGD([adapter.log_gain], lr=10.0)
    for _ in range(5):  # wants a gain of minus infinity
        optimizer.zero_grad()
        adapter._gain().sum().backward()
        optimizer.step()
    assert (adapter._gain() > 0).all() and (adapter._gain() < 0.1).all()


@every_layer
@pytest.mark.parametrize("strength", [1.0, 0.5, -1.0])
def test_the_gain_scales_the_norms_and_keeps_angles_and_energy(layer, strength):
    layer = layer()
    adapter = turned(layer, angle=1.0, block_size=4, rescale="joint")
    nn.init.normal_(adapter.log_gain)
    adapter.strength = strength
    after, gain = adapter.weight(layer.weight), (strength * adapter.log_gain).detach().double().exp()
    assert cosine_change(layer.weight, after) <= COSINES and energy_change(layer.weight, after) <= ENERGY
    assert (norms(after) / norms(layer.weight) / gain - 1).abs().max() <= NORMS
    assert (gain - 1).abs().max() > 0.5
