"""A run that is killed at any write, or whose disk fills up, loses nothing and can go on."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from diffadapt import files
from diffadapt.adapters import LoRA, attach
from diffadapt.data.concept import load_concept
from diffadapt.errors import Failed
from diffadapt.files import load_tensors, write_atomic
from diffadapt.recipes.subject import SubjectConfig, train_subject

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
    # Every kind of write once: pictures of one folder are written alike.
    kinds = [str(Path(name).parent) if name.endswith(".png") else name for name in names]
    positions = sorted({kinds.index(kind) for kind in kinds})
    assert len(positions) >= 12
    for number, position in enumerate(positions):
        writes = iter(range(len(names)))
        folder = tmp_path / f"killed-{number}" / "run"

        def deadly(source, target, writes=writes, position=position):
            if next(writes, -1) == position:
                raise Killed
            real(source, target)

        monkeypatch.setattr(files.os, "replace", deadly)
        with pytest.raises(Killed):
            train_subject(base, concept, out=folder, **settings)
        assert not base.attachments
        monkeypatch.setattr(files.os, "replace", real)
        run = train_subject(base, concept, out=folder, **settings)
        tensors, _ = load_tensors(run.adapter)
        assert all(torch.equal(tensors[key], value) for key, value in expected.items()), names[position]
        assert run.report.is_file()
        shutil.rmtree(folder.parent)


PROGRAM = """
import sys
from diffadapt.adapters import LoRA
from diffadapt.bases import load_base
from diffadapt.data.concept import load_concept
from diffadapt.recipes.subject import SubjectConfig, train_subject

base, photos, out = sys.argv[1:]
config = SubjectConfig(steps=40, batch_size=1, prior_weight=0, checkpoint_every=2, sample_every=0, evaluation_prompts=0)
train_subject(load_base(base), load_concept(photos, "cat"), method=LoRA(rank=1), out=out, config=config, quiet=True)
"""


@pytest.mark.slow
def test_kill_9_in_the_middle_of_a_process_and_again(tiny_v_folder, photos, tmp_path):
    command = [sys.executable, "-c", PROGRAM, str(tiny_v_folder), str(photos)]
    subprocess.run([*command, str(tmp_path / "whole")], check=True)
    for checkpoint in (4, 14):
        process = subprocess.Popen([*command, str(tmp_path / "killed")])
        mark = tmp_path / "killed" / "checkpoints" / f"step-{checkpoint:06d}" / "state.json"
        while not mark.exists() and process.poll() is None:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not (tmp_path / "killed" / "adapter.safetensors").exists(), "the run was over before the kill"
    subprocess.run([*command, str(tmp_path / "killed")], check=True)
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
