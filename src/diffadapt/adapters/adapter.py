"""The contract between a method, the layers it adapts and the attachment that owns them.

A method is a frozen config (`Method`) that builds one `Adapter` per layer. An adapter wraps its layer and stands in
its place in the module tree: `forward` is the cheapest way to compute the adapted output, and a `Mergeable` adapter
also states the adapted weight. A contract test holds the two against each other for every method.

`forward` never writes state. What changes state is a verb that the recipe calls: `receive()` before a step or a
generation, `project_()` after the optimizer step, `fold_()` at the end of a task of a sequence.

Everything that others need to know of a method is a fact of its class (`title`, `recipes`, `needs_word`, ...), so that
no list of methods exists anywhere but in `methods.py`.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from ..conditioning import Conditioning
from ..config import Settings
from ..errors import Refused


@dataclass(frozen=True, kw_only=True)
class SideInputs(Conditioning):
    """Inputs of one batch that adapters can request besides x; an adapter names the fields it `needs`.

    They are the conditioning of all rows, unconditional ones included, and:

    Args:
        timesteps: (N,) the noise level of each row, in training steps of the base's schedule.
        task: index of the task in a sequence.
    """

    timesteps: Tensor | None = None
    task: int | None = None

    @classmethod
    def of(cls, condition: Conditioning, *, timesteps: Tensor | None = None, task: int | None = None) -> "SideInputs":
        """The side inputs of rows with this conditioning."""
        fields_of = {field.name: getattr(condition, field.name) for field in fields(Conditioning)}
        return cls(**fields_of, timesteps=timesteps, task=task)


SIDE_INPUTS = frozenset(field.name for field in fields(SideInputs))


class Adapter(nn.Module, ABC):
    """One adapted layer. `layer` is the base's, or another adapter on it, and frozen; all else trains and is saved.

    `strength` is 1 as trained and 0 for the base, bit for bit; each method defines the values between so that its own
    invariant holds at every strength.
    """

    needs: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer
        self.strength = 1.0

    def forward(self, x: Tensor) -> Tensor:
        """The layer's output, adapted: (..., in) -> (..., out), or (N, C, H, W) for convolutions."""
        return self.adapted(x) if self.strength != 0 else self.layer(x)

    @abstractmethod
    def adapted(self, x: Tensor) -> Tensor:
        """`forward` at a strength other than 0."""

    def put_on_(self, layer: nn.Module) -> None:
        """Takes the layer to stand on: the base's, or the outermost adapter on it.

        Raises:
            Refused: the adapter cannot stand on another one.
        """
        self.layer = layer

    def receive(self, side: SideInputs) -> None:
        """Takes the side inputs named in `needs`; called once per training step and once per generation."""

    def penalty(self) -> Tensor | None:
        """A scalar that training adds to the loss, or None; computed outside autocast.

        Where the gradient is known in closed form, return the result of a `torch.autograd.Function` that states it.
        """
        return None

    def project_(self) -> None:
        """Moves the parameters back to where the method allows them; called after each optimizer step."""

    def observe_(self, x: Tensor) -> None:
        """Takes in an input of the layer while the attachment is observing; nothing, unless the method asks for it."""

    def observe_gradient_(self, x: Tensor, gradient: Tensor) -> None:
        """The same of an input with the gradient of the loss with respect to the layer's output."""

    def fold_(self, generator: torch.Generator) -> None:
        """Ends a task of a sequence; `generator` draws the next start. Unless overridden, training just goes on."""

    def make_room_(self, tensors: Mapping[str, Tensor]) -> None:
        """Before saved values are copied in: takes the shape that a file's tensors of this layer have, if it varies."""

    def own_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """(name, parameter) of what this adapter trains, the wrapped layer's left out."""
        return ((n, p) for n, p in self.named_parameters() if not n.startswith("layer."))

    def own_state(self) -> dict[str, Tensor]:
        """The tensors to save: parameters and persistent buffers without the wrapped layer's."""
        return {n: t for n, t in self.state_dict().items() if not n.startswith("layer.")}

    def innermost(self) -> nn.Module:
        """The base's own layer under all adapters."""
        layer = self.layer
        while isinstance(layer, Adapter):
            layer = layer.layer
        return layer


class Mergeable(Adapter):
    """An adapter whose effect is a change of the weight, the same for every input."""

    @abstractmethod
    def weight(self, w0: Tensor) -> Tensor:
        """The adapted weight at the current strength, for a layer whose weight is `w0`, in w0's shape."""

    def bias(self, b0: Tensor | None) -> Tensor | None:
        """The adapted bias at the current strength."""
        return b0


class Shared(nn.Module):
    """State that all adapters of one attachment use, for methods that need it; its parameters train and are saved."""

    strength = 1.0

    def project_(self) -> None:
        """Called after each optimizer step, as an adapter's."""

    def facts(self) -> dict[str, str]:
        """Entries of a file's header besides the method's settings."""
        return {}

    def check(self, header: Mapping[str, str]) -> None:
        """Raises Refused when a file's header does not fit what is here."""


class GatedConcept(Shared):
    """The shared state of one concept that a gate lets through, more or less as a user wants it when sampling.

    Attributes:
        word: the concept's new word.
        bias: threshold of the gate; set it at any time. Less shows more of the concept.
    """

    word: str
    bias: float


class Attached(Protocol):
    """The attachment of a method's adapters, as the method sees it; `attach.Attachment` is one."""

    base: Any
    method: "Method"
    tokens: dict[str, str]
    adapters: dict[str, Adapter]
    shared: Shared | None

    @property
    def layers(self) -> dict[str, Adapter]: ...
    @property
    def words(self) -> Any: ...
    @property
    def is_merged(self) -> bool: ...
    def observing(self) -> Any: ...


@dataclass(frozen=True, kw_only=True)
class Method(Settings, ABC):
    """A method's settings, what it is, and how it builds the adapter of one layer.

    Attributes:
        name: what files and the command line call it.
        title: what reports call it.
        recipes: names of the recipes that train it, see `diffadapt list recipes`.
        needs_word: it learns a new word, and cannot be attached without one.
        replaces_noun: its new word stands for the class noun ("a <biscuit>") instead of before it ("a <biscuit> cat").
        words_only: it trains new words and adapts no layer.
        merges: its change can be written into the base's weights.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    recipes: ClassVar[tuple[str, ...]] = ("subject", "control", "style")
    needs_word: ClassVar[bool] = False
    replaces_noun: ClassVar[bool] = False
    words_only: ClassVar[bool] = False
    merges: ClassVar[bool] = True

    def summary(self) -> str:
        """The title and the settings that matter most, as reports show them: "LoRA, rank 4"."""
        return self.title

    def observes(self) -> str:
        """Statistics needed at a task's end, inside `attachment.observing()`: "inputs", "gradients", or "" for none."""
        return ""

    def vectors_per_word(self) -> int:
        """Rows of the embedding table that each new word takes."""
        return 1

    def meaning(self, path: str) -> Mapping[str, Any]:
        """Settings by name without which the values of the layer at `path` mean something else, beside their shapes."""
        return {}

    def default_roles(self, known: Iterable[str]) -> list[str]:
        """The roles to adapt when the user names none; `known` are the base's. The denoiser's attention."""
        return [role for role in known if role.startswith(("self_attention.", "cross_attention."))]

    def adapts(self, layer: nn.Module) -> bool:
        """Whether this method has something to change in such a layer; others are passed over when roles are broad."""
        return isinstance(layer, nn.Linear | nn.Conv2d)

    @abstractmethod
    def build(self, layer: nn.Module, path: str, role: str, generator: torch.Generator) -> Adapter:
        """The adapter of one layer.

        Args:
            layer: the base's layer, or another adapter on it.
            path: the layer's path in the base, such as "unet.conv_in".
            role: the layer's role, such as "cross_attention.key".
            generator: the only source of randomness.

        Raises:
            Refused: the settings do not fit the layer; names `path`.
        """

    def settle(self, attachment: "Attached") -> Shared | None:
        """Makes what the adapters share; called once, when all are built and know the layers that they stand on.

        Raises:
            Refused: the settings do not fit the base or its tokens.
        """

    def share(self, attachment: "Attached", side: SideInputs) -> None:
        """Computes once what all layers need; called once per training step and once per generation."""

    def notes(self, attachment: "Attached") -> Mapping[str, float]:
        """Numbers of the step just done for the run's log, by name; called after the optimizer step."""
        return {}


def effective_weight(layer: nn.Module, w0: Tensor | None = None) -> Tensor:
    """The weight that a layer computes with, the adapters on it included.

    Args:
        layer: a layer, or the outermost adapter on one.
        w0: what stands for the innermost layer's own weight, for example that weight in float32; None means itself.

    Raises:
        Refused: an adapter on the layer depends on the input, so that no such weight exists.
    """
    if not isinstance(layer, Adapter):
        weight = layer.weight if w0 is None else w0
        assert isinstance(weight, Tensor)
        return weight
    if not isinstance(layer, Mergeable):
        raise Refused(f"{type(layer).__name__} depends on its input and has no merged weight; sample with it attached")
    inner = effective_weight(layer.layer, w0)
    return layer.weight(inner) if layer.strength != 0 else inner


def effective_bias(layer: nn.Module) -> Tensor | None:
    """The bias that a layer computes with, the adapters on it included; None where there is none."""
    if not isinstance(layer, Mergeable):
        return getattr(layer, "bias", None)
    inner = effective_bias(layer.layer)
    return layer.bias(inner) if layer.strength != 0 else inner
