"""A concept: a few pictures of one thing, the class noun that it belongs to, and the token that will name it."""

import copy
import re
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from ..errors import Refused
from ..files import at_home
from .folder import Example, list_folder
from .picture import Crop, fit, to_tensor

MAX_PICTURES = 30
_KEPT_SIDE = 1024  # a decoded square is kept at most this large, so that thirty photographs fit in 100 MB
_PLACEHOLDERS = ("[token]", "{token}", "[trigger]")


class Decoded(NamedTuple):
    """One picture file of a concept, its content's SHA-256 (hex), and the square that is used of it and of its mask."""

    example: Example
    content: str
    picture: Image.Image
    mask: Image.Image | None
    crop: Crop


class Concept:
    """A concept with its pictures, from `load_concept`. Each is decoded once; `pixels` makes tensors of any size.

    Attributes:
        pictures: what is used of each picture file.
        examples: the picture files in order, each with its own caption and mask file, if any.
        noun: the class noun, for example "cat".
        token: the word that stands for this one, for example "<biscuit>".
        name: the folder's name.
        folder: where the pictures are.
        crops: which square of each picture is used.
        contents: one SHA-256 (hex) a picture over the bytes of its file and mask; a key for caches.
        notes: sentences for a person: skipped files, duplicates, enlarged pictures.
        alone: whether the token stands for the noun instead of in front of it; see `standing_alone`.
    """

    alone = False

    def __init__(
        self, folder: Path, name: str, noun: str, token: str, pictures: Sequence["Decoded"], notes: list[str]
    ) -> None:
        self.folder, self.name, self.noun, self.token = folder, name, noun, token
        self.pictures, self.notes = tuple(pictures), notes
        self.examples = tuple(each.example for each in pictures)
        self.contents = tuple(each.content for each in pictures)
        self.crops: tuple[Crop, ...] = tuple(each.crop for each in pictures)
        self._tensors: dict[int, tuple[Tensor, Tensor | None]] = {}

    def __len__(self) -> int:
        return len(self.examples)

    def __repr__(self) -> str:
        return f"Concept({self.phrase!r}, {len(self)} pictures in {str(self.folder)!r})"

    def standing_alone(self) -> "Concept":
        """The same concept with a token that is the noun: "a <biscuit> at night", not "a <biscuit> cat at night".

        Methods ask for it whose `replaces_noun` is true.
        """
        concept = copy.copy(self)
        concept.alone = True
        return concept

    @property
    def phrase(self) -> str:
        """The concept in a prompt: "<biscuit> cat", or "<biscuit>" when it stands alone."""
        return self.token if self.alone else f"{self.token} {self.noun}"

    def in_prompts(self, prompts: Iterable[str]) -> list[str]:
        """Prompts about "<biscuit> cat" as this concept is asked for."""
        if not self.alone:
            return list(prompts)
        return [whole_word(f"{self.token} {self.noun}").sub(lambda _: self.phrase, prompt) for prompt in prompts]

    @property
    def prompt(self) -> str:
        """The shortest prompt that asks for the concept: "a <biscuit> cat"."""
        return f"a {self.phrase}"

    @property
    def class_prompt(self) -> str:
        """The shortest prompt that asks for any of the class: "a cat"."""
        return f"{'an' if self.noun[0].lower() in 'aeiou' else 'a'} {self.noun}"

    @property
    def parts(self) -> tuple["Concept", ...]:
        """The concepts that are learned together: this one, unless it was joined with others."""
        return (self,)

    @property
    def tokens(self) -> dict[str, str]:
        """Every word to learn -> the noun that it starts from."""
        return {self.token: self.noun}

    @property
    def class_prompts(self) -> list[str]:
        """The shortest prompts that ask for any of the class, or classes."""
        return [self.class_prompt]

    def caption(self, index: int) -> str:
        """The prompt that picture `index` is learned with; it always holds the token.

        Without a caption file: "a <biscuit> cat". In a caption, "[token]", "{token}" and "[trigger]" become the token,
        and a caption with the token stays as it is. If it has only the noun, the token goes in front of the noun; if
        it has neither, "a <biscuit> cat, " goes in front of everything. A token that stands alone takes the place of
        the noun.
        """
        text = self.examples[index].caption
        if text is None:
            return self.prompt
        for placeholder in _PLACEHOLDERS:
            text = text.replace(placeholder, self.token)
        if whole_word(self.token).search(text):
            return self.in_prompts([text])[0]
        found = re.search(rf"\b(an )?({re.escape(self.noun)})\b", text, re.IGNORECASE)
        if found is None:
            return f"{self.prompt}, {text}"
        article, named = "a " if found[1] else "", self.token if self.alone else f"{self.token} {found[2]}"
        return f"{text[: found.start()]}{article}{named}{text[found.end() :]}"

    def captions(self) -> list[str]:
        """The prompt of every picture, in order."""
        return [self.caption(index) for index in range(len(self))]

    def class_captions(self) -> list[str]:
        """The prompt of every picture as one about any of the class: "a <biscuit> cat at night" is "a cat at night"."""
        instead = self.noun if self.alone else ""
        found = [whole_word(self.token).sub(lambda _: instead, caption) for caption in self.captions()]
        return [" ".join(caption.split()) for caption in found]

    def identity(self) -> dict[str, Any]:
        """What tells it from any other, so that a run knows its own concept again."""
        return {
            "folder": self.folder.name,
            "noun": self.noun,
            "token": self.token,
            "contents": list(self.contents),
            "captions": self.captions(),
        }

    def pixels(self, resolution: int) -> Tensor:
        """All pictures, (N, 3, R, R) float32 in [0, 1]."""
        return self._at(resolution)[0]

    def masks(self, resolution: int) -> Tensor | None:
        """All masks, (N, 1, R, R) float32 in [0, 1], 1 on the subject; None when no picture has one.

        A picture without a mask among others with one gets ones: all of it counts.
        """
        return self._at(resolution)[1]

    def empty_masks(self, resolution: int) -> list[str]:
        """The files whose mask counts nothing inside the square crop; masked training would learn nothing of them."""
        masks = self.masks(resolution)
        if masks is None:
            return []
        bright = masks.flatten(1).amax(1) >= 0.5
        return [example.path.name for example, any_ in zip(self.examples, bright.tolist(), strict=True) if not any_]

    def crop_table(self) -> list[dict[str, object]]:
        """One row a picture, ready for JSON: file, original [w, h], box [l, t, r, b] in original pixels, caption."""
        return [
            {
                "file": example.path.relative_to(self.folder).as_posix(),
                "original": list(crop.original),
                "box": list(crop.box),
                "caption": self.caption(index),
            }
            for index, (example, crop) in enumerate(zip(self.examples, self.crops, strict=True))
        ]

    def _at(self, resolution: int) -> tuple[Tensor, Tensor | None]:
        if resolution < 1:
            raise Refused(f"resolution is {resolution}; expected a number of pixels, 1 or more")
        if resolution not in self._tensors:
            self._tensors[resolution] = self._resized(resolution)
        return self._tensors[resolution]

    def _resized(self, resolution: int) -> tuple[Tensor, Tensor | None]:
        pictures, masks = [], []
        target = (resolution, resolution)
        for each in self.pictures:
            example, picture, mask, crop = each.example, each.picture, each.mask, each.crop
            if picture.width < min(resolution, crop.side):  # larger than what was kept: back to the file
                picture, mask, _ = _read_square(example, [], kept=resolution)
            if crop.side < 0.75 * resolution:
                self.notes.append(f"{example.path.name}: {crop.side} pixels, enlarged to {resolution}; it will be soft")
            pictures.append(to_tensor(picture.resize(target, Image.Resampling.LANCZOS)))
            masks.append(mask if mask is None else to_tensor(mask.resize(target, Image.Resampling.BILINEAR)))
        pixels = torch.stack(pictures).float() / 255
        if all(mask is None for mask in masks):
            return pixels, None
        white = torch.full((1, *target), 255, dtype=torch.uint8)
        return pixels, torch.stack([white if mask is None else mask for mask in masks]).float() / 255


def load_concept(folder: str | Path, noun: str, *, token: str | None = None) -> Concept:
    """Reads a folder of 1 to 30 pictures of one thing.

    Args:
        folder: jpg, jpeg, png, webp, bmp, gif (first frame) or avif files; captions and masks beside them are read, see
            `diffadapt.data.folder`. Crop policy: see `diffadapt.data.picture`.
        noun: what it is one of, for example "cat"; a word that the base knows.
        token: the word to teach, without blanks. Default: the folder's name as "<name>".

    Raises:
        Refused: no folder, no or too many pictures, a picture, caption or mask that cannot be used (names the file),
            an empty noun, a token with blanks.
    """
    folder = at_home(folder)
    noun = " ".join(noun.split())
    if not noun:
        raise Refused('the class noun is empty; say what the pictures show one of, for example noun="cat"')
    examples, notes = list_folder(folder)
    if token is None:
        token = token_of(folder.resolve().name)
        if token == "<>":
            raise Refused(f'no token can be made of the folder name "{folder.name}"; give one, such as token="<it>"')
    if not token or token.split() != [token]:
        raise Refused(f"token {token!r} is not one word; expected one without blanks, such as '<{noun.split()[0]}-1>'")
    if token.lower() == noun.lower():
        raise Refused(f"token {token!r} is the class noun itself; take another word, such as '<{noun.split()[0]}-1>'")
    if len(examples) > MAX_PICTURES:
        raise Refused(
            f"{folder} holds {len(examples)} pictures; a concept is 1 to {MAX_PICTURES}: keep the best, or load them as"
            " a captioned folder (load_captioned)"
        )
    pictures = [Decoded(example, example.content(), *_read_square(example, notes)) for example in examples]
    concept = Concept(folder, folder.resolve().name, noun, token, pictures, notes)
    _note_duplicates(concept)
    return concept


def token_of(name: str) -> str:
    """The word that a folder's name gives: "<my-biscuit>" for "My Biscuit!"; "<>" without letters and digits."""
    letters = unicodedata.normalize("NFKD", name.lower())  # an accent is a character of its own
    plain = "".join(letter for letter in letters if not unicodedata.combining(letter))
    slug = re.sub(r"[^a-z0-9]+", "-", plain).strip("-")
    return f"<{slug}>"


def whole_word(token: str) -> re.Pattern[str]:
    """Where a token stands in a text by itself, in either case: "ana" is no part of "banana"."""
    return re.compile(rf"(?<!\w){re.escape(token)}(?!\w)", re.IGNORECASE)


def _read_square(
    example: Example, notes: list[str], kept: int = _KEPT_SIDE
) -> tuple[Image.Image, Image.Image | None, Crop]:
    """The cropped square of a picture and of its mask, reduced to at most `kept` pixels, never enlarged."""
    picture, whole = example.open(notes)
    square, mask, crop = fit(picture, min(*picture.size, kept), whole)
    if whole is not None:
        inside = sum(whole.crop(crop.box).histogram()[128:]) / max(1, sum(whole.histogram()[128:]))
        if inside < 0.9:
            notes.append(f"{example.path.name}: the square crop cuts {1 - inside:.0%} of the mask off")
    return square, mask, crop


def _note_duplicates(concept: Concept) -> None:
    first: dict[str, str] = {}
    for example, content in zip(concept.examples, concept.contents, strict=True):
        if content in first:
            concept.notes.append(f"{example.path.name}: the same file as {first[content]}, so it counts twice")
        first.setdefault(content, example.path.name)


def photograph_notes(concept: Concept, base: Any) -> list[str]:
    """What to expect of large pictures on a base that knows a world of small drawings alone; empty elsewhere."""
    if not base.world or all(max(crop.original) <= 4 * base.resolution for crop in concept.crops):
        return []
    return [
        f"these look like photographs, and base {base.name!r} has seen drawings of {base.resolution} pixels alone; "
        "expect a drawing in their colours, or take Stable Diffusion"
    ]
