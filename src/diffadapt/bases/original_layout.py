"""A base as one .safetensors file in the layout of the original Stable Diffusion 1.x checkpoints, and its names.

    unet            model.diffusion_model.input_blocks.1.1.transformer_blocks.0. ...
    vae             first_stage_model.encoder.down.0.block.0. ...
    text_encoder    cond_stage_model.transformer.text_model. ...

It is what ComfyUI, the A1111 family and sd-scripts open. The layout holds weights and nothing else, so a base that
these tools would take for another one (another schedule, another autoencoder, Stable Diffusion 2.x) is refused.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import Refused
from ..files import save_tensors

_RESIDUAL = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0",
    "conv2": "out_layers.3", "conv_shortcut": "skip_connection",
}  # fmt: skip
_ENDS = {
    "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2",
}  # fmt: skip
_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
_SUPPORTED = "a single file is written of Stable Diffusion 1.x; give a folder for --out"


@torch.no_grad()
def save_single_file(base: Any, path: Path) -> Path:
    """Writes a base as it is now, merged attachments included, in one file.

    New words are left out, since the layout's table has a fixed length; write them as textual inversion.

    Args:
        base: a Stable Diffusion 1.x.
        path: a new file whose name ends in .safetensors.

    Raises:
        Refused: something is attached and not merged, the file exists, or the layout cannot hold this base.
    """
    if any(not attachment.is_merged for attachment in base.attachments):
        raise Refused("something is attached and not merged; merge_() or detach() it before saving the base")
    if path.suffix != ".safetensors":
        raise Refused(f"{path}: a single file's name ends in .safetensors")
    if path.exists():
        raise Refused(f"{path} exists already; choose a new name, nothing is overwritten")
    _check(base)
    words = sum(len(attachment.tokens) for attachment in base.attachments)
    tensors: dict[str, Tensor] = {}
    layout = unet_layout(base.denoiser.config)
    for name, value in base.denoiser.named_parameters():
        tensors[f"model.diffusion_model.{unet_name(name, *layout)}"] = value
    levels = len(base.vae.config.block_out_channels)
    for name, value in base.vae.named_parameters():
        old = vae_name(name, levels)
        filters = ".attn_1." in old and value.ndim == 2  # linear layers here, 1x1 convolutions there
        tensors[f"first_stage_model.{old}"] = value[:, :, None, None] if filters else value
    for name, value in base.text_encoder.named_parameters():
        own = value[: len(value) - words] if name.endswith("token_embedding.weight") else value
        tensors[f"cond_stage_model.transformer.text_model.{name.removeprefix('text_model.')}"] = own
    velocity = base.prediction_type == "v_prediction"
    header = {
        "format": "pt",
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": "stable-diffusion-v1",
        "modelspec.implementation": "https://github.com/Stability-AI/generative-models",
        "modelspec.title": path.stem,
        "modelspec.resolution": f"{base.resolution}x{base.resolution}",
        "modelspec.prediction_type": "v" if velocity else "epsilon",
    }
    return save_tensors(path, tensors, header)


def _check(base: Any) -> None:
    """Raises Refused for a base that the tools would take for another one."""
    if type(base.vae).__name__ != "AutoencoderKL":
        raise Refused(f"the autoencoder of {base.name!r} is {type(base.vae).__name__}; {_SUPPORTED}")
    if int(base.denoiser.config.cross_attention_dim) == 1024:
        raise Refused(f"{base.name!r} has the text encoder of Stable Diffusion 2.x; {_SUPPORTED}")
    usual = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2, 0)
    own = base.alphas_cumprod.double().cpu()
    if own.shape != usual.shape or not torch.allclose(own, usual, rtol=1e-3, atol=1e-5):
        raise Refused(f"{base.name!r} has another noise schedule than Stable Diffusion's; {_SUPPORTED}")


def unet_layout(config: Any) -> tuple[int, list[bool]]:
    """`rows` and `attention` of `unet_name`, of a UNet's configuration."""
    return int(config.layers_per_block) + 1, ["Attn" in kind for kind in config.up_block_types]


def unet_name(name: str, rows: int, attention: Sequence[bool]) -> str:
    """A parameter's name in the original UNet.

    Args:
        name: in diffusers', such as "down_blocks.0.resnets.1.conv1.weight".
        rows: residual blocks of a level, and the step to the next one: 3 in Stable Diffusion.
        attention: whether a level on the way up has attention, for each of them.
    """
    layer, _, kind = name.rpartition(".")
    if layer in _ENDS:
        return f"{_ENDS[layer]}.{kind}"
    side, *path = name.split(".")
    if side == "mid_block":
        part, index, *rest = path
        return _block("middle_block", 2 * int(index) if part == "resnets" else 1, part, rest)
    level, part, index, *rest = path
    if part == "downsamplers":
        return f"input_blocks.{(int(level) + 1) * rows}.0.op.{kind}"
    if part == "upsamplers":
        behind = 2 if attention[int(level)] else 1  # the residual block, and the attention where there is one
        return f"output_blocks.{int(level) * rows + rows - 1}.{behind}.conv.{kind}"
    number = int(level) * rows + int(index)
    if side == "down_blocks":
        return _block(f"input_blocks.{number + 1}", 0 if part == "resnets" else 1, part, rest)
    return _block(f"output_blocks.{number}", 0 if part == "resnets" else 1, part, rest)


def _block(place: str, number: int, part: str, rest: list[str]) -> str:
    name = ".".join(rest)
    if part == "resnets":
        layer, _, kind = name.rpartition(".")
        name = f"{_RESIDUAL[layer]}.{kind}"
    return f"{place}.{number}.{name}"


def vae_name(name: str, levels: int) -> str:
    """A parameter's name in the original autoencoder, whose decoder counts its levels from the other end."""
    name = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
    if "mid_block.attentions.0." in name:
        name = name.replace("mid_block.attentions.0.", "mid.attn_1.")
        name = re.sub(r"attn_1\.(group_norm|to_q|to_k|to_v|to_out\.0)\.", lambda m: f"attn_1.{_ATTENTION[m[1]]}.", name)
    name = re.sub(r"down_blocks\.(\d+)\.resnets", r"down.\1.block", name)
    name = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample", name)
    name = re.sub(r"up_blocks\.(\d+)\.resnets", lambda m: f"up.{levels - 1 - int(m[1])}.block", name)
    name = re.sub(r"up_blocks\.(\d+)\.upsamplers\.0", lambda m: f"up.{levels - 1 - int(m[1])}.upsample", name)
    return name.replace("conv_shortcut", "nin_shortcut").replace("conv_norm_out", "norm_out")
