"""The bank of latents samples what is missing, reads rows from disk, and never mixes bases."""

import dataclasses
import gc
import json
import resource
from pathlib import Path

import pytest
import torch

from diffadapt.data.latent_bank import SHARD, LatentBank, LatentBankSettings
from diffadapt.errors import Failed, Refused
from diffadapt.files import load_tensors, save_tensors

SETTINGS = LatentBankSettings(
    base_fingerprint="sha256:aaaa", vae="AutoencoderTiny 1 0", shape=(2, 3, 3), sampler="DDIMScheduler", steps=5,
    guidance=4.0, seed=100, prompts=("a cat", "a dog"),
)  # fmt: skip


class Sampler:
    """Makes latents that say their seed; stops like a kill at a given call."""

    def __init__(self, settings: LatentBankSettings = SETTINGS, stop_at: int | None = None, offset: float = 0) -> None:
        self.settings, self.stop_at, self.offset = settings, stop_at, offset
        self.rows: list[int] = []
        self.calls = 0

    def __call__(self, rows: list[int]) -> tuple[torch.Tensor, list[str]]:
        if self.calls == self.stop_at:
            raise KeyboardInterrupt
        self.calls += 1
        self.rows += rows
        values = torch.tensor([float(self.settings.seed + row) for row in rows]) + self.offset
        prompts = self.settings.prompts
        return values[:, None, None, None].expand(-1, *self.settings.shape), [prompts[r % len(prompts)] for r in rows]


def filled(folder: Path, count: int, **how) -> LatentBank:
    bank = LatentBank(folder, SETTINGS)
    bank.ensure(count, Sampler(**how), quiet=True)
    return bank


def values(bank: LatentBank) -> list[int]:
    return bank.latents(range(len(bank)))[:, 0, 0, 0].int().tolist()


def test_a_bank_is_filled_once_and_gives_rows_with_their_captions(tmp_path: Path):
    make = Sampler()
    assert LatentBank(tmp_path / "bank", SETTINGS).ensure(70, make, quiet=True) == 70
    bank = LatentBank(tmp_path / "bank", SETTINGS)
    assert bank.ensure(70, make, quiet=True) == 0 and make.rows == list(range(70))
    assert values(bank) == [100 + i for i in range(70)]
    assert [bank.caption(i) for i in (0, 1, 69)] == ["a cat", "a dog", "a dog"]
    assert bank.latents([69, 0]).shape == (2, 2, 3, 3) and bank.latents([69, 0])[0, 0, 0, 0] == 169


def test_the_same_seed_and_settings_give_the_same_latents_and_fingerprint(tmp_path: Path):
    a, b = filled(tmp_path / "a", 70), filled(tmp_path / "b", 70)
    assert torch.equal(a.latents(range(70)), b.latents(range(70)))
    written = [json.loads((tmp_path / name / "bank.json").read_text())["fingerprint"] for name in ("a", "b")]
    assert written == [SETTINGS.fingerprint, SETTINGS.fingerprint]
    assert {path.name for path in (tmp_path / "a").iterdir()} == {
        "00000.safetensors", "00001.safetensors", "bank.json",
    }  # fmt: skip


@pytest.mark.parametrize(
    "change",
    [{"base_fingerprint": "sha256:bbbb"}, {"vae": "AutoencoderTiny 0.18 0"}, {"sampler": "DPM"}, {"steps": 6},
     {"guidance": 1.5}, {"seed": 0}, {"shape": (2, 4, 4)}, {"prompts": ("a cat",)}],
)  # fmt: skip
def test_a_bank_of_another_base_vae_or_sampling_has_another_fingerprint_and_is_refused(tmp_path: Path, change: dict):
    filled(tmp_path, 4)
    other = dataclasses.replace(SETTINGS, **change)
    assert other.fingerprint != SETTINGS.fingerprint
    with pytest.raises(Refused, match=f"was sampled with {next(iter(change))}"):
        LatentBank(tmp_path, other)


def test_a_bank_cut_short_by_a_kill_keeps_its_whole_shards_and_goes_on(tmp_path: Path):
    with pytest.raises(KeyboardInterrupt):
        filled(tmp_path, 3 * SHARD, stop_at=6)  # batches of 16: one shard and a half
    rest = Sampler()
    bank = LatentBank(tmp_path, SETTINGS)
    assert bank.whole_rows == SHARD
    assert bank.ensure(3 * SHARD, rest, quiet=True) == 2 * SHARD and rest.rows == list(range(SHARD, 3 * SHARD))
    assert values(bank) == [100 + i for i in range(3 * SHARD)]


def test_a_bank_grows_from_the_middle_of_a_shard_and_gives_as_many_as_asked(tmp_path: Path):
    filled(tmp_path, 10)
    rest = Sampler()
    bank = LatentBank(tmp_path, SETTINGS)
    assert bank.ensure(80, rest, quiet=True) == 70 and rest.rows == list(range(10, 80))
    assert values(bank) == [100 + i for i in range(80)]
    assert bank.ensure(5, rest, quiet=True) == 0 and len(bank) == 5


CAPTIONS = {"captions that are no texts": "[3]", "a table of captions": "{}", "deep captions": "[" * 100_000}


@pytest.mark.parametrize("damage", ["cut", "flipped", "gone", "another bank's", *CAPTIONS])
def test_a_damaged_shard_is_sampled_again(tmp_path: Path, damage: str):
    filled(tmp_path / "bank", 70)
    path = tmp_path / "bank" / "00000.safetensors"
    data = path.read_bytes()
    if damage == "gone":
        path.unlink()
    elif damage == "another bank's":
        other = dataclasses.replace(SETTINGS, seed=0)
        LatentBank(tmp_path / "other", other).ensure(70, Sampler(other), quiet=True)
        path.write_bytes((tmp_path / "other" / "00000.safetensors").read_bytes())
    elif damage in CAPTIONS:
        tensors, header = load_tensors(path)
        save_tensors(path, tensors, header | {"captions": CAPTIONS[damage]})
    else:
        path.write_bytes(data[:-5] if damage == "cut" else data[:-1] + bytes([data[-1] ^ 1]))
    bank = LatentBank(tmp_path / "bank", SETTINGS)
    assert bank.ensure(70, Sampler(), quiet=True) == 70
    assert values(bank) == [100 + i for i in range(70)]


def test_what_the_base_must_not_have_sampled_is_not_kept(tmp_path: Path):
    bank = LatentBank(tmp_path, SETTINGS)
    with pytest.raises(Failed, match="not numbers"):
        bank.ensure(4, Sampler(offset=float("nan")), quiet=True)
    with pytest.raises(Failed, match="asked the base for latents"):
        bank.ensure(4, lambda rows: (torch.zeros(1, 2, 3, 3), ["a cat"]), quiet=True)
    assert bank.whole_rows == 0
    with pytest.raises(Refused, match="1 or more"):
        bank.ensure(0, Sampler(), quiet=True)
    with pytest.raises(Refused, match="row 0 .* gives 0 rows"):
        bank.latents([0])


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path):
    (tmp_path / "cat.png").write_bytes(b"mine")
    with pytest.raises(Refused, match="no latent bank"):
        LatentBank(tmp_path, SETTINGS)
    (tmp_path / "bank.json").write_text(json.dumps({"settings": {}, "pictures": []}))  # a bank of pictures
    with pytest.raises(Refused, match="not a latent bank's"):
        LatentBank(tmp_path, SETTINGS)
    assert (tmp_path / "cat.png").read_bytes() == b"mine"


def test_a_refreshed_bank_keeps_two_fifths_of_the_first_and_samples_the_rest_anew(tmp_path: Path):
    first = filled(tmp_path / "first", 100)
    adapted = dataclasses.replace(SETTINGS, base_fingerprint="sha256:adapted")
    make = Sampler(adapted, offset=1000)
    second = first.refreshed(tmp_path / "second", adapted, make, quiet=True)
    found = values(second)
    assert len(second) == 100 and make.rows == list(range(40, 100))
    assert len({*found[:40]} & {*values(first)}) == 40 and min(found[40:]) >= 1100
    number = found[0] - 100
    assert second.caption(0) == first.caption(number) and found[:40] != sorted(found[:40])
    again = first.refreshed(tmp_path / "second", adapted, Sampler(adapted), quiet=True)
    assert values(again) == found  # nothing is sampled twice


def test_ten_thousand_latents_of_the_embedded_base_take_less_than_200_mb_and_are_not_held_in_memory(tmp_path: Path):
    settings = dataclasses.replace(SETTINGS, shape=(6, 16, 16), prompts=("a small red cat on a blue background",))
    bank = LatentBank(tmp_path, settings)
    bank.ensure(10_000, Sampler(settings, offset=-5000), batch=SHARD, quiet=True)
    size = sum(path.stat().st_size for path in tmp_path.iterdir())
    assert size < 200e6 and size == pytest.approx(10_000 * 6 * 16 * 16 * 2, rel=0.05)
    gc.collect()
    before = _anonymous_kb()
    for start in range(0, 10_000, 8):
        assert bank.latents(range(start, start + 8)).shape[0] == 8
    assert _anonymous_kb() - before < 20_000  # captions, headers, the allocator; the rows alone are 30,720 kB


def _anonymous_kb() -> int:
    """Resident memory of this process that no file backs, in kB."""
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(next(line for line in status.read_text().splitlines() if line.startswith("RssAnon")).split()[1])
