"""Class folders split into tasks, for class-incremental learning: which classes come when."""

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import Refused
from .captioned import Captioned
from .class_folders import ClassFolders


@dataclass(frozen=True)
class ClassTask:
    """One task: a run of classes in the order of the head.

    Attributes:
        classes: names.
        first: the head's row of the first one.
        train, test: class -> pictures; nothing is decoded yet.
        folders: where they come from.
    """

    classes: tuple[str, ...]
    first: int
    train: dict[str, Captioned]
    test: dict[str, Captioned]
    folders: ClassFolders

    @property
    def last(self) -> int:
        """The head's row behind the last one."""
        return self.first + len(self.classes)

    def contents(self) -> str:
        """SHA-256 over all pictures, to know them again."""
        digest = hashlib.sha256()
        for part in (self.train, self.test):
            for name, pictures in part.items():
                digest.update(name.encode())
                for example in pictures.examples:
                    digest.update(example.content().encode())
        return digest.hexdigest()


def split_classes(
    folders: ClassFolders, tasks: int, *, seed: int = 0, order: Sequence[str] = ()
) -> tuple[ClassTask, ...]:
    """Splits classes into tasks of equal size.

    Args:
        folders: what `load_classes` returned, with test pictures of every class.
        tasks: how many; 1 learns all classes together.
        seed: of the order; 0 is the folder's own. Others shuffle it as CODA-Prompt's code does.
        order: the classes in their order, instead of a seed's; classes that are not named are left out.

    Raises:
        Refused: a class named twice or not there, classes that cannot be split evenly, a task of one class, a class
            without a test picture.
    """
    names = list(order) or list(folders.pictures)
    for name in names:
        if name not in folders.pictures:
            raise Refused(f"classify.order names {name!r}, which is no class in {folders.root}")
        if names.count(name) > 1:
            raise Refused(f"class {name!r} appears twice in classify.order; a class belongs to one task")
        if name not in folders.held_out:
            raise Refused(
                f"class {name!r} in {folders.root} has no picture to test with; add some to test, or set held_out"
            )
    if not order and seed:
        random.Random(seed).shuffle(names)
    if tasks < 1 or len(names) % tasks:
        fitting = [str(n) for n in range(1, len(names) // 2 + 1) if len(names) % n == 0]
        raise Refused(
            f"{len(names)} classes cannot be split into {tasks} equal tasks; "
            f"choose {' or '.join(fitting)}, or name the classes to use in classify.order"
        )
    size = len(names) // tasks
    if size < 2:
        raise Refused(
            f"{tasks} tasks of {len(names)} classes leave one class for each, with nothing to tell apart; a task needs "
            f"two or more: choose at most {len(names) // 2} tasks"
        )
    parts = [tuple(names[i : i + size]) for i in range(0, len(names), size)]
    return tuple(
        ClassTask(
            part,
            i * size,
            {name: folders.pictures[name] for name in part},
            {name: folders.held_out[name] for name in part},
            folders,
        )  # fmt: skip
        for i, part in enumerate(parts)
    )
