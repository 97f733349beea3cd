"""The interface that `attach` needs of a base."""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn


class AdaptableBase(Protocol):
    """A base that methods can be attached to; `bases.Base` is one."""

    name: str
    roles: dict[str, tuple[str, ...]]
    attachments: list[Any]
    fingerprint: str
    tokenizer: Any
    world: Any

    @property
    def device(self) -> torch.device: ...

    def covariance(self) -> Any: ...
    def tokenize(self, prompts: Sequence[str]) -> Tensor: ...
    def encode_ids(self, ids: Tensor) -> Tensor: ...
    def module(self, path: str) -> nn.Module: ...
    def replace_(self, path: str, module: nn.Module) -> None: ...
    def select(self, patterns: Sequence[str]) -> dict[str, str]: ...
    def freeze_(self) -> None: ...
