"""Custom Diffusion: concepts trained apart, merged in closed form."""

import pytest
import torch
from perfusion_cases import prepared

from diffadapt.adapters import LoRA, Selective, attach, load_adapter
from diffadapt.adapters.custom_diffusion import ROLES, constrained, merge_custom_diffusion
from diffadapt.adapters.token import TokenAdapter
from diffadapt.errors import Refused


@pytest.fixture
def base(tiny_base):
    return prepared(tiny_base)


def trained(base, folder, word: str, noun: str, seed: int):
    attachment = attach(base, Selective(), list(ROLES), tokens={word: noun})
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in attachment.parameters():
            parameter += 0.3 * parameter.std() * torch.randn(parameter.shape, generator=generator)
    path = attachment.save(folder / f"{seed}.safetensors")
    text = base.condition([f"photo of a {word} {noun}"]).text[:, 1:6].detach()
    outputs = {path: base.module(path)(text).detach() for role in ROLES for path in base.roles[role]}
    attachment.detach()
    return path, outputs


def test_each_concepts_words_lead_where_its_own_training_leads_them(base, tmp_path):
    first, one = trained(base, tmp_path, "<x>", "cat", 0)
    second, other = trained(base, tmp_path, "<y>", "dog", 1)
    before = {path: base.module(path).weight.clone() for path in one}
    merged = load_adapter(base, merge_custom_diffusion(base, [first, second], tmp_path / "both.safetensors"))
    assert merged.tokens == {"<x>": "cat", "<y>": "dog"}
    # "photo of a" is in both prompts and is asked to lead to two places; the words of each concept are its own.
    for prompt, wanted in (("photo of a <x> cat", one), ("photo of a <y> dog", other)):
        text = base.condition([prompt]).text[:, 1:6].detach()
        for path, value in wanted.items():
            got, untouched = base.module(path)(text)[:, 3:], text[:, 3:] @ before[path].T
            assert (got - value[:, 3:]).norm() < 0.1 * (untouched - value[:, 3:]).norm()


def test_the_weights_are_the_nearest_on_ordinary_text_that_obey(base):
    generator = torch.Generator().manual_seed(0)
    w0, inputs, outputs = (torch.randn(shape, generator=generator) for shape in ((8, 32), (3, 32), (3, 8)))
    c = base.covariance()
    w = constrained(w0, [(inputs, outputs)], c).double()
    torch.testing.assert_close(inputs.double() @ w.T, outputs.double(), atol=1e-3, rtol=0)

    def cost(weight):
        change = weight - w0.double()
        return float(((change @ (c.matrix + c.ridge * torch.eye(32).double())) * change).sum())

    null = torch.linalg.svd(inputs.double()).Vh[3:]  # directions that the constraints leave open
    for seed in range(20):
        step = torch.randn(8, 29, generator=torch.Generator().manual_seed(seed)).double() @ null
        assert cost(w + 1e-2 * step) > cost(w)


def test_files_that_cannot_be_merged_are_refused(base, tmp_path):
    first, _ = trained(base, tmp_path, "<x>", "cat", 0)
    with pytest.raises(Refused, match="two files or more, got 1"):
        merge_custom_diffusion(base, [first], tmp_path / "out.safetensors")
    lora = attach(base, LoRA(rank=1), ["cross_attention.*"], tokens={"<z>": "cat"})
    other = lora.save(tmp_path / "lora.safetensors")
    lora.detach()
    with pytest.raises(Refused, match="is no concept of Custom Diffusion"):
        merge_custom_diffusion(base, [first, other], tmp_path / "out.safetensors")
    wide = attach(base, Selective(), ["cross_attention.*"], tokens={"<z>": "cat"})
    other = wide.save(tmp_path / "wide.safetensors")
    wide.detach()
    with pytest.raises(Refused, match=r"changes cross_attention.\*; expected cross_attention.key and"):
        merge_custom_diffusion(base, [first, other], tmp_path / "out.safetensors")
    same, _ = trained(base, tmp_path, "<x>", "dog", 3)
    with pytest.raises(Refused, match="two files teach the same word"):
        merge_custom_diffusion(base, [first, same], tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists() and not base.attachments


def test_words_come_along(base, tmp_path):
    first, _ = trained(base, tmp_path, "<x>", "cat", 0)
    second, _ = trained(base, tmp_path, "<y>", "dog", 1)
    merged = load_adapter(base, merge_custom_diffusion(base, [first, second], tmp_path / "both.safetensors"))
    (words,) = [a for a in merged.adapters.values() if isinstance(a, TokenAdapter)]
    merged.detach()
    for i, file in enumerate((first, second)):
        alone = load_adapter(base, file)
        (word,) = [a for a in alone.adapters.values() if isinstance(a, TokenAdapter)]
        assert torch.equal(words.vectors[i], word.vectors[0])
        alone.detach()
