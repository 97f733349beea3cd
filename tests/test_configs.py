"""Every file in configs/ is read as strictly as `diffadapt train` reads it."""

from pathlib import Path

import pytest

from diffadapt.config import read_toml
from diffadapt.recipes.job import read_job

ROOT = Path(__file__).parent.parent
CONFIGS = sorted((ROOT / "configs").rglob("*.toml"))


def test_there_are_configs():
    assert len(CONFIGS) >= 4


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_config_is_read_without_an_unknown_key(path: Path):
    job = read_job(read_toml(path))
    assert job.top.out
    assert job.data.folder


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_config_begins_with_command_cost_and_expectation(path: Path):
    header = path.read_text().split("\n\n")[0]
    for entry in (f"# command:   diffadapt train {path.relative_to(ROOT).as_posix()}", "# cost:", "# expect:"):
        assert entry in header, f"{path.name}: the header lacks {entry!r}"
