"""The probe: a small image-text encoder pair of the embedded world, so that pictures can be judged without a download.

Two unit embeddings of 128 numbers leave the image tower. The *joint* one lives in the space of the text tower and
carries everything a caption says, background included; the *subject* one tells one sprite from another wherever it
stands. Heads name what is in the picture. All weights ship in `metrics/probe/`, trained by `tools/train_probe.py`.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .trained_network import load_trained

WEIGHTS = Path(__file__).parent / "probe"  # probe.safetensors and probe.json
FORMAT_VERSION = 1
EMBEDDING = 128  # numbers in an embedding
RESOLUTION = 64  # side of the pictures the tower reads
TEXT_LENGTH = 32  # words; a longer text is cut
UNKNOWN = "<unk>"
PADDING = "<pad>"


@dataclass(frozen=True, kw_only=True)
class ProbeShape:
    """The labels that the heads tell apart, the words that the text tower knows, and the widths.

    Args:
        labels: head name -> its labels, for example "style" -> ("flat", "3d"). "second" ends in "none".
        words: the vocabulary; entry 0 is `PADDING`, entry 1 `UNKNOWN`.
        widths: channels at 32, 16, 8 and 4 pixels.
        blocks: residual blocks at each of them.
        text_width: width of the text tower.
        style_by_object: whether the head "style" also looks with eyes of its own for each label of "object": how the
            four artists draw a cat is another question than how they draw a bus.
    """

    labels: dict[str, tuple[str, ...]]
    words: tuple[str, ...]
    widths: tuple[int, int, int, int] = (32, 64, 128, 224)
    blocks: tuple[int, int, int, int] = (0, 1, 1, 1)
    text_width: int = 128
    style_by_object: bool = False


class _Residual(nn.Module):
    """x + conv(relu(conv(x))), batch-normalised."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.first_norm = nn.BatchNorm2d(width)
        self.second = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.second_norm = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        inner = F.relu(self.first_norm(self.first(x)), inplace=True)
        return F.relu(x + self.second_norm(self.second(inner)), inplace=True)


def _halve(inside: int, outside: int, kernel: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inside, outside, kernel, stride=2, padding=(kernel - 1) // 2, bias=False),
        nn.BatchNorm2d(outside),
        nn.ReLU(inplace=True),
    )


class ImageTower(nn.Module):
    """A strided convolutional network whose last 4x4 grid is read by learned queries."""

    def __init__(self, shape: ProbeShape) -> None:
        super().__init__()
        d = shape.widths[-1]
        self.queries = len(shape.labels) + 2  # pooled views of the picture: one per head, two for the embeddings
        layers: list[nn.Module] = []
        for inside, outside, blocks in zip((3, *shape.widths), shape.widths, shape.blocks, strict=False):
            layers.append(_halve(inside, outside, 3 if layers else 4))
            layers += [_Residual(outside) for _ in range(blocks)]
        self.trunk = nn.Sequential(*layers)
        self.place = nn.Parameter(torch.randn(16, d) * 0.02)
        self.scores = nn.Linear(d, self.queries * 4)  # four attention heads a query
        self.values = nn.Linear(d, d)
        self.norm = nn.LayerNorm(d)
        self.heads = nn.ModuleDict({name: nn.Linear(d, len(labels)) for name, labels in shape.labels.items()})
        if shape.style_by_object:
            self.style_by_object = nn.Linear(d, len(shape.labels["object"]) * len(shape.labels["style"]), bias=False)
        self.style_at = list(shape.labels).index("style") if shape.style_by_object else None
        self.joint = nn.Sequential(nn.Linear(self.queries * d, 256), nn.ReLU(), nn.Linear(256, EMBEDDING))
        self.subject = nn.Sequential(nn.Linear(2 * d, 256), nn.ReLU(), nn.Linear(256, EMBEDDING))

    def forward(self, pixels: Tensor) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """pixels (N, 3, 64, 64) in [0, 1] -> logits by head (N, labels), joint and subject unit rows (N, 128)."""
        grid = self.trunk((pixels - 0.5) * 4).flatten(2).transpose(1, 2) + self.place  # (N, 16, d)
        weights = self.scores(grid).softmax(1).unflatten(2, (self.queries, 4))  # (N, 16, Q, 4)
        values = self.values(grid).unflatten(2, (4, -1))  # (N, 16, 4, d/4)
        pooled = self.norm(torch.einsum("npqh,nphw->nqhw", weights, values).flatten(2))  # (N, Q, d)
        logits = {name: head(pooled[:, i]) for i, (name, head) in enumerate(self.heads.items())}
        if self.style_at is not None:
            each = self.style_by_object(pooled[:, self.style_at]).unflatten(1, (logits["object"].shape[1], -1))
            object_ = logits["object"].detach().softmax(1).to(each.dtype)  # (N, objects)
            logits["style"] = logits["style"] + torch.einsum("no,nos->ns", object_, each)
        joint, subject = self.joint(pooled.flatten(1)), self.subject(pooled[:, -2:].flatten(1))
        return logits, F.normalize(joint.float(), dim=1), F.normalize(subject.float(), dim=1)


class TextTower(nn.Module):
    """Two transformer layers over words, averaged over the text."""

    def __init__(self, shape: ProbeShape) -> None:
        super().__init__()
        width = shape.text_width
        self.words = nn.Embedding(len(shape.words), width, padding_idx=0)
        self.place = nn.Parameter(torch.randn(TEXT_LENGTH, width) * 0.1)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(width, 4, 2 * width, 0.0, batch_first=True, norm_first=True) for _ in range(2)
        )
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, EMBEDDING)

    def forward(self, ids: Tensor) -> Tensor:
        """ids (N, L) long, 0 for padding -> (N, 128) unit rows."""
        blank = ids == 0
        x = self.words(ids) + self.place[: ids.shape[1]]  # (N, L, width)
        for layer in self.layers:
            x = layer(x, src_key_padding_mask=blank)
        kept = (~blank)[:, :, None].to(x.dtype)  # (N, L, 1), 1 for words and 0 for padding
        mean = (self.norm(x) * kept).sum(1) / kept.sum(1).clamp(min=1)  # (N, width)
        return F.normalize(self.out(mean).float(), dim=1)


class Probe(nn.Module):
    """Both towers and the temperature that they were trained with.

    Attributes:
        accuracy: share of rendered scenes that each head reads right, and more, as the card has it; {} without one.
    """

    def __init__(self, shape: ProbeShape) -> None:
        super().__init__()
        self.accuracy: dict[str, float] = {}
        self.shape = shape
        self.image = ImageTower(shape)
        self.text = TextTower(shape)
        self.log_scale = nn.Parameter(torch.tensor(math.log(14.0)))
        self._index = {word: i for i, word in enumerate(shape.words)}

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Texts -> word numbers (N, L) long, L <= 32, padded with 0. A word out of the vocabulary becomes `UNKNOWN`."""
        rows = [[self._index.get(word, 1) for word in split_words(text)][:TEXT_LENGTH] or [1] for text in texts]
        ids = torch.zeros(len(rows), max(map(len, rows), default=1), dtype=torch.long)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = torch.tensor(row)
        return ids


def split_words(text: str) -> list[str]:
    """Lower-case words of a text; a token in angle brackets stays one word: "a <my-cat> cat." -> a, <my-cat>, cat."""
    return re.findall(r"<[^<>\s]+>|[^\W_]+", text.lower())


def load_probe(folder: str | Path | None = None) -> Probe:
    """Reads a probe, float32 on the CPU, in evaluation mode, its parameters frozen.

    Args:
        folder: holds probe.safetensors and probe.json; None takes the probe that ships with the package.

    Raises:
        Refused: a file is missing or damaged, the two do not fit, or the format is newer than this package.
    """
    folder = WEIGHTS if folder is None else Path(folder)

    def build(facts: Mapping[str, Any]) -> Probe:
        probe = Probe(
            ProbeShape(
                labels={head: tuple(labels) for head, labels in facts["labels"].items()},
                words=tuple(facts["words"]),
                widths=tuple(facts["widths"]),
                blocks=tuple(facts.get("blocks", (0, 1, 1, 1))),
                text_width=facts["text_width"],
                style_by_object=facts.get("style_by_object", False),
            )
        )
        probe.accuracy = dict(facts.get("accuracy", {}))
        return probe

    return load_trained(folder, "probe", "probe", version=FORMAT_VERSION, build=build)
