"""A family written against docs/adding_a_family.md: a tiny class-conditional transformer on pixels."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from diffadapt.adapters import OFT, Adapter, LoRA, Method, Perfusion, SideInputs, Token, attach, load_adapter
from diffadapt.adapters.control_net import ControlNet, attach_control_net
from diffadapt.bases import Base, load_base
from diffadapt.bases.load import FAMILIES
from diffadapt.conditioning import Conditioning
from diffadapt.errors import Refused
from diffadapt.objectives import Denoising
from diffadapt.sampling.sample import sample
from diffadapt.training.batches import Batches, Texts
from diffadapt.training.fit import fit
from diffadapt.training.learner import make_accelerator, release
from diffadapt.training.loop_config import LoopConfig
from diffadapt.training.sources import Fetched, Source

CLASSES = ("cat", "dog", "apple")
SIDE, PATCH, WIDTH, STEPS = 8, 2, 16, 100


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.to_q, self.to_k, self.to_v, self.to_out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.up, self.down = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        mixed = nn.functional.scaled_dot_product_attention(self.to_q(x), self.to_k(x), self.to_v(x))
        x = x + self.to_out(mixed)
        return x + self.down(nn.functional.silu(self.up(x)))


class Transformer(nn.Module):
    """Patches, a class and a noise level -> noise and variance of each patch."""

    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace(sample_size=SIDE, in_channels=3)
        self.patches, self.time = nn.Linear(3 * PATCH**2, WIDTH), nn.Linear(1, WIDTH)
        self.classes = nn.Embedding(len(CLASSES) + 1, WIDTH)  # the last is no class
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.out = nn.Linear(WIDTH, 6 * PATCH**2)

    def forward(self, hidden_states: Tensor, timestep: Tensor, class_labels: Tensor) -> Any:
        x = nn.functional.pixel_unshuffle(hidden_states, PATCH).flatten(2).mT  # (N, places, 3 * 4)
        told = self.time(timestep[:, None].to(x.dtype) / STEPS) + self.classes(class_labels)
        x = self.patches(x) + told[:, None]
        for block in self.blocks:
            x = block(x)
        y = self.out(x).mT.unflatten(2, (SIDE // PATCH, SIDE // PATCH))
        return SimpleNamespace(sample=nn.functional.pixel_shuffle(y, PATCH))  # (N, 6, 8, 8): noise, variance


class Toy(Base):
    """One transformer on rescaled pixels, conditioned on a class; it predicts the noise and a variance."""

    family: ClassVar[str] = "toy"
    rules: ClassVar[tuple[tuple[str, str], ...]] = (
        (r"transformer\..*\.to_q", "self_attention.query"),
        (r"transformer\..*\.to_k", "self_attention.key"),
        (r"transformer\..*\.to_v", "self_attention.value"),
        (r"transformer\..*\.to_out", "self_attention.out"),
        (r"transformer\..*\.up", "feed_forward.in"),
        (r"transformer\..*\.down", "feed_forward.out"),
        (r"transformer\.(patches|time|classes|out)", "ends"),
    )
    components: ClassVar[tuple[str, ...]] = ("transformer",)
    weights: ClassVar[dict[str, str]] = {"transformer": "model"}
    parts: ClassVar[tuple[str, ...]] = ("transformer",)
    learned_sigma: ClassVar[bool] = True
    unconditional_first: ClassVar[bool] = False

    @classmethod
    def open_(cls, folder: Path, dtype: torch.dtype) -> Any:
        transformer = Transformer()
        transformer.load_state_dict(load_file(folder / "transformer" / "model.safetensors"))
        config = SimpleNamespace(prediction_type="epsilon", num_train_timesteps=STEPS)
        scheduler = SimpleNamespace(config=config, alphas_cumprod=torch.linspace(0.99, 0.01, STEPS))
        return SimpleNamespace(transformer=transformer.to(dtype), scheduler=scheduler)

    def move_(self, device: torch.device, dtype: torch.dtype) -> None:
        self.denoiser.to(device, dtype)

    @property
    def downsampling(self) -> int:
        return 1

    def condition(self, prompts: Sequence[str]) -> Conditioning:
        unknown = [prompt for prompt in prompts if prompt not in ("", *CLASSES)]
        if unknown:
            raise Refused(f"no class {unknown[0]!r}; expected {', '.join(CLASSES)}, or '' for none")
        labels = [CLASSES.index(prompt) if prompt else len(CLASSES) for prompt in prompts]
        return Conditioning(class_labels=torch.tensor(labels, device=self.device))

    def denoiser_inputs(self, noisy: Tensor, timesteps: Tensor, condition: Conditioning) -> dict[str, Any]:
        return {"hidden_states": noisy, "timestep": timesteps, "class_labels": condition.class_labels}

    def generate(self, condition, *, guidance, steps, width, height, generators) -> Tensor:
        noise = [torch.randn(3, height, width, generator=generator) for generator in generators]
        x = torch.stack(noise).to(self.device, self.dtype)
        times = torch.linspace(STEPS - 1, 0, steps).long().to(self.device)
        schedule = self.noise_schedule
        for now, after in zip(times, [*times[1:], None], strict=True):
            both = torch.cat([x, x]) if guidance > 1 else x
            predicted = self.denoise(both, now.expand(len(both)), condition)
            if guidance > 1:
                wanted, free = predicted.chunk(2)
                predicted = free + guidance * (wanted - free)
            x0 = schedule.sample(predicted, x, now.expand(len(x)))
            x = x0 if after is None else schedule.add_noise(x0, predicted, after.expand(len(x)))
        return self.decode_latents(x)

    def encode_pictures(self, pixels: Tensor) -> Tensor:
        return (2 * pixels - 1).to(self.device, self.dtype)

    def decode_latents(self, latents: Tensor) -> Tensor:
        return (latents.float() / 2 + 0.5).clamp(0, 1)


@pytest.fixture
def base(tmp_path, monkeypatch):
    """A folder with random weights, loaded by `load_base`."""
    monkeypatch.setitem(FAMILIES, "ToyPipeline", Toy)
    torch.manual_seed(0)
    folder = tmp_path / "toy"
    (folder / "transformer").mkdir(parents=True)
    index = {"_class_name": "ToyPipeline", "transformer": ["toy", "Transformer"]}
    (folder / "model_index.json").write_text(json.dumps(index))
    (folder / "transformer" / "config.json").write_text("{}")
    save_file(Transformer().state_dict(), folder / "transformer" / "model.safetensors")
    (folder / "base.json").write_text(json.dumps({"format_version": 1, "default_guidance": 3.0, "default_steps": 4}))
    return load_base(folder, device="cpu")


def moved(attachment):
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in attachment.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return attachment


def prediction(base) -> Tensor:
    noisy = torch.randn(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return base.denoise(noisy, torch.tensor([3, 80]), base.condition(["cat", ""]))


def test_a_family_is_loaded_from_its_folder_and_says_what_it_is(base):
    assert (base.family, base.resolution, base.num_train_timesteps) == ("toy", SIDE, STEPS)
    assert base.noise_schedule.prediction_type == "epsilon" and base.tokenizer is None
    assert len(base.roles["self_attention.query"]) == 2 and not any(p.requires_grad for p in base.denoiser.parameters())


def test_the_learned_variance_is_no_part_of_the_prediction(base):
    noisy, times, condition = torch.randn(2, 3, SIDE, SIDE), torch.tensor([3, 80]), base.condition(["cat", ""])
    both = base.denoiser(hidden_states=noisy, timestep=times, class_labels=condition.class_labels).sample
    assert both.shape[1] == 6 and torch.equal(base.denoise(noisy, times, condition), both[:, :3])


def test_a_scheduler_of_flow_matching_gives_its_own_path_from_data_to_noise(base):
    from diffusers import FlowMatchEulerDiscreteScheduler

    scheduler = base.pipeline.scheduler = FlowMatchEulerDiscreteScheduler(num_train_timesteps=STEPS)
    schedule = base.noise_schedule
    assert schedule.prediction_type == "flow" and schedule.length == base.num_train_timesteps == STEPS
    latents, noise, times = torch.randn(3, 3, 4, 4), torch.randn(3, 3, 4, 4), torch.tensor([1, 50, 99])
    noisy = schedule.add_noise(latents, noise, times)
    torch.testing.assert_close(noisy, scheduler.scale_noise(latents, times.float(), noise))
    alpha, sigma = schedule.levels(times, latents)
    share = (alpha.square() / (alpha.square() + sigma.square())).flatten()
    torch.testing.assert_close(base.alphas_cumprod[times], share)


@pytest.mark.parametrize("method", [LoRA(rank=2), OFT(block_size=4)])
def test_a_method_is_attached_saved_loaded_and_detached_as_on_any_base(base, method, tmp_path):
    before = prediction(base)
    attachment = moved(attach(base, method))
    trained = prediction(base)
    assert not torch.equal(trained, before)
    attachment.save(tmp_path / "a.safetensors")
    attachment.merge_()
    torch.testing.assert_close(prediction(base), trained, atol=1e-5, rtol=1e-4)
    attachment.detach()
    assert torch.equal(prediction(base), before)
    loaded = load_adapter(base, tmp_path / "a.safetensors")
    assert torch.equal(prediction(base), trained)
    loaded.detach()


def test_pictures_are_sampled_with_the_adapters_strength_and_the_class(base, tmp_path):
    plain = sample(base, ["cat", "dog"], seed=1)
    assert [picture.size for picture in plain] == [(SIDE, SIDE)] * 2
    attachment = moved(attach(base, LoRA(rank=2)))
    path = attachment.save(tmp_path / "a.safetensors")
    attachment.detach()
    adapted, none = (sample(base, ["cat"], seed=1, adapters=[(path, strength)])[0] for strength in (1.0, 0.0))
    assert none.tobytes() == plain[0].tobytes() != adapted.tobytes()
    assert sample(base, ["dog"], seed=1)[0].tobytes() != plain[0].tobytes()


def test_adapters_are_given_classes_and_noise_levels_that_the_sampler_passes_by_keyword(base):
    """Guided rows stand as the denoiser sees them; the family puts the unconditional ones last."""
    seen: list[tuple[list[int], list[int]]] = []

    class Listening(Adapter):
        needs = frozenset({"timesteps", "class_labels"})

        def adapted(self, x):
            return self.layer(x)

        def receive(self, side: SideInputs) -> None:
            assert side.timesteps is not None and side.class_labels is not None
            seen.append((side.timesteps.tolist(), side.class_labels.tolist()))

    @dataclass(frozen=True, kw_only=True)
    class Listener(Method):
        name: ClassVar[str] = "listener"
        title: ClassVar[str] = "listener"

        def build(self, layer, path, role, generator):
            return Listening(layer)

    attach(base, Listener(), ["self_attention.query"])
    sample(base, ["cat", "apple"], steps=3, guidance=2.0)
    assert seen[::2] == seen[1::2]  # the two layers
    assert seen[::2] == [([99] * 4, [0, 2, 3, 3]), ([49] * 4, [0, 2, 3, 3]), ([0] * 4, [0, 2, 3, 3])]


def test_it_trains_in_the_loop_of_every_base_and_resumes_bit_for_bit(base, tmp_path):
    class Squares(Source):
        """A picture for each class: all of one grey."""

        def pick(self, rng, size, place):
            return [(int(i), CLASSES[i]) for i in rng.integers(3, size=size)]

        def fetch(self, index):
            return Fetched(base.encode_pictures(torch.full((1, 3, SIDE, SIDE), index / 2))[0])

    def train(folder: Path, steps: int) -> list[float]:
        losses: list[float] = []
        config = LoopConfig(steps=steps, schedule="constant", learning_rate=1e-2, sample_every=0, checkpoint_every=3)
        attachment = attach(base, LoRA(rank=2), seed=1)
        objective = Denoising(base.noise_schedule, snr_gamma=5.0)
        texts = Texts(base, CLASSES)
        batches = Batches(base, objective, {"target": Squares()}, texts, batch_size=4, parts=1, seed=0, process=0)
        try:
            fit(
                base, {"adapter": attachment}, batches, objective,
                config=config, groups=[{"params": list(attachment.parameters()), "peak": 1e-2}], folder=folder,
                accelerator=make_accelerator(base, config), settings="", seed=0, quiet=True,
                watch=lambda _, loss: losses.append(loss),
            )  # fmt: skip
        finally:
            release(base, [attachment])
        return losses

    before = prediction(base)
    whole, first, rest = train(tmp_path / "a", 6), train(tmp_path / "b", 3), train(tmp_path / "b", 6)
    assert first + rest == whole and len(rest) == 3
    assert torch.equal(prediction(base), before)
    for folder in ("a", "b"):
        load_adapter(base, tmp_path / folder / "adapter.safetensors")
    first_file, second_file = base.attachments
    assert all(torch.equal(a, b) for a, b in zip(first_file.parameters(), second_file.parameters(), strict=True))
    with pytest.raises(Refused, match="cannot checkpoint gradients"):
        base.checkpoint_gradients_(True)


def test_words_cannot_be_learned_where_there_are_none(base):
    for method in (Token(), Perfusion()):
        with pytest.raises(Refused, match=r"cannot learn the new token '<x>'"):
            attach(base, method, tokens={"<x>": "cat"})
    with pytest.raises(Refused, match="no class 'a cat'"):
        sample(base, "a cat")


def test_a_controlnet_needs_an_encoder_to_copy(base):
    with pytest.raises(Refused, match="copies the encoder of a UNet, and .* is a toy; use a hint"):
        attach_control_net(base, ControlNet())
    assert not base.attachments
