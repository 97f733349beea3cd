"""Networks whose layers have roles: what every method needs of the thing that it is attached to."""

import difflib
import math
import re
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from .errors import Refused
from .fingerprint import combined, digests

Rules = Sequence[tuple[str, str]]
"""A role table: (regular expression of a whole layer path, role) each; the first that matches counts."""


class Network:
    """Any torch modules, seen by the roles of their layers, so that methods can be attached to them.

        vit = Network({"vit": model}, [(r"vit\\..*\\.q_proj", "self_attention.query")], name="vit")
        attachment = attach(vit, LoRA(rank=4), ["self_attention.query"])

    A `Base` is one, with all that a diffusion model needs besides.

    Args:
        modules: name -> module; the paths of its layers start with the name.
        rules: the role table; layers that fit no rule have no role and are left alone.
        name: what files and messages call it.

    Attributes:
        roles: role -> paths of its layers, in the order of the rules. Paths are those of the untouched network and stay
            valid while adapters stand on the layers.
        fingerprint: a short name of the weights as given; see `fingerprint.py`.
        attachments: the attachments on it now, innermost first.
        tokenizer: None, since there are no words to learn; a `Base` with a text encoder has one.
        word_tables: role of each embedding table in which new words are learned -> where the base's pipeline has the
            tokenizer that makes its identities; several tables learn each word together.
    """

    tokenizer: Any = None
    word_tables: Mapping[str, str] = MappingProxyType({})
    world: Mapping[str, tuple[str, ...]] | None = None

    def __init__(self, modules: Mapping[str, nn.Module], rules: Rules, *, name: str) -> None:
        self.name, self._modules = name, dict(modules)
        self.attachments: list[Any] = []
        self.roles = find_roles(self._modules, rules)
        # The network's own parameters: those of adapters come later and stay trainable when it is frozen again.
        self._own = [parameter for module in self._modules.values() for parameter in module.parameters()]
        self.freeze_()
        if broken := broken_weight(self._modules):
            raise Refused(f"{broken}; copy or download {name!r} again")
        self.fingerprint = combined(self._digests())

    def _digests(self) -> dict[str, bytes]:
        """Path of every parameter -> digest of its values."""
        return digests(
            (f"{part}.{key}", value)
            for part, module in self.modules().items()
            for key, value in module.named_parameters()
        )

    def modules(self) -> Mapping[str, nn.Module]:
        """The modules whose layers have roles, by the name that paths start with."""
        return self._modules

    @property
    def device(self) -> torch.device:
        return self._own[-1].device

    @property
    def dtype(self) -> torch.dtype:
        return self._own[-1].dtype

    @property
    def side_step(self) -> int:
        """Widths and heights of its pictures are multiples of this, in pixels; 1 where nothing is known of them."""
        return 1

    # --- layers -------------------------------------------------------------------------------------------------------

    def module(self, path: str) -> nn.Module:
        """The module that stands at a path of the untouched network now: the layer, or the outermost adapter on it.

        Raises:
            Refused: there is no such path.
        """
        holder, name = self._holder(path)
        return holder.get_submodule(name)

    def replace_(self, path: str, module: nn.Module) -> None:
        """Puts a module at a path; raises Refused when there is no such path."""
        holder, name = self._holder(path)
        if not name:
            raise Refused(f"{path!r} is a whole part of base {self.name!r}; expected the path of a layer in it")
        setattr(holder, name, module)

    def _holder(self, path: str) -> tuple[nn.Module, str]:
        """The module that holds the one at a path, and its name there ("" for a whole part)."""
        part, *names = path.split(".")
        parts = self.modules()
        if part not in parts:
            raise Refused(f"no part {part!r} in base {self.name!r}; paths start with {' or '.join(parts)}")
        module = parts[part]
        holder, last = module, ""
        for name in names:
            # An adapter on a block hides the block's own layers one step further down.
            while name not in module._modules and isinstance(getattr(module, "layer", None), nn.Module):
                module = module.get_submodule("layer")
            found = module._modules.get(name)
            if found is None:
                known = [known for paths in self.roles.values() for known in paths]
                near = difflib.get_close_matches(path, known, n=1, cutoff=0.0)
                raise Refused(f"no layer {path!r} in base {self.name!r}; the nearest is {''.join(near)}")
            holder, last, module = module, name, found
        return holder, last

    def freeze_(self) -> None:
        """No parameter of the network trains; those of adapters stay as they are. All is in evaluation mode."""
        for module in self.modules().values():
            module.eval()
        for parameter in self._own:
            parameter.requires_grad_(False)

    def select(self, patterns: Sequence[str]) -> dict[str, str]:
        """The layers of the roles that match, as {path: role} in the order of the role table.

        Args:
            patterns: role names or shell patterns, for example "cross_attention.*".

        Raises:
            Refused: there is no pattern, or one matches no role; lists the roles and names the nearest.
        """
        if not patterns:
            raise Refused("no role given; expected names or patterns such as 'cross_attention.*'")
        chosen: set[str] = set()
        for pattern in patterns:
            matched = {role for role in self.roles if fnmatchcase(role, pattern)}
            if not matched:
                near = difflib.get_close_matches(pattern, self.roles, n=1, cutoff=0.0)
                raise Refused(
                    f"role {pattern!r} matches nothing on {self.name!r}; "
                    + (f"did you mean {near[0]!r}? Its roles are: " if near else "its roles are: ")
                    + ", ".join(self.roles)
                )
            chosen |= matched
        return {path: role for role, paths in self.roles.items() if role in chosen for path in paths}

    def checkpoint_gradients_(self, on: bool) -> None:
        """Raises Refused when switched on: a network computes its layers once; a `Base` may do otherwise."""
        if on:
            raise Refused(f"{self.name!r} keeps what its layers compute; train without gradient_checkpointing")

    def original_names(self) -> dict[str, str]:
        """Path of a denoiser's layer -> its name before diffusers, where files of other tools have that one."""
        return {}

    # --- the one text encoder: a network has none, some bases have several --------------------------------------------

    def tokenize(self, prompts: Sequence[str]) -> Tensor:
        """Prompts -> token ids (N, L); raises Refused where there is not one text encoder."""
        raise self._not_one_encoder()

    def encode_ids(self, ids: Tensor) -> Tensor:
        """Token ids (N, L) -> text (N, L, D); raises Refused where there is not one text encoder."""
        raise self._not_one_encoder()

    def covariance(self) -> Any:
        """The second moment of the text encoder's outputs; raises Refused where there is not one text encoder."""
        raise self._not_one_encoder()

    def _not_one_encoder(self) -> Refused:
        found = {0: "no text encoder", 2: "two text encoders"}[len(self.word_tables)]
        return Refused(f"{self.name!r} has {found}, and this works on a base with one, such as Stable Diffusion 1.x")


def find_roles(modules: Mapping[str, nn.Module], rules: Rules) -> dict[str, tuple[str, ...]]:
    """Role -> paths of its layers, in the order of the rules; roles without a layer are left out.

    A layer is a module that owns parameters itself.
    """
    found: dict[str, list[str]] = {role: [] for _, role in rules}
    for part, module in modules.items():
        for name, layer in module.named_modules():
            if not owns_parameters(layer):
                continue
            path = f"{part}.{name}" if name else part
            role = next((role for rule, role in rules if re.fullmatch(rule, path)), None)
            if role is not None:
                found[role].append(path)
    return {role: tuple(paths) for role, paths in found.items() if paths}


def owns_parameters(module: nn.Module) -> bool:
    """Whether a module has parameters of its own, not only in modules inside it."""
    return any(True for _ in module.parameters(recurse=False))


def broken_weight(parts: Mapping[str, nn.Module]) -> str:
    """The first weight that is not finite, as "unet.conv_in.bias holds values that are not numbers"; "" for none.

    Args:
        parts: name -> module; names of weights start with it. Buffers count, where files hold them.

    The smallest and the largest value of a tensor tell, without a copy of it: 0.4 s for 860 M values on one core.
    """
    for part, module in parts.items():
        for name, tensor in module.state_dict().items():
            if tensor.is_floating_point() and tensor.numel() and not all(map(math.isfinite, tensor.aminmax())):
                return f"{part}.{name} holds values that are not numbers (nan or infinity)"
    return ""
