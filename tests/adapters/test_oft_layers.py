"""OFT on layers: both ways to compute it, merging, stacking, half precision and dropout."""

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from diffadapt.adapters import OFT, Adapter, LoRA, Method, attach, effective_bias, effective_weight, load_adapter
from diffadapt.adapters.oft import OFTAdapter

LAYERS = {
    "linear": (lambda: nn.Linear(32, 24), (2, 5, 32)),
    "linear without bias": (lambda: nn.Linear(32, 24, bias=False), (2, 5, 32)),
    "1x1 convolution": (lambda: nn.Conv2d(16, 12, 1), (2, 16, 6, 6)),
    "3x3 convolution": (lambda: nn.Conv2d(8, 12, 3, padding=1), (2, 8, 6, 6)),
    "strided convolution": (lambda: nn.Conv2d(8, 12, 3, stride=2, padding=1, bias=False), (2, 8, 7, 7)),
    "wrapped, dilated convolution": (
        lambda: nn.Conv2d(8, 12, 3, padding=2, dilation=2, padding_mode="circular"),
        (2, 8, 7, 7),
    ),
}
every_layer = pytest.mark.parametrize(("layer", "shape"), LAYERS.values(), ids=LAYERS)
half_precisions = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
HERE = "here"


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def put(method: Method, layer: nn.Module, size: float = 0.3) -> Adapter:
    """An adapter on a frozen layer, its parameters somewhere else than at their start."""
    adapter = method.build(layer.requires_grad_(False), HERE, "", torch.Generator().manual_seed(0))
    with torch.no_grad():
        for name, parameter in adapter.own_parameters():
            if name != "down":
                parameter.normal_(std=size)
    return adapter.eval()


def merged(adapter: Adapter) -> nn.Module:
    """A layer of its own with the adapted weight and bias."""
    inner = adapter.innermost()
    layer = type(inner)(*_arguments(inner)).to(inner.weight.dtype)
    with torch.no_grad():
        layer.weight.copy_(effective_weight(adapter))
        if layer.bias is not None:
            layer.bias.copy_(effective_bias(adapter))
    return layer


def _arguments(inner: nn.Module) -> tuple:
    if isinstance(inner, nn.Linear):
        return inner.in_features, inner.out_features, inner.bias is not None
    return (
        inner.in_channels, inner.out_channels, inner.kernel_size, inner.stride, inner.padding, inner.dilation, 1,
        inner.bias is not None, inner.padding_mode,
    )  # fmt: skip


def assert_equal(found: Tensor, expected: Tensor, absolute: float = 1e-5, relative: float = 2e-6) -> None:
    """`absolute` for each element, `relative` for all of them together."""
    found, expected = found.detach().double(), expected.detach().double()
    assert (found - expected).abs().max() <= absolute
    assert (found - expected).norm() <= relative * expected.norm()


def gradients(adapter: Adapter, x: Tensor) -> list[Tensor]:
    """Of x and of the parameters, for a loss that weighs every output differently."""
    x = x.clone().requires_grad_()
    y = adapter(x)
    weights = torch.linspace(-1, 1, y.numel()).view_as(y)
    return list(torch.autograd.grad((y * weights).sum(), [x, *(p for _, p in adapter.own_parameters())]))


# --- merged equals attached -------------------------------------------------------------------------------------------


@every_layer
@pytest.mark.parametrize("rescale", ["none", "joint"])
@pytest.mark.parametrize("strength", [1.0, -0.5, 2.0])
def test_merged_equals_attached(layer, shape, rescale, strength):
    adapter = put(OFT(block_size=4, rescale=rescale), layer())
    adapter.strength = strength
    x = torch.randn(shape)
    assert (adapter(x) - adapter.layer(x)).norm() > 0.1 * adapter.layer(x).norm()
    with torch.no_grad():
        assert_equal(merged(adapter)(x), adapter(x))
    assert_equal(merged(adapter)(x), adapter(x))  # trained, a linear layer may take the other path


def test_merging_and_unmerging_linear_layers_and_convolutions_gives_the_weights_back(base):
    before = {name: value.clone() for name, value in base.denoiser.state_dict().items()}
    attachment = attach(base, OFT(block_size=2, rescale="joint"), ["self_attention.*", "residual.*"])
    with torch.no_grad():
        for parameter in attachment.parameters():
            parameter.normal_(std=0.1)
    attachment.merge_()
    changed = [name for name, value in base.denoiser.state_dict().items() if not torch.equal(value, before[name])]
    assert {name.rsplit(".", 1)[0] for name in changed} == {path.split(".", 1)[1] for path in attachment.adapters}
    attachment.unmerge_()
    attachment.detach()
    assert all(torch.equal(value, before[name]) for name, value in base.denoiser.state_dict().items())


def test_the_listed_layers_train_and_nothing_else(base):
    attachment = attach(base, OFT(block_size=4), ["cross_attention.*", "feed_forward.in"])
    listed = base.select(["cross_attention.*", "feed_forward.in"])
    assert [name for name, _ in attachment.named_parameters()] == [f"{path}.q" for path in listed]
    base.denoise(torch.randn(1, 4, 8, 8), torch.tensor([9]), base.condition(["a cat"])).square().mean().backward()
    networks = (base.denoiser, base.pipeline.text_encoder, base.pipeline.vae)
    trained = {id(p) for network in networks for p in network.parameters() if p.requires_grad or p.grad is not None}
    assert trained == {id(parameter) for parameter in attachment.parameters()}
    assert all(parameter.grad.abs().sum() > 0 for parameter in attachment.parameters())


def test_a_saved_file_gives_the_same_bits(base, tmp_path):
    method = OFT(blocks=2, share_blocks=True, rescale="joint", constraint="peft", radius=0.5)
    attachment = attach(base, method, ["self_attention.*", "residual.*"])
    with torch.no_grad():
        for parameter in attachment.parameters():
            parameter.normal_()
    path = next(iter(attachment.adapters))
    expected = effective_weight(base.module(path))
    attachment.save(tmp_path / "a.safetensors")
    attachment.detach()
    assert load_adapter(base, tmp_path / "a.safetensors").method == method
    assert torch.equal(effective_weight(base.module(path)), expected)


# --- two paths --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [{}, {"share_blocks": True}, {"rescale": "joint"}], ids=str)
@pytest.mark.parametrize("bias", [True, False])
def test_turning_the_inputs_and_turning_the_weight_are_one(monkeypatch, settings, bias):
    adapter = put(OFT(block_size=8, **settings), nn.Linear(32, 24, bias=bias))
    x, found = torch.randn(3, 7, 32), {}
    for turns_inputs in (True, False):
        monkeypatch.setattr(OFTAdapter, "_turns_inputs", lambda self, x, which=turns_inputs: which)
        with torch.no_grad():
            without = adapter(x)
        found[turns_inputs] = [without, adapter(x), *gradients(adapter, x)]
    for inputs, weight in zip(found[True], found[False], strict=True):
        assert_equal(inputs, weight, absolute=5e-5)


@pytest.mark.parametrize("rows", [2, 8, 9, 16, 20, 40])
@pytest.mark.parametrize("trains", [True, False])
def test_the_path_of_fewer_multiplications_is_taken(monkeypatch, rows, trains):
    adapter = put(OFT(block_size=4), nn.Linear(16, 8))
    x = torch.randn(rows, 16, requires_grad=True)

    def multiplications() -> int:
        with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(trains):
            y = adapter(x)
            if trains:
                y.sum().backward()
        return counter.get_total_flops()

    chosen, costs = multiplications(), []
    for turns_inputs in (True, False):
        monkeypatch.setattr(OFTAdapter, "_turns_inputs", lambda self, x, which=turns_inputs: which)
        costs.append(multiplications())
    assert chosen == min(costs) < max(costs) or costs[0] == costs[1]


@pytest.mark.parametrize("beneath", [LoRA(rank=2), OFT(block_size=4)], ids=["lora", "oft"])
def test_what_lies_beneath_stays_in_use_where_the_weight_would_be_cheaper_to_turn(beneath):
    layer = nn.Linear(16, 8)
    under = put(beneath, layer)
    adapter = put(OFT(block_size=4), under)
    x = torch.randn(400, 16)
    with torch.no_grad():
        assert_equal(adapter(x), nn.functional.linear(x, adapter.weight(under.weight(layer.weight)), layer.bias))
        assert (adapter(x) - nn.functional.linear(x, adapter.weight(layer.weight), layer.bias)).abs().max() > 0.01


# --- stacked ----------------------------------------------------------------------------------------------------------


@every_layer
@pytest.mark.parametrize(
    ("lower", "upper"),
    [
        (OFT(block_size=4), OFT(block_size=8, rescale="joint")),
        (OFT(block_size=8, rescale="joint"), OFT(block_size=4)),
        (LoRA(rank=3), OFT(block_size=4, rescale="joint")),
        (OFT(block_size=4, rescale="joint"), LoRA(rank=3)),
    ],
    ids=["oft, oft rescaled", "oft rescaled, oft", "lora, oft", "oft, lora"],
)
def test_stacked_adapters_merge_to_what_they_compute(layer, shape, lower, upper):
    both = put(upper, put(lower, layer()))
    both.strength = 0.7
    x = torch.randn(shape)
    assert_equal(merged(both)(x), both(x))
    gradients(both, x)


def test_oft_on_oft_multiplies_the_rotations():
    inner = put(OFT(blocks=1), nn.Linear(16, 8))
    outer = put(OFT(blocks=1), inner)
    rotation = outer.rotations()[0] @ inner.rotations()[0]
    expected = inner.layer.weight @ rotation.T
    assert_equal(effective_weight(outer), expected)
    assert_equal(outer(torch.eye(16)) - inner.layer.bias, expected.T)
    swapped = inner.layer.weight @ (inner.rotations()[0] @ outer.rotations()[0]).T
    assert (swapped - expected).abs().max() > 0.01  # rotations do not commute: the order is part of the claim


# --- half precision ---------------------------------------------------------------------------------------------------


def defect(rotations: Tensor) -> float:
    r = rotations.detach().double()
    return float((r.mT @ r - torch.eye(r.shape[-1])).abs().max())


@half_precisions
@every_layer
def test_a_base_in_half_precision_has_rotations_and_optimizer_state_in_float32(layer, shape, dtype):
    adapter = put(OFT(block_size=4, rescale="joint"), layer().to(dtype))
    optimizer = torch.optim.AdamW([p for _, p in adapter.own_parameters()], lr=1e-2)
    x = torch.randn(shape, dtype=dtype)
    for _ in range(5):
        optimizer.zero_grad()
        y = adapter(x)
        assert y.dtype == dtype
        y.float().square().mean().backward()
        optimizer.step()
    state = [value for kept in optimizer.state.values() for value in kept.values()]
    assert len(state) == 6 and all(value.dtype == torch.float32 for value in state)
    assert adapter.rotations().dtype == torch.float32 and defect(adapter.rotations()) <= 5e-6
    relative = 5e-3 if dtype == torch.bfloat16 else 1e-3
    assert_equal(merged(adapter)(x), adapter(x), absolute=0.1, relative=relative)


@every_layer
def test_autocast_rounds_no_rotation(layer, shape):
    adapter = put(OFT(block_size=4), layer())
    expected, weight = adapter.rotations(), adapter.weight(adapter.layer.weight)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rotations = adapter.rotations()
        assert torch.equal(rotations, expected) and defect(rotations) <= 5e-6
        assert torch.equal(adapter.weight(adapter.layer.weight), weight)  # as written when merging
        y = adapter(torch.randn(shape))
    y.float().square().mean().backward()
    assert y.dtype == torch.bfloat16 and adapter.q.grad.dtype == torch.float32


# --- dropout ----------------------------------------------------------------------------------------------------------


@every_layer
def test_dropout_makes_whole_blocks_the_identity_in_training_only(layer, shape):
    adapter = put(OFT(block_size=4, dropout=0.5), layer())
    plain, identity = adapter.rotations(), torch.eye(4)
    assert torch.equal(adapter._blocks(), plain)
    adapter.training = True
    blocks = torch.stack([adapter._blocks() for _ in range(100)])
    dropped = (blocks == identity).all(-1).all(-1)  # (100, r)
    assert torch.equal(blocks[~dropped], plain.expand_as(blocks)[~dropped])
    assert 0.3 < dropped.float().mean() < 0.7 and dropped.any(0).all() and not dropped.all(0).any()
    x = torch.randn(shape)
    assert not torch.equal(adapter(x), adapter(x))


@every_layer
def test_dropout_of_all_blocks_is_the_base(layer, shape):
    adapter = put(OFT(block_size=4, dropout=1.0), layer())
    x = torch.randn(shape)
    assert not torch.equal(adapter(x), adapter.layer(x))
    adapter.training = True
    assert torch.equal(adapter(x), adapter.layer(x))


# --- what the gain does after -----------------------------------------------------------------------------------------


def test_rescaling_after_trains_the_gain_alone():
    adapter = put(OFT(block_size=4, rescale="after"), nn.Linear(16, 8))
    before = adapter.q.detach().clone()
    optimizer = torch.optim.AdamW([p for _, p in adapter.own_parameters()], lr=1e-2, weight_decay=0.1)
    gain = adapter.log_gain.detach().clone()
    adapter(torch.randn(40, 16)).square().mean().backward()
    optimizer.step()
    assert torch.equal(adapter.q, before) and adapter.q.grad is None
    assert (adapter.log_gain != gain).all()
