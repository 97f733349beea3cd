"""A tiny base as one file in the layout of the original Stable Diffusion checkpoints."""

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

_RESIDUAL = (
    ("norm1", "in_layers.0"), ("conv1", "in_layers.2"), ("norm2", "out_layers.0"), ("conv2", "out_layers.3"),
    ("time_emb_proj", "emb_layers.1"), ("conv_shortcut", "skip_connection"),
)  # fmt: skip
_UNET = {
    "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2", "conv_in": "input_blocks.0.0",
    "add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2",
    "conv_norm_out": "out.0", "conv_out": "out.2",
}  # fmt: skip
_ATTENTION = (("group_norm", "norm"), ("to_q", "q"), ("to_k", "k"), ("to_v", "v"), ("to_out.0", "proj_out"))


def unet_name(name: str, layers: int = 1) -> str:
    """A parameter's name in diffusers' UNet -> in the original one."""
    head, _, kind = name.rpartition(".")
    if head in _UNET:
        return f"{_UNET[head]}.{kind}"
    rows = layers + 1
    if found := re.fullmatch(r"mid_block\.(resnets|attentions)\.(\d)\.(.*)", name):
        part, index, rest = found.groups()
        place = f"middle_block.{1 if part == 'attentions' else 2 * int(index)}"
    elif found := re.fullmatch(r"down_blocks\.(\d)\.downsamplers\.0\.conv\.(.*)", name):
        return f"input_blocks.{(int(found[1]) + 1) * rows}.0.op.{found[2]}"
    elif found := re.fullmatch(r"up_blocks\.(\d)\.upsamplers\.0\.conv\.(.*)", name):
        return f"output_blocks.{int(found[1]) * rows + layers}.2.conv.{found[2]}"
    else:
        found = re.fullmatch(r"(down|up)_blocks\.(\d)\.(resnets|attentions)\.(\d)\.(.*)", name)
        assert found, name
        way, block, part, index, rest = found.groups()
        number = int(block) * rows + int(index) + (1 if way == "down" else 0)
        place = f"{'input' if way == 'down' else 'output'}_blocks.{number}.{1 if part == 'attentions' else 0}"
    if part == "resnets":
        for new, old in _RESIDUAL:
            rest = rest.replace(new, old)
    return f"{place}.{rest}"


def vae_name(name: str, levels: int = 3) -> str:
    """A parameter's name in AutoencoderKL -> in the original one."""
    for new, old in (("mid_block.resnets.0", "mid.block_1"), ("mid_block.resnets.1", "mid.block_2")):
        name = name.replace(new, old)
    if "mid_block.attentions.0" in name:
        name = name.replace("mid_block.attentions.0", "mid.attn_1")
        for new, old in _ATTENTION:
            name = name.replace(f".{new}.", f".{old}.")
    name = re.sub(r"down_blocks\.(\d)\.resnets", r"down.\1.block", name)
    name = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", name)
    name = re.sub(r"up_blocks\.(\d)\.resnets", lambda m: f"up.{levels - 1 - int(m[1])}.block", name)
    name = re.sub(r"up_blocks\.(\d)\.upsamplers\.0", lambda m: f"up.{levels - 1 - int(m[1])}.upsample", name)
    return name.replace("conv_shortcut", "nin_shortcut").replace("conv_norm_out", "norm_out")


@pytest.fixture(scope="session")
def tiny_file(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tiny_folder`'s weights in one file; `tiny_folder` is a configuration for it."""
    tensors = {
        f"model.diffusion_model.{unet_name(name)}": value
        for name, value in load_file(tiny_folder / "unet" / "diffusion_pytorch_model.safetensors").items()
    }
    for name, value in load_file(tiny_folder / "vae" / "diffusion_pytorch_model.safetensors").items():
        old = vae_name(name)
        convolution = "attn_1" in old and value.ndim == 2
        tensors[f"first_stage_model.{old}"] = value[:, :, None, None] if convolution else value
    for name, value in load_file(tiny_folder / "text_encoder" / "model.safetensors").items():
        tensors[f"cond_stage_model.transformer.text_model.{name.removeprefix('text_model.')}"] = value
    path = tmp_path_factory.mktemp("single") / "tiny.safetensors"
    save_file({name: value.contiguous() for name, value in tensors.items()}, path)
    return path


@pytest.fixture(scope="session")
def tiny_2x_file(tiny_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with the text encoder in OpenCLIP's layout, as Stable Diffusion 2.x has it in one file."""
    theirs, text = {}, {}
    for name, value in load_file(tiny_file).items():
        of_text = name.startswith("cond_stage_model.")
        (text if of_text else theirs)[name.removeprefix("cond_stage_model.transformer.text_model.")] = value
    width = text["final_layer_norm.weight"].shape[0]
    model = open_clip(text) | {"text_projection": torch.eye(width)}
    theirs |= {f"cond_stage_model.model.{name}": value for name, value in model.items()}
    path = tmp_path_factory.mktemp("single-2x") / "tiny-2x.safetensors"
    save_file({name: value.contiguous() for name, value in theirs.items()}, path)
    return path


def open_clip(text: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A CLIP text encoder's weights, by their names in transformers, in OpenCLIP's layout."""
    top = {
        "token_embedding.weight": "embeddings.token_embedding.weight",
        "positional_embedding": "embeddings.position_embedding.weight",
        "ln_final.weight": "final_layer_norm.weight",
        "ln_final.bias": "final_layer_norm.bias",
    }
    model = {new: text[old] for new, old in top.items()} | {"logit_scale": torch.zeros(())}
    layers = {name.split(".")[2] for name in text if name.startswith("encoder.layers.")}
    of_layer = {
        "ln_1": "layer_norm1", "ln_2": "layer_norm2", "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2",
        "attn.out_proj": "self_attn.out_proj",
    }  # fmt: skip
    for i in layers:
        for kind in ("weight", "bias"):
            for new, old in of_layer.items():
                model[f"transformer.resblocks.{i}.{new}.{kind}"] = text[f"encoder.layers.{i}.{old}.{kind}"]
            parts = [text[f"encoder.layers.{i}.self_attn.{each}_proj.{kind}"] for each in "qkv"]
            model[f"transformer.resblocks.{i}.attn.in_proj_{kind}"] = torch.cat(parts)
    return model


def xl_file(folder: Path, path: Path, levels: int) -> Path:
    """The weights of a Stable Diffusion XL in one file; its folder is a configuration for it."""

    def weights(part: str, stem: str) -> dict[str, torch.Tensor]:
        return load_file(folder / part / f"{stem}.safetensors")

    tensors = {}
    for name, value in weights("unet", "diffusion_pytorch_model").items():
        tensors[f"model.diffusion_model.{unet_name(name)}"] = value
    for name, value in weights("vae", "diffusion_pytorch_model").items():
        old = vae_name(name, levels)
        convolution = "attn_1" in old and value.ndim == 2
        tensors[f"first_stage_model.{old}"] = value[:, :, None, None] if convolution else value
    for name, value in weights("text_encoder", "model").items():
        tensors[f"conditioner.embedders.0.transformer.text_model.{name.removeprefix('text_model.')}"] = value
    text = {name.removeprefix("text_model."): value for name, value in weights("text_encoder_2", "model").items()}
    model = open_clip(text) | {"text_projection": text["text_projection.weight"].T}
    tensors |= {f"conditioner.embedders.1.model.{name}": value for name, value in model.items()}
    save_file({name: value.contiguous() for name, value in tensors.items()}, path)
    return path
