"""Putting a method on a base, and the handle that owns what was put there.

attachment = attach(base, LoRA(rank=4), roles=["cross_attention.*"])
...                                   # train attachment.parameters()
attachment.strength = 0.5
attachment.save("a.safetensors")
attachment.detach()                   # the base is again what it was, bit for bit
"""

import dataclasses
import datetime
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from torch import Tensor, nn

from ..config import check
from ..errors import Refused
from ..files import save_tensors
from ..network import Network
from .adapter import (
    SIDE_INPUTS,
    Adapter,
    Method,
    Shared,
    SideInputs,
)
from .class_rows import ClassRows, class_rows
from .merging import Merged, merge_, swap, unmerge_
from .tasks import fold_, observing
from .token import TokenAdapter
from .tokenizer import expand_vectors, innermost, renew_tokenizer, token_adapters

FORMAT_VERSION = 1


class Attachment:
    """All adapters of one training on one base: parameters, strength, detach, merge, save.

    Attributes:
        base: the base it stands on.
        method: the method's settings.
        roles: the role patterns it was attached with.
        tokens: new token -> the text whose embedding it started from.
        adapters: layer path -> adapter; the token adapters are among them.
        layers: the same without token adapters and class rows.
        classes: names of the classes that it brings to a class-conditional base.
        words: the token adapters, one for each text encoder.
        shared: what the adapters have in common, for methods that need it.
    """

    def __init__(
        self,
        base: Network,
        method: Method,
        roles: Sequence[str],
        tokens: Mapping[str, str],
        adapters: dict[str, Adapter],
        classes: Sequence[str] = (),
    ) -> None:
        self.base, self.method, self.adapters = base, method, adapters
        self.roles, self.tokens, self.classes = list(roles), dict(tokens), tuple(classes)
        self.words = [each for each in adapters.values() if isinstance(each, TokenAdapter)]
        self.layers = {p: each for p, each in adapters.items() if not isinstance(each, TokenAdapter | ClassRows)}
        self._strength, self._enabled, self._attached = 1.0, True, False
        self.shared = method.settle(self)
        self.merged: Merged | None = None  # what `merge_` wrote over, while it is merged

    # --- on and off ---------------------------------------------------------------------------------------------------

    @property
    def strength(self) -> float:
        """0 is the base, 1 as trained; other values, negative and above 1 too, as the method defines them."""
        return self._strength

    @strength.setter
    def strength(self, value: float) -> None:
        if not math.isfinite(value):
            raise Refused(f"strength: expected a finite number, got {value}")
        self._refuse_merged()
        self._strength = float(value)
        self._apply_strength()

    @property
    def enabled(self) -> bool:
        """False switches the adapters off without forgetting the strength."""
        return self._enabled

    @enabled.setter
    def enabled(self, value: bool) -> None:
        self._refuse_merged()
        self._enabled = bool(value)
        self._apply_strength()

    def _refuse_merged(self) -> None:
        if self.is_merged:
            raise Refused("the strength of a merged attachment is fixed; call unmerge_() first")

    def _apply_strength(self) -> None:
        for each in self.modules():
            each.strength = self._strength if self._enabled else 0.0

    @property
    def live(self) -> bool:
        """Whether it has an effect now: on its base, switched on, at a strength other than 0."""
        return self._attached and self._enabled and self._strength != 0

    def modules(self) -> list[Adapter | Shared]:
        """All adapters, and what they share."""
        return [*self.adapters.values(), *([self.shared] if self.shared else [])]

    def attach_(self) -> None:
        """Puts the adapters on their layers, outermost of what stands there.

        Raises:
            Refused: it is on its base already, a word of it is another attachment's, or an adapter must stand lowest.
        """
        if self._attached:
            raise Refused("this attachment is on its base already")
        for path, adapter in self.adapters.items():
            adapter.put_on_(self.base.module(path))
        for path, adapter in self.adapters.items():
            self.base.replace_(path, adapter)
        self._attached = True
        self.base.attachments.append(self)
        try:
            renew_tokenizer(self.base)
        except Refused:
            self.detach()
            raise

    def detach(self) -> None:
        """Takes the adapters off; what is under them is the same module objects as before.

        Raises:
            Refused: it is merged, and another attachment was merged into its layers after it.
        """
        if self.is_merged:
            self.unmerge_()
        if not self._attached:
            return
        for path, adapter in self.adapters.items():
            swap(self.base, path, adapter, adapter.layer)
        self._attached = False
        self.base.attachments.remove(self)
        renew_tokenizer(self.base)

    @property
    def is_merged(self) -> bool:
        """Whether the base's weights hold the adapted ones now."""
        return self.merged is not None

    # --- training -----------------------------------------------------------------------------------------------------

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """("<layer path>.<parameter>", parameter) of all that trains."""
        for path, adapter in self.adapters.items():
            for name, parameter in adapter.own_parameters():
                yield f"{path}.{name}", parameter
        for name, parameter in self.shared.named_parameters() if self.shared else ():
            yield f"shared.{name}", parameter

    def parameters(self) -> Iterator[nn.Parameter]:
        return (parameter for _, parameter in self.named_parameters())

    def train(self, mode: bool = True) -> None:
        """Training mode of the adapters (dropout); the base stays in evaluation mode."""
        for each in self.modules():
            each.training = mode

    def begin(self, side: SideInputs) -> None:
        """Before a training step or a generation: hands out side inputs and lets the method compute what layers share.

        Raises:
            Refused: an adapter needs a side input that is not there.
        """
        for needs in {adapter.needs for adapter in self.adapters.values()}:
            missing = sorted(name for name in needs if getattr(side, name) is None)
            if missing:
                path, adapter = next((p, a) for p, a in self.adapters.items() if a.needs == needs)
                raise Refused(f"{type(adapter).__name__} on {path} needs {', '.join(missing)}, which was not given")
        for adapter in self.adapters.values():
            if adapter.needs:
                adapter.receive(side)
        self.method.share(self, side)

    def penalty(self) -> Tensor | None:
        """The sum of the adapters' penalties, a scalar to add to the loss, or None."""
        with torch.autocast(self.base.device.type, enabled=False):
            terms = [p for p in (adapter.penalty() for adapter in self.adapters.values()) if p is not None]
            return torch.stack(terms).sum() if terms else None

    def project_(self) -> None:
        """After each optimizer step: every adapter returns to where its method allows it."""
        with torch.no_grad():
            for each in self.modules():
                each.project_()

    def notes(self) -> dict[str, float]:
        """Numbers of the step just done, by name, for the run's log."""
        with torch.no_grad():
            return dict(self.method.notes(self))

    # --- a sequence of tasks ------------------------------------------------------------------------------------------

    def observing(self) -> AbstractContextManager[None]:
        """Within the block the adapters take in what their layers receive, for methods that keep its statistics."""
        return observing(self)

    def fold_(self, tokens: Mapping[str, str] | None = None, *, seed: int = 0) -> None:
        """Ends a task of a sequence: what it learned is kept, the next task starts anew; see `tasks.fold_`."""
        fold_(self, tokens or {}, seed)

    # --- merging ------------------------------------------------------------------------------------------------------

    def merge_(self) -> None:
        """Writes the adapted weights into the base at the present strength, so that sampling costs nothing more.

        Raises:
            Refused: an adapter depends on its input, another attachment stands beneath this one, or a weight would be
                no finite number at this strength.
        """
        if self.is_merged or not self._attached:
            raise Refused("merge_() needs an attachment that is on its base and not merged yet")
        merge_(self)

    def unmerge_(self) -> None:
        """Undoes `merge_`: the base's weights come back bit for bit and the adapters stand on their layers again.

        Raises:
            Refused: it is not merged, or another attachment was merged into its layers after it.
        """
        unmerge_(self)

    # --- files --------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Tensor]:
        """{"<layer path>.<parameter>": tensor}: what is saved."""
        own = {f"{path}.{n}": t for path, a in self.adapters.items() for n, t in a.own_state().items()}
        return own | {f"shared.{n}": t for n, t in (self.shared.state_dict() if self.shared else {}).items()}

    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> None:
        """Copies saved values in.

        Raises:
            Refused: a name is missing or unknown, or a shape does not fit; says which. What was here stays.
        """
        before = {name: tensor.clone() for name, tensor in self.state_dict().items()}
        self._make_room_(tensors)
        try:
            self._refuse_what_does_not_fit(tensors)
        except Refused:
            self._make_room_(before)
            self._copy_(before)
            raise
        self._copy_(tensors)

    @torch.no_grad()
    def _copy_(self, tensors: Mapping[str, Tensor]) -> None:
        for name, tensor in self.state_dict().items():
            tensor.copy_(tensors[name])

    def _make_room_(self, tensors: Mapping[str, Tensor]) -> None:
        for path, adapter in self.adapters.items():
            adapter.make_room_({n.removeprefix(f"{path}."): t for n, t in tensors.items() if n.startswith(f"{path}.")})

    def _refuse_what_does_not_fit(self, tensors: Mapping[str, Tensor]) -> None:
        own = self.state_dict()
        for problem, names in (("lacks", own.keys() - tensors.keys()), ("has unknown", tensors.keys() - own.keys())):
            if names:
                raise Refused(f"the adapter file {problem} {len(names)} tensor(s), the first {min(names)}")
        for name, tensor in own.items():
            if tensor.shape != tensors[name].shape:
                raise Refused(
                    f"{name}: expected shape {tuple(tensor.shape)}, the file has {tuple(tensors[name].shape)}"
                )

    def save(self, path: str | Path, metadata: Mapping[str, str] | None = None) -> Path:
        """Writes one safetensors file, atomically, with all that is needed to load it again.

        Args:
            path: where to.
            metadata: more entries for the file's header, for example the run's settings.
        """
        header = {
            "format": "diffadapt",
            "format_version": str(FORMAT_VERSION),
            "method": self.method.name,
            "config": json.dumps(dataclasses.asdict(self.method)),
            "roles": json.dumps(self.roles),
            "tokens": json.dumps(self.tokens),
            "base": self.base.name,
            "base_fingerprint": self.base.fingerprint,
            "prediction_type": getattr(self.base, "prediction_type", "none"),
            "diffadapt_version": package_version(),
            "created": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        }
        more = self.shared.facts() if self.shared else {}
        more |= {"classes": json.dumps(self.classes)} if self.classes else {}
        return save_tensors(path, self.state_dict(), {**header, **more, **(metadata or {})})


def attach(
    base: Network,
    method: Method,
    roles: Sequence[str] | None = None,
    *,
    tokens: Mapping[str, str] | None = None,
    classes: Sequence[str] = (),
    seed: int = 0,
) -> Attachment:
    """Puts one adapter of `method` on every layer of the roles.

    Args:
        base: a loaded base; it is frozen.
        method: settings, for example `LoRA(rank=4)`.
        roles: role names or patterns ("cross_attention.*"); None means the method's default.
        tokens: new tokens to learn beside the layers, each with the text that its embedding starts from, or
            `RANDOM_START`.
        classes: names of classes that a class-conditional base is to learn besides; they start as its null class,
            whose row trains with them.
        seed: of the adapters' and tokens' random initial values.

    Raises:
        Refused: a role matches nothing, a setting does not fit a layer, a token exists already or its initial text
            holds no known word, classes on a base that has none.
    """
    check(method)
    roles = [roles] if isinstance(roles, str) else roles
    classes = [classes] if isinstance(classes, str) else classes
    if not isinstance(tokens or {}, Mapping):
        raise Refused(
            f'tokens: expected each new word with what it starts from, {{"<biscuit>": "cat"}}, got {tokens!r}'
        )
    tokens = dict(tokens or {})
    if method.needs_word and not tokens:
        raise Refused(f'{method.title} needs at least one new token, for example tokens={{"<biscuit>": "cat"}}')
    if tokens and not base.word_tables:
        raise Refused(f"{base.name!r} cannot learn the new token {min(tokens)!r}: it has no text encoder")
    training = [each for other in base.attachments for each in other.modules() if each.training]
    base.freeze_()
    for each in training:  # an adapter that is being trained goes on
        each.training = True
    patterns = list(method.default_roles(base.roles) if roles is None else roles)
    selected = {} if method.words_only else base.select(patterns)
    generator = torch.Generator().manual_seed(seed)
    adapters: dict[str, Adapter] = {}
    for path, role in selected.items():
        layer = base.module(path)
        bottom = innermost(layer)
        if not method.adapts(bottom):
            continue
        adapter = method.build(layer, path, role, generator)
        unknown = adapter.needs - SIDE_INPUTS
        if unknown:
            raise Refused(f"{type(adapter).__name__} needs {sorted(unknown)}; side inputs are {sorted(SIDE_INPUTS)}")
        adapters[path] = adapter
    if selected and not adapters:
        raise Refused(f"{method.name} can adapt none of the {len(selected)} layers of {', '.join(patterns)}")
    if tokens:
        tokens = expand_vectors(base, tokens, method.vectors_per_word())
        words = token_adapters(base, tokens, generator)
        if taken := sorted(words.keys() & adapters.keys()):
            role = selected[taken[0]]
            raise Refused(f"{taken[0]} cannot be adapted and learn new tokens at once; leave {role} out of the roles")
        adapters |= words
    if classes:
        adapters |= class_rows(base, classes)
    attachment = Attachment(base, method, patterns, tokens, adapters, classes)
    attachment.train(False)
    attachment.attach_()
    return attachment


def package_version() -> str:
    try:
        return version("diffadapt")
    except PackageNotFoundError:
        return "unknown"
