"""Perfusion: key-locked rank-one editing (Tewel, Gal, Chechik, Atzmon 2023, arXiv:2305.01644).

A concept is a new word and, for every cross-attention layer, the output that its encoding should map to. With e
a token's encoding, i* the concept's (the anchor), <x, y> = x^T C^-1 y and C the second moment of the text encoder's
outputs, every key and value projection W becomes (equation 3)

    h = W (e - r i*) + g(r) o*        r = <i*, e> / <i*, i*>        g(r) = sigmoid((r - bias) / temperature)

Keys are locked: o* = W e_super, with e_super the encoding of the super-category ("cat"), so the concept attends as its
category does. Values train: o* is learned, beside the new word's embedding. Since o*_K is linear in e_super, both are
one change of what a projection is given, and for values one term more:

    K = W_K (e - r i* + g e_super)        V = W_V (e - r i*) + g o*_V

so that `to_k` needs no parameter. Similarity and gate are the same in all layers: computed once per batch, in float32.

Several concepts, trained apart and attached together (equation 4): e - r i* becomes the part of e that is
C^-1-orthogonal to all anchors, from a solve with their Gram matrix (`anchors.py`); each concept has its own gate. Only
concepts whose word is in a row take part: a row without any is the base's, bit for bit, the unconditional one too.

Strength scales the change of keys and values and moves the word between its category and itself; `bias` is the paper's
own knob, and is set without loading anything anew: `attachment.shared.bias = 0.5` (less shows more of the concept).
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..config import option
from ..errors import Refused
from .adapter import Adapter, Attached, GatedConcept, Mergeable, Method, SideInputs
from .anchors import shares
from .tokenizer import innermost, only_identity

# Where the super-category's encoding is averaged; "{}" is the word. The second list is in the embedded base's grammar.
TEMPLATES = (
    "a photo of a {}", "a good photo of a {}", "the photo of a {}", "a good photo of the {}", "image of a {}",
    "image of the {}", "A photograph of {}", "A {} shown in a photo", "A photo of {}",
)  # fmt: skip
WORLD_TEMPLATES = (
    "a {}", "a small {}", "a large {}", "a {} on a white background", "a {} on the left", "a {} at night",
    "a large {} in a meadow", "a small {} on a blue background", "a {} on the right at the sea",
)  # fmt: skip
LOCKS, GLOBAL_KEYS = ("local", "global", "trained"), ("plain", "edited")
GATES, SCOPES = ("sigmoid", "hard", "linear"), ("all", "from_concept", "concept_only")


@dataclass(frozen=True, kw_only=True)
class Perfusion(Method):
    """A concept in some 60 KB: locked keys, learned values and one new word."""

    name: ClassVar[str] = "perfusion"
    title: ClassVar[str] = "perfusion"
    recipes: ClassVar[tuple[str, ...]] = ("subject",)
    needs_word: ClassVar[bool] = True
    replaces_noun: ClassVar[bool] = True
    merges: ClassVar[bool] = False

    key_lock: str = option(
        "local", "keys: local (the concept's word), global (the whole prompt) or trained", choices=LOCKS
    )
    global_key: str = option(
        "plain", "keys of a global lock: plain or edited, as equation 3 has it", choices=GLOBAL_KEYS
    )
    bias: float = option(
        0.65, "similarity at which the gate is half open; less shows more of the concept", low=0, high=2
    )
    temperature: float = option(0.15, "how gradually the gate opens", low=1e-4)
    train_bias: float = option(0.75, "the bias while training", low=0, high=2)
    train_temperature: float = option(0.1, "the temperature while training", low=1e-4)
    ema: float = option(0.99, "decay of the moving average that the anchor is", low=0, high=1)
    gate: str = option("sigmoid", "sigmoid, hard (a step) or linear (none: a plain rank-one edit)", choices=GATES)
    gate_floor: bool = option(False, "shift the gate so that it is shut where there is nothing of the concept")
    scope: str = option(
        "all", "places that are edited: all, from_concept (its word and behind it) or concept_only", choices=SCOPES
    )
    edit_start: bool = option(False, "edit the start token too, which says nothing and draws much attention")
    prompt_gate: bool = option(True, "leave prompts without the concept's word exactly as they are")

    def default_roles(self, known: Iterable[str]) -> list[str]:
        return ["cross_attention.key", "cross_attention.value"]

    def adapts(self, layer: nn.Module) -> bool:
        return isinstance(layer, nn.Linear)

    def build(self, layer: nn.Module, path: str, role: str, generator: torch.Generator) -> Adapter:
        everywhere = not self.prompt_gate and self.edit_start and self.scope == "all" and self.key_lock != "global"
        kind = LinearPerfusionAdapter if self.gate == "linear" and everywhere else PerfusionAdapter
        return kind(layer, path)

    def settle(self, attachment: Attached) -> "ConceptEdit":
        return ConceptEdit(attachment, self)

    def share(self, attachment: Attached, side: SideInputs) -> None:
        assert isinstance(attachment.shared, ConceptEdit)
        attachment.shared.begin(side)


class ConceptEdit(GatedConcept):
    """State shared by all layers of one concept, and the values' targets of all layers in one parameter.

    Attributes:
        bias, temperature: of the gate at inference; set them at any time.
        targets: (sum of the layers' outputs,) o*_V of every value layer, one behind the other.
        key_targets: the same for key layers with `key_lock="trained"`, else None.
        anchor: (D,) i*, a moving average of the concept's encodings in training.
        category: (D,) e_super, made anew from the super-category's word whenever the concept is attached.
    """

    anchor: Tensor
    category: Tensor

    def __init__(self, attachment: Attached, method: Perfusion) -> None:
        super().__init__()
        base = self.base = attachment.base
        self.method, self.bias, self.temperature = method, method.bias, method.temperature
        if len(attachment.tokens) != 1:
            words = ", ".join(attachment.tokens)
            raise Refused(f'perfusion learns one new word, such as tokens={{"<biscuit>": "cat"}}; got {words}')
        ((self.word, self.noun),) = attachment.tokens.items()
        self._words = attachment.words
        self.covariance = base.covariance()
        self.category_id = only_identity(base, self.noun)
        self.register_buffer("category", _category(base, self.noun, self.category_id), persistent=False)
        self.register_buffer("anchor", self.category.clone())
        key_paths, value_paths = (set(base.roles.get(f"cross_attention.{kind}", ())) for kind in ("key", "value"))
        targets: dict[bool, list[Tensor]] = {True: [], False: []}
        with _unedited(base):
            for path, adapter in attachment.layers.items():
                assert isinstance(adapter, PerfusionAdapter)
                if path not in key_paths | value_paths:
                    raise Refused(f"perfusion edits cross_attention.key and cross_attention.value; {path} is neither")
                adapter._concept, adapter.is_key = [self], path in key_paths
                kind = targets[adapter.is_key]
                adapter.first = sum(len(each) for each in kind)
                kind.append(_without_bias(adapter.layer, self.category))
                adapter.last = adapter.first + len(kind[-1])
        if not targets[False]:
            raise Refused("perfusion learns the outputs of the values; add the role cross_attention.value")
        self.targets = nn.Parameter(torch.cat(targets[False]))
        self.key_targets = None
        if method.key_lock == "trained" and targets[True]:
            self.key_targets = nn.Parameter(torch.cat(targets[True]))
        self._solved: tuple[int, Tensor] | None = None  # the anchor's version, C^-1 i*
        self._seen: list[Tensor] = []  # encodings of the word since the last optimizer step
        self.rest()

    # --- what is saved beside the parameters --------------------------------------------------------------------------

    def facts(self) -> dict[str, str]:
        return {"covariance": self.covariance.fingerprint}

    def check(self, header: Mapping[str, str]) -> None:
        own, learned_under = self.covariance.fingerprint, header.get("covariance")
        if learned_under != own:
            raise Refused(
                f"the concept was learned under covariance {learned_under}, the base has {own}; a concept works under "
                "its own only: put that file in its place (diffadapt covariance says where), or train the concept again"
            )

    # --- training -----------------------------------------------------------------------------------------------------

    def project_(self) -> None:
        """After an optimizer step: the anchor follows the word's encodings of its batches, those of all processes."""
        seen = torch.cat([self.anchor[None, :].expand(0, -1), *self._seen])
        total = torch.cat([seen.sum(0), seen.new_full((1,), len(seen))])
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(total)
        if total[-1] > 0:
            self.anchor.mul_(self.method.ema).add_(total[:-1] / total[-1], alpha=1 - self.method.ema)
        self._seen.clear()

    def direction(self) -> Tensor:
        """C^-1 i*, (D,)."""
        if self._solved is None or self._solved[0] != self.anchor._version:
            self._solved = (self.anchor._version, self.covariance.solve(self.anchor))
        return self._solved[1].to(self.anchor.device)

    def rest(self) -> None:
        """Forgets the batch."""
        self.given = False  # whether there is a batch
        self.opened: Tensor | None = None  # (N, L, 1) strength times gate; None where no prompt has the concept
        self.shift: Tensor | None = None  # (N, L, D) what values are given beside e
        self.key_shift: Tensor | None = None  # the same of keys
        self.key_opened: Tensor | None = None  # and the gate of keys
        self.key_context: tuple[Tensor, Tensor] | None = None  # global lock: rows (N, 1, 1) and what they are given

    # --- one batch, all layers ----------------------------------------------------------------------------------------

    def places(self, ids: Tensor) -> Tensor:
        """(N, L) bool: the places of the concept's word."""
        return ids == self._words[0].first

    def edited(self, ids: Tensor) -> Tensor:
        """(N, L) bool: the places that this concept edits."""
        words = self.places(ids)
        if self.method.prompt_gate and not words.any():
            return words
        rows = words.any(1, keepdim=True) if self.method.prompt_gate else torch.ones_like(words[:, :1])
        if self.method.scope == "concept_only":
            result = words
        elif self.method.scope == "from_concept":
            result = words.long().cummax(1).values.bool()
        else:
            result = rows.expand_as(words).clone()
        start = getattr(self.base.tokenizer, "bos_token_id", None)
        if not self.method.edit_start and start is not None:
            result = result & ~((ids == start) & (torch.arange(ids.shape[1], device=ids.device) == 0))
        return result & rows

    def opening(self, r: Tensor) -> Tensor:
        """The gate at similarity r, of any shape: 0 shut, 1 open."""
        method = self.method
        if method.gate == "linear":
            return r
        bias, temperature = self.bias, self.temperature
        if self.training:
            bias, temperature = method.train_bias, method.train_temperature
        if method.gate == "hard":
            return (r > bias).to(r.dtype)
        opened = torch.sigmoid((r - bias) / temperature)
        if not method.gate_floor:
            return opened
        shut = torch.sigmoid(torch.tensor(-bias / temperature, dtype=r.dtype))
        return ((opened - shut) / (1 - shut)).clamp_min(0)

    def begin(self, side: SideInputs) -> None:
        """Computes what the layers add for one batch of prompts: `token_ids` (N, L), `text` (N, L, D)."""
        ids, text = side.token_ids, side.text
        assert ids is not None and text is not None
        self.rest()
        self.given = True
        own = self.edited(ids)
        if self.strength == 0 or not own.any():
            return
        live = [each.shared for each in self.base.attachments if each.live and isinstance(each.shared, ConceptEdit)]
        with torch.autocast(text.device.type, enabled=False):
            text = text.to(self.anchor.dtype)  # float32, whatever the base computes in
            if self.training:
                self._seen.append(text[self.places(ids)].detach())
            beside = {each: mask for each in live if each is not self and (own & (mask := each.edited(ids))).any()}
            part, r = shares(text, [self, *beside], [own, *beside.values()])
            s = self.strength
            self.opened = (s * self.opening(r) * own)[..., None]
            self.shift = -s * part[..., None] * self.anchor
            if self.method.key_lock == "global":
                self.key_context = self._global_keys(ids, text, live)
                return
            # where another concept locks the keys of the whole prompt, they are that lock's alone
            locked = torch.zeros_like(own[:, :1])
            for each in live:
                if each.method.key_lock == "global":
                    locked = locked | each.places(ids).any(1, keepdim=True)
            self.key_opened = self.opened.masked_fill(locked[..., None], 0)
            self.key_shift = self.shift.masked_fill(locked[..., None], 0)
            if self.key_targets is None:
                self.key_shift = self.key_shift + self.key_opened * self.category

    @torch.no_grad()
    def _global_keys(self, ids: Tensor, text: Tensor, live: Sequence["ConceptEdit"]) -> tuple[Tensor, Tensor]:
        """Rows with the concept, and what their keys are given: the prompt with every concept's word its category.

        Concepts of one row with such a lock make the same of it, so that their order does not matter: those whose keys
        are edited do it together, and the row has the greatest strength of them.
        """
        rows = {each: each.places(ids).any(1, keepdim=True) for each in live if each.method.key_lock == "global"}
        for each in live:
            ids = ids.masked_fill(each.places(ids), each.category_id)
        plain = context = self.base.encode_ids(ids).to(self.anchor.dtype)
        strength = plain.new_full(rows[self].shape, -torch.inf)
        edited = [each for each in rows if each.method.global_key == "edited"]
        for each in rows:
            strength = torch.where(rows[each], strength.clamp(min=each.strength), strength)
            if each in edited:
                company = [each, *(other for other in edited if other is not each)]
                part, r = shares(plain, company, [rows[one].expand_as(ids) for one in company])
                change = each.opening(r)[..., None] * each.category - part[..., None] * each.anchor
                context = context + change * rows[each][..., None]
        s = strength.masked_fill(~rows[self], 0)[..., None]  # (N, 1, 1)
        return rows[self][..., None], torch.where(s == 1, context, torch.lerp(text.detach(), context, s))


class PerfusionAdapter(Adapter):
    """One key or value projection, edited; its parameters are in the attachment's `shared`."""

    needs = frozenset({"token_ids", "text"})

    def __init__(self, layer: nn.Module, path: str) -> None:
        super().__init__(layer)
        if not isinstance(self.innermost(), nn.Linear):
            raise Refused(f"perfusion edits linear projections; {path} is a {type(self.innermost()).__name__}")
        self.path, self.is_key = path, False
        self.first, self.last = 0, 0
        self._concept: Sequence[ConceptEdit] = []  # in a list, so that it is no part of every layer's state

    @property
    def concept(self) -> ConceptEdit:
        return self._concept[0]

    def target(self) -> Tensor | None:
        """(out,) o* of this layer; None for locked keys, where it is W e_super."""
        kept = self.concept.key_targets if self.is_key else self.concept.targets
        return None if kept is None else kept[self.first : self.last]

    def forward(self, x: Tensor) -> Tensor:
        layer: nn.Module = self  # hundreds of concepts that are not in the prompts are passed over without a call
        while isinstance(layer, PerfusionAdapter):
            edit = layer._concept[0]
            if layer.strength != 0 and (edit.opened is not None or not edit.given):
                return layer.adapted(x)
            layer = layer.layer
        return layer(x)

    def adapted(self, x: Tensor) -> Tensor:
        edit = self.concept
        if edit.opened is None:
            raise Refused(f"{self.path} has no prompts yet; begin(SideInputs(token_ids=..., text=...)) comes first")
        if len(edit.opened) != len(x):
            raise Refused(f"got {len(edit.opened)} prompts for a batch of {len(x)} rows; pass one per row")
        if self.is_key and edit.key_context is not None:
            rows, context = edit.key_context
            return self.layer(torch.where(rows, context.to(x.dtype), x))
        shift, opened = (edit.key_shift, edit.key_opened) if self.is_key else (edit.shift, edit.opened)
        assert shift is not None and opened is not None
        y = self.layer((x + shift).to(x.dtype))
        target = self.target()
        return y if target is None else (y + opened * target).to(y.dtype)


class LinearPerfusionAdapter(PerfusionAdapter, Mergeable):
    """Without a gate, and everywhere, it is an edit of the weight: W + (o* - W i*) (C^-1 i*)^T / <i*, i*>."""

    def weight(self, w0: Tensor) -> Tensor:
        edit = self.concept
        w = w0.to(edit.anchor.dtype)
        direction = edit.direction()
        target = self.target()
        target = w @ edit.category if target is None else target
        change = (target - w @ edit.anchor)[:, None] * (direction / (edit.anchor @ direction))
        return (w + self.strength * change).to(w0.dtype)


@torch.no_grad()
def _category(base: Any, noun: str, identity: int) -> Tensor:
    """(D,) the encoding at the word's place, averaged over the templates."""
    prompts = [template.format(noun) for template in (WORLD_TEMPLATES if base.world else TEMPLATES)]
    ids = base.tokenize(prompts)
    text, found = base.encode_ids(ids).float(), ids == identity
    if not found.any(1).all():
        raise Refused(f"the tokenizer of {base.name!r} does not keep {noun!r} a word of its own; take another word")
    return text[found].mean(0)


@contextmanager
def _unedited(base: Any) -> Iterator[None]:
    """Within the block the concepts on the base let everything pass; afterwards they wait for their next batch."""
    concepts = [each.shared for each in base.attachments if isinstance(each.shared, ConceptEdit)]
    for each in concepts:
        each.rest()
        each.given = True
    try:
        yield
    finally:
        for each in concepts:
            each.rest()


@torch.no_grad()
def _without_bias(layer: nn.Module, e: Tensor) -> Tensor:
    """W e, through whatever stands on the layer."""
    inner = innermost(layer)
    rows = torch.stack([e, torch.zeros_like(e)]).to(inner.get_parameter("weight").dtype)
    both = layer(rows[:, None]).float()[:, 0]
    return both[0] - both[1]
