"""Sources of rows on a toy base, whose latents are the mean colours of 8 x 8 pixels."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from diffadapt.data.cache import TensorCache
from diffadapt.data.concept import load_concept
from diffadapt.data.control_pairs import ControlPairs
from diffadapt.data.memory_bank import BankSettings, MemoryBank
from diffadapt.training.sources import BankPictures, ConceptPictures, PairPictures, encoded, shuffled


class Base:
    device, autoencoder_fingerprint = torch.device("cpu"), "sha256:0"

    def __init__(self) -> None:
        self.encoded = 0

    def encode_pictures(self, pixels):
        self.encoded += len(pixels)
        return F.avg_pool2d(pixels, 8)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


# --- the order --------------------------------------------------------------------------------------------------------


def test_the_order_is_an_endless_row_of_shuffled_rounds_cut_into_batches():
    settings = {"seed": 3, "process": 0}
    row = shuffled(5, 40, first=0, **settings)
    rounds = [row[i : i + 5] for i in range(0, 40, 5)]
    assert all(sorted(each) == [0, 1, 2, 3, 4] for each in rounds) and len({tuple(each) for each in rounds}) > 4
    pieces = [index for first in range(0, 39, 3) for index in shuffled(5, 3, first=first, **settings)]
    assert pieces == row[:39]
    assert shuffled(5, 10, first=5, **settings) == row[5:15]  # from the beginning of a round to the end of another


def test_the_order_depends_on_seed_and_process():
    rows = {tuple(shuffled(9, 18, first=0, seed=seed, process=process)) for seed in (0, 1) for process in (0, 1)}
    assert len(rows) == 4


def test_the_order_of_a_seed_stays_as_it_is():
    """Runs begun with an earlier version go on with the same rows."""
    assert shuffled(4, 8, first=2, seed=1, process=2) == [3, 2, 1, 0, 2, 3, 2, 3]


# --- a concept --------------------------------------------------------------------------------------------------------


@pytest.fixture
def concept(tmp_path: Path):
    """Three pictures of one colour each; the second has a caption, the first a mask of its left quarter."""
    folder = tmp_path / "biscuit"
    folder.mkdir()
    for i, grey in enumerate((0, 102, 204)):
        Image.new("RGB", (16, 16), (grey, grey, grey)).save(folder / f"{i}.png")
    mask = Image.new("L", (16, 16), 0)
    mask.paste(255, (0, 0, 4, 16))
    for i in range(3):
        mask.save(folder / f"{i}-masklabel.png")
    (folder / "1.txt").write_text("a <biscuit> cat on red")
    return load_concept(folder, "cat")


def pictures(concept, base=None, **settings) -> ConceptPictures:
    settings = {"resolution": 16, "seed": 0, "process": 0, "cache": TensorCache(), **settings}
    return ConceptPictures(base or Base(), concept, **settings)


def test_each_picture_of_a_concept_comes_with_its_latents_and_caption(concept):
    source = pictures(concept)
    assert [source.fetch(i).latents.unique().tolist() for i in range(3)] == [
        [0.0], pytest.approx([0.4]), pytest.approx([0.8]),
    ]  # fmt: skip
    assert source.fetch(0).latents.shape == (3, 2, 2)
    assert source.fetch(0).mask is None and source.fetch(0).signal is None
    picked = source.pick(rng(), 3, 0)
    assert sorted(picked) == [(0, "a <biscuit> cat"), (1, "a <biscuit> cat on red"), (2, "a <biscuit> cat")]
    assert set(source.captions()) == {"a <biscuit> cat", "a <biscuit> cat on red", ""}


def test_rows_of_a_concept_are_picked_in_its_order(concept):
    source = pictures(concept, seed=4, process=1)
    for place in (0, 3, 7):
        assert [i for i, _ in source.pick(rng(), 2, place)] == shuffled(3, 2, first=place, seed=4, process=1)


def test_masks_are_given_when_asked_for_as_shares_of_each_latent(concept):
    mask = pictures(concept, masked=True).fetch(0).mask
    assert mask.shape == (1, 2, 2) and mask[0].tolist() == [[0.5, 0.0], [0.5, 0.0]]  # 4 of 8 pixels wide


def test_captions_are_dropped_at_their_rate(concept):
    assert [caption for _, caption in pictures(concept, caption_dropout=1.0).pick(rng(), 6, 0)] == [""] * 6
    source, dice = pictures(concept, caption_dropout=0.3), rng()
    dropped = [caption == "" for _ in range(300) for _, caption in source.pick(dice, 3, 0)]
    assert abs(sum(dropped) / 900 - 0.3) < 0.06
    assert all(caption for _, caption in pictures(concept, caption_dropout=0.0).pick(rng(), 30, 0))


def test_templates_take_the_place_of_captions_that_nobody_wrote(concept):
    source = pictures(concept, templates=("a photo of {}", "{} on blue"))
    dice = rng()
    seen: dict[int, set[str]] = {0: set(), 1: set(), 2: set()}
    for place in range(0, 60, 3):
        for index, caption in source.pick(dice, 3, place):
            seen[index].add(caption)
    assert seen[0] == seen[2] == {f"a photo of {concept.phrase}", f"{concept.phrase} on blue"}
    assert seen[1] == {"a <biscuit> cat on red"} and seen[0] | seen[1] <= set(source.captions())


def test_a_picture_is_encoded_once_for_all_sources_of_a_cache(concept):
    base, cache = Base(), TensorCache()
    pictures(concept, base, cache=cache)
    pictures(concept, base, cache=cache)
    assert base.encoded == 3
    pictures(concept, base, cache=cache, resolution=8)  # other pixels
    assert base.encoded == 6


def test_latents_belong_to_their_autoencoder_content_and_size():
    base, cache, grey = Base(), TensorCache(), torch.full((3, 16, 16), 0.5)
    encoded(base, grey, "a", cache)
    assert torch.equal(encoded(base, torch.zeros(3, 16, 16), "a", cache), torch.full((3, 2, 2), 0.5))
    assert not encoded(base, torch.zeros(3, 16, 16), "b", cache).any()
    other = Base()
    other.autoencoder_fingerprint = "sha256:1"
    assert not encoded(other, torch.zeros(3, 16, 16), "a", cache).any() and other.encoded == 1
    assert encoded(base, torch.zeros(3, 8, 8), "a", cache).shape == (3, 1, 1)


# --- pairs and banks --------------------------------------------------------------------------------------------------


def pairs() -> ControlPairs:
    grey = torch.tensor([0.0, 0.25, 0.5, 1.0])[:, None, None, None]
    return ControlPairs.in_memory(
        grey.expand(4, 3, 16, 16).clone(), (1 - grey).expand(4, 3, 16, 16).clone(), ["a", "b", "c", "d"], signal=None
    )


def test_each_pair_comes_with_its_latents_signal_and_caption():
    source = PairPictures(Base(), pairs(), resolution=16, seed=2, process=1, cache=TensorCache())
    picked = source.pick(rng(), 3, 5)
    assert [index for index, _ in picked] == shuffled(4, 3, first=5, seed=2, process=1)
    assert all(caption == "abcd"[index] for index, caption in picked)
    for index, value in enumerate((0.0, 0.25, 0.5, 1.0)):
        row = source.fetch(index)
        assert row.latents.shape == (3, 2, 2) and row.latents.unique().tolist() == [value] and row.mask is None
        assert row.signal.shape == (3, 16, 16) and row.signal.unique().tolist() == [1 - value]
    assert source.captions() == []  # too many to encode beforehand


def test_a_pairs_caption_is_dropped_and_its_signal_stays():
    settings = {"resolution": 16, "seed": 0, "process": 0, "cache": TensorCache()}
    source = PairPictures(Base(), pairs(), caption_dropout=1.0, **settings)
    assert [caption for _, caption in source.pick(rng(), 4, 0)] == [""] * 4 and source.fetch(0).signal is not None
    half, dice = PairPictures(Base(), pairs(), caption_dropout=0.5, **settings), rng()
    dropped = sum(caption == "" for place in range(0, 400, 4) for _, caption in half.pick(dice, 4, place))
    assert 150 < dropped < 250
    assert all(caption for _, caption in PairPictures(Base(), pairs(), **settings).pick(rng(), 40, 0))


def test_any_picture_of_a_bank_may_come_at_any_time_with_its_prompt(tmp_path: Path):
    bank = MemoryBank(tmp_path, BankSettings(base_fingerprint="", resolution=16, guidance=1.0, steps=1))
    bank.ensure(4, ["a cat", "a dog"], lambda _, seeds: [Image.new("RGB", (16, 16), (51 * s,) * 3) for s in seeds])
    base = Base()
    source = BankPictures(base, bank, cache=TensorCache())
    assert source.captions() == ["a cat", "a dog"] and base.encoded == 0
    picked = source.pick(rng(), 200, 0)
    assert len(picked) == 200 and {index for index, _ in picked} == {0, 1, 2, 3}
    assert all(caption == ("a cat", "a dog")[index % 2] for index, caption in picked)
    assert picked != source.pick(rng(1), 200, 0)
    for index in range(4):
        latents = source.fetch(index).latents
        assert latents.shape == (3, 2, 2) and latents.unique().tolist() == pytest.approx([0.2 * index])
    source.fetch(0)
    assert base.encoded == 4
