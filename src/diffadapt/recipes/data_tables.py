"""The tables of a training's file that say what its data are, one for each recipe."""

from dataclasses import dataclass

from ..config import REQUIRED, option
from ..controls import SIGNALS


@dataclass(frozen=True, kw_only=True)
class ConceptTable:
    """The table [concept]."""

    folder: str = option(REQUIRED, "folder with 1 to 30 pictures of one thing", path=True)
    noun: str = option(REQUIRED, "what it is one of, such as cat")
    token: str | None = option(None, "the new word for it; unset means <NAME> with the name of the folder")
    also: tuple[str, ...] = option(
        (), "further concepts learned beside it, each FOLDER=NOUN or FOLDER=NOUN=TOKEN", path=True
    )


@dataclass(frozen=True, kw_only=True)
class PairsTable:
    """The table [pairs]."""

    folder: str = option(REQUIRED, "folder with captioned pictures", path=True)
    signals: str | None = option(
        None,
        f"folder of signals, or one of {', '.join(SIGNALS)} to compute them; unset means metadata.jsonl names them",
        path=True,
    )
    kind: str | None = option(None, f"what the signals of files are, to be scored: {', '.join(SIGNALS)}")
    held_out: int = option(32, "pairs, the last ones, that are not trained on but sampled and scored", low=0)


@dataclass(frozen=True, kw_only=True)
class StyleTable:
    """The table [style]."""

    folder: str = option(
        REQUIRED, "folder with captioned pictures of one style, with a folder for each of several, or with shards",
        path=True,
    )  # fmt: skip
    also: tuple[str, ...] = option((), "further folders, each of one style", path=True)
    held_out: int = option(8, "pictures of each style, the last ones, that are kept back to measure by", low=0)
    shards: bool = option(False, "the folder holds shards (*.tar), which are streamed; nothing is kept back")


@dataclass(frozen=True, kw_only=True)
class TransferTable:
    """The table [transfer]."""

    folder: str = option(
        REQUIRED, "folder with a folder of pictures for each class, or with such in train and test", path=True
    )
    held_out: int = option(8, "pictures of each class, the last ones, kept back where there is no test", low=0)


@dataclass(frozen=True, kw_only=True)
class DistillTable:
    """The table [distill]."""

    folder: str = option(REQUIRED, "the teacher: a diffusers folder, hub id or file, as base takes them", path=True)
    also: tuple[str, ...] = option(
        (), "further teachers, each a folder, hub id or file, learned by the same adapter", path=True
    )
    captions: str = option(REQUIRED, "text file of generic captions, one a line", path=True)
    teacher_captions: str = option(
        "", "text file of the same lines in the teachers' words; empty gives them the student's", path=True
    )
    pictures: str = option(
        "", "folder of captioned pictures that the teachers are asked about as well; empty: none", path=True
    )


@dataclass(frozen=True, kw_only=True)
class SequenceTable:
    """The table [sequence]."""

    folder: str = option(REQUIRED, "folder with a folder of 1 to 30 pictures for each concept", path=True)
    noun: str = option(REQUIRED, "what all concepts are one of, such as person")
    order: tuple[str, ...] = option((), "names of the folders in the order of the tasks; empty takes them by name")


@dataclass(frozen=True, kw_only=True)
class ClassifyTable:
    """The table [classify]."""

    folder: str = option(
        REQUIRED, "folder with a folder of pictures for each class, or with such in train and test", path=True
    )
    held_out: int = option(8, "pictures of each class, the last ones, to test with where there is no test", low=1)
    tasks: int = option(10, "how many tasks of equal size; 1 learns all classes together", low=1)
    order: tuple[str, ...] = option((), "classes in their order; empty takes the folder's, shuffled by seeds above 0")
