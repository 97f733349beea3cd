"""The context that a unit of work gets."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from diffadapt.errors import Refused
from diffadapt.evidence import Context


def context(work: Path, unit: dict[str, Any], fingerprint: str = "sha256:1", data: Path | None = None) -> Context:
    base: Any = SimpleNamespace(fingerprint=fingerprint)
    return Context(base=base, claim="TOY-1", unit=unit, work=work, pictures=work / "pictures", data_folder=data)


def test_each_unit_and_each_base_has_its_own_folder(tmp_path: Path):
    one = context(tmp_path, {"method": "oft", "seed": 0}).folder
    assert one.name.startswith("oft-0-") and one.parent == tmp_path / "TOY-1"
    assert one == context(tmp_path, {"method": "oft", "seed": 0}).folder
    assert one != context(tmp_path, {"method": "oft", "seed": 1}).folder
    assert one != context(tmp_path, {"method": "oft", "seed": 0}, fingerprint="sha256:2").folder


def test_the_folder_of_another_unit_is_found_whatever_the_order_of_its_fields(tmp_path: Path):
    one = context(tmp_path, {"method": "oft", "seed": 0})
    one.folder.mkdir(parents=True)
    other = context(tmp_path, {"stage": "pictures"})
    assert other.folder_of({"seed": 0, "method": "oft"}) == one.folder
    assert other.folder_of({"seed": 0, "method": "oft"}, claim="TOY-2").parent == tmp_path / "TOY-2"


def test_data_that_is_needed_and_not_named_is_asked_for(tmp_path: Path):
    assert context(tmp_path, {}, data=tmp_path).data == tmp_path
    with pytest.raises(Refused, match="--data DATA"):
        _ = context(tmp_path, {}).data
