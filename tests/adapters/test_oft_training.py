"""OFT while it trains: its own gradients, the solve that layers share, and the rotation after many steps."""

import math
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck
from torch.func import functional_call

from diffadapt.adapters import OFT, SideInputs, attach
from diffadapt.adapters import oft as module
from diffadapt.adapters.oft import OFTAdapter, _Cayley, _Rotate, skew
from diffadapt.conditioning import Conditioning

ORTHOGONAL, COSINES = 5e-6, 1e-6


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def put(method: OFT, layer: nn.Module, size: float = 0.3) -> OFTAdapter:
    adapter = method.build(layer.requires_grad_(False), "here", "", torch.Generator())
    assert isinstance(adapter, OFTAdapter)
    with torch.no_grad():
        for _, parameter in adapter.own_parameters():
            parameter.normal_(std=size)
    return adapter


def defect(rotations: Tensor) -> float:
    r = rotations.detach().double()
    return float((r.mT @ r - torch.eye(r.shape[-1])).abs().max())


def cosine_change(before: Tensor, after: Tensor) -> float:
    before, after = (nn.functional.normalize(w.detach().flatten(1).double()) for w in (before, after))
    return float((after @ after.T - before @ before.T).abs().max())


# --- gradients --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [2, 3, 8])
@pytest.mark.parametrize("spread", [0.0, 0.3, 3.0])
def test_the_gradient_of_the_cayley_transform_is_its_derivative(size, spread):
    v = (spread * torch.randn(3, size * (size - 1) // 2, dtype=torch.float64)).requires_grad_()
    assert gradcheck(lambda v: _Cayley.apply(v, size), v)


def test_the_gradient_of_the_cayley_transform_is_that_of_a_solve():
    v = torch.randn(4, 28, dtype=torch.float64, requires_grad=True)
    q, identity = skew(v, 8), torch.eye(8, dtype=torch.float64)
    solved, ours = torch.linalg.solve(identity - q, identity + q), _Cayley.apply(v, 8)
    torch.testing.assert_close(ours, solved, atol=1e-12, rtol=0)
    weights = torch.randn(solved.shape, dtype=torch.float64)
    found, expected = (torch.autograd.grad((r * weights).sum(), v)[0] for r in (ours, solved))
    torch.testing.assert_close(found, expected, atol=1e-11, rtol=1e-10)


@pytest.mark.parametrize("shape", [(12,), (5, 12), (2, 3, 12)], ids=str)
@pytest.mark.parametrize("shared", [False, True])
def test_the_gradients_of_the_product_are_its_derivatives(shape, shared):
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    blocks = torch.randn(1 if shared else 3, 4, 4, dtype=torch.float64, requires_grad=True)
    assert gradcheck(lambda x, blocks: _Rotate.apply(x, blocks.expand(3, -1, -1)), (x, blocks))
    expected = x @ torch.block_diag(*blocks.expand(3, -1, -1))
    torch.testing.assert_close(_Rotate.apply(x, blocks.expand(3, -1, -1)), expected)


@pytest.mark.parametrize("share_blocks", [False, True])
@pytest.mark.parametrize("strength", [1.0, -0.7])
@pytest.mark.parametrize(
    ("layer", "shape"), [(nn.Linear(12, 5), (7, 12)), (nn.Conv2d(3, 5, 2), (2, 3, 4, 4))], ids=["linear", "convolution"]
)
def test_every_gradient_of_an_adapted_layer_is_its_derivative(layer, shape, strength, share_blocks):
    adapter = put(OFT(block_size=4, share_blocks=share_blocks, rescale="joint"), layer).double()
    adapter.strength = strength
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    parameters = dict(adapter.own_parameters())
    assert list(parameters) == ["q", "log_gain"]

    def output(x: Tensor, *values: Tensor) -> Tensor:
        return functional_call(adapter, dict(zip(parameters, values, strict=True)), (x,))

    assert gradcheck(output, (x, *parameters.values()))


# --- the shared solve -------------------------------------------------------------------------------------------------


@pytest.fixture
def attachment(base):
    """OFT on layers of 16 and of 32 inputs, four of each size's blocks, every parameter moved."""
    attachment = attach(base, OFT(blocks=4), ["self_attention.*", "cross_attention.*"])
    with torch.no_grad():
        for parameter in attachment.parameters():
            parameter.normal_(std=0.2)
    yield attachment
    attachment.detach()


def loss(attachment) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    base = attachment.base
    with torch.no_grad():
        text = base.condition(["a cat", "a dog on a red background"]).text
    latents = torch.randn(2, 4, 8, 8, generator=generator)
    return base.denoise(latents, torch.tensor([10, 700]), Conditioning(text=text)).square().mean()


def gradients(attachment) -> list[Tensor]:
    return list(torch.autograd.grad(loss(attachment), list(attachment.parameters())))


@contextmanager
def counted_solves(monkeypatch):
    """The shapes of all solves made inside."""
    solves: list[tuple[int, ...]] = []

    class Counting:
        @staticmethod
        def apply(v: Tensor, size: int) -> Tensor:
            solves.append((len(v), size))
            return _Cayley.apply(v, size)

    with monkeypatch.context() as patch:
        patch.setattr(module, "_Cayley", Counting)
        yield solves


@pytest.mark.parametrize("strength", [1.0, -0.5])
def test_the_shared_solve_gives_what_each_layer_computes_alone(attachment, strength):
    attachment.strength = strength
    alone, alone_gradients = loss(attachment).item(), gradients(attachment)
    attachment.begin(SideInputs())
    assert loss(attachment).item() == pytest.approx(alone, rel=1e-6)
    for found, expected in zip(gradients(attachment), alone_gradients, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-4)
        assert expected.abs().max() > 1e-5


def test_one_solve_for_each_block_size_is_made_per_step(attachment, monkeypatch):
    sizes = [adapter.block_size for adapter in attachment.adapters.values()]
    assert set(sizes) == {4, 8}
    expected = sorted((4 * sizes.count(size), size) for size in (4, 8))
    optimizer = torch.optim.Adam(attachment.parameters(), lr=1e-2)
    for _ in range(2):
        with counted_solves(monkeypatch) as solves:
            attachment.begin(SideInputs())
            loss(attachment).backward()
        assert sorted(solves) == expected
        optimizer.step()
    with counted_solves(monkeypatch) as solves:
        loss(attachment)
    assert len(solves) == len(sizes)  # without `begin` each layer solves for itself


def test_a_generation_solves_once_for_all_its_steps(attachment, monkeypatch):
    with counted_solves(monkeypatch) as solves, torch.no_grad():
        attachment.begin(SideInputs())
        for _ in range(3):
            loss(attachment)
    assert len(solves) == 2


@pytest.mark.parametrize("change", ["optimizer", "fused optimizer", "projection", "strength", "loading"])
def test_what_was_solved_is_not_used_after_a_change(attachment, change):
    attachment.begin(SideInputs())
    before = loss(attachment)
    if "optimizer" in change:
        before.backward()
        torch.optim.AdamW(attachment.parameters(), lr=0.1, fused="fused" in change).step()
        if "fused" in change:  # writes without telling autograd; the verb that follows each step tells
            attachment.project_()
    elif change == "projection":
        for adapter in attachment.adapters.values():
            adapter.bound = (0.05, math.inf)
        attachment.project_()
    elif change == "strength":
        attachment.strength = 0.5
    else:
        attachment.load_state_dict({name: 2 * value for name, value in attachment.state_dict().items()})
    found = loss(attachment).item()
    for adapter in attachment.adapters.values():
        adapter._kept = None
    assert found == pytest.approx(loss(attachment).item(), rel=1e-6)
    assert abs(found - before.item()) > 1e-5 * before.item()


def test_what_was_solved_for_sampling_does_not_stop_training(attachment):
    expected = gradients(attachment)
    with torch.no_grad():
        attachment.begin(SideInputs())
    for found, alone in zip(gradients(attachment), expected, strict=True):
        torch.testing.assert_close(found, alone, atol=1e-6, rtol=1e-4)


def test_accumulated_gradients_are_the_sum_over_the_parts(attachment):
    expected = gradients(attachment)
    for _ in range(2):
        attachment.begin(SideInputs())
        loss(attachment).backward()
    for parameter, one in zip(attachment.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, 2 * one, atol=1e-6, rtol=1e-4)


# --- after many steps -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layer", "shape", "settings"),
    [
        (nn.Linear(64, 48), (16, 64), {"block_size": 16}),
        (nn.Linear(160, 48), (16, 160), {"blocks": 2}),
        (nn.Conv2d(8, 20, 3), (2, 8, 5, 5), {"blocks": 4, "rescale": "joint"}),
    ],
    ids=["linear", "blocks of 80", "convolution"],
)
def test_the_rotation_is_orthogonal_after_a_thousand_adam_steps(layer, shape, settings):
    adapter = put(OFT(**settings), layer, size=0.0)
    x = torch.randn(shape)
    target = torch.randn_like(adapter(x))
    optimizer = torch.optim.Adam([p for _, p in adapter.own_parameters()], lr=0.05)
    for _ in range(1000):
        optimizer.zero_grad()
        (adapter(x) - target).square().mean().backward()
        optimizer.step()
    assert torch.linalg.matrix_norm(skew(adapter.q.detach(), adapter.block_size), 2).max() > 3  # over 140 degrees
    assert defect(adapter.rotations()) <= ORTHOGONAL
    assert cosine_change(layer.weight, adapter.weight(layer.weight)) <= COSINES


class Dense(nn.Module):
    """OFT without its constraint: any matrix on the input side, from the identity."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.layer, self.matrix = layer, nn.Parameter(torch.eye(layer.in_features))

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x @ self.matrix)

    def weight(self, w0: Tensor) -> Tensor:
        return w0 @ self.matrix.T


def trained(model: nn.Module, layer: nn.Linear) -> tuple[list[float], float]:
    """200 steps towards a weight that is turned and noisy: (losses, the largest change of a cosine on the way)."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(256, layer.in_features, generator=generator)
    teacher = put(OFT(block_size=8), nn.Linear(32, 24), size=0.15).weight(layer.weight).detach()
    y = x @ (teacher + 0.02 * torch.randn(teacher.shape, generator=generator)).T + layer.bias
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(parameters, lr=0.02)
    losses, change = [], 0.0
    for _ in range(200):
        optimizer.zero_grad()
        error = (model(x) - y).square().mean()
        error.backward()
        optimizer.step()
        if isinstance(model, OFTAdapter):
            with torch.no_grad():
                model.project_()
            assert defect(model.rotations()) <= ORTHOGONAL
            spectral, _ = model.bound
            norms = torch.linalg.matrix_norm(skew(model.q.detach(), 8).double(), 2)
            assert norms.max() <= spectral * (1 + 1e-6)
        losses.append(error.item())
        change = max(change, cosine_change(layer.weight, model.weight(layer.weight)))
    return losses, change


@pytest.mark.parametrize(
    ("settings", "falls_to"), [({}, 0.1), ({"constraint": "angle", "radius": 20.0}, 0.8)], ids=["oft", "coft"]
)
def test_training_learns_while_no_angle_between_neurons_changes(settings, falls_to):
    layer = nn.Linear(32, 24)
    losses, change = trained(put(OFT(block_size=8, **settings), layer, size=0.0), layer)
    assert losses[-1] <= falls_to * losses[0]
    assert change <= COSINES


def test_a_dense_matrix_trained_alike_changes_the_angles():
    layer = nn.Linear(32, 24).requires_grad_(False)
    losses, change = trained(Dense(layer), layer)
    assert losses[-1] <= 0.05 * losses[0]
    assert change >= 100 * COSINES
