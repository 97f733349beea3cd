"""Control pairs: pictures, each with the control signal to follow and a caption.

A folder of captioned pictures, and for their signals one of

    a folder                pictures of the same names: signals/3.png for photos/3.jpg
    a name of `SIGNALS`     computed from each picture when it is needed: "canny"
    nothing                 the `conditioning_file_name` of each line of `metadata.jsonl` (diffusers' convention)

A signal has the size of its picture, and is cropped like it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import ExifTags, Image
from torch import Tensor

from ..controls import SIGNALS, find_signal
from ..errors import Refused
from ..files import at_home, file_digest
from .cache import content_key
from .folder import Example, list_folder, plain_name, read_metadata
from .picture import SUFFIXES, find_crop, fit, open_picture, to_tensor

METADATA = "metadata.jsonl"
MEMORY = "(in memory)"
_STATE_SIZES = ("JPEG", "PNG", "WEBP", "BMP", "GIF")  # whose headers say how large and which way up they are


Read = Callable[[int], tuple[Tensor, Tensor]]
"""resolution -> picture and signal, (3, R, R) each, uint8 or float in [0, 1]"""


@dataclass(frozen=True, kw_only=True)
class Pair:
    """One picture with its signal; nothing is decoded until `read`.

    Args:
        name: the picture's file in its folder, or a key of its content when it has none.
        caption: what it shows.
        read: decodes both.
        content: a key that the picture's bytes make, for caches.
        signal: the signal's file, if it is one.
    """

    name: str
    caption: str
    read: Read
    content: Callable[[], str]
    signal: Path | None = None


class ControlPairs:
    """Pictures with their control signals and captions, in a fixed order; see `load_control_pairs`.

    Args:
        pairs: at least one.
        source: what `load_control_pairs` was given: "folder", and if there were any "signals" and "kind".
        signal: the name of what the signals are, one of `SIGNALS`, so that results can be scored; None when unknown.
        notes: sentences for a person: what is left out and why.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        *,
        source: Mapping[str, str],
        signal: str | None = None,
        notes: Sequence[str] = (),
    ) -> None:
        self.pairs, self.source, self.notes = tuple(pairs), dict(source), list(notes)
        self.signal = None if signal is None else find_signal(signal).name

    @classmethod
    def in_memory(
        cls, pictures: Tensor, signals: Tensor, captions: Sequence[str], *, signal: str | None = None
    ) -> "ControlPairs":
        """Pairs of tensors.

        Args:
            pictures, signals: (N, 3, R, R) float in [0, 1] each.
            captions: N texts.
            signal: one of `SIGNALS`, or None.

        Raises:
            Refused: shapes or numbers that do not go together.
        """
        if pictures.ndim != 4 or pictures.shape[1] != 3 or pictures.shape[2] != pictures.shape[3] or not len(pictures):
            raise Refused(f"pictures are {tuple(pictures.shape)}; expected (N, 3, R, R), one at least")
        if signals.shape != pictures.shape:
            raise Refused(f"signals are {tuple(signals.shape)}, pictures {tuple(pictures.shape)}; expected the same")
        if len(captions) != len(pictures):
            raise Refused(f"got {len(captions)} captions for {len(pictures)} pictures; pass one per picture")
        rows = zip(pictures, signals, captions, strict=True)
        pairs = [_in_memory(picture, own_signal, caption) for picture, own_signal, caption in rows]
        return cls(pairs, source={"folder": MEMORY}, signal=signal)

    def __len__(self) -> int:
        return len(self.pairs)

    def __repr__(self) -> str:
        return f"ControlPairs({len(self)} pictures with {self.signal or 'signals'} in {self.source['folder']!r})"

    @property
    def in_files(self) -> bool:
        """Whether the pictures are files, so that what is computed of them is worth keeping."""
        return self.source["folder"] != MEMORY

    def captions(self) -> list[str]:
        """Every caption, in order."""
        return [pair.caption for pair in self.pairs]

    def read(self, indices: Sequence[int], resolution: int) -> tuple[Tensor, Tensor]:
        """Pictures and their signals, (n, 3, R, R) float32 in [0, 1] each.

        Raises:
            Refused: a file cannot be used; names it.
        """
        rows = [self.pairs[index].read(resolution) for index in indices]
        pictures, signals = (torch.stack([_as_float(row[i]) for row in rows]) for i in (0, 1))
        return pictures, signals

    def identity(self) -> str:
        """A key of names, captions, bytes and kind of signal, so that a run knows its own pairs; reads every file."""
        digests = (file_digest(pair.signal) if pair.signal else "" for pair in self.pairs)
        rows = (
            (pair.name, pair.caption, pair.content(), digest) for pair, digest in zip(self.pairs, digests, strict=True)
        )
        return content_key(str(self.signal), *(part for row in rows for part in row))

    def split(self, held_out: int) -> tuple["ControlPairs", "ControlPairs | None"]:
        """(all but the last `held_out`, the last `held_out`); None for these when the number is 0.

        Raises:
            Refused: nothing would be left to train on.
        """
        if held_out >= len(self):
            raise Refused(f"held_out = {held_out} leaves nothing of {len(self)} pairs to train on; hold fewer out")
        kept = len(self) - held_out
        return self._part(self.pairs[:kept]), self._part(self.pairs[kept:]) if held_out else None

    def first(self, count: int) -> "ControlPairs":
        """The first `count` pairs, or all of them where there are fewer."""
        return self._part(self.pairs[:count])

    def _part(self, pairs: Sequence[Pair]) -> "ControlPairs":
        return ControlPairs(pairs, source=self.source, signal=self.signal)


def load_control_pairs(
    folder: str | Path, signals: str | Path | None = None, *, kind: str | None = None
) -> ControlPairs:
    """Lists a folder of captioned pictures and finds the signal of each.

    Args:
        folder: captioned pictures; see `diffadapt.data.folder`.
        signals: a folder of signals, or a name of `SIGNALS` to compute them; None means that `metadata.jsonl` says.
            A name wins over a folder of that name; write "./canny" for the folder.
        kind: which of `SIGNALS` the signals of files are, so that results can be scored.

    Raises:
        Refused: no picture, no caption at all, a picture without a signal, a signal of another size than its picture
            (names the file), or an unknown signal. A file that is damaged is refused when it is read.
    """
    given = {"folder": folder, "signals": signals, "kind": kind}
    source = {name: str(value) for name, value in given.items() if value is not None}
    folder = at_home(folder)
    examples, notes = list_folder(folder)
    files: dict[Path, Path] = {}
    if isinstance(signals, str) and (signals in SIGNALS or not at_home(signals).is_dir()):
        kind, readers = signals, _computed(examples, signals)
    else:
        files = _named_in_metadata(folder) if signals is None else _of_the_same_names(at_home(signals), examples)
        examples = [example for example in examples if example.path not in files.values()]
        readers = _read_from(files, examples, str(signals or folder / METADATA), kind)
        places = {part.name for file in files.values() for part in (file, *file.parents)}
        notes = [note for note in notes if note.partition(":")[0] not in places]  # they are used, as signals
    notes += [f"{example.path.name}: left out, it has no caption" for example in examples if example.caption is None]
    pairs = [
        Pair(
            name=example.path.relative_to(folder).as_posix(),
            caption=example.caption,
            read=readers[example.path],
            content=example.content,
            signal=files.get(example.path),
        )
        for example in examples
        if example.caption is not None
    ]
    if not pairs:
        raise Refused(
            f"none of the {len(examples)} pictures in {folder} has a caption; write one into NAME.txt beside each "
            f'NAME.jpg, or a {METADATA} with {{"file_name": ..., "text": ...}} lines'
        )
    return ControlPairs(pairs, source=source, signal=kind, notes=notes)


def open_signal(path: str | Path) -> Image.Image:
    """Reads a signal's picture, RGB; what is transparent is black.

    Raises:
        Refused: the file is missing, damaged or no picture.
    """
    picture = open_picture(path)
    if picture.mode == "RGBA":
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, (0, 0, 0, 255)), picture)
    return picture.convert("RGB")


# --- sources of the signals ------------------------------------------------------------------------------------------


def _computed(examples: Sequence[Example], name: str) -> dict[Path, Read]:
    try:
        signal = find_signal(name)
    except Refused as error:
        raise Refused(f"there is no folder of signals at {name!r}, and as a name it is an {error}") from error
    if signal.extract is None:
        raise Refused(f"the signal {name!r} cannot be computed from pictures; give a folder of signals")
    return {example.path: _with_computed(example, signal.extract) for example in examples}


def _read_from(
    files: Mapping[Path, Path], examples: Sequence[Example], source: str, kind: str | None
) -> dict[Path, Read]:
    missing = [example.path.name for example in examples if example.path not in files]
    if missing:
        more = f", nor have {len(missing) - 1} more" if len(missing) > 1 else ""
        raise Refused(f"{missing[0]} has no signal in {source}{more}; add the signal, or remove the picture")
    for example in examples:
        _check_sizes(example.path, files[example.path])
    # Between two labels lies no third: what is blended would be read as another thing.
    filter_ = Image.Resampling.NEAREST if kind and find_signal(kind).of_labels else Image.Resampling.BILINEAR
    return {example.path: _with_file(example, files[example.path], filter_) for example in examples}


def _of_the_same_names(place: Path, examples: Sequence[Example]) -> dict[Path, Path]:
    if not place.is_dir():
        raise Refused(f"signals {str(place)!r} is neither a folder nor one of {', '.join(SIGNALS)}")
    by_stem = {plain_name(path.stem): path for path in sorted(place.iterdir()) if path.suffix.lower() in SUFFIXES}
    stems = {example.path: plain_name(example.path.stem) for example in examples}
    return {path: by_stem[stem] for path, stem in stems.items() if stem in by_stem}


def _named_in_metadata(folder: Path) -> dict[Path, Path]:
    """Picture -> signal, of the lines that name one. `list_folder` has found every line to be right otherwise."""
    path = folder / METADATA
    if not path.is_file():
        raise Refused(
            f"{folder} has no {METADATA} that names a signal for each picture; write one, or say where the signals "
            f"are: a folder, or one of {', '.join(SIGNALS)}"
        )
    found = {}
    by_name = {plain_name(path.relative_to(folder).as_posix()): path for path in folder.rglob("*")}
    for number, row in read_metadata(path):
        name = row.get("conditioning_file_name")
        if name is None:
            continue
        file = folder / str(name)
        if not file.resolve().is_relative_to(folder.resolve()) or not file.is_file():
            raise Refused(f"{path} line {number}: there is no signal {name!r} in {folder}; correct the line")
        found[by_name[plain_name(row["file_name"])]] = file
    return found


# --- one pair ---------------------------------------------------------------------------------------------------------


def _in_memory(picture: Tensor, signal: Tensor, caption: str) -> Pair:
    def read(resolution: int) -> tuple[Tensor, Tensor]:
        if picture.shape[-1] != resolution:
            raise Refused(f"expected pictures of {resolution} pixels, got {picture.shape[-1]} in memory; resize them")
        return picture, signal

    key = content_key(picture)
    return Pair(name=content_key(picture, signal), caption=caption, read=read, content=lambda: key)


def _with_file(example: Example, signal_file: Path, filter_: Image.Resampling) -> Read:
    def read(resolution: int) -> tuple[Tensor, Tensor]:
        picture, signal = example.open()[0], open_signal(signal_file)
        _refuse_other_size(signal_file, signal.size, example.path, picture.size)
        box = find_crop(picture.size).box
        square = signal.resize((resolution, resolution), filter_, box=box)
        return to_tensor(fit(picture, resolution)[0]), to_tensor(square)

    return read


def _check_sizes(picture: Path, signal: Path) -> None:
    """Compares the sizes that the files' headers state; a file that cannot be read is refused when it is."""
    sizes = []
    for path in (picture, signal):
        try:
            with Image.open(path, formats=_STATE_SIZES) as file:
                turned = file.getexif().get(ExifTags.Base.Orientation, 1) > 4
                sizes.append(file.size[::-1] if turned else file.size)
        except Exception:  # as many kinds as there are decoders
            return
    _refuse_other_size(signal, sizes[1], picture, sizes[0])


def _refuse_other_size(signal: Path, found: tuple[int, int], picture: Path, size: tuple[int, int]) -> None:
    if found != size:
        raise Refused(
            f"signal {signal} is {found[0]}x{found[1]}, its picture {picture.name} {size[0]}x{size[1]}; "
            "make the signal at the picture's own size"
        )


def _with_computed(example: Example, extract: Callable[[Tensor], Tensor]) -> Read:
    def read(resolution: int) -> tuple[Tensor, Tensor]:
        picture = to_tensor(fit(example.open()[0], resolution)[0])
        return picture, extract(_as_float(picture)[None])[0]

    return read


def _as_float(picture: Tensor) -> Tensor:
    return picture.float() / 255 if picture.dtype == torch.uint8 else picture.float()
