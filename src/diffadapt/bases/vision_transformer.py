"""Vision transformers as bases, for classification: transformers' ViT with the same words for its layers' roles.

base = load_vision_transformer("embedded")
attachment = attach(base, CLoRA(rank=16))            # queries, keys and values of all blocks
features = base.features(pixels)
"""

from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import Refused
from ..files import load_tensors, read_json
from .fingerprint import combined, digests
from .quiet import quiet

EMBEDDED = Path(__file__).parent / "embedded_vision"  # config.json and model.safetensors, in transformers' format
ROLE_OF = {
    "attention.attention.query": "self_attention.query",
    "attention.attention.key": "self_attention.key",
    "attention.attention.value": "self_attention.value",
    "attention.output.dense": "self_attention.out",
    "attention.q_proj": "self_attention.query",
    "attention.k_proj": "self_attention.key",
    "attention.v_proj": "self_attention.value",
    "attention.o_proj": "self_attention.out",
    "intermediate.dense": "feed_forward.in",
    "output.dense": "feed_forward.out",
    "mlp.fc1": "feed_forward.in",
    "mlp.fc2": "feed_forward.out",
    "layernorm_before": "norm",
    "layernorm_after": "norm",
    "layernorm": "norm",
    "embeddings.patch_embeddings.projection": "input.conv",
}  # the end of a layer's path -> its role; transformers renamed some between versions


class VisionTransformer:
    """A pretrained ViT that pictures go into and one feature a picture comes out of.

    Attributes:
        name: as it was loaded.
        model: transformers' ViTModel, frozen.
        roles: role -> paths of its layers.
        attachments: what stands on it, innermost first.
        fingerprint: of its weights.
        resolution: side of the pictures in pixels.
        width: numbers in a feature.
    """

    tokenizer: Any = None
    world: Any = None

    def __init__(self, model: nn.Module, name: str) -> None:
        self.model, self.name = model.eval().requires_grad_(False), name
        self.config: Any = model.config
        self.attachments: list[Any] = []
        self.roles = roles_of(model)
        self.fingerprint = combined(digests(model.named_parameters()))
        self.resolution, self.width = int(self.config.image_size), int(self.config.hidden_size)
        self._own = list(model.parameters())

    def __repr__(self) -> str:
        return f"VisionTransformer({self.name!r}, {self.resolution} px, {self.fingerprint})"

    def features(self, pixels: Tensor) -> Tensor:
        """pixels (N, 3, H, W) in [0, 1] -> the class token of the last layer (N, width)."""
        side = self.resolution
        if pixels.shape[-2:] != (side, side):
            pixels = F.interpolate(pixels, (side, side), mode="bilinear", antialias=True, align_corners=False)
        return self.model(pixel_values=(pixels - 0.5) / 0.5).last_hidden_state[:, 0]

    def tokens(self, pixels: Tensor) -> Tensor:
        """pixels (N, 3, H, W) in [0, 1] -> all tokens of the last layer (N, L, width), the class token first."""
        return self.model(pixel_values=(pixels - 0.5) / 0.5).last_hidden_state

    # --- what attach needs --------------------------------------------------------------------------------------------

    def module(self, path: str) -> nn.Module:
        """The module at a path now: the layer, or the outermost adapter on it."""
        try:
            return self.model.get_submodule(path)
        except AttributeError as error:
            raise Refused(f"no layer {path!r} in {self.name!r}") from error

    def replace_(self, path: str, module: nn.Module) -> None:
        """Puts a module at a path."""
        holder, _, name = path.rpartition(".")
        setattr(self.model.get_submodule(holder), name, module)

    def select(self, patterns: Sequence[str]) -> dict[str, str]:
        """{path: role} of the roles that match; raises Refused when a pattern matches none."""
        chosen: set[str] = set()
        for pattern in patterns:
            matched = {role for role in self.roles if fnmatchcase(role, pattern)}
            if not matched:
                raise Refused(f"role {pattern!r} matches nothing on {self.name!r}; it has {', '.join(self.roles)}")
            chosen |= matched
        if not chosen:
            raise Refused("no role given; expected names or patterns such as 'self_attention.*'")
        return {path: role for role, paths in self.roles.items() if role in chosen for path in paths}

    def freeze_(self) -> None:
        """No parameter of the base trains; those of adapters stay as they are."""
        self.model.eval()
        for parameter in self._own:
            parameter.requires_grad_(False)

    def covariance(self) -> Any:
        raise Refused(f"{self.name!r} has no text encoder")

    def tokenize(self, prompts: Sequence[str]) -> Tensor:
        raise Refused(f"{self.name!r} reads pictures, no prompts")

    def encode_ids(self, ids: Tensor) -> Tensor:
        raise Refused(f"{self.name!r} reads pictures, no prompts")


def roles_of(model: nn.Module) -> dict[str, tuple[str, ...]]:
    """The role table of a ViT.

    Raises:
        Refused: it has no attention that we know.
    """
    found: dict[str, list[str]] = {role: [] for role in dict.fromkeys(ROLE_OF.values())}
    for path, module in model.named_modules():
        if not isinstance(module, nn.Linear | nn.Conv2d | nn.LayerNorm):
            continue
        role = next((role for end, role in ROLE_OF.items() if path == end or path.endswith(f".{end}")), None)
        if role:
            found[role].append(path)
    if not found["self_attention.query"]:
        raise Refused("the model has no self-attention that we know; expected transformers' ViT")
    return {role: tuple(paths) for role, paths in found.items() if paths}


def load_vision_transformer(name: str = "embedded", *, device: str | torch.device = "cpu") -> VisionTransformer:
    """Loads a ViT.

    Args:
        name: "embedded", the small one that ships with diffadapt; a hub id or a folder of transformers' ViT.
        device: where it computes.

    Raises:
        Refused: it cannot be had, or is no ViT.
    """
    from transformers import AutoConfig, ViTConfig, ViTModel

    if name == "embedded":
        model = ViTModel(ViTConfig(**read_json(EMBEDDED / "config.json")), add_pooling_layer=False)
        tensors, _ = load_tensors(EMBEDDED / "model.safetensors")
        model.load_state_dict({key: value.float() for key, value in tensors.items()})
        return VisionTransformer(model.to(device), name)
    try:
        with quiet():
            config = AutoConfig.from_pretrained(name)
            if config.model_type != "vit":
                raise Refused(f"{name} is a {config.model_type!r} model; expected transformers' ViT")
            model = ViTModel.from_pretrained(name, add_pooling_layer=False, use_safetensors=True, dtype=torch.float32)
    except (OSError, ValueError, KeyError, ImportError) as error:
        if isinstance(error, Refused):
            raise
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise Refused(
            f"cannot load {name} ({reason}); expected a folder or hub id with config.json and model.safetensors, or "
            "'embedded'"
        ) from error
    return VisionTransformer(model.to(device), name)
