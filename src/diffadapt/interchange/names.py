"""How other tools name the layers of a base.

ours        unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q
            text_encoder.encoder.layers.0.self_attn.q_proj
            transformer.transformer_blocks.0.attn.to_q
PEFT        what follows the first dot, as a PEFT model wraps one part
kohya       lora_unet_down_blocks_0_..., lora_te_text_model_encoder_...; of Stable Diffusion XL lora_te1_, lora_te2_
            and the original names, lora_unet_input_blocks_4_1_...
original    input_blocks.1.1.transformer_blocks.0.attn1.to_q: the checkpoints that came before diffusers
"""

import re

from ..network import Network

# Before version 5 of transformers the text encoder's layers were one level further down.
_TEXT = "text_model."
_PREFIXES = {
    "unet": ("", "unet.", "lora_unet."),
    "text_encoder": ("", "text_encoder.", "lora_te.", "lora_te1.", "clip_l."),
    "text_encoder_2": ("text_encoder_2.", "lora_te2.", "clip_g."),
    "text_encoder_3": ("text_encoder_3.",),
    "transformer": ("", "transformer."),
}
_ORIGINAL = re.compile(r"(input_blocks|middle_block|output_blocks)\.(\d+)\.(?:1\.)?(transformer_blocks\..+)")


def has_two_encoders(base: Network) -> bool:
    """Whether a second CLIP text encoder stands beside the first, as in Stable Diffusion XL."""
    return "text_encoder_2" in base.modules()


def kohya_name(path: str, *, of_two: bool = False) -> str:
    """The name of a layer in kohya's files, LyCORIS' and the web UIs'; of two text encoders the first is lora_te1."""
    part, _, name = path.partition(".")
    text = "" if name == "text_projection" else _TEXT  # which stands beside the encoder, not in it
    prefix = "lora_unet." if part == "unet" else f"{part.replace('text_encoder', 'lora_te').replace('_2', '2')}.{text}"
    if of_two and part == "text_encoder":
        prefix = prefix.replace("lora_te.", "lora_te1.")
    return (prefix + name.removeprefix(_TEXT)).replace(".", "_")


def known_names(base: Network, only: str | None = None) -> dict[str, str]:
    """{name: path}: every name that PEFT, kohya's scripts and OneTrainer have for the layers of a base.

    Args:
        base: whose layers.
        only: the part that a file is known to be about; the names need not say it then.
    """
    original = [each for each in base.original_names().items() if only in (None, each[0].partition(".")[0])]
    names = {f"lora_unet_{name}".replace(".", "_"): path for path, name in original}
    two = has_two_encoders(base)
    for path in (path for paths in base.roles.values() for path in paths):
        part = path.partition(".")[0]
        if only not in (None, part):
            continue
        prefixes = {"", *_PREFIXES[part]} if only else _PREFIXES[part]
        names |= {prefix + each: path for prefix in prefixes for each in names_in_part(path)}
        kohya = {kohya_name(path), kohya_name(path, of_two=two)}
        # as older releases of this package wrote it
        kohya |= {each.replace("_text_projection", "_text_model_text_projection") for each in kohya}
        names |= dict.fromkeys(kohya, path)
    return names


def names_in_part(path: str) -> tuple[str, ...]:
    """The names of a layer within its part, now and before transformers 5; a PEFT config may mean it by either."""
    name = path.partition(".")[2].removeprefix(_TEXT)
    return name, _TEXT + name


def from_original(name: str, layers_per_block: int) -> str | None:
    """The path of a layer in a transformer block that a checkpoint names the original way; None for other layers.

    Args:
        name: such as "middle_block.1.transformer_blocks.0.attn1.to_q".
        layers_per_block: residual blocks in each down block of the UNet, 2 in Stable Diffusion.
    """
    match = _ORIGINAL.fullmatch(name)
    if match is None:
        return None
    side, number, rest = match.groups()
    if side == "middle_block":
        return f"unet.mid_block.attentions.0.{rest}"
    down = side == "input_blocks"  # whose first one is conv_in
    block, layer = divmod(int(number) - down, layers_per_block + 1)
    return f"unet.{'down' if down else 'up'}_blocks.{block}.attentions.{layer}.{rest}"
