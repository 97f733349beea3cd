"""Captioned pictures in shards: tar files that are read from front to back, for more pictures than a machine can hold.

A shard has the layout of webdataset: members of one picture stand beside each other and share a name, "000017.jpg" and
"000017.txt" (or ".caption", or ".json" with "caption" or "text"). The library reads them (the extra `shards`); nothing
is unpacked, only a buffer of undecoded pictures is held, and no member is unpickled.
"""

import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ..errors import Failed, Refused
from ..files import at_home, parse_json
from .cache import content_key
from .picture import SUFFIXES, fit, on_white, open_picture, to_tensor

BUFFER = 256  # undecoded pictures held to be shuffled
_SAMPLED = 1 << 20  # bytes at both ends of a shard that its identity reads


@dataclass(frozen=True)
class Member:
    """One captioned picture of a shard.

    Attributes:
        name: shard and member, for messages.
        caption: on one line.
        data: the picture's bytes.
    """

    name: str
    caption: str
    data: bytes

    def read(self, resolution: int) -> Tensor:
        """Decodes and crops: (3, R, R) uint8.

        Raises:
            Refused: it is no picture, or damaged; names shard and member.
        """
        picture, _ = on_white(open_picture(self.name, data=self.data))
        return to_tensor(fit(picture, resolution, None)[0])


class Shards:
    """Captioned pictures in WebDataset shards, from `load_shards`.

    Attributes:
        paths: the tar files, in order.
        notes: sentences for a person; grows as shards are read.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = tuple(paths)
        self.notes: list[str] = []

    def __repr__(self) -> str:
        return f"Shards({len(self.paths)} in {str(self.paths[0].parent)!r})"

    def identity(self) -> str:
        """A key of the shards' names, sizes and first and last MiB, so that a run knows its own shards again.

        A tar file's first and last members are in it, and whole shards are too much to read before a training.

        Raises:
            Refused: a shard cannot be read.
        """
        parts: list[str | int | bytes] = []
        for path in self.paths:
            try:
                with open(path, "rb") as file:
                    size = file.seek(0, 2)
                    file.seek(0)
                    start = file.read(_SAMPLED)
                    file.seek(max(0, size - _SAMPLED))
                    parts += [path.name, size, start, file.read(_SAMPLED)]
            except OSError as error:
                raise Refused(f"shard {path} cannot be read ({error.strerror})") from error
        return content_key(*parts)

    def stream(self, seed: int, process: int = 0, processes: int = 1) -> Iterator[Member]:
        """Captioned pictures without end, in rounds over the shards; the same ones whenever it is called.

        Args:
            seed: of the order of shards in a round, and of pictures within the buffer.
            process, processes: shards are dealt out to this many processes.

        Raises:
            Refused: fewer shards than processes, or a whole round without a caption.
            Failed: a shard is truncated, damaged or gone.
        """
        if len(self.paths) < processes:
            raise Refused(f"{len(self.paths)} shards for {processes} processes; write at least one for each")
        for round_ in range(2**31):
            rng = np.random.default_rng([seed, round_])
            order = rng.permutation(len(self.paths))[process::processes]
            empty = True
            for member in self._round([self.paths[i] for i in order], int(rng.integers(2**31))):
                empty = False
                yield member
            if empty:
                raise Refused(
                    f"no picture in the shards of {self.paths[0].parent} has a caption; expected members such as "
                    "000017.jpg and 000017.txt"
                )

    def _round(self, paths: Sequence[Path], seed: int) -> Iterator[Member]:
        import random

        library = _library()
        reading = library.tariterators
        read = 0

        def counted(path: Path) -> Iterator[dict[str, Any]]:
            nonlocal read
            try:
                with open(path, "rb") as file:
                    members = reading.tar_file_expander(iter([{"url": str(path), "stream": file}]))
                    for sample in reading.group_by_keys(members):
                        read += 1
                        yield sample
            except (tarfile.TarError, OSError, EOFError, ValueError) as error:
                reason = str(error.args[0] if error.args else error).partition(" @ ")[0]
                raise Failed(
                    f"shard {path} cannot be read to its end ({reason}; {read} pictures were read before); copy it "
                    "again, or leave it out"
                ) from error

        samples = (sample for path in paths for sample in counted(path))
        for sample in library.shuffle(BUFFER, initial=BUFFER, rng=random.Random(seed))(samples):
            if member := self._member(sample):
                yield member

    def _member(self, sample: dict[str, Any]) -> Member | None:
        name = f"{Path(sample['__url__']).name}/{sample['__key__']}"
        data = next((sample[suffix[1:]] for suffix in SUFFIXES if suffix[1:] in sample), None)
        caption = _caption(sample, name)
        if data is None or not caption:
            note = f"{name}: left out, it has no {'picture' if data is None else 'caption'}"
            if note not in self.notes and len(self.notes) < 20:
                self.notes.append(note)
            return None
        return Member(name, caption, data)


def load_shards(folder: str | Path) -> Shards:
    """The tar files of a folder, in order of their names.

    Raises:
        Refused: no such folder, no shard in it, or the extra is not installed.
    """
    folder = at_home(folder)
    paths = sorted(folder.glob("*.tar")) if folder.is_dir() else []
    if not paths:
        raise Refused(f"expected a folder of shards (*.tar) at {folder}; found none: check the path")
    _library()
    return Shards(paths)


def _caption(sample: dict[str, Any], name: str) -> str:
    """The caption on one line, "" where there is none."""
    try:
        if "json" in sample:
            row = parse_json(sample["json"].decode("utf-8-sig"), dict, name)
            text = next((row[key] for key in ("caption", "text") if isinstance(row.get(key), str)), "")
        else:
            text = sample.get("txt", sample.get("caption", b"")).decode("utf-8-sig")
    except (ValueError, AttributeError) as error:
        raise Failed(f"{name}: its caption cannot be read ({error}); expected UTF-8 text, or JSON") from error
    return " ".join(text.split())


def _library() -> Any:
    try:
        import webdataset
    except ImportError as error:
        raise Refused("shards need webdataset: pip install 'diffadapt[shards]'") from error
    return webdataset
