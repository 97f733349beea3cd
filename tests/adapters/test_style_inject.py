"""The properties that StyleInject's parts have whatever it was trained on."""

import pytest
import torch
from torch import Tensor, nn

from diffadapt.adapters import LoRA, StyleInject, attach, load_adapter
from diffadapt.adapters.style_inject import (
    EPS,
    GAIN,
    VARIANCES,
    StyleInjectAdapter,
    entropy,
    observed_routes,
    transfer,
)
from diffadapt.conditioning import Conditioning
from diffadapt.errors import Refused

AFFINE = ("std_of_sum", "sigma_pooled", "full_adain")


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=seeded(seed), dtype=dtype)


def build(
    layer: nn.Module, *, moved: bool = True, role: str = "self_attention.query", **settings
) -> StyleInjectAdapter:
    """An adapter on a frozen layer, its parameters away from their start."""
    adapter = StyleInject(**settings).build(layer.requires_grad_(False), "here", role, seeded())
    assert isinstance(adapter, StyleInjectAdapter)
    if moved:
        with torch.no_grad():
            for i, (_, parameter) in enumerate(adapter.own_parameters()):
                parameter += 0.2 * normal(*parameter.shape, seed=10 + i)
    return adapter


def linear(inputs: int = 6, outputs: int = 8, **settings) -> StyleInjectAdapter:
    torch.manual_seed(0)
    return build(nn.Linear(inputs, outputs), **settings)


def conv(**settings) -> StyleInjectAdapter:
    torch.manual_seed(0)
    return build(nn.Conv2d(5, 7, 3, stride=2, padding=1), **settings)


def cases() -> list:
    return [(make, variance) for make in (linear, conv) for variance in VARIANCES]


every_case = pytest.mark.parametrize(
    ("make", "variance"), cases(), ids=[f"{make.__name__}-{variance}" for make, variance in cases()]
)
every_variance = pytest.mark.parametrize("variance", VARIANCES)


def inputs_for(adapter: StyleInjectAdapter, rows: int = 3, seed: int = 1) -> Tensor:
    return normal(rows, 5, 6, 6, seed=seed) if isinstance(adapter.layer, nn.Conv2d) else normal(rows, 9, 6, seed=seed)


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation over tokens."""
    return x.mean(1), (x.var(1, unbiased=False) + EPS).sqrt()


# --- where it starts, and what it is without its parts ----------------------------------------------------------------


@every_case
@pytest.mark.parametrize("scope", ["sample", "token"])
def test_starts_as_the_layer_bit_for_bit(make, variance, scope):
    adapter = make(moved=False, variance=variance, scope=scope)
    x = inputs_for(adapter)
    assert torch.equal(adapter(x), adapter.layer(x))


@pytest.mark.parametrize("make", [linear, conv])
def test_one_branch_that_adds_is_a_lora(make):
    adapter = make(branches=1, rank=3, variance="none")
    lora = LoRA(rank=3).build(adapter.layer, "here", "self_attention.query", seeded())
    with torch.no_grad():
        lora.down.copy_(adapter.down[0])
        lora.up.copy_(adapter.up)
    x = inputs_for(adapter)
    for strength in (1.0, 0.3, -2.0):
        adapter.strength = lora.strength = strength
        torch.testing.assert_close(adapter(x), lora(x), atol=1e-6, rtol=1e-6)


def test_the_branches_start_apart_from_each_other():
    down = linear(moved=False).down
    assert all(not torch.equal(down[i], down[j]) for i in range(4) for j in range(i))


# --- the router -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [linear, conv])
@pytest.mark.parametrize("scope", ["sample", "token"])
def test_the_weights_of_the_branches_are_a_distribution_and_uniform_at_the_start(make, scope):
    fresh, moved = make(moved=False, scope=scope), make(scope=scope)
    x = inputs_for(fresh)
    assert torch.equal(fresh.route(x), torch.full_like(fresh.route(x), 0.25))
    s = moved.route(x)
    places = x.shape[1:2] if make is linear else x.shape[2:]
    assert s.shape == (3, *(places if scope == "token" else ()), 4)
    assert (s >= 0).all() and (s.sum(-1) - 1).abs().max() < 1e-6 and s.std() > 0.01


@every_case
def test_the_order_of_the_branches_does_not_matter(make, variance):
    adapter = make(variance=variance)
    x = inputs_for(adapter)
    before = adapter(x)
    order = [2, 0, 3, 1]
    with torch.no_grad():
        for parameter in (adapter.down, adapter.router.weight, adapter.router.bias):
            parameter.copy_(parameter[order].clone())
    torch.testing.assert_close(adapter(x), before, atol=1e-6, rtol=1e-5)


@every_case
def test_equal_branches_leave_the_router_without_effect(make, variance):
    adapter = make(variance=variance)
    with torch.no_grad():
        adapter.down.copy_(adapter.down[:1].expand_as(adapter.down).clone())
    x = inputs_for(adapter)
    before = adapter(x)
    with torch.no_grad():
        adapter.router.weight.normal_(generator=seeded(5))
    torch.testing.assert_close(adapter(x), before, atol=1e-6, rtol=1e-5)


def test_a_low_temperature_takes_one_branch():
    adapter = linear(temperature=0.01)
    s = adapter.route(inputs_for(adapter))
    assert (s.max(-1).values > 0.99).all()


def test_mean_pooling_does_not_depend_on_the_size_of_the_picture_and_sum_pooling_does():
    for pool, same in (("mean", True), ("sum", False)):
        adapter = conv(pool=pool)
        x = inputs_for(adapter)
        assert torch.allclose(adapter.route(x.tile(1, 1, 2, 2)), adapter.route(x), atol=1e-5) == same


def test_a_place_of_its_own_branch_with_token_scope():
    """Two halves of a sequence that the router tells apart are each adapted by the branch of their own."""
    adapter = linear(branches=2, variance="none", scope="token", moved=False)
    with torch.no_grad():
        adapter.up.normal_(generator=seeded(3))
        adapter.router.weight[0, 0], adapter.router.weight[1, 0] = 50.0, -50.0
    x = normal(1, 4, 6)
    x[0, :2, 0], x[0, 2:, 0] = 3.0, -3.0
    expected = adapter.layer(x) + torch.cat(
        [x[:, :2] @ adapter.down[0].T @ adapter.up.T, x[:, 2:] @ adapter.down[1].T @ adapter.up.T], 1
    )
    torch.testing.assert_close(adapter(x), expected, atol=1e-5, rtol=1e-5)


# --- the two ways to compute, and the shapes --------------------------------------------------------------------------


@every_variance
@pytest.mark.parametrize("more", [{}, {"pool": "sum", "temperature": 3.0}], ids=["mean", "sum, warmer"])
def test_mixing_weights_is_mixing_activations_with_the_same_gradients(variance, more):
    results = []
    for weights in (True, False):
        adapter = linear(variance=variance, **more)
        x = inputs_for(adapter).requires_grad_()
        if weights:
            y = adapter(x)
        else:  # sum_i s_i (A_i x), as the paper writes it
            z = torch.einsum("ni,irk,nlk->nlr", adapter.route(x), adapter.down, x)
            y = transfer(adapter.layer(x), z, adapter.up, variance)
        y.pow(3).sum().backward()
        results.append((y, x.grad, *(p.grad for _, p in adapter.own_parameters())))
    for i, (a, b) in enumerate(zip(*results, strict=True)):
        scale = b.abs().max().item()
        torch.testing.assert_close(a, b, atol=(1e-4 if i else 1e-5) * scale, rtol=1e-4 if i else 1e-5)


@every_variance
@pytest.mark.parametrize("scope", ["sample", "token"])
def test_a_1x1_convolution_is_the_linear_layer_on_its_pixels(variance, scope):
    one = build(nn.Conv2d(5, 7, 1), variance=variance, scope=scope)
    other = build(nn.Linear(5, 7), variance=variance, scope=scope, moved=False)
    with torch.no_grad():
        other.layer.weight.copy_(one.layer.weight[:, :, 0, 0])
        other.layer.bias.copy_(one.layer.bias)
        other.down.copy_(one.down[..., 0, 0])
        for a, b in (
            (other.up, one.up),
            (other.router.weight, one.router.weight),
            (other.router.bias, one.router.bias),
        ):
            a.copy_(b)
    x = normal(2, 5, 4, 6, seed=1)
    y = other(x.flatten(2).mT)
    torch.testing.assert_close(one(x), y.mT.unflatten(2, (4, 6)), atol=1e-5, rtol=1e-5)


@every_case
def test_a_samples_output_does_not_depend_on_the_others_in_the_batch(make, variance):
    adapter = make(variance=variance)
    x = inputs_for(adapter)
    alone = torch.cat([adapter(row[None]) for row in x])
    torch.testing.assert_close(adapter(x), alone, atol=1e-6, rtol=1e-5)


@every_variance
def test_permuted_tokens_give_the_permuted_output(variance):
    adapter = linear(variance=variance)
    x = inputs_for(adapter)
    order = torch.randperm(x.shape[1], generator=seeded())
    torch.testing.assert_close(adapter(x[:, order]), adapter(x)[:, order], atol=1e-5, rtol=1e-5)


@every_variance
def test_vectors_and_higher_shapes_are_adapted_as_one_token_and_as_a_flat_list_of_tokens(variance):
    adapter = linear(variance=variance)
    vectors = normal(3, 6)
    torch.testing.assert_close(adapter(vectors), adapter(vectors[:, None])[:, 0])
    grid = normal(3, 2, 4, 6)
    torch.testing.assert_close(adapter(grid).flatten(1, 2), adapter(grid.flatten(1, 2)))


# --- the style transfer -----------------------------------------------------------------------------------------------


def features(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """h (3, 40, 8), z (3, 40, 4), up (8, 4)."""
    return (
        normal(3, 40, 8, seed=1, dtype=dtype) + normal(1, 1, 8, seed=2, dtype=dtype),
        normal(3, 40, 4, seed=3, dtype=dtype),
        0.3 * normal(8, 4, seed=4, dtype=dtype),
    )


def test_std_of_sum_keeps_mean_and_pattern_and_takes_the_spread_of_the_sum():
    h, z, up = features()
    out = transfer(h, z, up, "std_of_sum")
    (mean, std), (_, spread) = moments(out), moments(h + z @ up.T)
    torch.testing.assert_close(mean, h.mean(1), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(std, spread, atol=1e-5, rtol=1e-5)
    gain = spread / moments(h)[1]
    torch.testing.assert_close(out, gain[:, None] * h + (1 - gain[:, None]) * h.mean(1, keepdim=True))
    a, b = (each - each.mean(1, keepdim=True) for each in (h, out))
    assert ((a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1))).min() > 1 - 1e-5


def test_full_adain_takes_mean_and_spread_of_the_sum():
    h, z, up = features()
    for got, expected in zip(moments(transfer(h, z, up, "full_adain")), moments(h + z @ up.T), strict=True):
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


def test_the_other_modes_are_their_formulas():
    h, z, up = features()
    mean, std = (each[:, None] for each in moments(h))
    zeta, dh = (h - mean) / std, z @ up.T
    close = {"atol": 1e-5, "rtol": 1e-5}
    torch.testing.assert_close(transfer(h, z, up, "none"), h + dh, **close)
    torch.testing.assert_close(transfer(h, z, up, "sigma_map"), (std + dh) * zeta + mean, **close)
    pooled = (std + dh.mean(1, keepdim=True)) * zeta + mean
    torch.testing.assert_close(transfer(h, z, up, "sigma_pooled"), pooled, **close)


def test_a_constant_of_each_channel_changes_nothing_or_with_full_adain_the_mean_alone():
    h, z, up = features()
    constant = normal(8, 1, seed=9)
    more, wider = torch.cat([z, torch.ones(3, 40, 1)], -1), torch.cat([up, constant], -1)
    torch.testing.assert_close(
        transfer(h, more, wider, "std_of_sum"), transfer(h, z, up, "std_of_sum"), atol=1e-5, rtol=1e-5
    )
    moved = transfer(h, more, wider, "full_adain") - transfer(h, z, up, "full_adain")
    torch.testing.assert_close(moved, constant[:, 0].expand_as(moved), atol=1e-5, rtol=1e-5)


def test_the_gradient_at_no_change_is_the_outer_product_of_the_normalised_pattern():
    h = normal(1, 12, 3, dtype=torch.float64)
    dh = torch.zeros(1, 12, 3, dtype=torch.float64, requires_grad=True)
    eye = torch.eye(3, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda d: transfer(h, d, eye, "std_of_sum"), dh)[0, :, :, 0]
    zeta = (h - h.mean(1, keepdim=True))[0] / moments(h)[1]
    for channel in range(3):
        expected = torch.outer(zeta[:, channel], zeta[:, channel]) / 12
        torch.testing.assert_close(jacobian[:, channel, :, channel], expected, atol=1e-10, rtol=1e-4)


@pytest.mark.parametrize("variance", VARIANCES)
def test_gradients_are_those_of_finite_differences(variance):
    h, z, up = (
        each[:2, :6].requires_grad_() if each.ndim == 3 else each.requires_grad_() for each in features(torch.float64)
    )
    assert torch.autograd.gradcheck(lambda *of: transfer(*of, variance), (h, z, up), atol=1e-6)


@pytest.mark.parametrize("variance", AFFINE)
def test_a_gain_stays_in_its_range(variance):
    h, z, up = features()
    centred = h - h.mean(1, keepdim=True)
    for size in (1e3, -1e3):
        out = transfer(h, z, size * up, variance)
        gain = (out - out.mean(1, keepdim=True)).norm(dim=1) / centred.norm(dim=1)
        assert gain.max() <= GAIN[1] * 1.001
    out = transfer(h, h, -torch.eye(8), "std_of_sum")  # h + Dh has no spread at all
    torch.testing.assert_close(out, h.mean(1, keepdim=True) + GAIN[0] * centred, atol=1e-5, rtol=1e-4)


@every_variance
def test_flat_channels_single_tokens_and_large_half_precision_values_give_numbers(variance):
    up = normal(8, 4)
    for h in (torch.zeros(2, 9, 8), torch.full((2, 9, 8), 7.0), normal(2, 1, 8)):
        assert transfer(h, normal(2, h.shape[1], 4), up, variance).isfinite().all()
    half = torch.full((2, 9, 8), 6e4, dtype=torch.float16)
    out = transfer(half, 1e-3 * normal(2, 9, 4), up, variance)
    assert out.dtype == torch.float16 and out.isfinite().all()


def test_a_single_token_is_added_to():
    h, z, up = normal(2, 1, 8), normal(2, 1, 4), normal(8, 4)
    torch.testing.assert_close(transfer(h, z, up, "std_of_sum"), h + z @ up.T)


def test_statistics_of_tiles_join_to_those_of_the_whole():
    """Means and biased variances of equal tiles are enough for the whole's: what sharded tokens would exchange."""
    h, z, up = features()
    total = h + z @ up.T
    for x in (h, total):
        tiles = x.unflatten(1, (4, 10))
        means, variances = tiles.mean(2), tiles.var(2, unbiased=False)
        joined = variances.mean(1) + means.var(1, unbiased=False)
        torch.testing.assert_close((joined + EPS).sqrt(), moments(x)[1], atol=1e-5, rtol=1e-5)
    gain = moments(transfer(h, z, up, "std_of_sum"))[1] / moments(h)[1]
    torch.testing.assert_close(gain, moments(total)[1] / moments(h)[1], atol=1e-5, rtol=1e-5)


# --- training ---------------------------------------------------------------------------------------------------------


@every_case
def test_the_first_step_moves_b_alone_and_the_second_all(make, variance):
    adapter = make(moved=False, variance=variance)
    x = inputs_for(adapter)
    optimizer = torch.optim.SGD([parameter for _, parameter in adapter.own_parameters()], lr=0.1)
    for moving in ({"up"}, {"up", "down", "router.weight", "router.bias"}):
        optimizer.zero_grad()
        adapter(x).pow(3).sum().backward()
        moved = {name for name, parameter in adapter.own_parameters() if parameter.grad.abs().max() > 0}
        assert moved == moving
        optimizer.step()


def test_training_leaves_the_base_bit_for_bit(tiny_v_base):
    base = tiny_v_base
    before = {
        k: v.clone() for part in (base.denoiser, base.text_encoder, base.vae) for k, v in part.state_dict().items()
    }
    attachment = attach(base, StyleInject(rank=2), ["self_attention.*", "cross_attention.*", "residual.conv"])
    optimizer = torch.optim.AdamW(attachment.parameters(), lr=1e-2)
    text = base.condition(["a cat", "a dog"]).text
    for _ in range(2):
        optimizer.zero_grad()
        base.denoise(normal(2, 4, 8, 8), torch.tensor([5, 700]), Conditioning(text=text)).square().mean().backward()
        optimizer.step()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in attachment.parameters())
    attachment.detach()
    after = {k: v for part in (base.denoiser, base.text_encoder, base.vae) for k, v in part.state_dict().items()}
    assert all(torch.equal(before[key], after[key]) for key in before)


@every_variance
def test_statistics_stay_in_full_precision_on_a_half_precision_layer(variance):
    adapter = linear(variance=variance)
    x = inputs_for(adapter)
    exact = adapter(x)
    adapter.layer.to(torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = adapter(x.bfloat16())
    assert half.dtype == torch.bfloat16 and adapter.up.dtype == torch.float32
    torch.testing.assert_close(half.float(), exact, atol=0.05, rtol=0.05)


# --- on a base --------------------------------------------------------------------------------------------------------


def test_the_text_sides_keys_and_values_follow_their_own_rule(tiny_v_base):
    base = tiny_v_base
    keys = set(base.roles["cross_attention.key"]) | set(base.roles["cross_attention.value"])
    for text, expected in (("none", "none"), ("same", "sigma_map"), ("exclude", None)):
        attachment = attach(base, StyleInject(variance="sigma_map", text=text))
        variances = {path: adapter.variance for path, adapter in attachment.adapters.items()}
        assert {variances.get(path) for path in keys} == {expected}
        assert {value for path, value in variances.items() if path not in keys} == {"sigma_map"}
        attachment.detach()


def test_observed_routes_are_those_of_each_layer_and_leave_nothing_behind(tiny_v_base):
    base = tiny_v_base
    attachment = attach(base, StyleInject(), ["self_attention.*"])
    with torch.no_grad():
        for adapter in attachment.adapters.values():
            adapter.router.weight.normal_(generator=seeded())
    text = base.condition(["a cat", "a dog"]).text
    with observed_routes(attachment) as seen:
        base.denoise(normal(2, 4, 8, 8), torch.tensor([5, 700]), Conditioning(text=text))
        base.denoise(normal(2, 4, 8, 8), torch.tensor([5, 700]), Conditioning(text=text))
    assert seen.keys() == attachment.adapters.keys()
    assert all(len(each) == 2 and each[0].shape == (2, 4) for each in seen.values())
    assert all(torch.equal(*each) for each in seen.values())
    assert not any(adapter._forward_pre_hooks for adapter in attachment.adapters.values())
    attachment.detach()


def test_entropy_is_in_bits():
    weights = torch.tensor([[0.25] * 4, [1.0, 0, 0, 0], [0.5, 0.5, 0, 0]])
    torch.testing.assert_close(entropy(weights), torch.tensor([2.0, 0.0, 1.0]), atol=1e-5, rtol=0)


def test_merging_is_refused(tiny_v_base):
    attachment = attach(tiny_v_base, StyleInject())
    with pytest.raises(Refused, match="depends on its input"):
        attachment.merge_()
    attachment.detach()


def test_a_saved_file_says_how_it_is_computed_and_is_loaded_to_the_same_bits(tiny_v_base, tmp_path):
    base = tiny_v_base
    method = StyleInject(branches=3, rank=2, variance="full_adain", scope="token", pool="sum", text="same")
    attachment = attach(base, method, ["self_attention.*"], seed=3)
    state = {key: value.clone() for key, value in attachment.state_dict().items()}
    path = base.roles["self_attention.query"][0]
    names = {key.removeprefix(path + ".") for key in state if key.startswith(path + ".")}
    assert names == {"down", "up", "router.weight", "router.bias"}
    attachment.save(tmp_path / "a.safetensors")
    attachment.detach()
    loaded = load_adapter(base, tmp_path / "a.safetensors")
    assert loaded.method == method and all(torch.equal(state[k], v) for k, v in loaded.state_dict().items())
    loaded.detach()


@pytest.mark.parametrize(
    ("layer", "settings", "message"),
    [
        (nn.Embedding(3, 4), {}, "adapts linear and convolution layers; here is a Embedding"),
        (nn.Conv2d(4, 4, 3, groups=2), {}, "2 groups"),
        (nn.Linear(3, 9), {"rank": 4}, "rank 4 is larger than layer here allows"),
    ],
)
def test_what_does_not_fit_is_refused(layer, settings, message):
    with pytest.raises(Refused, match=message):
        build(layer, **settings)


# --- ablations --------------------------------------------------------------------------------------------------------


@every_case
@pytest.mark.parametrize("scope", ["sample", "token"])
def test_branches_with_an_up_projection_each_are_a_mixture_of_loras(make, variance, scope):
    adapter = make(variance=variance, scope=scope, shared_up=False, branches=3, rank=2)
    x = inputs_for(adapter)
    s, h, inner = adapter.route(x), adapter.layer(x), adapter.innermost()
    whole = torch.einsum("nor,nr...->no...", adapter.up, adapter.down)  # B_i A_i, as weights
    if isinstance(inner, nn.Conv2d):
        each = torch.stack([inner._conv_forward(x, weight, None) for weight in whole], 1)  # (N, n, out, H, W)
        if s.ndim == 2:
            places = s[:, :, None, None]
        else:
            places = nn.functional.adaptive_avg_pool2d(s.permute(0, 3, 1, 2), each.shape[-2:])
        added = (each * places[:, :, None]).sum(1).flatten(2).mT
        h = h.flatten(2).mT
    else:
        each = torch.einsum("noi,bli->blno", whole, x)
        added = (each * (s if s.ndim == 3 else s[:, None])[..., None]).sum(2)
    by_itself = torch.eye(added.shape[-1])  # B = 1
    expected = h + added if variance == "none" else transfer(h, added, by_itself, variance)
    found = adapter(x)
    found = found.flatten(2).mT if found.ndim == 4 else found
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("make", [linear, conv])
def test_equal_up_projections_are_one_that_is_shared(make):
    shared, own = make(branches=3), make(branches=3, shared_up=False)
    with torch.no_grad():
        own.up.copy_(shared.up.expand_as(own.up))
        for name in ("down", "router.weight", "router.bias"):
            own.get_parameter(name).copy_(shared.get_parameter(name))
    x = inputs_for(shared)
    torch.testing.assert_close(own(x), shared(x), atol=1e-5, rtol=1e-5)
    apart = make(branches=3, shared_up=False, moved=False)
    assert torch.equal(apart(x), apart.layer(x)) and apart.up.shape == (3, *shared.up.shape)


@pytest.mark.parametrize("scope", ["sample", "token"])
def test_a_random_router_chooses_by_the_input_from_the_start_and_is_never_trained(tiny_v_base, tmp_path, scope):
    method = StyleInject(branches=3, rank=2, router="random", scope=scope)
    attachment = attach(tiny_v_base, method, ["self_attention.*"], seed=3)
    adapter = next(iter(attachment.adapters.values()))
    width = adapter.innermost().in_features
    s = adapter.route(normal(4, 5, width))
    assert (s.flatten(0, -2).std(0) > 0.01).all()
    assert not [name for name, _ in attachment.named_parameters() if "router" in name]
    before = {key: value.clone() for key, value in attachment.state_dict().items()}
    optimizer = torch.optim.SGD(attachment.parameters(), lr=1.0)
    for _ in range(2):
        loss = adapter(normal(4, 5, width)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    after = attachment.state_dict()
    changed = {key.rsplit(".", 1)[1] for key in before if not torch.equal(before[key], after[key])}
    assert changed == {"up", "down"}
    attachment.save(tmp_path / "a.safetensors")
    kept = {key: value.clone() for key, value in after.items()}
    attachment.detach()
    loaded = load_adapter(tiny_v_base, tmp_path / "a.safetensors")
    assert loaded.method == method and all(torch.equal(kept[k], v) for k, v in loaded.state_dict().items())
    loaded.detach()


# --- size -------------------------------------------------------------------------------------------------------------


def sd15_attention() -> list[tuple[int, int]]:
    """(inputs, outputs) of the 128 attention projections of Stable Diffusion 1.5: 16 transformer blocks of 8."""
    widths = [320] * 5 + [640] * 5 + [1280] * 6
    return [shape for d in widths for shape in [(d, d)] * 4 + [(d, d), (768, d), (768, d), (d, d)]]


@pytest.mark.parametrize(
    ("branches", "rank", "expected"),
    [(1, 4, 896_768), (2, 4, 1_394_176), (4, 2, 1_393_664), (4, 4, 2_388_992), (8, 2, 2_587_648), (4, 8, 4_379_648)],
)
def test_parameters_at_the_shapes_of_stable_diffusion(branches, rank, expected):
    shapes = sd15_attention()
    assert len(shapes) == 128
    assert sum(i for i, _ in shapes) == 99_456 and sum(o for _, o in shapes) == 99_840
    count = sum(branches * rank * i + rank * o + branches * (i + 1) for i, o in shapes)
    assert count == expected
    for i, o in dict.fromkeys(shapes):
        adapter = build(nn.Linear(i, o, bias=False), moved=False, branches=branches, rank=rank)
        own = sum(parameter.numel() for _, parameter in adapter.own_parameters())
        assert own == branches * rank * i + rank * o + branches * (i + 1)


def test_parameters_of_a_convolution():
    adapter = conv(branches=3, rank=2)
    own = sum(parameter.numel() for _, parameter in adapter.own_parameters())
    assert own == 3 * 2 * 9 * 5 + 2 * 7 + 3 * (5 + 1)
