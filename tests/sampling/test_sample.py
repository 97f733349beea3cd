import math
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from PIL import Image, ImageChops

from diffadapt.adapters import Adapter, LoRA, Method, Token, attach
from diffadapt.errors import Refused
from diffadapt.sampling.sample import PromptLine, parse_prompt_line, sample, timestep_of


@pytest.fixture
def base(tiny_v_base):
    return tiny_v_base


def same(a: Image.Image, b: Image.Image) -> bool:
    return a.size == b.size and ImageChops.difference(a, b).getbbox() is None


def moved(attachment):
    with torch.no_grad():
        for parameter in attachment.parameters():
            parameter += 0.1
    return attachment


def test_a_prompt_gives_one_picture_of_the_bases_size(base):
    pictures = sample(base, "a cat")
    assert [picture.size for picture in pictures] == [(32, 32)]


def test_the_same_seed_gives_the_same_picture_whatever_the_batch(base):
    prompts = ["a cat", "a dog", "a red apple"]
    together, alone = sample(base, prompts, seed=3, batch=3), sample(base, prompts, seed=3, batch=1)
    for one, other in zip(together, alone, strict=True):
        assert max(high for _, high in ImageChops.difference(one, other).getextrema()) <= 1  # rounding of a grey level
    assert same(sample(base, "a dog", seed=4)[0], alone[1])
    assert not same(sample(base, "a dog", seed=5)[0], alone[1])


def test_strength_zero_is_the_base_bit_for_bit_and_the_adapter_comes_off_again(base, tmp_path):
    plain = sample(base, "a cat", seed=1)[0]
    attachment = moved(attach(base, LoRA(rank=2)))
    path = attachment.save(tmp_path / "a.safetensors")
    attachment.detach()
    assert same(sample(base, "a cat", seed=1, adapters=[(path, 0.0)])[0], plain)
    assert not same(sample(base, "a cat", seed=1, adapters=[(path, 1.0)])[0], plain)
    assert not base.attachments and same(sample(base, "a cat", seed=1)[0], plain)


def test_an_attachment_keeps_its_own_strength_after_sampling(base):
    attachment = moved(attach(base, LoRA(rank=2)))
    attachment.strength = 0.3
    sample(base, "a cat", adapters=[(attachment, 0.9)])
    assert attachment.strength == 0.3 and base.attachments == [attachment]


def test_the_plain_pipeline_of_diffusers_sees_what_is_attached(base):
    moved(attach(base, Token(), tokens={"<biscuit>": "cat"}))
    ours = sample(base, "a <biscuit>", seed=2, steps=4, guidance=3.0)[0]
    theirs = base.pipeline(
        "a <biscuit>", num_inference_steps=4, guidance_scale=3.0, generator=[torch.Generator().manual_seed(2)]
    ).images[0]
    assert max(high for _, high in ImageChops.difference(ours, theirs).getextrema()) <= 1


def test_kohyas_prompt_options_are_understood():
    line = parse_prompt_line("a cat on red --n blurry, dark --w 64 --h 32 --d 7 --l 3.5 --s 12")
    assert line == PromptLine(
        prompt="a cat on red", negative="blurry, dark", width=64, height=32, seed=7, guidance=3.5, steps=12
    )
    assert parse_prompt_line("a cat") == PromptLine(prompt="a cat")


@pytest.mark.parametrize(
    ("line", "says"),
    [("a cat --x 3", "--x"), ("a cat --s many", "needs int"), ("a cat --w", "needs int"), ("--d 3", "no prompt")],
)
def test_prompt_lines_that_make_no_sense_are_refused(line, says):
    with pytest.raises(Refused, match=says):
        parse_prompt_line(line)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"width": 30}, "multiples of 8"),
        ({"steps": 0}, "steps must be 1 to 1000"),
        *(({"guidance": g}, "guidance must be a finite number from 0 up") for g in (-1.0, math.nan, math.inf)),
    ],
)
def test_impossible_options_are_refused(base, options, says):
    with pytest.raises(Refused, match=says):
        sample(base, "a cat", **options)


def test_no_prompt_is_refused(base):
    with pytest.raises(Refused, match="no prompt"):
        sample(base, [])


def test_what_depends_on_the_timestep_is_told_it_at_every_denoising_step(base):
    told: list[int] = []

    class Listening(Adapter):
        needs = frozenset({"timesteps"})

        def adapted(self, x):
            return self.layer(x)

        def receive(self, side):
            assert side.timesteps is not None and len(side.timesteps) == 2  # unconditional and conditional row
            told.append(int(side.timesteps[0]))

    @dataclass(frozen=True, kw_only=True)
    class Listener(Method):
        name: ClassVar[str] = "listener"

        def build(self, layer, path, role, generator):
            return Listening(layer)

    attach(base, Listener(), ["input.conv"])
    sample(base, "a cat", steps=4, guidance=3.0)
    assert len(told) == 4 and told == sorted(told, reverse=True) and told[0] == 999


def test_a_batch_that_does_not_fit_is_halved_and_the_pictures_are_the_same(base):
    prompts = [f"a {noun}" for noun in ("cat", "dog", "apple", "cat", "dog")]
    expected = sample(base, prompts, steps=1, batch=2)
    sizes = []

    def small_memory(_, given):
        sizes.append(len(given[0]) // 2)  # with guidance, both branches
        if len(given[0]) > 4:
            raise torch.OutOfMemoryError("too little")

    hook = base.denoiser.register_forward_pre_hook(small_memory)
    try:
        found = sample(base, prompts, steps=1, batch=5)
        assert sizes == [5, 2, 2, 1]
        assert [each.tobytes() for each in found] == [each.tobytes() for each in expected]
        hook.remove()
        hook = base.denoiser.register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError("none")))
        with pytest.raises(torch.OutOfMemoryError):
            sample(base, prompts, steps=1)
    finally:
        hook.remove()


def test_the_timestep_of_a_call_is_found_however_the_pipeline_passes_it():
    class Denoiser(torch.nn.Module):
        def forward(self, sample, timestep, encoder_hidden_states=None):
            return sample

    class Other(torch.nn.Module):
        def forward(self, sample, sigma):
            return sample

    x, t = torch.zeros(1), torch.tensor(7)
    for args, kwargs in (((x, t), {}), ((x,), {"timestep": t}), ((), {"sample": x, "timestep": t})):
        assert timestep_of(Denoiser(), args, kwargs) == 7
    assert timestep_of(Denoiser(), (x, 7), {}) == 7  # some pipelines pass a plain number
    with pytest.raises(Refused, match="Other is given sample, sigma; expected an argument timestep"):
        timestep_of(Other(), (x, t), {})


def test_an_attachment_that_is_given_twice_has_its_own_strength_afterwards(base):
    attachment = attach(base, LoRA(rank=1))
    attachment.strength = 0.8
    sample(base, "a cat", adapters=[(attachment, 0.3), (attachment, 1.0)])
    assert attachment.strength == 0.8
