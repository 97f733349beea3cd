"""The cache computes once, never gives back something else, and never stops a run."""

from pathlib import Path

import pytest
import torch

from diffadapt.data.cache import TensorCache, content_key

KEY = content_key("latents", 1)


def forbidden() -> torch.Tensor:
    raise AssertionError("computed a second time")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool])
def test_a_value_comes_back_from_disk_bit_for_bit(tmp_path: Path, dtype: torch.dtype) -> None:
    value = (torch.randn(4, 3) * 5).to(dtype)
    assert torch.equal(TensorCache(tmp_path).get(KEY, lambda: value.t()), value.t())
    again = TensorCache(tmp_path).get(KEY, forbidden)
    assert again.dtype == dtype and torch.equal(again, value.t())


def test_memory_alone_works_too(tmp_path: Path) -> None:
    cache = TensorCache()
    value = cache.get(KEY, lambda: torch.ones((), requires_grad=True) * 2)
    assert cache.get(KEY, forbidden) is value and not value.requires_grad and cache.path(KEY) is None


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "text"])
def test_a_damaged_file_is_computed_again(tmp_path: Path, damage: str) -> None:
    value = torch.arange(100.0)
    cache = TensorCache(tmp_path)
    cache.get(KEY, lambda: value)
    path = cache.path(KEY)
    assert path is not None
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes({"cut": data[:-9], "flip": data, "empty": b"", "text": b"hello"}[damage])
    calls = []
    assert torch.equal(TensorCache(tmp_path).get(KEY, lambda: calls.append(1) or value), value)
    assert calls == [1]
    assert torch.equal(TensorCache(tmp_path).get(KEY, forbidden), value)  # and it was mended


def test_a_folder_that_cannot_be_written_stops_the_writing_only(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    cache = TensorCache(tmp_path / "file")
    assert torch.equal(cache.get(KEY, lambda: torch.ones(2)), torch.ones(2))
    cache.get(content_key("other"), lambda: torch.ones(2))
    assert len(cache.notes) == 1 and "in memory only" in cache.notes[0]


def test_nothing_but_whole_files_is_left(tmp_path: Path) -> None:
    cache = TensorCache(tmp_path)
    for i in range(5):
        cache.get(content_key(i), lambda: torch.zeros(3))
    assert sorted(path.suffix for path in tmp_path.rglob("*") if path.is_file()) == [".safetensors"] * 5


def test_keys_depend_on_order_type_and_boundaries() -> None:
    keys = [
        content_key(*parts)
        for parts in (
            ("ab", "c"), ("a", "bc"), ("c", "ab"), ("abc",), (1,), ("1",), (1.0,), (b"1",),
            (torch.zeros(2, 3),), (torch.zeros(3, 2),), (torch.zeros(2, 3, dtype=torch.bfloat16),), (torch.ones(2, 3),),
        )
    ]  # fmt: skip
    assert len(set(keys)) == len(keys)
    assert content_key("a", 2, torch.ones(2)) == content_key("a", 2, torch.ones(2))


def test_a_key_cannot_lead_out_of_the_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="content_key"):
        TensorCache(tmp_path).get("../../somewhere", forbidden)
