"""C-LoRA's penalty, its past and its files: the properties that its specification lists, one layer at a time."""

import itertools
import math

import pytest
import torch
from torch import Tensor, nn

from diffadapt.adapters import CLoRA, LoRA, attach
from diffadapt.adapters.c_lora import CLoRAAdapter
from diffadapt.conditioning import Conditioning
from diffadapt.errors import Refused

OUT, IN, RANK = 10, 7, 3
SD15_WIDTHS = [320] * 5 + [640] * 5 + [1280] * 6  # cross-attention blocks of Stable Diffusion 1.5; text width 768
IMPORTANCE = ("abs_of_sum", "sum_of_abs", "sum_of_squares", "inputs", "fisher")


def adapter_of(tasks: int = 0, *, dtype=torch.float32, seed: int = 0, **settings) -> CLoRAAdapter:
    """An adapter after some tasks that moved its factors at random, with the present task's factors moved too."""
    generator = torch.Generator().manual_seed(seed)
    layer = nn.Linear(IN, OUT, dtype=dtype)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(OUT, IN, generator=generator))
        layer.bias.copy_(torch.randn(OUT, generator=generator))
    layer.requires_grad_(False)
    settings = {"rank": RANK, "penalty_weight": 1.0} | settings
    adapter = CLoRAAdapter(layer, CLoRA(**settings), "here", generator)
    for _ in range(tasks):
        move(adapter, generator)
        look(adapter, generator)
        adapter.fold_(generator)
    return move(adapter, generator)


def look(adapter: CLoRAAdapter, generator: torch.Generator) -> None:
    """The adapter observes a few rows and gradients of a task."""
    x, gradient = (torch.randn(4, 5, width, generator=generator) for width in (IN, OUT))
    adapter.observe_(x)
    adapter.observe_gradient_(x, gradient)


def move(adapter: CLoRAAdapter, generator: torch.Generator) -> CLoRAAdapter:
    with torch.no_grad():
        adapter.up.copy_(0.3 * torch.randn(adapter.up.shape, generator=generator))
        adapter.down.copy_(0.3 * torch.randn(adapter.down.shape, generator=generator))
    return adapter


def penalty_and_gradients(adapter: CLoRAAdapter) -> tuple[Tensor, Tensor, Tensor]:
    value = adapter.penalty()
    assert value is not None
    return value.detach(), *torch.autograd.grad(value, (adapter.up, adapter.down))


def value_of(adapter: CLoRAAdapter) -> float:
    return penalty_and_gradients(adapter)[0].item()


def written_out(adapter: CLoRAAdapter, up: Tensor, down: Tensor, weigh: Tensor) -> Tensor:
    """The penalty as the page has it, for autograd."""
    change = up @ down
    if adapter.method.importance == "inputs":
        return adapter.method.penalty_weight * torch.trace(change @ weigh @ change.t())
    return adapter.method.penalty_weight * (weigh.abs() * change).square().sum()


def weigh_of(adapter: CLoRAAdapter) -> Tensor:
    weigh = adapter.past if adapter.method.importance == "abs_of_sum" else adapter.importance
    assert weigh is not None
    return weigh


# --- the penalty ------------------------------------------------------------------------------------------------------


def test_the_first_task_has_no_penalty():
    assert adapter_of().penalty() is None


def test_the_first_step_of_a_later_task_has_no_penalty_and_no_gradient_of_it():
    adapter = adapter_of(2)
    adapter.fold_(torch.Generator())
    value, up, down = penalty_and_gradients(adapter)
    assert value == 0 and not up.any() and not down.any()


@pytest.mark.parametrize("importance", IMPORTANCE)
def test_the_penalty_and_its_gradient_are_those_of_the_equation(importance):
    adapter = adapter_of(3, importance=importance)
    up, down = (each.detach().clone().requires_grad_() for each in (adapter.up, adapter.down))
    expected = written_out(adapter, up, down, weigh_of(adapter))
    gradients = torch.autograd.grad(expected, (up, down))
    value, *found = penalty_and_gradients(adapter)
    torch.testing.assert_close(value, expected.detach(), rtol=1e-5, atol=0)
    for mine, theirs in zip(found, gradients, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("importance", ["abs_of_sum", "inputs"])
def test_finite_differences_agree_with_the_gradient_in_float64(importance):
    adapter = adapter_of(2, importance=importance).double()
    _, *gradients = penalty_and_gradients(adapter)
    for parameter, gradient in zip((adapter.up, adapter.down), gradients, strict=True):
        direction = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(4)).double()
        values = []
        for h in (1e-5, -1e-5):
            with torch.no_grad():
                parameter += h * direction
            value = adapter.penalty()
            assert value is not None
            values.append(value.item())
            with torch.no_grad():
                parameter -= h * direction
        numeric = (values[0] - values[1]) / 2e-5
        assert numeric == pytest.approx((gradient * direction).sum().item(), rel=1e-6)


def test_the_sign_of_the_past_does_not_matter():
    adapter = adapter_of(2)
    assert adapter.past is not None
    before = penalty_and_gradients(adapter)
    for changed in (-adapter.past, adapter.past.abs()):
        adapter.past = changed
        assert all(torch.equal(a, b) for a, b in zip(before, penalty_and_gradients(adapter), strict=True))


def test_the_penalty_grows_with_the_square_of_the_change_and_of_the_past():
    adapter = adapter_of(2)
    assert adapter.past is not None
    value = value_of(adapter)
    with torch.no_grad():
        adapter.up *= 3
    assert value_of(adapter) == pytest.approx(9 * value, rel=1e-6)
    adapter.past = adapter.past * 2
    assert value_of(adapter) == pytest.approx(36 * value, rel=1e-6)


@pytest.mark.parametrize("importance", IMPORTANCE)
def test_only_the_product_of_the_factors_counts(importance):
    adapter = adapter_of(2, importance=importance)
    value = value_of(adapter)
    mix = torch.randn(RANK, RANK, generator=torch.Generator().manual_seed(1)) + 3 * torch.eye(RANK)
    with torch.no_grad():
        adapter.up.copy_(adapter.up @ mix)
        adapter.down.copy_(torch.linalg.solve(mix, adapter.down))
    assert value_of(adapter) == pytest.approx(value, rel=1e-5)


@pytest.mark.parametrize("importance", IMPORTANCE)
def test_normalised_weights_have_mean_one_whatever_the_size_of_the_past(importance):
    raw = adapter_of(2, importance=importance)
    weights = weigh_of(raw).diagonal() if importance == "inputs" else weigh_of(raw).square()
    normalised = adapter_of(2, importance=importance, penalty_scale="normalised")
    expected = value_of(raw) / weights.mean().item()
    assert value_of(normalised) == pytest.approx(expected, rel=1e-5)


def test_two_past_changes_that_cancel_are_protected_by_the_sum_of_abs_alone():
    values = {}
    for importance in ("abs_of_sum", "sum_of_abs", "sum_of_squares"):
        adapter, generator = adapter_of(importance=importance), torch.Generator().manual_seed(0)
        up, down = adapter.up.detach().clone(), adapter.down.detach().clone()
        for sign in (1, -1):
            with torch.no_grad():
                adapter.up.copy_(sign * up)
                adapter.down.copy_(down)
            adapter.fold_(generator)
        values[importance] = value_of(move(adapter, generator))
    assert values["abs_of_sum"] == 0 and values["sum_of_abs"] > values["sum_of_squares"] > 0


def test_the_inputs_penalty_is_the_mean_square_change_of_the_outputs_on_past_inputs():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(50, IN, generator=generator)
    adapter = adapter_of(importance="inputs")
    adapter.observe_(x[:20])
    adapter.observe_(x[20:].view(5, 6, IN))
    adapter.fold_(generator)
    move(adapter, generator)
    expected = (x @ adapter.change().t()).square().sum(1).mean().item()
    assert value_of(adapter) == pytest.approx(expected, rel=1e-5)


def test_the_fisher_penalty_weighs_by_the_mean_squared_gradient_of_each_row():
    adapter, generator = adapter_of(importance="fisher"), torch.Generator().manual_seed(0)
    layer = adapter.layer
    assert isinstance(layer, nn.Linear)
    x, target = torch.randn(6, 2, IN, generator=generator), torch.randn(6, 2, OUT, generator=generator)
    squares = torch.zeros(OUT, IN)
    for row, goal in zip(x, target, strict=True):
        weight = adapter.weight(layer.weight).detach().requires_grad_()
        (nn.functional.linear(row, weight, layer.bias) - goal).square().sum().backward()
        assert weight.grad is not None
        squares += weight.grad.square() / len(x)
    y = adapter(x)
    y.register_hook(lambda gradient: adapter.observe_gradient_(x, gradient))
    (y - target).square().sum().backward()
    adapter.fold_(generator)
    torch.testing.assert_close(adapter.importance, squares.sqrt(), rtol=1e-4, atol=1e-5)


def test_no_dense_matrix_is_kept_for_the_way_back():
    adapter, sizes = adapter_of(2), []

    def pack(tensor: Tensor) -> Tensor:
        sizes.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        adapter.penalty()
    assert sizes and max(sizes) <= RANK * max(OUT, IN)


def test_the_penalty_is_computed_in_float32_under_autocast():
    adapter = adapter_of(2)
    expected = penalty_and_gradients(adapter)
    with torch.autocast("cpu", torch.bfloat16):
        found = penalty_and_gradients(adapter)
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


@pytest.mark.parametrize("parts", [1, 2, 5])
def test_the_penalty_counts_once_whatever_the_number_of_batches_in_a_step(parts):
    """Each part of a step, or process of a group, adds its loss and the penalty, divided by their number."""
    adapter, x = adapter_of(2), torch.randn(10, IN, generator=torch.Generator().manual_seed(1))
    gradients = []
    for count in (1, parts):
        adapter.zero_grad()
        for rows in x.chunk(count):
            penalty = adapter.penalty()
            assert penalty is not None
            ((adapter(rows).square().mean() + penalty) / count).backward()
        assert adapter.up.grad is not None
        gradients.append(adapter.up.grad.clone())
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-6, atol=1e-7)


# --- from task to task ------------------------------------------------------------------------------------------------


def test_a_task_begins_at_the_end_of_the_one_before_to_the_bit():
    adapter, x = adapter_of(2), torch.randn(5, IN)
    layer = adapter.layer
    assert isinstance(layer, nn.Linear) and adapter.past is not None
    adapter.fold_(torch.Generator().manual_seed(9))
    merged = nn.functional.linear(x, layer.weight + adapter.past, layer.bias)
    assert torch.equal(adapter(x), merged) and not adapter.up.any() and adapter.down.any()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_folding_leaves_the_output_as_it_was(dtype, tolerance):
    adapter = adapter_of(1, dtype=dtype)
    x = torch.randn(5, IN).to(dtype)
    before = adapter(x)
    adapter.fold_(torch.Generator().manual_seed(9))
    assert ((adapter(x) - before).norm() / before.norm()) < tolerance


def test_every_task_starts_from_another_draw():
    adapter, generator = adapter_of(), torch.Generator().manual_seed(0)
    starts = []
    for _ in range(3):
        adapter.fold_(generator)
        starts.append(adapter.down.detach().clone())
    assert not any(torch.equal(a, b) for a, b in itertools.combinations(starts, 2))


def test_the_past_is_the_sum_of_the_tasks_changes():
    adapter, generator, total = adapter_of(), torch.Generator().manual_seed(0), torch.zeros(OUT, IN)
    for _ in range(4):
        total += move(adapter, generator).change()
        adapter.fold_(generator)
    torch.testing.assert_close(adapter.past, total, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("strength", [1.0, 0.3, -0.5])
def test_strength_multiplies_past_and_present_alike(strength):
    adapter = adapter_of(2)
    layer = adapter.layer
    assert isinstance(layer, nn.Linear) and adapter.past is not None
    adapter.strength = strength
    expected = layer.weight + strength * (adapter.past + adapter.change())
    torch.testing.assert_close(adapter.weight(layer.weight), expected, rtol=1e-6, atol=1e-6)


def test_training_a_task_changes_neither_the_base_nor_the_past_with_weight_decay():
    adapter = adapter_of(2)
    layer = adapter.layer
    assert isinstance(layer, nn.Linear) and adapter.past is not None
    frozen = [layer.weight, layer.bias, adapter.past, adapter.past_up, adapter.past_down]
    before = [each.clone() for each in frozen if each is not None]
    optimizer = torch.optim.AdamW([p for p in adapter.parameters() if p.requires_grad], lr=0.1, weight_decay=0.5)
    for _ in range(5):
        optimizer.zero_grad()
        penalty = adapter.penalty()
        assert penalty is not None
        (adapter(torch.ones(2, IN)).square().sum() + penalty).backward()
        optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(before, [e for e in frozen if e is not None], strict=True))
    assert [name for name, _ in adapter.own_parameters()] == ["up", "down"]


def trained(past_rows: Tensor, penalty_weight: float) -> tuple[CLoRAAdapter, float]:
    """A task learned by gradient descent where the past is 1 on some rows; the adapter and its squared error."""
    adapter = adapter_of(1, penalty_weight=penalty_weight)
    adapter.fold_(torch.Generator().manual_seed(0))
    assert adapter.past is not None
    adapter.past = past_rows[:, None].expand(OUT, IN).clone()
    generator = torch.Generator().manual_seed(5)
    x, target = torch.randn(20, IN, generator=generator), torch.randn(20, OUT, generator=generator)
    optimizer = torch.optim.Adam([adapter.up, adapter.down], lr=0.02)
    for _ in range(400):
        optimizer.zero_grad()
        penalty = adapter.penalty()
        assert penalty is not None
        ((adapter(x) - target).square().mean() + penalty).backward()
        optimizer.step()
    return adapter, (adapter(x) - target).square().mean().item()


def test_a_huge_lambda_keeps_the_change_off_the_rows_that_the_past_changed():
    rows = torch.zeros(OUT)
    rows[:4] = 1
    adapter, _ = trained(rows, 1e6)
    change = adapter.change().abs()
    assert change[:4].max() / change[4:].max() < 1e-2


def test_a_huge_lambda_under_a_dense_past_leaves_the_new_task_unlearned_and_outputs_for_the_past_unchanged():
    free, error_free = trained(torch.zeros(OUT), 1e6)
    bound, error_bound = trained(torch.ones(OUT), 1e6)
    assert bound.change().norm() < 1e-3 * free.change().norm() and error_bound > 1.5 * error_free
    past = torch.randn(200, IN, generator=torch.Generator().manual_seed(9))
    drift = {}
    for adapter in (bound, free):
        learned = adapter(past)
        with torch.no_grad():
            adapter.up.zero_()
        before = adapter(past)  # where the task before ended
        drift[adapter] = ((learned - before).norm() / before.norm()).item()
    assert drift[bound] < 1e-3 < 0.1 < drift[free]


# --- files and storage ------------------------------------------------------------------------------------------------


def restored(adapter: CLoRAAdapter) -> CLoRAAdapter:
    """A fresh adapter with the state of another, as a file brings it."""
    state = {name: value.detach().clone() for name, value in adapter.own_state().items()}
    other = CLoRAAdapter(adapter.layer, adapter.method, "here", torch.Generator().manual_seed(77))
    other.make_room_(state)
    with torch.no_grad():
        for name, value in other.own_state().items():
            value.copy_(state.pop(name))
    assert not state
    return other


@pytest.mark.parametrize("importance", IMPORTANCE)
@pytest.mark.parametrize("tasks", [0, 1, 2, 9])
def test_a_state_that_is_read_back_gives_the_same_bits(importance, tasks):
    """Output, next penalty and its gradient; before the break-even, at it and long after."""
    adapter, x = adapter_of(tasks, importance=importance), torch.randn(4, IN)
    other = restored(adapter)
    assert torch.equal(adapter(x), other(x)) and adapter.tasks == other.tasks == tasks
    if tasks:
        pairs = zip(penalty_and_gradients(adapter), penalty_and_gradients(other), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("importance", ["inputs", "fisher"])
def test_what_was_observed_is_kept_until_the_next_task_folds_it(importance):
    adapter = adapter_of(1, importance=importance)
    look(adapter, torch.Generator().manual_seed(8))
    other = restored(adapter)
    for each in (adapter, other):
        each.fold_(torch.Generator().manual_seed(9))
    assert torch.equal(adapter.importance, other.importance) and "seen" not in other.own_state()


@pytest.mark.parametrize("importance", IMPORTANCE)
def test_storage_is_constant_from_the_break_even_on(importance):
    adapter, generator = adapter_of(importance=importance), torch.Generator().manual_seed(0)
    saved, held = [], []
    for _ in range(30):
        look(adapter, generator)
        adapter.fold_(generator)
        saved.append(sum(value.numel() for value in adapter.own_state().values()))
        buffers = [value for value in adapter.buffers(recurse=False) if value is not None]
        held.append(sum(value.numel() for value in buffers))
    dense = 2 if importance in ("sum_of_abs", "sum_of_squares") else 1
    break_even = math.ceil(dense * OUT * IN / (RANK * (OUT + IN)))
    assert len(set(saved[break_even - 1 :])) == 1 and len(set(held[break_even - 1 :])) == 1
    assert saved == sorted(saved) and adapter.past_up is None


def test_what_trains_at_sd15_shapes_is_two_factors_per_matrix():
    method, generator, count, dense = CLoRA(rank=16), torch.Generator(), 0, 0
    for width in SD15_WIDTHS:
        for _ in ("key", "value"):
            adapter = method.build(nn.Linear(768, width, bias=False), "here", "cross_attention.key", generator)
            sizes = [parameter.numel() for _, parameter in adapter.own_parameters()]
            assert len(sizes) == 2
            count, dense = count + sum(sizes), dense + 768 * width
    assert (count, dense) == (792_576, 19_169_280)


# --- on a base --------------------------------------------------------------------------------------------------------


def test_keys_and_values_of_cross_attention_train_and_nothing_else_gets_a_gradient(base):
    attachment = attach(base, CLoRA(rank=2), tokens={"<new>": "<random>"})
    layers = [*base.roles["cross_attention.key"], *base.roles["cross_attention.value"]]
    tables = base.roles["text.token_embedding"]
    assert set(attachment.adapters) == {*layers, *tables}
    shapes = [base.module(path).innermost().weight.shape for path in layers]
    width = base.module(tables[0]).innermost().weight.shape[1]
    assert sum(p.numel() for p in attachment.parameters()) == sum(2 * sum(shape) for shape in shapes) + width
    side = base.denoiser.config.sample_size
    text = base.condition(["a <new>"]).text
    base.denoise(torch.randn(1, 4, side, side), torch.tensor([300]), Conditioning(text=text)).square().mean().backward()
    own = {id(parameter) for parameter in attachment.parameters()}
    parts = (base.denoiser, base.text_encoder, base.vae)
    assert not [1 for part in parts for p in part.parameters() if p.grad is not None and id(p) not in own]
    assert all(parameter.grad is not None for parameter in attachment.parameters())
    attachment.detach()


def test_other_methods_go_on_from_where_they_are(base):
    attachment = attach(base, LoRA(rank=2), tokens={"<one>": "cat"})
    with torch.no_grad():
        for parameter in attachment.parameters():
            parameter += 0.1
    before = {name: parameter.detach().clone() for name, parameter in attachment.named_parameters()}
    attachment.fold_({"<two>": "dog"})
    same = {name for name, p in attachment.named_parameters() if torch.equal(p, before[name])}
    assert same == {name for name in before if not name.endswith(".vectors")}
    attachment.detach()


def test_inputs_that_were_never_observed_are_refused():
    adapter = CLoRAAdapter(nn.Linear(IN, OUT), CLoRA(rank=1, importance="inputs"), "that.layer", torch.Generator())
    with pytest.raises(Refused, match=r"that\.layer has seen none.*observing\(\)"):
        adapter.fold_(torch.Generator())
    assert adapter.tasks == 0


@pytest.mark.parametrize(
    ("layer", "rank", "words"),
    [
        (nn.Conv1d(4, 4, 3), 1, "linear and convolution layers; that.layer is a Conv1d"),
        (nn.Conv2d(4, 4, 3, groups=2), 1, "that.layer: a convolution with 2 groups"),
        (nn.Conv2d(1, 8, 3), 9, "rank 9 .* at most 8"),
        (nn.Linear(4, 8), 5, "rank 5 .* at most 4"),
    ],
)
def test_layers_and_ranks_that_do_not_fit_are_refused(layer, rank, words):
    with pytest.raises(Refused, match=words):
        CLoRAAdapter(layer, CLoRA(rank=rank), "that.layer", torch.Generator())


# --- convolutions -----------------------------------------------------------------------------------------------------


def convolution_of(tasks: int, generator: torch.Generator, dtype=torch.float32, **settings) -> CLoRAAdapter:
    """A 3 x 3 convolution with stride and dilation after some tasks, each with a moved change and something seen."""
    layer = nn.Conv2d(IN, OUT, 3, stride=2, padding=2, dilation=2, dtype=dtype).requires_grad_(False)
    adapter = CLoRAAdapter(layer, CLoRA(rank=RANK, penalty_weight=1.0, **settings), "here", generator)
    for _ in range(tasks):
        move(adapter, generator)
        x = torch.randn(4, IN, 9, 9, generator=generator)
        adapter.observe_(x)
        adapter.observe_gradient_(x, torch.randn(adapter(x.to(dtype)).shape, generator=generator))
        adapter.fold_(generator)
    return move(adapter, generator)


@pytest.mark.parametrize("tasks", [0, 2])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.15)])
def test_a_convolution_computes_with_the_sum_of_base_past_and_present(tasks, dtype, tolerance):
    generator = torch.Generator().manual_seed(0)
    adapter = convolution_of(tasks, generator, dtype)
    adapter.strength = 0.7
    layer = adapter.innermost()
    assert isinstance(layer, nn.Conv2d)
    changes = adapter.change() + (0 if adapter.past is None else adapter.past)
    weight = layer.weight.float() + 0.7 * changes.view_as(layer.weight)
    x = torch.randn(2, IN, 9, 9, generator=generator)
    expected = layer._conv_forward(x, weight, layer.bias.float())
    torch.testing.assert_close(adapter(x.to(dtype)).float(), expected, rtol=0, atol=tolerance)
    torch.testing.assert_close(adapter.weight(layer.weight).float(), weight, rtol=0, atol=tolerance / 10)


@pytest.mark.parametrize("importance", IMPORTANCE)
def test_a_convolution_of_one_place_is_a_linear_layer_on_every_place(importance):
    linear, generator = adapter_of(2, importance=importance), torch.Generator().manual_seed(1)
    layer = nn.Conv2d(IN, OUT, 1).requires_grad_(False)
    adapter = CLoRAAdapter(layer, linear.method, "here", generator)
    x, gradient = torch.randn(4, IN, 2, 3, generator=generator), torch.randn(4, OUT, 2, 3, generator=generator)
    again = adapter_of(0, importance=importance)
    tokens, their = (each.flatten(2).transpose(1, 2) for each in (x, gradient))
    with torch.no_grad():
        layer.weight.copy_(again.innermost().weight[:, :, None, None])
        layer.bias.copy_(again.innermost().bias)
        for mine, other in ((adapter.up, again.up), (adapter.down, again.down)):
            mine.copy_(other)
    for each, seen, grads in ((adapter, x, gradient), (again, tokens, their)):
        each.observe_(seen)
        each.observe_gradient_(seen, grads)
        each.fold_(torch.Generator().manual_seed(2))
        move(each, torch.Generator().manual_seed(3))
    torch.testing.assert_close(adapter(x).flatten(2).transpose(1, 2), again(tokens))
    for mine, other in zip(penalty_and_gradients(adapter), penalty_and_gradients(again), strict=True):
        torch.testing.assert_close(mine, other)


def test_the_inputs_penalty_of_a_convolution_is_the_mean_square_change_of_its_outputs_on_past_pictures():
    generator = torch.Generator().manual_seed(0)
    adapter = convolution_of(0, generator, importance="inputs")
    x = torch.randn(4, IN, 9, 9, generator=generator)
    adapter.observe_(x)
    adapter.fold_(generator)
    move(adapter, generator)
    layer = adapter.innermost()
    assert isinstance(layer, nn.Conv2d)
    change = layer._conv_forward(x, adapter.change().view_as(layer.weight), None)
    assert value_of(adapter) == pytest.approx(float(change.square().sum(1).mean()), rel=1e-5)


def test_the_fisher_weights_of_a_convolution_are_the_mean_squared_gradients_of_its_kernel():
    generator = torch.Generator().manual_seed(0)
    adapter = convolution_of(0, generator, importance="fisher")
    layer = adapter.innermost()
    assert isinstance(layer, nn.Conv2d)
    x = torch.randn(4, IN, 9, 9, generator=generator)
    gradient = torch.randn(adapter(x).shape, generator=generator)
    squares = []
    for row, grad in zip(x, gradient, strict=True):
        kernel = layer.weight.detach().clone().requires_grad_()
        (layer._conv_forward(row[None], kernel, None) * grad).sum().backward()
        assert kernel.grad is not None
        squares.append(kernel.grad.flatten(1).square())
    adapter.observe_gradient_(x, gradient)
    adapter.fold_(generator)
    torch.testing.assert_close(adapter.importance, torch.stack(squares).mean(0).sqrt(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("tasks", [1, 3])
def test_a_convolution_s_state_that_is_read_back_gives_the_same_bits(tasks):
    generator = torch.Generator().manual_seed(0)
    adapter = convolution_of(tasks, generator)
    other = CLoRAAdapter(adapter.innermost(), adapter.method, "here", generator)
    state = {name: value.detach().clone() for name, value in adapter.own_state().items()}
    other.make_room_(state)
    with torch.no_grad():
        other.up.copy_(adapter.up)
        other.down.copy_(adapter.down)
    x = torch.randn(2, IN, 9, 9, generator=generator)
    assert torch.equal(other(x), adapter(x))
