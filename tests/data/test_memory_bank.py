"""The bank samples what is missing, keeps what is there, and never mixes bases."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from PIL import Image

from diffadapt.data.memory_bank import BankSettings, MemoryBank
from diffadapt.errors import Failed, Refused

SETTINGS = BankSettings(base_fingerprint="sha256:aaaa", resolution=8, guidance=4.0, steps=20, seed=100)


class Sampler:
    """Paints a picture that says its seed; stops like a kill at a given call."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.asked: list[tuple[str, int]] = []
        self.calls, self.stop_at = 0, stop_at

    def __call__(self, prompts: list[str], seeds: list[int]) -> Sequence[Image.Image]:
        if self.calls == self.stop_at:
            raise KeyboardInterrupt
        self.calls += 1
        self.asked += zip(prompts, seeds, strict=True)
        return [Image.new("RGB", (8, 8), (seed, 0, 0)) for seed in seeds]


def seeds_in(bank: MemoryBank) -> list[int]:
    return (bank.pixels()[:, 0, 0, 0] * 255).round().int().tolist()


def test_a_bank_is_filled_once(tmp_path: Path) -> None:
    make = Sampler()
    assert MemoryBank(tmp_path, SETTINGS).ensure(5, ["a cat", "a small cat"], make, batch=2) == 5
    bank = MemoryBank(tmp_path, SETTINGS)
    assert bank.ensure(5, ["a cat", "a small cat"], make) == 0 and make.calls == 3
    assert bank.prompts == ["a cat", "a small cat", "a cat", "a small cat", "a cat"]
    assert bank.pixels().shape == (5, 3, 8, 8) and seeds_in(bank) == [100, 101, 102, 103, 104]
    assert make.asked[1] == ("a small cat", 101) and len(set(bank.contents)) == 5
    assert all(path.is_file() for path in bank.paths)


def test_a_bank_killed_in_the_middle_keeps_the_complete_batches(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        MemoryBank(tmp_path, SETTINGS).ensure(6, ["a cat"], Sampler(stop_at=2), batch=2)
    rest = Sampler()
    bank = MemoryBank(tmp_path, SETTINGS)
    assert bank.ensure(6, ["a cat"], rest, batch=2) == 2
    assert [seed for _, seed in rest.asked] == [104, 105] and seeds_in(bank) == [100, 101, 102, 103, 104, 105]


def test_a_bank_grows_and_gives_as_many_as_asked(tmp_path: Path) -> None:
    bank = MemoryBank(tmp_path, SETTINGS)
    bank.ensure(4, ["a cat"], Sampler())
    assert bank.ensure(6, ["a cat"], Sampler()) == 2 and len(bank) == 6
    assert bank.ensure(3, ["a cat"], Sampler()) == 0 and len(bank) == 3 and seeds_in(bank) == [100, 101, 102]
    assert len(MemoryBank(tmp_path, SETTINGS)) == 6  # nothing was thrown away


def test_a_lost_or_damaged_picture_is_sampled_again(tmp_path: Path) -> None:
    bank = MemoryBank(tmp_path, SETTINGS)
    bank.ensure(4, ["a cat"], Sampler())
    (tmp_path / "00001.png").unlink()
    (tmp_path / "00002.png").write_bytes(b"damaged")
    with pytest.raises(Refused, match=r"00001\.png is gone"):
        bank.pixels()
    assert bank.missing(4) == [1, 2] and bank.ensure(4, ["a cat"], Sampler()) == 2
    assert seeds_in(bank) == [100, 101, 102, 103]


@pytest.mark.parametrize(
    "change", [{"base_fingerprint": "sha256:bbbb"}, {"guidance": 5.0}, {"steps": 5}, {"resolution": 16}, {"seed": 1}]
)
def test_a_bank_of_another_base_or_other_settings_is_refused(tmp_path: Path, change: dict[str, object]) -> None:
    MemoryBank(tmp_path, SETTINGS).ensure(1, ["a cat"], Sampler())
    other = BankSettings(**{**SETTINGS.__dict__, **change})  # type: ignore
    with pytest.raises(Refused, match=f"{next(iter(change))} = .*choose another folder"):
        MemoryBank(tmp_path, other)


def test_a_bank_of_other_prompts_is_refused(tmp_path: Path) -> None:
    MemoryBank(tmp_path, SETTINGS).ensure(2, ["a cat"], Sampler())
    with pytest.raises(Refused, match="holds pictures of 'a cat', this run wants 'a dog'"):
        MemoryBank(tmp_path, SETTINGS).ensure(2, ["a dog"], Sampler())


@pytest.mark.parametrize("text", ["{cut", "[]", "{}", '{"settings": {}, "pictures": [1]}'])
def test_a_damaged_index_is_refused_and_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "bank.json").write_text(text)
    with pytest.raises(Refused, match=r"bank\.json"):
        MemoryBank(tmp_path, SETTINGS)


def test_a_base_that_returns_something_else_fails(tmp_path: Path) -> None:
    with pytest.raises(Failed, match="2 pictures of 8x8"):
        MemoryBank(tmp_path, SETTINGS).ensure(2, ["a cat"], lambda prompts, seeds: [Image.new("RGB", (9, 8))])
    assert not list(tmp_path.iterdir())


def test_an_empty_bank_and_an_empty_request_are_refused(tmp_path: Path) -> None:
    bank = MemoryBank(tmp_path, SETTINGS)
    with pytest.raises(Refused, match="is empty"):
        bank.pixels()
    with pytest.raises(Refused, match="1 or more"):
        bank.ensure(3, [], Sampler())


def test_the_index_says_how_everything_was_made(tmp_path: Path) -> None:
    MemoryBank(tmp_path, SETTINGS).ensure(1, ["a cat"], Sampler())
    index = json.loads((tmp_path / "bank.json").read_text())
    assert index["settings"]["base_fingerprint"] == "sha256:aaaa" and index["settings"]["guidance"] == 4.0
    assert {key: index["pictures"][0][key] for key in ("prompt", "seed")} == {"prompt": "a cat", "seed": 100}
    assert torch.isfinite(MemoryBank(tmp_path, SETTINGS).pixels()).all()


def test_a_folder_in_use_is_not_taken_for_a_bank_and_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "00000.png").write_bytes(b"my own")
    with pytest.raises(Refused, match="is in use and holds no memory bank; choose an empty or new folder"):
        MemoryBank(tmp_path, SETTINGS)
    assert (tmp_path / "00000.png").read_bytes() == b"my own"


def test_a_bank_is_a_bank_before_its_first_picture(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        MemoryBank(tmp_path, SETTINGS).ensure(2, ["a cat"], Sampler(stop_at=0), batch=1)
    assert MemoryBank(tmp_path, SETTINGS).ensure(2, ["a cat"], Sampler(), batch=1) == 2


@pytest.mark.parametrize(
    "text", ["[]", '{"settings": 3, "pictures": []}', '{"settings": {}, "pictures": null}', "[" * 9999]
)
def test_a_bank_json_of_another_shape_is_one_sentence(tmp_path: Path, text: str) -> None:
    (tmp_path / "bank.json").write_text(text)
    with pytest.raises(Refused, match="bank.json.*delete the folder, or choose another"):
        MemoryBank(tmp_path, SETTINGS)
