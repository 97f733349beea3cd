"""COFT: the ball that no block leaves, in each of the conventions a radius is measured in."""

import math

import pytest
import torch
from torch import Tensor, nn

from diffadapt.adapters import OFT, attach, load_adapter, read_adapter
from diffadapt.adapters.oft import OFTAdapter, skew
from diffadapt.conditioning import Conditioning
from diffadapt.errors import Refused

RADII = {"angle": 20.0, "frobenius": 0.4, "official": 2e-3, "peft": 0.3}  # each binds in the trainings below
SHAPES = {"blocks": {"blocks": 4}, "shared": {"blocks": 4, "share_blocks": True}}
every_constraint = pytest.mark.parametrize(("constraint", "radius"), RADII.items(), ids=RADII)
every_shape = pytest.mark.parametrize("settings", SHAPES.values(), ids=SHAPES)
ROUNDING = 1 + 1e-6


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def put(layer: nn.Module, size: float = 0.0, **settings) -> OFTAdapter:
    adapter = OFT(**settings).build(layer.requires_grad_(False), "here", "", torch.Generator())
    assert isinstance(adapter, OFTAdapter)
    with torch.no_grad():
        adapter.q.normal_(std=size)
    return adapter


@torch.no_grad()
def project(adapter: OFTAdapter) -> None:
    adapter.project_()


def share_of_radius(q: Tensor, method: OFT, size: int, blocks: int) -> Tensor:
    """How much of its radius each block has used, in the declared convention, from what the convention says."""
    matrices = skew(q.detach().double(), size)
    spectral, frobenius = torch.linalg.matrix_norm(matrices, 2), torch.linalg.matrix_norm(matrices)
    distinct = 1 if method.share_blocks else blocks
    return {
        "angle": spectral / math.tan(math.radians(method.radius) / 2),
        "frobenius": 2 * frobenius / method.radius,
        "official": frobenius / (method.radius * size**2 / math.sqrt(distinct)),
        "peft": frobenius / (method.radius / math.sqrt(distinct)),
    }[method.constraint]


def angles(rotations: Tensor) -> Tensor:
    """By how many degrees each block turns its planes, from its eigenvalues e^(+-i phi)."""
    return torch.linalg.eigvals(rotations.detach().double()).angle().abs().rad2deg()


# --- the ball ---------------------------------------------------------------------------------------------------------


@every_constraint
@every_shape
@pytest.mark.parametrize("layer", [nn.Linear(64, 48), nn.Conv2d(8, 40, 3)], ids=["linear", "convolution"])
def test_no_block_leaves_its_ball_after_any_step(layer, settings, constraint, radius):
    adapter = put(layer, constraint=constraint, radius=radius, **settings)
    method = OFT(constraint=constraint, radius=radius, **settings)
    x = torch.randn(16, 64) if isinstance(layer, nn.Linear) else torch.randn(2, 8, 5, 5)
    target, optimizer, left = torch.randn_like(adapter(x)), torch.optim.Adam([adapter.q], lr=0.05), 0
    for _ in range(30):
        optimizer.zero_grad()
        (adapter(x) - target).square().mean().backward()
        optimizer.step()
        left += int((share_of_radius(adapter.q, method, adapter.block_size, adapter.blocks) > 1).sum())
        project(adapter)
        used = share_of_radius(adapter.q, method, adapter.block_size, adapter.blocks)
        assert used.max() <= ROUNDING
    assert left > 0 and used.max() >= 0.999  # it did bind


@every_constraint
@every_shape
def test_projecting_again_changes_nothing(constraint, radius, settings):
    adapter = put(nn.Linear(64, 48), size=1.0, constraint=constraint, radius=radius, **settings)
    outside = adapter.q.detach().clone()
    project(adapter)
    once = adapter.q.detach().clone()
    project(adapter)
    torch.testing.assert_close(adapter.q.detach(), once, atol=0, rtol=2e-7)
    assert not torch.equal(once, outside)


@every_constraint
@every_shape
def test_what_is_inside_stays_bit_for_bit_beside_what_is_outside(constraint, radius, settings):
    method = OFT(constraint=constraint, radius=radius, **settings)
    adapter = put(nn.Linear(64, 48), size=1.0, constraint=constraint, radius=radius, **settings)
    with torch.no_grad():
        used = share_of_radius(adapter.q, method, 16, 4)[:, None].float()
        adapter.q *= torch.tensor([0.999, 0.5, 3.0, 0.0])[: len(used), None] / used
    before = adapter.q.detach().clone()
    project(adapter)
    inside = [0, 1, 3][: len(before)]
    assert torch.equal(adapter.q[inside], before[inside])
    if len(before) > 2:  # the one outside keeps its direction
        torch.testing.assert_close(adapter.q[2].detach(), before[2] / 3, atol=0, rtol=1e-5)


@every_constraint
def test_a_radius_towards_nothing_gives_the_base_and_a_boundless_one_gives_oft(constraint, radius):
    layer, x, moved = nn.Linear(64, 48), torch.randn(9, 64), []
    for small in (1e-2, 1e-4, 1e-6):
        adapter = put(layer, size=1.0, block_size=16, constraint=constraint, radius=small * radius)
        project(adapter)
        moved.append((adapter.weight(layer.weight) - layer.weight).norm().item())
    assert moved[0] > 50 * moved[1] > 0 and moved[2] <= 1e-5
    assert (adapter(x) - layer(x)).abs().max() <= 1e-5
    boundless = {"angle": 179.999}.get(constraint, 1e6)
    adapter = put(layer, size=1.0, block_size=16, constraint=constraint, radius=boundless)
    before = adapter.q.detach().clone()
    project(adapter)
    assert torch.equal(adapter.q, before)


def test_without_a_constraint_nothing_is_projected():
    adapter = put(nn.Linear(64, 48), size=100.0)
    before = adapter.q.detach().clone()
    project(adapter)
    assert torch.equal(adapter.q, before)


# --- what the radius promises -----------------------------------------------------------------------------------------


@every_shape
@pytest.mark.parametrize("radius", [0.5, 20.0, 90.0, 170.0])
def test_no_direction_turns_by_more_than_the_angle(settings, radius):
    adapter = put(nn.Linear(64, 48), size=10.0, constraint="angle", radius=radius, **settings)
    assert (angles(adapter.rotations()).amax(1) > radius).all()
    project(adapter)
    assert (angles(adapter.rotations()).amax(1) - radius).abs().max() <= 1e-3  # at the edge, and not beyond
    x = torch.randn(1000, adapter.block_size, dtype=torch.float64)
    turned = x @ adapter.rotations()[0].detach().double()
    assert nn.functional.cosine_similarity(x, turned).acos().rad2deg().max() <= radius + 1e-3


@every_shape
@pytest.mark.parametrize("radius", [0.01, 0.4, 3.0])
def test_no_block_is_farther_from_the_identity_than_the_frobenius_radius(settings, radius):
    adapter = put(nn.Linear(64, 48), size=10.0, constraint="frobenius", radius=radius, **settings)
    identity = torch.eye(adapter.block_size)
    assert (torch.linalg.matrix_norm(adapter.rotations() - identity) > radius).all()
    project(adapter)
    distance = torch.linalg.matrix_norm(adapter.rotations().double() - identity)
    assert distance.max() <= radius * (1 + 1e-5)
    assert radius > 1 or distance.min() >= 0.97 * radius  # R - I is nearly 2 Q where it is small


@pytest.mark.parametrize("size", [0.01, 0.3, 10.0])
def test_the_distance_from_the_identity_is_at_most_twice_the_norm_of_q(size):
    adapter = put(nn.Linear(64, 48), size=size, block_size=16)
    q, identity = skew(adapter.q.detach().double(), 16), torch.eye(16)
    difference = adapter.rotations().detach().double() - identity
    assert (torch.linalg.matrix_norm(difference) <= 2 * torch.linalg.matrix_norm(q) * (1 + 1e-5)).all()
    spectral = torch.linalg.matrix_norm(q, 2)
    expected = 2 * spectral / (1 + spectral.square()).sqrt()
    torch.testing.assert_close(torch.linalg.matrix_norm(difference, 2), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("inputs", "official", "peft"), [(320, 0.192, 3e-5), (640, 0.768, 3e-5), (768, 1.106, 3e-5), (1280, 3.072, 3e-5)]
)
def test_the_papers_radius_binds_as_its_code_and_as_peft_have_it(inputs, official, peft):
    """epsilon = 6e-5 with four blocks a layer: one number, bounds that differ by a factor of b^2."""
    for constraint, expected in (("official", official), ("peft", peft)):
        adapter = put(nn.Linear(inputs, 2), size=1.0, blocks=4, constraint=constraint, radius=6e-5)
        project(adapter)
        norms = torch.linalg.matrix_norm(skew(adapter.q.detach(), inputs // 4))
        torch.testing.assert_close(norms, torch.full((4,), expected), atol=0, rtol=1e-3)


# --- attached ---------------------------------------------------------------------------------------------------------


@every_constraint
def test_a_saved_file_is_inside_and_says_its_convention(base, tmp_path, constraint, radius):
    method = OFT(blocks=2, constraint=constraint, radius=radius)
    attachment = attach(base, method, ["cross_attention.*"])
    optimizer = torch.optim.SGD(attachment.parameters(), lr=1e6)
    text = base.condition(["a cat"]).text
    base.denoise(torch.randn(1, 4, 8, 8), torch.tensor([9]), Conditioning(text=text)).square().mean().backward()
    optimizer.step()
    blocks = {f"{path}.q": (a.block_size, a.blocks) for path, a in attachment.adapters.items()}
    assert all(share_of_radius(q, method, *blocks[n]).max() > 1 for n, q in attachment.named_parameters())
    attachment.project_()
    path = attachment.save(tmp_path / "coft.safetensors")
    attachment.detach()
    read, _, _, tensors, _ = read_adapter(path)
    assert read == method and tensors.keys() == blocks.keys()
    assert all(share_of_radius(q, method, *blocks[name]).max() <= ROUNDING for name, q in tensors.items())
    assert load_adapter(base, path).method == method


# --- refused ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"constraint": "angle"}, "constraint = 'angle' and radius = None; for example constraint = 'angle', radius"),
        ({"radius": 6e-5}, "constraint = 'none' and radius = 6e-05; for example constraint = 'angle', radius = 30"),
        ({"constraint": "official", "radius": 0.0}, "must be above 0 for constraint 'official', got 0"),
        ({"constraint": "peft", "radius": -1.0}, "radius"),
        ({"constraint": "angle", "radius": 0.0}, "must be between 0 and 180 degrees for constraint 'angle', got 0"),
        ({"constraint": "angle", "radius": 180.0}, "must be between 0 and 180 degrees .* got 180"),
        ({"constraint": "spectral", "radius": 1.0}, "angle.*frobenius.*official.*peft"),
    ],
)  # fmt: skip
def test_a_radius_that_means_nothing_is_refused_in_one_sentence(base, settings, says):
    with pytest.raises(Refused, match=says) as refused:
        attach(base, OFT(block_size=4, **settings))
    assert "\n" not in str(refused.value) and not base.attachments
