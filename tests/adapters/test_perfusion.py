"""Perfusion: one concept. The numbers are those of the properties that the edit has to have."""

import math

import pytest
import torch
from perfusion_cases import concept, equation_3, exact, given, prepared, projections, similarity

from diffadapt.adapters import Perfusion, attach, load_adapter
from diffadapt.adapters.perfusion import PerfusionAdapter
from diffadapt.conditioning import Conditioning
from diffadapt.errors import Refused

EVERYWHERE = {"prompt_gate": False, "edit_start": True}
LINEAR = Perfusion(gate="linear", **EVERYWHERE)
PROMPTS = ["a photo of a <x> on the red background", "the <x>"]


@pytest.fixture
def base(tiny_base):
    return exact(tiny_base)


def gate(r, bias, temperature):
    return torch.sigmoid((r - bias) / temperature)


def test_1_without_a_gate_it_is_the_rank_one_edited_weight_of_rome(base):
    attachment = concept(base, LINEAR)
    text = given(base, PROMPTS)
    edit, c = attachment.shared, base.covariance()
    direction = torch.linalg.solve(c.matrix + c.ridge * torch.eye(32).double(), edit.anchor)
    for kind in ("key", "value"):
        for _, adapter in projections(attachment, kind):
            w = adapter.layer.weight
            target = w @ edit.category if kind == "key" else adapter.target()
            rome = w + torch.outer(target - w @ edit.anchor, direction) / (direction @ edit.anchor)
            torch.testing.assert_close(adapter(text), text @ rome.T, atol=1e-10, rtol=0)


def test_2_what_is_left_of_a_token_has_nothing_of_the_anchor(base):
    attachment = concept(base, Perfusion(**EVERYWHERE))
    text = given(base, PROMPTS)
    edit = attachment.shared
    left = similarity(text + edit.shift, edit.anchor, base.covariance())
    assert left.abs().max() < 1e-12


@pytest.mark.parametrize("kind", ["key", "value"])
def test_3_the_concept_itself_leads_to_its_targets_as_far_as_the_gate_opens(base, kind):
    attachment = concept(base, Perfusion(bias=0.7, temperature=0.15, **EVERYWHERE))
    edit = attachment.shared
    text = edit.anchor.expand(1, 16, -1)
    given(base, ["the <x>"], text)
    for _, adapter in projections(attachment, kind):
        target = adapter.layer(edit.category) if kind == "key" else adapter.target()
        expected = 1 / (1 + math.exp(-(1 - 0.7) / 0.15)) * target
        torch.testing.assert_close(adapter(text), expected.expand(1, 16, -1), atol=1e-10, rtol=0)


def test_4_the_scale_of_the_covariance_does_not_matter(base):
    attachment = concept(base)
    text = given(base, PROMPTS)
    before = [adapter(text) for adapter in attachment.adapters.values() if isinstance(adapter, PerfusionAdapter)]
    attachment.shared.covariance = type(base.covariance())(matrix=7.3 * base.covariance().matrix)
    attachment.shared._solved = None
    given(base, PROMPTS)
    after = [adapter(text) for adapter in attachment.adapters.values() if isinstance(adapter, PerfusionAdapter)]
    for one, other in zip(before, after, strict=True):
        torch.testing.assert_close(one, other, atol=1e-10, rtol=0)


@pytest.mark.parametrize("training", [False, True])
def test_5_every_layer_computes_equation_3(base, training):
    attachment = concept(base, Perfusion(bias=0.6, temperature=0.15, **EVERYWHERE))
    attachment.train(training)
    text = given(base, PROMPTS)
    edit = attachment.shared
    r = similarity(text, edit.anchor, base.covariance())
    opened = gate(r, *((0.75, 0.1) if training else (0.6, 0.15)))
    for kind in ("key", "value"):
        for _, adapter in projections(attachment, kind):
            w = adapter.layer.weight
            target = w @ edit.category if kind == "key" else adapter.target()
            expected = equation_3(w, text, r, opened, edit.anchor, target)
            torch.testing.assert_close(adapter(text), expected, atol=1e-10, rtol=0)


def test_5_in_float32_and_below(tiny_base):
    base = prepared(tiny_base)
    attachment = concept(base, Perfusion(bias=0.6, **EVERYWHERE))
    text = given(base, PROMPTS)
    edit = attachment.shared
    r = similarity(text, edit.anchor, base.covariance())
    for _, adapter in projections(attachment, "value"):
        expected = equation_3(adapter.layer.weight, text, r, gate(r, 0.6, 0.15), edit.anchor, adapter.target())
        assert (adapter(text) - expected).abs().max() < 1e-5 * expected.abs().max()
        for dtype, bound in ((torch.float16, 5e-3), (torch.bfloat16, 4e-2)):
            adapter.layer.to(dtype)
            assert (adapter(text.to(dtype)).double() - expected).abs().max() < bound * expected.abs().max()
            adapter.layer.float()


@pytest.mark.parametrize("method", [Perfusion(), Perfusion(key_lock="global"), Perfusion(key_lock="trained")])
def test_6_a_prompt_without_the_concept_is_the_bases_bit_for_bit(tiny_base, method):
    base = prepared(tiny_base)
    prompts = ["a photo of a cat", "", "a dog on the red background", "the <x>"]
    noisy = torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    times = torch.tensor([10, 500, 700, 900])

    def answer(text):
        with torch.no_grad():
            return base.denoise(noisy, times, Conditioning(text=text))

    before_text = base.condition(prompts).text
    before = answer(before_text)
    attachment = concept(base, method)
    text = given(base, prompts)
    assert torch.equal(text[:3], before_text[:3])
    after = answer(text)
    assert torch.equal(after[:3], before[:3])
    assert not torch.allclose(after[3], before[3], atol=1e-3)  # while the concept's own row changes
    given(base, [*prompts[:3], "a cat"])  # and where no row has it
    assert attachment.shared.opened is None and torch.equal(answer(before_text), before)


def test_6_without_the_prompt_gate_the_leak_is_bounded(base):
    attachment = concept(base, Perfusion(**EVERYWHERE))
    text = given(base, ["a photo of a dog", ""])
    edit = attachment.shared
    r = similarity(text, edit.anchor, base.covariance())
    for _, adapter in projections(attachment, "value"):
        w, target = adapter.layer.weight, adapter.target()
        bound = r.abs() * (w @ edit.anchor).norm() + gate(r, 0.65, 0.15) * target.norm() + 1e-6
        moved = (adapter(text) - text @ w.T).norm(dim=-1)
        assert (moved <= bound).all() and moved.max() > 1e-3


def test_7_unrelated_tokens_are_hardly_similar(base):
    d = 256
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(d, d, generator=generator).double() / d**0.5 + torch.eye(d).double()
    c = type(base.covariance())(matrix=root @ root.T)
    anchor = root @ torch.randn(d, generator=generator).double()
    tokens = torch.randn(20_000, d, generator=generator).double() @ root.T
    r = similarity(tokens, anchor, c)
    energy = anchor @ torch.linalg.solve(c.matrix, anchor)
    assert float(r.std()) == pytest.approx(float(energy) ** -0.5, rel=0.05)
    assert float(r.std()) == pytest.approx(d**-0.5, rel=0.15)
    assert r.abs().max() < 5 * d**-0.5
    assert gate(r, 0.75, 0.1).max() < 0.02


def test_8_a_constant_start_token_is_bounded_by_how_often_it_occurs(base):
    generator = torch.Generator().manual_seed(1)
    rest, start, share = torch.randn(5000, 64, generator=generator).double(), torch.randn(64).double() * 3, 0.1
    c = type(base.covariance())(matrix=(1 - share) * rest.T @ rest / 5000 + share * torch.outer(start, start))
    for _ in range(20):
        anchor = torch.randn(64, generator=generator).double() + torch.rand(1).double() * start
        energy = anchor @ torch.linalg.solve(c.matrix, anchor)
        assert similarity(start, anchor, c).abs() <= (1 / (share * energy)).sqrt() + 1e-6


def test_9_the_gate_opens_with_similarity_and_shuts_with_the_bias(base):
    edit = concept(base).shared
    r = torch.linspace(-1, 2, 301).double()
    for bias in (0.4, 0.75):
        edit.bias = bias
        assert (edit.opening(r).diff() > 0).all()
        assert float(edit.opening(torch.tensor(bias, dtype=torch.float64))) == 0.5
    edit.bias, edit.temperature = 0.7, 1e-4
    away = r[(r - 0.7).abs() > 1e-2]
    torch.testing.assert_close(edit.opening(away), (away > 0.7).double(), atol=1e-9, rtol=0)


def test_9_a_hard_gate_is_a_step_and_a_floor_shuts_it_where_there_is_nothing(base):
    r = torch.tensor([-0.5, 0.0, 0.6, 0.7, 1.0]).double()
    assert concept(base, Perfusion(gate="hard", bias=0.65)).shared.opening(r).tolist() == [0, 0, 0, 1, 1]
    base.attachments[-1].detach()
    opened = concept(base, Perfusion(gate_floor=True)).shared.opening(r)
    assert opened[:2].tolist() == [0, 0] and 0 < opened[2] < opened[3] < opened[4] < 1


def test_13_only_the_word_and_the_values_train(tiny_base):
    base = prepared(tiny_base)
    attachment = attach(base, Perfusion(), tokens={"<x>": "cat"})
    names = {name.rpartition(".")[2] for name, _ in attachment.named_parameters()}
    assert names == {"vectors", "targets"}
    frozen = {n: p for part in (base.denoiser, base.text_encoder) for n, p in part.named_parameters()}
    own = {id(p) for p in attachment.parameters()}
    before = {n: p.detach().clone() for n, p in frozen.items() if id(p) not in own}
    optimizer = torch.optim.AdamW(attachment.parameters(), lr=1e-2, weight_decay=0.1)
    attachment.train()
    for step in range(5):
        noisy = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(step))
        text = given(base, PROMPTS)
        optimizer.zero_grad()
        base.denoise(noisy, torch.tensor([10, 500]), Conditioning(text=text)).square().mean().backward()
        assert all(p.grad is not None and p.grad.abs().max() > 0 for p in attachment.parameters())
        optimizer.step()
        attachment.project_()
    assert all(p.grad is None for n, p in frozen.items() if n in before)
    assert all(torch.equal(frozen[n], value) for n, value in before.items())
    assert attachment.shared.category.grad is None and not attachment.shared.anchor.requires_grad


@pytest.mark.parametrize("parts", [1, 3])
def test_14_the_anchor_is_a_moving_average_of_one_update_a_step(base, parts):
    attachment = attach(base, Perfusion(ema=0.9), tokens={"<x>": "cat"})
    edit = attachment.shared.double()
    expected, generator = edit.anchor.clone(), torch.Generator().manual_seed(0)
    ids = base.tokenize(PROMPTS)
    for _ in range(4):
        attachment.train()
        rows = []
        for _ in range(parts):
            text = torch.randn(2, 16, 32, generator=generator).double()
            given(base, PROMPTS, text)
            rows.append(text[edit.places(ids)])
        attachment.train(False)
        given(base, PROMPTS, torch.randn(2, 16, 32).double())  # sampling between steps leaves it
        attachment.project_()
        expected = 0.9 * expected + 0.1 * torch.cat(rows).mean(0)
        torch.testing.assert_close(edit.anchor, expected, atol=1e-6, rtol=0)
    attachment.project_()
    torch.testing.assert_close(edit.anchor, expected, atol=1e-6, rtol=0)


def test_14_several_processes_keep_one_anchor(base, monkeypatch):
    attachment = attach(base, Perfusion(ema=0.9), tokens={"<x>": "cat"})
    edit = attachment.shared.double()
    before = edit.anchor.clone()
    text, elsewhere = torch.randn(2, 16, 32).double(), torch.randn(3, 32).double()
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)

    def all_reduce(total):
        total += torch.cat([elsewhere.sum(0), torch.tensor([3.0])])

    monkeypatch.setattr(torch.distributed, "all_reduce", all_reduce)
    attachment.train()
    given(base, PROMPTS, text)
    attachment.project_()
    mean = torch.cat([text[edit.places(base.tokenize(PROMPTS))], elsewhere]).mean(0)
    torch.testing.assert_close(edit.anchor, 0.9 * before + 0.1 * mean, atol=1e-10, rtol=0)


def test_15_untrained_and_without_a_gate_it_is_the_identity(base):
    attachment = attach(base, LINEAR, tokens={"<x>": "cat"})
    edit = attachment.shared.double()
    with torch.no_grad():
        for _, adapter in projections(attachment, "value"):
            adapter.target().copy_(adapter.layer.weight @ edit.anchor)
    text = given(base, PROMPTS)
    for path, adapter in attachment.adapters.items():
        if isinstance(adapter, PerfusionAdapter):
            torch.testing.assert_close(adapter(text), adapter.layer(text), atol=1e-10, rtol=0, msg=path)


def test_15_at_the_start_of_training_the_concept_is_its_category_times_the_gate(base):
    attachment = attach(base, Perfusion(**EVERYWHERE), tokens={"<x>": "cat"})
    edit = attachment.shared.double()
    attachment.train()
    text = edit.category.expand(1, 16, -1)
    given(base, ["the <x>"], text)
    for kind in ("key", "value"):
        for _, adapter in projections(attachment, kind):
            ratio = (adapter(text) / adapter.layer(text)).detach()
            assert float(ratio.median()) == pytest.approx(0.924, abs=5e-4)


def test_18_another_bias_needs_nothing_anew(base):
    attachment = concept(base)
    before = {name: value.clone() for name, value in attachment.state_dict().items()}
    text = attachment.shared.anchor.expand(1, 16, -1)
    outputs = []
    for bias in (0.4, 0.5, 0.6, 0.7, 0.8):
        attachment.shared.bias = bias
        given(base, ["the <x>"], text)
        adapter = projections(attachment, "value")[0][1]
        target = adapter.target().detach()
        outputs.append(float(adapter(text)[0, 1].detach() @ target / target.norm()))
    assert all(later < earlier for earlier, later in zip(outputs, outputs[1:], strict=False))
    assert all(torch.equal(before[name], value) for name, value in attachment.state_dict().items())


def test_19_similarity_and_gate_are_computed_in_float32(tiny_base):
    base = prepared(tiny_base)
    attachment = concept(base, Perfusion(**EVERYWHERE))
    edit, generator = attachment.shared, torch.Generator().manual_seed(0)
    scales = torch.logspace(0, 1.8, 32).double()  # a condition of 4,000, as CLIP ViT-L's second moment has
    edit.covariance, edit._solved = type(base.covariance())(matrix=scales.square().diag()), None
    edit.anchor = (torch.randn(32, generator=generator) * scales).float()
    text = torch.randn(2, 16, 32, generator=generator).double() * scales
    r = similarity(text, edit.anchor, edit.covariance)
    for dtype, bound in ((torch.float32, 1e-6), (torch.float16, 5e-4), (torch.bfloat16, 4e-3)):
        with torch.autocast("cpu", torch.bfloat16):
            given(base, PROMPTS, text.to(dtype))
        assert edit.opened.dtype == torch.float32
        # the gate's slope is at most 1 / (4 temperature)
        assert (edit.opened[..., 0] - gate(r, 0.65, 0.15)).abs().max() < bound / (4 * 0.15)


def test_20_a_gated_edit_cannot_be_merged(base):
    attachment = concept(base)
    with pytest.raises(Refused, match="cannot be merged"):
        attachment.merge_()


def test_20_an_edit_without_a_gate_can(base):
    attachment = concept(base, LINEAR)
    text = given(base, PROMPTS)
    paths = [path for path, adapter in attachment.adapters.items() if isinstance(adapter, PerfusionAdapter)]
    before, weights = {}, {}
    for path in paths:
        before[path] = base.module(path)(text)
        weights[path] = attachment.adapters[path].layer.weight.clone()
    attachment.merge_()
    for path in paths:
        torch.testing.assert_close(base.module(path)(text), before[path], atol=1e-6, rtol=0)
    attachment.unmerge_()
    assert all(torch.equal(attachment.adapters[path].layer.weight, weights[path]) for path in paths)


@pytest.mark.parametrize("kind", ["plain", "edited"])
def test_24_a_global_lock_takes_all_keys_from_the_categorys_prompt(base, kind):
    attachment = concept(base, Perfusion(key_lock="global", global_key=kind))
    text = given(base, PROMPTS)
    category = base.condition([prompt.replace("<x>", "cat") for prompt in PROMPTS]).text
    values = [adapter(text) for _, adapter in projections(attachment, "value")]
    for _, adapter in projections(attachment, "key"):
        same = torch.equal(adapter(text), adapter.layer(category))
        assert same == (kind == "plain")
    attachment.detach()
    attachment = concept(base, Perfusion(key_lock="local"))
    text = given(base, PROMPTS)
    for (_, adapter), value in zip(projections(attachment, "value"), values, strict=True):
        assert torch.equal(adapter(text), value)


@pytest.mark.parametrize("scope", ["all", "from_concept", "concept_only"])
def test_the_scope_says_which_places_are_edited(base, scope):
    attachment = concept(base, Perfusion(scope=scope))
    text = given(base, PROMPTS)
    ids = base.tokenize(PROMPTS)
    word = attachment.shared.places(ids)
    expected = {
        "all": torch.arange(16)[None] >= torch.ones(2, 1),
        "from_concept": word.long().cumsum(1) > 0,
        "concept_only": word,
    }[scope]
    _, adapter = projections(attachment, "value")[0]
    changed = (adapter(text) != adapter.layer(text)).any(-1)
    assert torch.equal(changed, expected)


def test_strength_zero_is_the_category_and_the_base(base):
    prompts = ["a photo of a <x>"]
    attachment = concept(base)
    attachment.strength = 0
    text = given(base, prompts)
    torch.testing.assert_close(text, base.condition(["a photo of a cat"]).text, atol=1e-10, rtol=0)
    assert all(torch.equal(a(text), a.layer(text)) for _, a in projections(attachment, "value"))


def test_a_file_brings_the_concept_back(base, tmp_path):
    attachment = concept(base)
    text = given(base, PROMPTS)
    before = [adapter(text).float() for _, adapter in projections(attachment, "key")]
    path = attachment.save(tmp_path / "x.safetensors")
    attachment.detach()
    again = load_adapter(base, path)
    again.shared.double()
    given(base, PROMPTS, text)
    for (_, adapter), value in zip(projections(again, "key"), before, strict=True):
        torch.testing.assert_close(adapter(text).float(), value, atol=1e-5, rtol=1e-5)
