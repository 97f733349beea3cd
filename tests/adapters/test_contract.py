"""The contract of every method on every layer: one file of generic tests over METHODS and toy methods."""

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from perfusion_cases import prepared
from torch import Tensor, nn

from diffadapt.adapters import (
    IA3,
    METHODS,
    OFT,
    Adapter,
    Attachment,
    CLoRA,
    DiffFit,
    DoRA,
    GainedLoRA,
    Hint,
    LoRA,
    Mergeable,
    Method,
    Perfusion,
    PromptPool,
    Selective,
    SideInputs,
    StyleInject,
    Token,
    attach,
    effective_weight,
    load_adapter,
)
from diffadapt.adapters.hint import SIGNAL
from diffadapt.conditioning import Conditioning
from diffadapt.errors import Refused

CASES = {
    "lora": (LoRA(rank=2), None),
    "lora on all linear and conv layers": (LoRA(rank=1), ["*"]),
    "dora": (DoRA(rank=2), None),
    "dora on all linear and conv layers": (DoRA(rank=1, alpha=3), ["*"]),
    "gained_lora": (GainedLoRA(rank=2), None),
    "gained_lora on all linear and conv layers": (GainedLoRA(rank=1), ["*"]),
    "ia3": (IA3(), None),
    "ia3 on all linear and conv layers": (IA3(), ["*"]),
    "oft": (OFT(block_size=4), None),
    "oft, rescaled, convolutions too": (OFT(block_size=2, rescale="joint"), ["residual.*", "self_attention.*"]),
    "coft, shared": (OFT(blocks=2, share_blocks=True, constraint="angle", radius=30), None),
    "full": (Selective(), None),
    "full on every layer": (Selective(), ["*"]),
    "bias": (Selective(train="bias"), None),
    "diff_fit": (DiffFit(), None),
    "diff_fit on every layer": (DiffFit(scaled_blocks=0), ["*"]),
    "c_lora": (CLoRA(rank=2), None),
    "token": (Token(vectors=2), None),
    "perfusion": (Perfusion(), None),
    "style_inject": (StyleInject(rank=2), None),
    "style_inject, map, all layers": (StyleInject(branches=2, rank=1, variance="sigma_map", text="same"), ["*"]),
    "style_inject, by place": (StyleInject(variance="full_adain", scope="token"), ["self_attention.*", "residual.*"]),
    "hint": (Hint(channels=(8, 12, 12)), None),
}
PLAIN = ("a cat", "a dog")


def attached(base, name: str, *, moved: bool = False) -> Attachment:
    method, roles = CASES[name]
    if isinstance(method, Perfusion):
        prepared(base)
    attachment = attach(base, method, roles, tokens={"<biscuit>": "cat"} if method.needs_word else None)
    if moved:
        move(attachment)
    return attachment


def move(attachment: Attachment, seed: int = 0, size: float = 0.05) -> None:
    """Puts every parameter somewhere else, as a training would."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in attachment.parameters():
            parameter += size * torch.randn(parameter.shape, generator=generator)


def outputs(base, prompts=("a <biscuit> cat", "a cat on a red background")) -> Tensor:
    """The denoiser's answer to two fixed inputs; without the token it is read as letters."""
    with torch.no_grad():
        return answer(base, list(prompts))


def answer(base, prompts: list[str]) -> Tensor:
    """The denoiser's prediction for these prompts, with gradient, everything attached given what it needs."""
    side, rows = base.denoiser.config.sample_size, len(prompts)
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(rows, base.denoiser.config.in_channels, side, side, generator=generator)
    signal = torch.rand(rows, 3, base.resolution, base.resolution, generator=generator)
    timesteps, ids = torch.linspace(10, 700, rows).long(), base.tokenize(prompts)
    text = base.encode_ids(ids)
    for attachment in base.attachments:
        attachment.begin(SideInputs(timesteps=timesteps, token_ids=ids, text=text, control={SIGNAL: signal}))
    return base.denoise(latents, timesteps, Conditioning(text=text))


def weights(base) -> dict[str, Tensor]:
    pipeline = base.pipeline
    return {
        f"{part}.{name}": value.clone()
        for part in ("unet", "text_encoder")
        for name, value in getattr(pipeline, part).state_dict().items()
    }


@pytest.mark.parametrize("name", CASES)
def test_starts_as_the_identity(base, name):
    before = outputs(base, PLAIN)
    attachment = attached(base, name)
    torch.testing.assert_close(outputs(base, PLAIN), before, atol=1e-6, rtol=0)
    attachment.detach()


@pytest.mark.parametrize("name", CASES)
def test_training_changes_the_output_and_strength_zero_is_the_base_bit_for_bit(base, name):
    before = outputs(base, PLAIN)
    attachment = attached(base, name, moved=True)
    trained = outputs(base)
    attachment.strength = 0
    assert not torch.equal(outputs(base), trained)
    assert torch.equal(outputs(base, PLAIN), before)
    attachment.strength = 1
    attachment.enabled = False
    assert torch.equal(outputs(base, PLAIN), before)
    attachment.detach()


@pytest.mark.parametrize("name", CASES)
def test_detach_restores_the_same_module_objects_and_bits(base, name):
    modules, values, before = dict(base.pipeline.unet.named_modules()), weights(base), outputs(base)
    tokenizer = base.tokenizer
    attachment = attached(base, name, moved=True)
    attachment.detach()
    assert all(module is modules[key] for key, module in base.pipeline.unet.named_modules())
    assert weights(base).keys() == values.keys()
    assert all(torch.equal(values[key], value) for key, value in weights(base).items())
    assert torch.equal(outputs(base), before) and base.tokenizer is tokenizer and not base.attachments


@pytest.mark.parametrize("name", CASES)
def test_only_its_own_parameters_train_and_each_gets_a_gradient(base, name):
    attachment = attached(base, name, moved=True)
    own = {id(p) for p in attachment.parameters()}
    parts = (base.pipeline.unet, base.pipeline.text_encoder, base.pipeline.vae)
    training = {name for part in parts for name, p in part.named_parameters() if p.requires_grad and id(p) not in own}
    assert own and not training
    answer(base, ["a <biscuit> cat", "a dog", ""]).square().mean().backward()
    frozen = [n for n, p in base.denoiser.named_parameters() if p.grad is not None and id(p) not in own]
    assert not frozen
    # A key's bias shifts every attention score of a query alike, so its gradient is exactly zero in exact arithmetic.
    missing = [n for n, p in attachment.named_parameters() if p.grad is None and ".position" not in n]
    assert not missing
    attachment.detach()


@pytest.mark.parametrize("name", CASES)
def test_save_and_load_give_the_same_bits(base, name, tmp_path):
    attachment = attached(base, name, moved=True)
    expected = outputs(base)
    attachment.save(tmp_path / "a.safetensors")
    attachment.detach()
    loaded = load_adapter(base, tmp_path / "a.safetensors")
    assert torch.equal(outputs(base), expected)
    assert loaded.method == attachment.method and loaded.tokens == attachment.tokens
    loaded.detach()


@pytest.mark.parametrize("name", [name for name, (method, _) in CASES.items() if not method.merges])
def test_a_method_that_says_it_does_not_merge_is_refused_and_changes_nothing(base, name):
    values = weights(base)
    attachment = attached(base, name, moved=True)
    with pytest.raises(Refused, match="depends on its input"):
        attachment.merge_()
    attachment.detach()
    assert all(torch.equal(values[key], value) for key, value in weights(base).items())


@pytest.mark.parametrize("strength", [1.0, 0.4, -0.5])
@pytest.mark.parametrize("name", [name for name, (method, _) in CASES.items() if method.merges])
def test_merged_equals_attached_at_every_strength_and_unmerge_restores_the_bits(base, name, strength):
    values = weights(base)
    attachment = attached(base, name, moved=True)
    attachment.strength = strength
    expected = outputs(base)
    attachment.merge_()
    assert not any(isinstance(module, Adapter) for module in base.denoiser.modules())
    torch.testing.assert_close(outputs(base), expected, atol=2e-5, rtol=1e-4)
    attachment.unmerge_()
    assert torch.equal(outputs(base), expected)
    attachment.detach()
    assert all(torch.equal(values[key], value) for key, value in weights(base).items())


@pytest.mark.parametrize("name", CASES)
def test_forward_equals_the_layer_with_the_adapted_weight(base, name):
    """The contract of a mergeable adapter: forward(x) is the base's layer with weight(w0) in the place of w0."""
    attachment = attached(base, name, moved=True)
    generator = torch.Generator().manual_seed(3)
    for adapter in attachment.adapters.values():
        inner = adapter.innermost()
        if not isinstance(inner, nn.Linear | nn.Conv2d) or not isinstance(adapter, Mergeable):
            continue
        shape = (2, 3, inner.in_features) if isinstance(inner, nn.Linear) else (2, inner.in_channels, 6, 6)
        x = torch.randn(shape, generator=generator)
        values = {"weight": adapter.weight(inner.weight)}
        if inner.bias is not None:
            values["bias"] = adapter.bias(inner.bias)
        with torch.no_grad():
            expected = torch.func.functional_call(inner, values, (x,))
            torch.testing.assert_close(adapter(x), expected, atol=1e-5, rtol=1e-4)
    attachment.detach()


@pytest.mark.parametrize("name", CASES)
def test_forward_writes_no_state(base, name):
    attachment = attached(base, name, moved=True)
    before = {key: value.clone() for key, value in {**attachment.state_dict(), **weights(base)}.items()}
    outputs(base)
    after = {**attachment.state_dict(), **weights(base)}
    assert all(torch.equal(before[key], after[key]) for key in before)
    attachment.detach()


def test_several_attachments_stack_and_come_off_in_any_order(base):
    before = outputs(base)
    first = attach(base, Selective(), ["cross_attention.key"])
    second = attach(base, LoRA(rank=2), ["cross_attention.*"], tokens={"<a>": "cat"})
    third = attach(base, LoRA(rank=1), ["cross_attention.key"], tokens={"<b>": "dog"})
    for seed, attachment in enumerate((first, second, third)):
        move(attachment, seed)
    path = base.roles["cross_attention.key"][0]
    x = torch.randn(1, 2, base.module(path).innermost().in_features)
    expected = torch.nn.functional.linear(x, effective_weight(base.module(path)))
    torch.testing.assert_close(base.module(path)(x), expected, atol=1e-5, rtol=1e-4)
    together = outputs(base, ("a <a> cat", "a <b> dog"))
    second.detach()
    assert base.tokenizer("<b>", add_special_tokens=False).input_ids == [third_id(base)]
    assert not torch.equal(outputs(base, ("a <a> cat", "a <b> dog")), together)
    first.detach()
    third.detach()
    assert torch.equal(outputs(base), before)


def third_id(base) -> int:
    return len(base.tokenizer) - 1


@pytest.mark.parametrize("method", [LoRA(rank=2, dropout=0.5), OFT(block_size=4, dropout=0.5)])
def test_what_is_merged_is_the_whole_adapter_in_training_too(base, method):
    attachment = attach(base, method)
    move(attachment)
    path = next(iter(attachment.adapters))
    whole = effective_weight(attachment.adapters[path]).detach().clone()
    attachment.train()
    attachment.merge_()
    torch.testing.assert_close(base.module(path).weight, whole, atol=1e-6, rtol=0)
    attachment.detach()


@pytest.mark.parametrize("method", [LoRA(rank=2), Selective(), OFT(block_size=4), Token()])
def test_a_merge_that_leaves_the_numbers_is_refused_and_changes_nothing(base, method):
    values = weights(base)
    attachment = attach(base, method, tokens={"<biscuit>": "cat"})
    move(attachment)
    attachment.strength = 1e300
    with pytest.raises(Refused, match=r"merged at strength 1e\+300, .* holds values that are not numbers"):
        attachment.merge_()
    assert not attachment.is_merged
    attachment.detach()
    assert all(torch.equal(values[key], value) for key, value in weights(base).items())


def test_a_merged_attachment_must_be_the_lowest(base):
    first, second = attach(base, LoRA(rank=1)), attach(base, LoRA(rank=1))
    with pytest.raises(Refused, match="beneath"):
        second.merge_()
    second.detach()
    first.detach()


def test_follows_the_dtype_of_the_base(base):
    attachment = attach(base, LoRA(rank=2))
    move(attachment)
    path, adapter = next(iter(attachment.adapters.items()))
    inner = adapter.innermost()
    half = torch.randn(2, inner.in_features).to(torch.bfloat16)
    inner.to(torch.bfloat16)
    assert adapter(half).dtype == torch.bfloat16 and next(attachment.parameters()).dtype == torch.float32
    inner.to(torch.float32)
    attachment.detach()


def test_the_same_seed_gives_the_same_start_whatever_came_before(base):
    torch.manual_seed(1)
    first = attach(base, LoRA(rank=2), seed=5)
    a = {key: value.clone() for key, value in first.state_dict().items()}
    first.detach()
    torch.manual_seed(2)
    second = attach(base, LoRA(rank=2), seed=5)
    assert all(torch.equal(a[key], value) for key, value in second.state_dict().items())
    second.detach()


# --- the contract fits what later methods need ------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Toy(Method):
    """Depends on its input, needs a side input, has a penalty and a projection, and shares one computation."""

    name: ClassVar[str] = "toy"
    title: ClassVar[str] = "toy"
    merges: ClassVar[bool] = False
    shared: ClassVar[list[int]] = []

    def build(self, layer: nn.Module, path: str, role: str, generator: torch.Generator) -> Adapter:
        return ToyAdapter(layer, role)

    def share(self, attachment, side) -> None:
        self.shared.append(len(attachment.adapters))

    def notes(self, attachment) -> dict[str, float]:
        return {"largest_gain": max(float(adapter.gain) for adapter in attachment.layers.values())}


class ToyAdapter(Adapter):
    needs = frozenset({"timesteps"})

    def __init__(self, layer: nn.Module, role: str) -> None:
        super().__init__(layer)
        self.role = role
        self.gain = nn.Parameter(torch.full((1,), 3.0))
        self.register_buffer("learned", torch.zeros(1))
        self.timesteps = torch.zeros(1)

    def receive(self, side: SideInputs) -> None:
        assert side.timesteps is not None
        self.timesteps = side.timesteps

    def adapted(self, x: Tensor) -> Tensor:
        gate = torch.sigmoid(x.mean()) * self.timesteps.float().mean() / 1000
        return self.layer(x) * (1 + self.strength * (self.learned + self.gain) * gate)

    def penalty(self) -> Tensor:
        return self.gain.square().sum()

    def project_(self) -> None:
        self.gain.clamp_(max=1.0)

    def fold_(self, generator: torch.Generator) -> None:
        self.learned += self.gain
        self.gain.zero_()


def test_an_input_dependent_method_with_side_input_penalty_and_projection_fits(base):
    attachment = attach(base, Toy(), ["cross_attention.value"])
    count = len(attachment.adapters)
    with pytest.raises(Refused, match="needs timesteps"):
        attachment.begin(SideInputs())
    attachment.begin(SideInputs(timesteps=torch.tensor([500])))
    assert Toy.shared[-1] == count
    penalty = attachment.penalty()
    assert penalty is not None and penalty.item() == pytest.approx(9 * count)
    attachment.project_()
    assert all(parameter.item() == 1.0 for parameter in attachment.parameters())
    assert attachment.notes() == {"largest_gain": 1.0}
    before, shapes = outputs(base), {name: value.shape for name, value in attachment.state_dict().items()}
    attachment.fold_(seed=1)
    assert torch.equal(outputs(base), before) and all(parameter.item() == 0 for parameter in attachment.parameters())
    assert {name: value.shape for name, value in attachment.state_dict().items()} == shapes
    with pytest.raises(Refused, match="depends on its input"):
        attachment.merge_()
    with pytest.raises(Refused, match="depends on its input"):
        effective_weight(base.module(base.roles["cross_attention.value"][0]))
    attachment.detach()


def test_a_method_is_given_the_role_of_each_layer(base):
    attachment = attach(base, Toy(), ["cross_attention.value", "residual.conv"])
    roles = {path: adapter.role for path, adapter in attachment.adapters.items()}
    assert roles == base.select(["cross_attention.value", "residual.conv"])
    attachment.detach()


def test_every_method_has_its_name_in_the_table_and_a_case_here():
    assert {name: method.name for name, method in METHODS.items()} == {name: name for name in METHODS}
    # L2P stands on vision transformers alone: test_prompt_pool.py
    assert set(METHODS.values()) == {type(method) for method, _ in CASES.values()} | {PromptPool}


@pytest.mark.parametrize("name", CASES)
def test_a_method_says_what_it_is(base, name):
    """The facts on the class are what attaching it shows, so that nobody needs a list of methods."""
    method, roles = CASES[name]
    assert method.title and method.summary().startswith(method.title)
    if method.needs_word:
        with pytest.raises(Refused, match="new token"):
            attach(base, method, roles)
    attachment = attached(base, name)
    assert bool(attachment.layers) != method.words_only
    assert len(attachment.tokens) == (method.vectors_per_word() if method.needs_word else 0)
    assert all(isinstance(value, float) for value in attachment.notes().values())
    attachment.detach()
