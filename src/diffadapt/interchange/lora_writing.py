"""Writes LoRA in one file, as the readers of its base expect it.

For UNets as kohya's scripts do, which ComfyUI, the A1111 family, sd-scripts and diffusers read:

    lora_unet_<path with underscores>.lora_down.weight    (r, in) or (r, in, kh, kw)
    the same                         .lora_up.weight      (out, r) or (out, r, 1, 1)
    the same                         .alpha               one number; the update is alpha / r times the product
    the same                         .dora_scale          of DoRA (out, 1) or (out, 1, 1, 1), the neurons' norms

For transformers as diffusers does, with alpha / r in the second matrix:

    transformer.<path>.lora_A.weight    (r, in)           .lora_B.weight    (out, r)

An adapter of another method whose effect is a change of the weight is brought to low rank: the r largest singular
values of W' - W of every layer, which is the nearest matrix of that rank (Eckart and Young 1936). What is lost is said.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..adapters import Attachment, DoRA, LoRA, Mergeable
from ..adapters.dora import DoRAAdapter
from ..adapters.lora import LoRAAdapter, LowRank
from ..errors import Refused
from ..files import save_tensors, write_json
from ..progress import Steps
from .names import has_two_encoders, kohya_name

_NOT_IN_SD_SCRIPTS = ("unet.conv_in", "unet.conv_out", "unet.time_embedding.")
_DORA = (
    "dora_scale is LyCORIS', whose tools read it exactly; ComfyUI (0.3) divides by the norms of the untouched weights, "
    "and diffusers (0.42) and sd-scripts leave it out: for those use --to diff, which is exact"
)
_NOTHING = "this adapter changes nothing at strength {:g}; there is nothing to write"


@dataclass
class Pair:
    """The update of one layer: alpha / r times up (out, r) by down (r, in, ...), and DoRA's magnitude (out,)."""

    path: str
    down: Tensor
    up: Tensor
    alpha: float
    magnitude: Tensor | None = None

    def shaped(self) -> tuple[Tensor, Tensor]:
        """(down, up) with the up matrix of a convolution as a 1x1 convolution."""
        return self.down, self.up[:, :, None, None] if self.down.ndim == 4 else self.up


@torch.no_grad()
def write_lora(
    attachment: Attachment, out: Path, dtype: torch.dtype, rank: int | None, *, progress: bool = False
) -> tuple[list[Path], list[str]]:
    """Writes an attachment at its present strength in one file; returns the file and what is to be said about it.

    Raises:
        Refused: the adapter is no LoRA and no rank is given, or it changes what no LoRA can hold.
    """
    pairs, notes = pairs_of(attachment, rank, progress=progress)
    if not pairs:
        return [], []
    if "unet" not in attachment.base.modules():
        return [save_tensors(out, _as_diffusers(pairs, dtype), {"format": "pt"})], notes
    alphas = Counter(pair.alpha for pair in pairs)
    if len(alphas) > 1:  # diffusers (0.42) takes the alphas of attention layers for those of none, and uses one for all
        alpha = alphas.most_common(1)[0][0]
        pairs = [replace(pair, up=pair.up * (pair.alpha / alpha), alpha=alpha) for pair in pairs]
        notes.append(
            f"its alphas differ by layer, which diffusers overlooks; all are written as {alpha:g}, and lora_up is "
            "multiplied by what they differ"
        )
    tensors: dict[str, Tensor] = {}
    for pair in pairs:
        down, up = pair.shaped()
        name = kohya_name(pair.path, of_two=has_two_encoders(attachment.base))
        tensors |= {f"{name}.lora_down.weight": down.to(dtype), f"{name}.lora_up.weight": up.to(dtype)}
        tensors[f"{name}.alpha"] = torch.tensor(pair.alpha)
        if pair.magnitude is not None:
            tensors[f"{name}.dora_scale"] = pair.magnitude.view(-1, *[1] * (pair.down.ndim - 1))
    if isinstance(attachment.method, DoRA) and rank is None:
        notes.append(_DORA)
    passed_over = [pair.path for pair in pairs if pair.path.startswith(_NOT_IN_SD_SCRIPTS)]
    if passed_over:
        notes.append(
            f"sd-scripts passes over {len(passed_over)} of its {len(pairs)} layers ({', '.join(passed_over[:3])}): it "
            "knows no LoRA of conv_in, conv_out and the time embedding; ComfyUI and diffusers read them"
        )
    return [save_tensors(out, tensors, _header(attachment, pairs, out.stem))], notes


def _as_diffusers(pairs: list[Pair], dtype: torch.dtype) -> dict[str, Tensor]:
    """The tensors of a file for a transformer."""
    tensors: dict[str, Tensor] = {}
    for pair in pairs:
        if pair.magnitude is not None:
            raise Refused(f"diffusers reads no DoRA of {pair.path} from one file; use --to peft, which is exact")
        (down, up), scale = pair.shaped(), pair.alpha / len(pair.down)
        tensors |= {f"{pair.path}.lora_A.weight": down.to(dtype), f"{pair.path}.lora_B.weight": (scale * up).to(dtype)}
    return tensors


@torch.no_grad()
def write_peft_lora(attachment: Attachment, out: Path, config_file: str, tensor_file: str) -> list[Path]:
    """Writes an attachment of LoRA or DoRA at its present strength as PEFT directories; returns them."""
    method = attachment.method
    assert isinstance(method, LoRA | DoRA)
    parts: dict[str, list[Pair]] = defaultdict(list)
    for pair in pairs_of(attachment, None)[0]:
        parts[pair.path.partition(".")[0]].append(pair)
    folders = []
    for part, own in parts.items():
        folder = out if part == "unet" else out / part
        tensors: dict[str, Tensor] = {}
        for pair in own:
            (down, up), name = pair.shaped(), pair.path.partition(".")[2]
            prefix = f"base_model.model.{name}"
            tensors |= {f"{prefix}.lora_A.weight": down, f"{prefix}.lora_B.weight": up}
            if pair.magnitude is not None:
                shaped = pair.magnitude[None, :, None, None] if down.ndim == 4 else pair.magnitude
                tensors[f"{prefix}.lora_magnitude_vector"] = shaped
        save_tensors(folder / tensor_file, tensors, {"format": "pt"})
        write_json(folder / config_file, _peft_config(own, method.dropout, attachment.base.name))
        folders.append(folder)
    return folders


def pairs_of(attachment: Attachment, rank: int | None, *, progress: bool = False) -> tuple[list[Pair], list[str]]:
    """The pairs of all layers whose update is not zero, with the strength in them, and notes on what they lose."""
    layers = attachment.layers.items()
    lora = all(isinstance(each, LoRAAdapter | DoRAAdapter) for _, each in layers)
    if lora and rank is None:
        found = [(path, each) for path, each in layers if isinstance(each, LowRank)]
        pairs = [_pair(path, each) for path, each in found if _changes_something(each)]
        if not pairs and not attachment.tokens:
            raise Refused(_NOTHING.format(attachment.strength))
        return pairs, []
    if rank is None:
        raise Refused(
            f"this adapter is {attachment.method.name}, not a LoRA; give the rank to reduce it to with --rank "
            "(what is lost is said), or use --to diff, which is exact"
        )
    return _nearest(attachment, rank, progress)


def _pair(path: str, adapter: LowRank) -> Pair:
    """The pair of one layer with the strength in it."""
    magnitude = adapter.magnitude_now() if isinstance(adapter, DoRAAdapter) else None
    return Pair(path, adapter.down.detach(), adapter.strength * adapter.up.detach(), adapter.alpha, magnitude)


def _changes_something(adapter: LowRank) -> bool:
    turned = bool((adapter.scale * adapter.strength * adapter.up).any() and adapter.down.any())
    return turned or isinstance(adapter, DoRAAdapter) and adapter.scales()


def _nearest(attachment: Attachment, rank: int, progress: bool) -> tuple[list[Pair], list[str]]:
    """The nearest pairs of a rank, and how near they are."""
    if rank < 1:
        raise Refused(f"rank: expected a whole number from 1 up, got {rank}")
    pairs, worst, left_out, whole = [], (0.0, ""), 0.0, 0.0
    with Steps(f"rank {rank}", len(attachment.layers), quiet=not progress) as bar:
        for path, change in _changes(attachment):
            bar.advance()
            size = float(change.square().sum())
            if size == 0:
                continue
            u, s, v = torch.linalg.svd(change.flatten(1), full_matrices=False)
            r = min(rank, len(s))
            root = s[:r].sqrt()
            down = (root[:, None] * v[:r]).reshape(r, *change.shape[1:])
            pairs.append(Pair(path, down, u[:, :r] * root, float(r)))
            missing = float(s[r:].square().sum())
            left_out, whole = left_out + missing, whole + size
            worst = max(worst, ((missing / size) ** 0.5, path))
    if not pairs:
        raise Refused(_NOTHING.format(attachment.strength))
    note = (
        f"{attachment.method.name} brought to rank {rank}: what is written differs from the change of the weights by "
        f"{(left_out / whole) ** 0.5:.2g} of its size (Frobenius norm over all layers), at most by {worst[0]:.2g} "
        f"({worst[1]}); --to diff is exact"
    )
    return pairs, [note]


def _changes(attachment: Attachment) -> Iterator[tuple[str, Tensor]]:
    """(path, W' - W in float32) of every layer.

    Raises:
        Refused: a change that is none of a matrix.
    """
    for path, adapter in attachment.layers.items():
        if not isinstance(adapter, Mergeable):
            raise Refused(
                f"{type(adapter).__name__} on {path} depends on its input, so that no LoRA is near it; use it in "
                "diffadapt"
            )
        layer = adapter.innermost()
        bias = getattr(layer, "bias", None)
        if isinstance(bias, Tensor) and not torch.equal(_after(adapter, bias), bias.float()):
            raise Refused(f"this adapter changes the bias of {path}, which a LoRA cannot hold; use --to diff")
        weight = layer.get_parameter("weight").detach().float()
        change = adapter.weight(weight) - weight
        if not isinstance(layer, nn.Linear | nn.Conv2d):
            if change.any():
                raise Refused(
                    f"this adapter changes {path}, a {type(layer).__name__}, which a LoRA cannot hold; use --to diff"
                )
            continue
        yield path, change


def _after(adapter: Mergeable, bias: Tensor) -> Tensor:
    after = adapter.bias(bias.float())
    return bias.float() if after is None else after


def _header(attachment: Attachment, pairs: list[Pair], title: str) -> dict[str, str]:
    """The entries that sd-scripts and the web UIs look for (its minimum), and those of the model specification."""
    base = attachment.base
    unet: Any = base.modules()["unet"]
    second = unet.config.cross_attention_dim == 1024  # 768 in 1.x, 2048 in XL
    xl = has_two_encoders(base)
    velocity = getattr(base, "prediction_type", "epsilon") == "v_prediction"
    kind = "xl-v1-base" if xl else "v2-768-v" if second and velocity else "v2-512" if second else "v1"
    side = getattr(base, "resolution", 512)

    def same(values: set[Any]) -> str:
        return f"{next(iter(values)):g}" if len(values) == 1 else "Dynamic"

    wide = [pair for pair in pairs if pair.down.ndim == 4 and pair.down.shape[-1] > 1]
    narrow = [pair for pair in pairs if pair not in wide] or pairs
    arguments = {}
    if wide:
        arguments = {"conv_dim": same({len(p.down) for p in wide}), "conv_alpha": same({p.alpha for p in wide})}
    header = {
        "ss_v2": str(second),
        "ss_base_model_version": "sdxl_base_v1-0" if xl else "sd_v2" if second else "sd_v1",
        "ss_network_module": "networks.lora",
        "ss_network_dim": same({len(pair.down) for pair in narrow}),
        "ss_network_alpha": same({pair.alpha for pair in narrow}),
        "ss_network_args": json.dumps(arguments),
        "ss_sd_model_name": base.name,
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": f"stable-diffusion-{kind}/lora",
        "modelspec.implementation": "https://github.com/Stability-AI/generative-models",
        "modelspec.title": title,
        "modelspec.resolution": f"{side}x{side}",
        "modelspec.prediction_type": "v" if velocity else "epsilon",
        "format": "pt",
    }
    if attachment.tokens:
        header["modelspec.trigger_phrase"] = ", ".join(attachment.tokens)
    return header


def _peft_config(pairs: list[Pair], dropout: float, base: str) -> dict[str, Any]:
    """PEFT's config of one part: rank and alpha of its first layer, and patterns for those that differ."""
    first, names = pairs[0], {pair.path: pair.path.partition(".")[2] for pair in pairs}
    rank, alpha = len(first.down), first.alpha
    return {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": base,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {names[p.path]: len(p.down) for p in pairs if len(p.down) != rank},
        "alpha_pattern": {names[p.path]: p.alpha for p in pairs if p.alpha != alpha},
        "lora_dropout": dropout,
        "target_modules": list(names.values()),
        "use_rslora": False,
        "use_dora": first.magnitude is not None,
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
    }
