"""Several concepts as one, to be learned together: their pictures in turn, each with its own word."""

from collections.abc import Sequence

from ..errors import Refused
from .concept import Concept


class JoinedConcept(Concept):
    """Several concepts as one, from `join_concepts`; `noun`, `token`, `folder`, plain prompts are the first's."""

    def __init__(self, parts: Sequence[Concept]) -> None:
        first = parts[0]
        super().__init__(
            first.folder,
            "-".join(part.name for part in parts),
            first.noun,
            first.token,
            [picture for part in parts for picture in part.pictures],
            [note for part in parts for note in part.notes],
        )
        self._parts = tuple(parts)

    @property
    def parts(self) -> tuple[Concept, ...]:
        return self._parts

    @property
    def tokens(self) -> dict[str, str]:
        return {part.token: part.noun for part in self.parts}

    @property
    def class_prompts(self) -> list[str]:
        return list(dict.fromkeys(part.class_prompt for part in self.parts))

    def standing_alone(self) -> "JoinedConcept":
        joined = JoinedConcept([part.standing_alone() for part in self.parts])
        joined.alone = True
        return joined

    def caption(self, index: int) -> str:
        for part in self.parts:
            if index < len(part):
                return part.caption(index)
            index -= len(part)
        raise IndexError(index)

    def class_captions(self) -> list[str]:
        return [caption for part in self.parts for caption in part.class_captions()]

    def crop_table(self) -> list[dict[str, object]]:
        return [row | {"file": f"{part.name}/{row['file']}"} for part in self.parts for row in part.crop_table()]


def join_concepts(concepts: Sequence[Concept]) -> Concept:
    """Several concepts to be learned together by `train_subject`, each with its own word.

    Args:
        concepts: two or more; one is returned as it is.

    Raises:
        Refused: there is none, or two have one word.
    """
    if not concepts:
        raise Refused("no concept to join; give one or more")
    words = [concept.token for concept in concepts]
    if len(set(words)) < len(words):
        raise Refused(f"two of the concepts have one word: {', '.join(words)}; give each its own token")
    return concepts[0] if len(concepts) == 1 else JoinedConcept(concepts)
