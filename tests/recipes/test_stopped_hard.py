"""A run that is killed at any write, or whose disk fills up, loses nothing and can go on."""

import os
import platform
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from diffadapt import files
from diffadapt.adapters import LoRA, attach
from diffadapt.bases import load_base
from diffadapt.data.concept import load_concept
from diffadapt.errors import Failed, Refused
from diffadapt.files import load_tensors, write_atomic
from diffadapt.recipes.subject import SubjectConfig, train_subject
from diffadapt.training.run import claim_folder

FAST = SubjectConfig(
    steps=4, batch_size=1, warmup=1, prior_pictures=2, checkpoint_every=2, sample_every=4, evaluation_prompts=1,
    evaluation_pictures=1,
)  # fmt: skip


class Killed(BaseException):
    """Like SIGKILL as far as files go: nothing of ours catches it, temporary files stay behind."""


@pytest.mark.slow
def test_killed_at_any_write_a_run_ends_with_the_same_bits(base, photos, tmp_path, monkeypatch):
    concept = load_concept(photos, "cat")
    settings = {"method": LoRA(rank=1), "config": FAST, "quiet": True}
    replaced: list[str] = []
    real = os.replace

    def counted(source, target):
        replaced.append(str(target))
        real(source, target)

    monkeypatch.setattr(files.os, "replace", counted)
    whole = train_subject(base, concept, out=tmp_path / "whole" / "run", **settings)
    expected, _ = load_tensors(whole.adapter)
    names = [Path(target).relative_to(tmp_path / "whole").as_posix() for target in replaced]
    kinds = list(dict.fromkeys(map(kind_of, names)))
    assert len(kinds) >= 12
    # One run that is killed at the first write of every kind, goes on each time, and is killed at the next.
    folder, left = tmp_path / "killed" / "run", set(kinds)

    def deadly(source, target):
        kind = kind_of(Path(target).relative_to(tmp_path / "killed").as_posix())
        if kind in left:
            left.remove(kind)
            raise Killed(kind)
        real(source, target)

    monkeypatch.setattr(files.os, "replace", deadly)
    for _ in kinds:
        with pytest.raises(Killed):
            train_subject(base, concept, out=folder, **settings)
        assert not base.attachments
    assert not left
    run = train_subject(base, concept, out=folder, **settings)
    tensors, _ = load_tensors(run.adapter)
    assert all(torch.equal(tensors[key], value) for key, value in expected.items())
    assert run.report.is_file() and written(folder) == written(tmp_path / "whole" / "run")


def kind_of(name: str) -> str:
    """A file's name, or its folder's if it is a picture: pictures of one folder are written alike."""
    return str(Path(name).parent) if name.endswith(".png") else name


def written(folder: Path) -> set[str]:
    """The files of a run that are no leftovers of a kill."""
    names = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return {name for name in names if not name.endswith(".tmp")}


PROGRAM = """
import sys
from pathlib import Path
from diffadapt.bases import load_base

sys.path.insert(0, sys.argv[4])
from test_stopped_hard import train
train(load_base(sys.argv[1]), *map(Path, sys.argv[2:4]))
"""


def train(base, photos, out):
    config = SubjectConfig(
        steps=12, batch_size=1, prior_weight=0, checkpoint_every=1, sample_every=0, evaluation_prompts=0
    )
    train_subject(base, load_concept(photos, "cat"), method=LoRA(rank=1), out=out, config=config, quiet=True)


@pytest.mark.slow
def test_kill_9_in_the_middle_of_a_process_and_again(tiny_v_folder, photos, tmp_path):
    """Two that are killed, forked with the base loaded, and one that starts from nothing and ends what they began."""
    base = load_base(tiny_v_folder)  # and no copy of a loaded one: its tensors lie elsewhere, which moves last bits
    train(base, photos, tmp_path / "whole")
    for checkpoint in (2, 5):
        child = os.fork()
        if child == 0:
            train(base, photos, tmp_path / "killed")
            os._exit(0)
        mark = tmp_path / "killed" / "checkpoints" / f"step-{checkpoint:06d}" / "state.json"
        while not mark.exists() and os.waitpid(child, os.WNOHANG) == (0, 0):
            time.sleep(0.002)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        assert not (tmp_path / "killed" / "adapter.safetensors").exists(), "the run was over before the kill"
    given = [str(tiny_v_folder), str(photos), str(tmp_path / "killed"), str(Path(__file__).parent)]
    subprocess.run([sys.executable, "-c", PROGRAM, *given], check=True)
    whole, killed = (load_tensors(tmp_path / name / "adapter.safetensors")[0] for name in ("whole", "killed"))
    assert all(torch.equal(whole[key], killed[key]) for key in whole)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of one megabyte."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a tmpfs needs root")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_full_disk_keeps_the_old_file(small_disk):
    path = write_atomic(small_disk / "a.bin", b"x" * 600_000)
    with pytest.raises(Failed, match=r"cannot write .*No space left on device; free some space"):
        write_atomic(path, b"y" * 600_000)
    assert path.read_bytes() == b"x" * 600_000 and [file.name for file in small_disk.iterdir()] == ["a.bin"]


def test_a_run_on_a_full_disk_stops_with_one_sentence_and_goes_on_when_there_is_space(base, photos, small_disk):
    concept = load_concept(photos, "cat")
    settings = {"method": LoRA(rank=4), "config": FAST, "quiet": True}
    filler = small_disk / "filler"
    filler.write_bytes(b"z" * 900_000)
    with pytest.raises(Failed, match="cannot write"):
        train_subject(base, concept, out=small_disk / "run", **settings)
    assert not base.attachments
    filler.unlink()
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    assert train_subject(base, concept, out=small_disk / "run", **settings).adapter.is_file()


def test_an_adapter_that_cannot_be_written_leaves_the_old_one(base, small_disk):
    attachment = attach(base, LoRA(rank=1), ["cross_attention.key"])
    path = attachment.save(small_disk / "a.safetensors")
    before = path.read_bytes()
    (small_disk / "filler").write_bytes(b"z" * (1_000_000 - len(before)))
    attachment.detach()
    larger = attach(base, LoRA(rank=8))
    with pytest.raises(Failed, match="cannot write"):
        larger.save(path)
    assert path.read_bytes() == before
    larger.detach()


def test_a_folder_that_is_no_run_is_refused_before_anything_in_it_is_swept(tmp_path):
    left = tmp_path / "deep" / f".a.json.{platform.node()}.{2**30}.tmp"  # no process has such a number
    left.parent.mkdir()
    left.touch()
    with pytest.raises(Refused, match="holds no run of diffadapt"):
        claim_folder(tmp_path, "seed = 0")
    (tmp_path / "notes.txt").touch()
    with pytest.raises(Refused, match=r"notes\.txt is a file"):
        claim_folder(tmp_path / "notes.txt", "seed = 0")
    (tmp_path / "notes.txt").unlink()
    assert left.exists()
    (tmp_path / "settings.toml").write_text("seed = 0")
    assert claim_folder(tmp_path, "seed = 0") and not left.exists()
