"""The second moment of a text encoder's outputs, C = E[e e^T]: in its inverse, words are compared by what is rare.

Key-locked rank-one editing (Tewel et al. 2023, arXiv:2305.01644) measures how much of a concept is in a token by
<x, y> = x^T C^-1 y. C is uncentred, and pooled over the start token, the words and the end token of each caption; the
padding behind them is left out. Its scale does not matter to that method.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import Refused
from ..files import load_tensors, parse_json, save_tensors
from ..fingerprint import short_hash

FORMAT = "diffadapt-covariance"
FORMAT_VERSION = 1
POOLED = "start, words and end of each caption; no padding"
CONDITION_LEFT_ALONE, CONDITION_AIMED_AT = 1e5, 1e6


@dataclass(frozen=True, kw_only=True)
class Covariance:
    """C with what it was measured on.

    Args:
        matrix: (D, D) float64, symmetric, per token.
        facts: "encoder" (fingerprint of the text encoder), "corpus" (a hash of the captions), "captions" and "tokens"
            (how many), "pooled" (which).
    """

    matrix: Tensor
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def fingerprint(self) -> str:
        """ "sha256:<16 hex digits>" of what it was measured on, so that a second measurement is the same C."""
        facts = json.dumps({key: self.facts.get(key) for key in ("encoder", "corpus", "pooled")}, sort_keys=True)
        return short_hash(facts.encode())

    @cached_property
    def ridge(self) -> float:
        """Added to the diagonal so that the matrix can be solved; 0 where its condition allows it."""
        values = torch.linalg.eigvalsh(self.matrix)
        low, high = float(values[0]), float(values[-1])
        if low > 0 and high < CONDITION_LEFT_ALONE * low:
            return 0.0
        return max(0.0, (high - CONDITION_AIMED_AT * low) / (CONDITION_AIMED_AT - 1))

    def solve(self, vectors: Tensor) -> Tensor:
        """C^-1 x of (..., D) vectors, solved in float64 on the CPU; comes back where and as they are."""
        rows = vectors.detach().to("cpu", torch.float64).reshape(-1, len(self.matrix))
        solved = torch.cholesky_solve(rows.T, self._factor).T.reshape(vectors.shape)
        return solved.to(vectors.device, vectors.dtype)

    @cached_property
    def _factor(self) -> Tensor:
        return torch.linalg.cholesky(self.matrix + self.ridge * torch.eye(len(self.matrix), dtype=torch.float64))

    def save(self, path: str | Path) -> Path:
        """Writes one safetensors file, float32."""
        header = {"format": FORMAT, "format_version": str(FORMAT_VERSION), "facts": json.dumps(dict(self.facts))}
        return save_tensors(path, {"second_moment": self.matrix.float()}, header)


class SecondMoment:
    """Accumulates C over batches, in float64.

    Args:
        size: D, the width of the text encoder's outputs.
    """

    def __init__(self, size: int) -> None:
        self.total, self.tokens = torch.zeros(size, size, dtype=torch.float64), 0

    def add(self, text: Tensor, kept: Tensor) -> None:
        """Adds encoded captions (N, L, D), of which the places in `kept` (N, L) count."""
        rows = text[kept].to("cpu", torch.float64)
        self.total += rows.T @ rows
        self.tokens += len(rows)

    def matrix(self) -> Tensor:
        """E[e e^T], (D, D).

        Raises:
            Refused: there were fewer tokens than C has rows, so that it cannot be inverted.
        """
        size = len(self.total)
        if self.tokens <= size:
            raise Refused(
                f"{self.tokens} tokens cannot tell {size} directions apart; give {50 * size} or more, some "
                f"{5 * size} captions"
            )
        return (self.total + self.total.T) / (2 * self.tokens)


def load_covariance(path: str | Path) -> Covariance:
    """Reads what `Covariance.save` wrote.

    Raises:
        Refused: it is not such a file, of a newer format, or no second moment (square, symmetric, of numbers).
    """
    tensors, header = load_tensors(path)
    if header.get("format") != FORMAT:
        raise Refused(f"{path} holds no covariance (its format is {header.get('format')!r}); see diffadapt covariance")
    version = header.get("format_version", "0")
    if not version.isdecimal() or int(version) > FORMAT_VERSION:
        raise Refused(f"{path} has format version {version}; update diffadapt to read it")
    matrix = tensors.get("second_moment", torch.empty(0)).double()
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or not torch.isfinite(matrix).all():
        raise Refused(f"{path} is damaged: expected a square matrix of numbers, got {tuple(matrix.shape)}")
    facts = parse_json(header.get("facts", "{}"), dict, f"{path}: its header")
    return Covariance(matrix=(matrix + matrix.T) / 2, facts=facts)
