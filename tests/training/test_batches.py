"""Batches: which rows stand in them, and that nothing but seed, process, step and part decides it."""

import pytest
import torch

from diffadapt.adapters import LoRA, Token, attach
from diffadapt.conditioning import Conditioning
from diffadapt.objectives import Denoising, NoiseSchedule, PriorPreservation
from diffadapt.objectives.objective import Draw, Objective
from diffadapt.training.batches import Batches, Texts
from diffadapt.training.sources import Fetched, Source

CAPTIONS = ("a cat", "a dog", "a red apple")
SCHEDULE = NoiseSchedule(alphas_cumprod=torch.linspace(0.9, 0.1, 100), prediction_type="epsilon")


class Numbered(Source):
    """Row i has latents of value start + i; remembers what it was asked for."""

    def __init__(self, start: float = 0.0, *, masked: bool = False, signal: bool = False) -> None:
        self.start, self.masked, self.signal = start, masked, signal
        self.asked: list[tuple[int, int]] = []

    def pick(self, rng, size, place):
        self.asked.append((size, place))
        return [(int(i), CAPTIONS[i % 3]) for i in rng.integers(6, size=size)]

    def fetch(self, index):
        mask = torch.full((1, 4, 4), 0.5) if self.masked and index % 2 else None
        signal = torch.full((3, 8, 8), index / 6) if self.signal else None
        return Fetched(torch.full((4, 4, 4), self.start + index), mask, signal)


def batches(base, objective=None, sources=None, **settings) -> Batches:
    settings = {"batch_size": 3, "parts": 1, "seed": 0, "process": 0, **settings}
    texts = settings.pop("texts", None) or Texts(base, CAPTIONS)
    return Batches(base, objective or Denoising(SCHEDULE), sources or {"target": Numbered()}, texts, **settings)


def same(a, b) -> bool:
    return all(torch.equal(getattr(a, name), getattr(b, name)) for name in ("latents", "noise", "timesteps"))


def test_a_batch_depends_on_seed_process_step_and_part_and_on_nothing_else(tiny_base):
    one = batches(tiny_base, parts=2).batch(5, 1)
    again = batches(tiny_base, parts=2)
    again.batch(0, 0)
    assert same(again.batch(5, 1), one)
    others = [batches(tiny_base, parts=2, seed=1).batch(5, 1), batches(tiny_base, parts=2, process=1).batch(5, 1)]
    others += [again.batch(4, 1), again.batch(5, 0)]
    assert not any(torch.equal(other.noise, one.noise) or same(other, one) for other in others)


def test_noise_is_standard_normal_and_of_the_latents_shape(tiny_base):
    batch = batches(tiny_base, batch_size=500).batch(0, 0)
    assert batch.noise.shape == batch.latents.shape == (500, 4, 4, 4) and batch.noise.dtype == torch.float32
    assert abs(float(batch.noise.mean())) < 0.02 and abs(float(batch.noise.std()) - 1) < 0.02


def test_every_row_has_the_latents_and_the_text_of_what_was_picked(tiny_base):
    batch = batches(tiny_base, batch_size=6).batch(0, 0)
    assert len(set(batch.latents[:, 0, 0, 0].tolist())) > 1
    for row in range(6):
        caption = CAPTIONS[int(batch.latents[row, 0, 0, 0]) % 3]
        expected, found = tiny_base.condition([caption]), batch.condition.rows([row])
        assert torch.equal(found.token_ids, expected.token_ids)
        torch.testing.assert_close(found.text, expected.text)
        assert batch.captions[row] == caption
    assert batch.sources == ("target",) * 6 and batch.mask is None and batch.weights is None
    assert not batch.condition.control


def test_rows_come_from_the_source_that_was_drawn_for_them(tiny_base):
    sources = {"target": Numbered(), "class": Numbered(100)}
    batch = batches(tiny_base, PriorPreservation(Denoising(SCHEDULE)), sources).batch(0, 0)
    assert batch.sources == ("target",) * 3 + ("class",) * 3 and batch.noise.shape[0] == 6
    values = batch.latents[:, 0, 0, 0]
    assert (values[:3] < 6).all() and (values[3:] >= 100).all()


def test_sources_are_asked_for_a_batch_at_the_place_that_was_reached(tiny_base):
    source = Numbered()
    one = batches(tiny_base, sources={"target": source}, parts=2)
    for step, part in ((0, 0), (0, 1), (1, 0), (7, 1)):
        one.batch(step, part)
    assert source.asked == [(3, 0), (3, 3), (3, 6), (3, 45)]


def test_rows_without_a_mask_count_as_a_whole_beside_rows_with_one(tiny_base):
    batch = batches(tiny_base, sources={"target": Numbered(masked=True)}, batch_size=8).batch(0, 0)
    odd = batch.latents[:, 0, 0, 0] % 2 == 1
    assert batch.mask.shape == (8, 1, 4, 4) and odd.any() and not odd.all()
    assert (batch.mask[odd] == 0.5).all() and (batch.mask[~odd] == 1).all()


def test_signals_stand_beside_their_pictures(tiny_base):
    batch = batches(tiny_base, sources={"target": Numbered(signal=True)}).batch(0, 0)
    signal = batch.condition.control["hint"]
    assert signal.shape == (3, 3, 8, 8)
    torch.testing.assert_close(signal[:, 0, 0, 0], batch.latents[:, 0, 0, 0] / 6)


class Weighted(Objective):
    sources = ("memory", "target")

    def draw(self, rng, batch_size):
        return Draw(torch.tensor([7, 8, 9]), ("target", "memory", "target"), torch.tensor([0.25, 0.5, 1.0]))

    def losses(self, model, batch):
        raise NotImplementedError

    def reduce(self, losses, batch):
        raise NotImplementedError


def test_weights_and_noise_levels_are_those_that_were_drawn(tiny_base):
    sources = {"target": Numbered(), "memory": Numbered(100)}
    batch = batches(tiny_base, Weighted(), sources).batch(0, 0)
    assert batch.weights.tolist() == [0.25, 0.5, 1.0] and batch.timesteps.tolist() == [7, 8, 9]
    assert batch.sources == ("target", "memory", "target")
    assert (batch.latents[:, 0, 0, 0] >= 100).tolist() == [False, True, False]


class Elsewhere:
    """A base on another device than the sources; it is asked for nothing else."""

    device = torch.device("meta")


class Silent:
    """Texts without any."""

    def of(self, captions):
        return Conditioning()


def test_all_of_a_batch_lies_on_the_bases_device():
    sources = {"target": Numbered(masked=True, signal=True), "memory": Numbered(masked=True, signal=True)}
    batch = Batches(Elsewhere(), Weighted(), sources, Silent(), batch_size=3, parts=1, seed=0, process=0).batch(0, 0)
    parts = (batch.latents, batch.noise, batch.timesteps, batch.weights, batch.mask, batch.condition.control["hint"])
    assert all(part.device.type == "meta" for part in parts)


# --- texts ------------------------------------------------------------------------------------------------------------


def test_known_captions_are_encoded_once_and_others_when_they_come(tiny_base):
    kept, fresh = Texts(tiny_base, CAPTIONS), Texts(tiny_base)
    asked = ["a dog", "a cat", "a dog"]
    torch.testing.assert_close(kept.of(asked).text, fresh.of(asked).text)
    assert torch.equal(kept.of(asked).token_ids, tiny_base.tokenize(asked))
    assert torch.equal(fresh.of(asked).token_ids, tiny_base.tokenize(asked))
    with torch.no_grad():
        for parameter in tiny_base.text_encoder.parameters():
            parameter.zero_()
    assert kept.of(["a cat"]).text.any() and not fresh.of(["a cat"]).text.any()


@pytest.mark.parametrize(
    ("method", "more", "trains"),
    [(Token(), {"tokens": {"<biscuit>": "cat"}}, True), (LoRA(rank=1), {}, False)],
    ids=["token", "lora on the denoiser"],
)
def test_where_an_adapter_changes_the_text_it_is_encoded_every_time(tiny_base, method, more, trains):
    attachment = attach(tiny_base, method, **more)
    attachment.train()
    assert Texts(tiny_base, ["a <biscuit> cat"]).of(["a <biscuit> cat"]).text.requires_grad is trains
