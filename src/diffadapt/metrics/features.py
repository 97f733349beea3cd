"""Encoders chosen by name: pictures and texts -> unit rows, which the metrics of this folder read.

    probe             the encoder that ships with diffadapt; knows the embedded world, 64x64
    second            the second judge that ships with it, trained otherwise, see `second_judge.py`; subjects only
    clip:<id|folder>  a CLIP model of transformers, for example clip:openai/clip-vit-base-patch32 (CLIP-I, CLIP-T)
    dino:<id|folder>  a ViT, DINO or DINOv2 model, for example dino:facebook/dino-vits16; pictures only

Only this file loads transformers, and only for the last two. Pictures are prepared in torch.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import Refused
from ..files import read_json
from ..shapes import PREPROCESSOR
from .probe import RESOLUTION, load_probe
from .second_judge import load_second_judge

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
DINO_FAMILIES = ("vit", "dinov2", "dinov2_with_registers", "dinov3_vit")
BATCH = 64  # pictures or texts encoded at once; the result does not depend on it


class Features(ABC):
    """An encoder. `name` is the argument of `load_features`; features are computed and returned on `device`.

    Attributes:
        reads_texts: whether it has a text tower.
    """

    reads_texts = True

    def __init__(self, name: str, device: torch.device) -> None:
        self.name = name
        self.device = device

    def pictures(self, pixels: Tensor) -> Tensor:
        """pixels (N, 3, H, W) in [0, 1], any size -> unit rows (N, D), in the space of `texts` if there is one."""
        return self._encode(pixels, self._pictures)

    def subjects(self, pixels: Tensor) -> Tensor:
        """pixels (N, 3, H, W) in [0, 1] -> unit rows (N, D') for comparing subjects; `pictures` unless overridden."""
        return self.pictures(pixels)

    def maps(self, pixels: Tensor) -> list[Tensor]:
        """pixels (N, 3, H, W) in [0, 1] -> feature maps (N, C, L) of several layers, L places each: see `style.py`."""
        layers = zip(*(self._maps(part) for part in self._parts(pixels)), strict=True)
        return [torch.cat(parts).float() for parts in layers]

    def texts(self, texts: Sequence[str]) -> Tensor:
        """N texts -> unit rows (N, D) in the space of `pictures`.

        Raises:
            Refused: the encoder has no text tower.
        """
        if isinstance(texts, str) or not texts:
            raise Refused(f"texts: expected a list of one or more texts, got {texts!r}")
        parts = [self._texts(list(texts[i : i + BATCH])) for i in range(0, len(texts), BATCH)]
        return F.normalize(torch.cat(parts).float(), dim=1)

    def _encode(self, pixels: Tensor, encode: Callable[[Tensor], Tensor]) -> Tensor:
        return F.normalize(torch.cat([encode(part) for part in self._parts(pixels)]).float(), dim=1)

    def _parts(self, pixels: Tensor) -> Iterator[Tensor]:
        """Checked batches on the device."""
        if pixels.ndim != 4 or pixels.shape[1] != 3 or len(pixels) == 0 or not pixels.is_floating_point():
            raise Refused(f"pixels: expected float (N, 3, H, W) in [0, 1], got {pixels.dtype} {tuple(pixels.shape)}")
        low, high = float(pixels.min()), float(pixels.max())
        if not (low >= -0.01 and high <= 1.01):  # also true for NaN
            raise Refused(f"pixels: expected values in [0, 1], got [{low:.3g}, {high:.3g}]; rescale them")
        return (part.to(self.device, torch.float32) for part in pixels.detach().split(BATCH))

    @abstractmethod
    def _pictures(self, pixels: Tensor) -> Tensor: ...

    @abstractmethod
    def _maps(self, pixels: Tensor) -> list[Tensor]: ...

    @abstractmethod
    def _texts(self, texts: list[str]) -> Tensor: ...


class ProbeFeatures(Features):
    """The probe: `pictures` and `texts` in its joint space, `subjects` by identity, and names for what it sees."""

    def __init__(self, name: str, device: torch.device, folder: Path | None = None) -> None:
        super().__init__(name, device)
        self.probe = load_probe(folder).to(device)

    def subjects(self, pixels: Tensor) -> Tensor:
        """pixels -> unit rows (N, 128) that identify a sprite at any position and on any background."""
        return self._encode(pixels, lambda part: self._tower(part)[2])

    def probabilities(self, pixels: Tensor) -> dict[str, Tensor]:
        """pixels (N, 3, H, W) in [0, 1] -> head -> (N, labels), rows sum to 1; labels in `probe.shape.labels`."""
        parts = [self._tower(part)[0] for part in self._parts(pixels)]
        return {head: torch.cat([part[head] for part in parts]).softmax(1) for head in self.probe.shape.labels}

    def describe(self, pixels: Tensor) -> dict[str, list[str]]:
        """The most probable label of each head: head -> one label a picture.

        The heads are those of `probe.shape.labels`. For the probe that ships: object (if there are two, the left
        or upper one), second ("none" for one object), style (of the first object), background, position and size
        (meaningless for two objects).
        """
        labels = self.probe.shape.labels
        chances = self.probabilities(pixels)
        return {head: [labels[head][i] for i in rows.argmax(1).tolist()] for head, rows in chances.items()}

    def _tower(self, pixels: Tensor) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        return self.probe.image(crop_square(pixels, RESOLUTION, RESOLUTION))

    def _pictures(self, pixels: Tensor) -> Tensor:
        return self._tower(pixels)[1]

    def _maps(self, pixels: Tensor) -> list[Tensor]:
        x = (crop_square(pixels, RESOLUTION, RESOLUTION) - 0.5) * 4
        found = []
        for block in self.probe.image.trunk:
            x = block(x)
            found.append(x.flatten(2))
        return found

    def _texts(self, texts: list[str]) -> Tensor:
        return self.probe.text(self.probe.tokenize(texts).to(self.device))


class SecondFeatures(Features):
    """The second judge: rows that identify a sprite wherever it stands, by another network than the probe's."""

    reads_texts = False

    def __init__(self, name: str, device: torch.device, folder: Path | None = None) -> None:
        super().__init__(name, device)
        self.judge = load_second_judge(folder).to(device)

    def _pictures(self, pixels: Tensor) -> Tensor:
        return self.judge(crop_square(pixels, RESOLUTION, RESOLUTION))

    def _maps(self, pixels: Tensor) -> list[Tensor]:
        x, found = (crop_square(pixels, RESOLUTION, RESOLUTION) - 0.5) * 4, []
        for block in self.judge.trunk:
            x = block(x)
            found.append(x.flatten(2))
        return found

    def _texts(self, texts: list[str]) -> Tensor:
        raise Refused("second reads subjects only; for text alignment use 'probe' or 'clip:<hub id or folder>'")


class CLIPFeatures(Features):
    """CLIP: Radford et al. (2021). `pictures` gives CLIP-I's features, with `texts` CLIP-T."""

    def __init__(self, name: str, device: torch.device, source: str) -> None:
        super().__init__(name, device)
        from transformers import AutoTokenizer, CLIPModel

        self.model = _load(name, source, CLIPModel, ("clip",)).to(device)
        self.tokenizer = _guard(name, lambda: AutoTokenizer.from_pretrained(source))
        side = self.model.config.vision_config.image_size
        self.prepare = _Preparation(source, side, side, CLIP_MEAN, CLIP_STD)

    def _pictures(self, pixels: Tensor) -> Tensor:
        return self.model.visual_projection(self.model.vision_model(pixel_values=self.prepare(pixels)).pooler_output)

    def _maps(self, pixels: Tensor) -> list[Tensor]:
        seen = self.model.vision_model(pixel_values=self.prepare(pixels), output_hidden_states=True).hidden_states
        return [layer[:, 1:].mT for layer in seen[1:]]  # without the class token

    def _texts(self, texts: list[str]) -> Tensor:
        length = self.model.config.text_config.max_position_embeddings
        tokens = self.tokenizer(texts, padding=True, truncation=True, max_length=length, return_tensors="pt")
        hidden = self.model.text_model(
            input_ids=tokens.input_ids.to(self.device), attention_mask=tokens.attention_mask.to(self.device)
        )
        return self.model.text_projection(hidden.pooler_output)


class DINOFeatures(Features):
    """DINO (Caron et al., 2021) and its followers: the class token of the last layer; no text tower."""

    reads_texts = False

    def __init__(self, name: str, device: torch.device, source: str) -> None:
        super().__init__(name, device)
        from transformers import AutoModel

        self.model = _load(name, source, AutoModel, DINO_FAMILIES).to(device)
        # A ViT reads only the size it was trained on; DINOv2 and later are used at 224 regardless.
        side = _side(name, self.model.config.image_size) if self.model.config.model_type == "vit" else 224
        self.prepare = _Preparation(source, side, round(side * 256 / 224), IMAGENET_MEAN, IMAGENET_STD)

    def _pictures(self, pixels: Tensor) -> Tensor:
        return self.model(pixel_values=self.prepare(pixels)).last_hidden_state[:, 0]

    def _maps(self, pixels: Tensor) -> list[Tensor]:
        seen = self.model(pixel_values=self.prepare(pixels), output_hidden_states=True).hidden_states
        registers = 1 + getattr(self.model.config, "num_register_tokens", 0)
        return [layer[:, registers:].mT for layer in seen[1:]]

    def _texts(self, texts: list[str]) -> Tensor:
        raise Refused(f"{self.name} reads pictures only; for text alignment use 'probe' or 'clip:<hub id or folder>'")


def load_features(name: str, *, device: str | torch.device = "cpu") -> Features:
    """Loads an encoder by name.

    Args:
        name: "probe", "second", "clip:<hub id or folder>" or "dino:<hub id or folder>".
        device: of the encoder and its features.

    Raises:
        Refused: an unknown name, or a model that cannot be loaded, is of another kind or is not in safetensors.
    """
    device = torch.device(device)
    kind, _, source = name.partition(":")
    if name == "probe":
        return ProbeFeatures(name, device)
    if name == "second":
        return SecondFeatures(name, device)
    if kind == "clip" and source:
        return CLIPFeatures(name, device, source)
    if kind == "dino" and source:
        return DINOFeatures(name, device, source)
    raise Refused(
        f"unknown features {name!r}; expected 'probe', 'second', 'clip:<hub id or folder>' (for example "
        "clip:openai/clip-vit-base-patch32) or 'dino:<hub id or folder>' (for example dino:facebook/dino-vits16)"
    )


def crop_square(pixels: Tensor, resize: int, crop: int) -> Tensor:
    """Shorter side to `resize` (bicubic, antialiased, clamped to [0, 1]), then the centre `crop` x `crop` pixels."""
    height, width = pixels.shape[-2:]
    scale = resize / min(height, width)
    size = (max(crop, round(height * scale)), max(crop, round(width * scale)))
    if size != (height, width):
        pixels = F.interpolate(pixels, size, mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
    top, left = (size[0] - crop) // 2, (size[1] - crop) // 2
    return pixels[..., top : top + crop, left : left + crop]


class _Preparation:
    """Resize, crop and normalise as the model's preprocessor_config.json says, or by the family's defaults."""

    def __init__(self, source: str, crop: int, resize: int, mean: Sequence[float], std: Sequence[float]) -> None:
        from transformers.utils.hub import cached_file

        path = cached_file(source, "preprocessor_config.json", _raise_exceptions_for_missing_entries=False)
        facts = read_json(path, PREPROCESSOR) if path else {}
        size = facts.get("size") or {}
        side = facts.get("crop_size") if facts.get("do_center_crop", True) else None
        self.crop = _side(source, (side.get("height", crop) if isinstance(side, dict) else side) or crop)
        edge = size.get("shortest_edge", size.get("height")) if isinstance(size, dict) else size
        self.resize = _side(source, edge or resize)
        self.mean = torch.tensor(facts.get("image_mean", mean), dtype=torch.float32).view(3, 1, 1)
        self.std = torch.tensor(facts.get("image_std", std), dtype=torch.float32).view(3, 1, 1)

    def __call__(self, pixels: Tensor) -> Tensor:
        square = crop_square(pixels, max(self.resize, self.crop), self.crop)
        return (square - self.mean.to(pixels)) / self.std.to(pixels)


def _side(name: str, side: Any) -> int:
    if not isinstance(side, int) or side < 1:
        raise Refused(f"{name} is for pictures of {side!r:.60} pixels; expected one number from 1 up, a square")
    return side


def _guard(name: str, load: Any) -> Any:
    try:
        return load()
    except Exception as error:  # transformers has a class for most of what can be wrong
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise Refused(
            f"cannot load {name} ({reason}); expected a folder or hub id with config.json and model.safetensors. "
            "Check the name and the network (HF_HUB_OFFLINE), or use the features 'probe'"
        ) from error


def _load(name: str, source: str, model_class: Any, families: Sequence[str]) -> Any:
    from transformers import AutoConfig

    config = _guard(name, lambda: AutoConfig.from_pretrained(source))
    if config.model_type not in families:
        raise Refused(f"{name} is a {config.model_type!r} model; expected one of {', '.join(families)}")
    # Weights in pickle files can run code when opened: only safetensors.
    model = _guard(name, lambda: model_class.from_pretrained(source, use_safetensors=True, dtype=torch.float32))
    return model.eval().requires_grad_(False)
