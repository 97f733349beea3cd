import io
import itertools
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffadapt.data.shards import load_shards
from diffadapt.errors import Failed, Refused


def png(value: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((24, 24, 3), value, np.uint8)).save(file, "png")
    return file.getvalue()


def write_shard(path: Path, values: range, *, captions: str = "txt", said: str = "") -> Path:
    """A shard of grey pictures; each caption says the value, or is what is said."""
    with tarfile.open(path, "w") as tar:
        for value in values:
            text = {"txt": f"grey {value}", "json": json.dumps({"caption": f"grey {value}"})}.get(captions)
            members = {"png": png(value)} | ({captions: (said or text).encode()} if text else {})
            for suffix, data in members.items():
                entry = tarfile.TarInfo(f"{value:06d}.{suffix}")
                entry.size = len(data)
                tar.addfile(entry, io.BytesIO(data))
    return path


@pytest.fixture
def shards(tmp_path):
    pytest.importorskip("webdataset")
    for i in range(3):
        write_shard(tmp_path / f"{i:03d}.tar", range(10 * i, 10 * i + 10))
    return tmp_path


def taken(folder, count: int, **settings) -> list[str]:
    return [member.caption for member in itertools.islice(load_shards(folder).stream(**settings), count)]


def test_a_round_holds_every_picture_once_and_pictures_keep_their_captions(shards):
    members = list(itertools.islice(load_shards(shards).stream(seed=0), 30))
    assert sorted(member.caption for member in members) == sorted(f"grey {i}" for i in range(30))
    for member in members:
        assert (member.read(16) == int(member.caption.split()[1])).all() and member.read(16).shape == (3, 16, 16)


def test_the_order_is_shuffled_and_depends_on_the_seed_alone(shards):
    first = taken(shards, 60, seed=0)
    assert first == taken(shards, 60, seed=0)
    assert first != taken(shards, 60, seed=1)
    assert first[:30] != first[30:] and first[:30] != sorted(first[:30])


def test_processes_share_the_shards_out(shards):
    parts = [set(taken(shards, count, seed=0, process=i, processes=2)) for i, count in ((0, 20), (1, 10))]
    assert not parts[0] & parts[1] and len(parts[0] | parts[1]) == 30
    with pytest.raises(Refused, match="3 shards for 4 processes"):
        taken(shards, 1, seed=0, processes=4)


def test_captions_may_be_json_and_pictures_without_one_are_left_out_and_named(shards):
    write_shard(shards / "003.tar", range(30, 33), captions="json")
    write_shard(shards / "004.tar", range(40, 42), captions="none")
    loaded = load_shards(shards)
    captions = {member.caption for member in itertools.islice(loaded.stream(seed=0), 33)}
    assert "grey 31" in captions and "grey 40" not in captions
    next(member for member in itertools.islice(loaded.stream(seed=0), 40, 41))
    assert loaded.notes == [note for note in loaded.notes if "left out, it has no caption" in note] and loaded.notes


@pytest.mark.parametrize("said", ["[]", "null", "{", "[" * 100_000])
def test_a_caption_that_is_no_table_of_json_stops_with_the_name_of_its_picture(tmp_path, said):
    pytest.importorskip("webdataset")
    write_shard(tmp_path / "000.tar", range(1), captions="json", said=said)
    with pytest.raises(Failed, match="000000.* its caption cannot be read"):
        taken(tmp_path, 1, seed=0)


def test_shards_without_any_caption_are_refused(tmp_path):
    pytest.importorskip("webdataset")
    write_shard(tmp_path / "000.tar", range(3), captions="none")
    with pytest.raises(Refused, match="has a caption; expected members such as"):
        taken(tmp_path, 1, seed=0)


def test_a_truncated_shard_stops_with_its_name(shards):
    path = shards / "001.tar"
    path.write_bytes(path.read_bytes()[:4000])
    with pytest.raises(Failed, match=r"001\.tar cannot be read to its end .* copy it again, or leave it out"):
        taken(shards, 30, seed=0)


def test_a_shard_that_vanishes_stops_with_its_name(shards):
    loaded = load_shards(shards)
    (shards / "002.tar").unlink()
    with pytest.raises(Failed, match=r"002\.tar cannot be read"):
        list(itertools.islice(loaded.stream(seed=0), 30))


def test_a_folder_without_shards_is_refused(tmp_path):
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(Refused, match="expected a folder of shards"):
            load_shards(folder)
