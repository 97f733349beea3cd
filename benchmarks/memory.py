"""Memory of a training step at true shapes of Stable Diffusion 1.5 or XL, counted on fake tensors: no GPU, no weights.

python benchmarks/memory.py [--model sd15 | sdxl] [--side 512]
python benchmarks/memory.py --drawing 8 4 2 1

The frozen base in float32 and in bfloat16, with autocast to bfloat16; one concept picture and one of its class a step.
Counted are weights, activations, gradients and AdamW's moments; a GPU's context and its allocator's rounding come on
top. The autoencoder and text encoder are counted as resident.
"""

import argparse
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from diffadapt.adapters.adapter import Adapter
from diffadapt.adapters.lora import LoRA
from diffadapt.adapters.oft import OFT
from diffadapt.training.memory import CountedMemory, counted_step

# The configurations of the published UNets; the rest are the class's defaults.
UNETS = {
    "sd15": {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8},
    "sdxl": {
        "sample_size": 128, "cross_attention_dim": 2048, "attention_head_dim": (5, 10, 20),
        "block_out_channels": (320, 640, 1280), "transformer_layers_per_block": (1, 2, 10),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"), "use_linear_projection": True,
        "addition_embed_type": "text_time", "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
}  # fmt: skip
AUTOENCODER = {
    "block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
}  # fmt: skip
SIDES = {"sd15": 512, "sdxl": 1024}
# parameters of the text encoders and of the autoencoder
OTHERS = {"sd15": 123_060_480 + 83_653_863, "sdxl": 123_060_480 + 694_659_840 + 83_653_863}
METHODS = {"lora, rank 16": LoRA(rank=16), "oft, 4 blocks": OFT(blocks=4), "full": None}
FAKE = FakeTensorMode()  # one for all rows: OFT keeps the places of its blocks from one to the next
ATTENTION = (".to_q", ".to_k", ".to_v", ".to_out.0")


def attention_layers(unet: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    return ((name, module) for name, module in list(unet.named_modules()) if name.endswith(ATTENTION))


def trained(unet: nn.Module, method: LoRA | OFT | None) -> list[nn.Parameter]:
    """Puts the method on the attention layers, or lets everything train; returns what trains."""
    unet.requires_grad_(method is None)
    if method is None:
        return list(unet.parameters())
    generator, own = torch.Generator().manual_seed(0), []
    for name, layer in attention_layers(unet):
        holder, _, last = name.rpartition(".")
        adapter: Adapter = method.build(layer, name, "", generator)
        setattr(unet.get_submodule(holder), last, adapter)
        own += [parameter for _, parameter in adapter.own_parameters()]
    return own


def row(model: str, method: LoRA | OFT | None, base: torch.dtype, checkpointing: bool, side: int, rows: int) -> float:
    """GB at the peak."""
    with FAKE:
        torch.set_default_dtype(base)
        unet = UNet2DConditionModel(**UNETS[model]).train(False)
        torch.set_default_dtype(torch.float32)
        parameters = trained(unet, method)
        if checkpointing:
            unet.enable_gradient_checkpointing()
            unet.train()
        noisy = torch.randn(rows, 4, side // 8, side // 8)
        text = torch.randn(rows, 77, UNETS[model]["cross_attention_dim"], dtype=base)
        times, beside = torch.full((rows,), 500), None
        if model == "sdxl":
            beside = {"text_embeds": torch.randn(rows, 1280, dtype=base), "time_ids": torch.randn(rows, 6)}

        def loss() -> torch.Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                predicted = unet(noisy.to(base), times, encoder_hidden_states=text, added_cond_kwargs=beside).sample
            return F.mse_loss(predicted.float(), noisy)

        everything = [*unet.parameters(), *unet.buffers(), noisy, text]
        peak = counted_step(everything, torch.optim.AdamW(parameters, foreach=False), loss)
    return (peak + OTHERS[model] * base.itemsize) / 1e9


def drawing(dtype: torch.dtype, side: int, pictures: int, *, autocast: bool) -> tuple[float, float]:
    """GB at the peaks of a guided denoising step of Stable Diffusion 1.5 and of decoding, picture by picture."""
    peaks = []
    cast = torch.autocast("cpu", torch.bfloat16, enabled=autocast, cache_enabled=False)
    with FAKE, torch.no_grad(), cast:
        torch.set_default_dtype(dtype)
        unet = UNet2DConditionModel(**UNETS["sd15"]).eval()
        vae = AutoencoderKL(**AUTOENCODER).eval()
        torch.set_default_dtype(torch.float32)
        vae.enable_slicing()
        latents = torch.randn(2 * pictures, 4, side // 8, side // 8, dtype=dtype)
        text, times = torch.randn(2 * pictures, 77, 768, dtype=dtype), torch.full((2 * pictures,), 500)
        standing = (sum(each.numel() for each in unet.parameters()) + OTHERS["sd15"]) * dtype.itemsize
        for work in (
            lambda: unet(latents, times, encoder_hidden_states=text).sample,
            lambda: vae.decode(latents[:pictures]).sample,
        ):
            with CountedMemory() as counted:
                work()
            peaks.append((standing + counted.peak) / 1e9)
    return peaks[0], peaks[1]


def print_drawing(side: int, sizes: list[int]) -> None:
    print("| pictures at once | base | denoising | decoding |\n|---|---|---|---|")
    bases = {
        "float32": (torch.float32, False), "float32, drawn in bfloat16": (torch.float32, True),
        "bfloat16": (torch.bfloat16, True),
    }  # fmt: skip
    for pictures in sizes:
        for name, (dtype, autocast) in bases.items():
            denoising, decoding = drawing(dtype, side, pictures, autocast=autocast)
            print(f"| {pictures} | {name} | {denoising:.2f} GB | {decoding:.2f} GB |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=tuple(UNETS), default="sd15")
    parser.add_argument("--side", type=int, help="pixels (default: 512, of sdxl 1024)")
    parser.add_argument("--rows", type=int, default=2, help="pictures a step, class pictures included (default 2)")
    parser.add_argument("--methods", nargs="*", default=list(METHODS), help="of " + "; ".join(METHODS))
    parser.add_argument("--drawing", type=int, nargs="+", metavar="N", help="count drawing N pictures at once (sd15)")
    arguments = parser.parse_args()
    side = arguments.side or SIDES[arguments.model]
    if arguments.drawing:
        print_drawing(side, arguments.drawing)
        return
    print("| method | checkpointing | base in float32 | base in bfloat16 |\n|---|---|---|---|")
    for name in arguments.methods:
        for checkpointing in (False, True):
            figures = [
                row(arguments.model, METHODS[name], dtype, checkpointing, side, arguments.rows)
                for dtype in (torch.float32, torch.bfloat16)
                if name != "full" or dtype == torch.float32  # what trains stays in float32
            ]
            cells = [f"{figure:.2f} GB" for figure in figures] + ["as float32"] * (2 - len(figures))
            print(f"| {name} | {'on' if checkpointing else 'off'} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
