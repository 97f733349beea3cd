"""Trains the autoencoder of the text-to-image model that ships with diffadapt, and writes the model's folder.

Each stage resumes from its last checkpoint in --work and can be stopped at any time:

    python tools/train_embedded_base.py autoencoder --data EMOJI --work DIR --steps 5000
    python tools/train_denoiser.py                  --data EMOJI --work DIR --init BASE
    python tools/train_embedded_base.py decoder     --data EMOJI --work DIR --steps 3000   (encoder frozen)
    python tools/train_embedded_base.py export      --data EMOJI --work DIR --out src/diffadapt/bases/embedded

The probe that measures it is trained by `tools/train_probe.py`.

EMOJI holds one folder of 72x72 RGBA sprites per style (twemoji, fluent-3d, blob, noto), named by the emoji's Unicode
short name. Several processes share the work: `torchrun --nproc_per_node 2 tools/train_embedded_base.py ...`, one
thread each on CPU, or one per GPU, in bf16 where the hardware has it. Scenes are drawn from (seed, process, step), so a
resumed run sees what an uninterrupted one would have seen.
"""

import argparse
import json
import math
import os
import time
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import Tensor, nn

from diffadapt.data.wide_pictures import draw_wide_scenes, load_wide_sprites
from diffadapt.data.wide_scenes import WideWorld, sample_wide_scene
from diffadapt.data.wide_world import ACCESSORIES, COLOURS, PATTERNS, PLACES, tail_nouns
from diffadapt.data.world import BACKGROUNDS
from diffadapt.files import save_tensors

LATENT_CHANNELS, TEXT_LENGTH, TEXT_WIDTH = 6, 32, 192
DECODER_BLOCKS = (3, 3, 1)  # from the latents' level to full size


# --- models -----------------------------------------------------------------------------------------------------------


def build_autoencoder(decoder_blocks: tuple[int, ...] = DECODER_BLOCKS) -> nn.Module:
    from diffusers import AutoencoderTiny
    from diffusers.models.autoencoders.vae import AutoencoderTinyBlock

    # No normalisation layers: group norm over few channels erases flat colour. Blocks at the levels below full size.
    autoencoder = AutoencoderTiny(
        encoder_block_out_channels=(40,) * 3,
        decoder_block_out_channels=(40,) * 3,
        latent_channels=LATENT_CHANNELS,
        num_encoder_blocks=(0, 1, 1),
        num_decoder_blocks=decoder_blocks,
    )
    # torch's default shrinks the signal in each of the twenty layers: keep its variance, start blocks near identity.
    for layer in autoencoder.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="linear")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    for block in autoencoder.modules():
        if isinstance(block, AutoencoderTinyBlock):
            nn.init.kaiming_normal_(block.conv[0].weight, nonlinearity="relu")
            nn.init.kaiming_normal_(block.conv[2].weight, nonlinearity="relu")
            block.conv[4].weight.data.mul_(0.1)
    return autoencoder


def load_autoencoder(file: Path) -> nn.Module:
    """The autoencoder whose weights a file has, with as many blocks in its decoder."""
    weights = load_file(file)
    autoencoder = build_autoencoder(_decoder_blocks(weights))
    autoencoder.load_state_dict(weights)
    return autoencoder.eval()


def _decoder_blocks(weights: dict[str, Tensor]) -> tuple[int, ...]:
    """Blocks of each level of a decoder: those between one plain convolution and the next."""
    places = {int(key.split(".")[2]): "conv" in key for key in weights if key.startswith("decoder.layers.")}
    counts: list[int] = []
    for _, is_block in sorted(places.items()):
        if is_block:
            counts[-1] += 1
        else:
            counts.append(0)
    return tuple(counts[:-1])


@torch.no_grad()
def deepen(decoder: nn.Module, first: nn.Module) -> None:
    """Copies a decoder of fewer blocks; the blocks that it does not have change nothing to begin with.

    A block ends in a ReLU. At full size nothing was positive before: there the first one adds 2 to every channel (four
    standard deviations of what arrives), and the last convolution takes it away again, but for the rim.
    """
    from diffusers.models.autoencoders.vae import AutoencoderTinyBlock

    def levels(model: nn.Module) -> list[tuple[nn.Module, list[nn.Module]]]:
        found: list[tuple[nn.Module, list[nn.Module]]] = []
        for layer in model.layers:
            if isinstance(layer, nn.Conv2d):
                found.append((layer, []))
            elif isinstance(layer, AutoencoderTinyBlock):
                found[-1][1].append(layer)
        return found

    for (conv, blocks), (old_conv, old_blocks) in zip(levels(decoder), levels(first), strict=True):
        conv.load_state_dict(old_conv.state_dict())
        for block, old in zip(blocks, old_blocks, strict=False):
            block.load_state_dict(old.state_dict())
        for block in blocks[len(old_blocks) :]:
            block.conv[4].weight.zero_()
            block.conv[4].bias.zero_()
    if (added := levels(decoder)[-2][1]) and not levels(first)[-2][1]:
        added[0].conv[4].bias.fill_(2.0)
        decoder.layers[-1].bias -= 2.0 * first.layers[-1].weight.sum((1, 2, 3))


def load_trained(folder: Path, weights: str = "ema") -> tuple[nn.Module, nn.Module, nn.Module]:
    """Autoencoder (with the decoder that was trained further, if there is one), text encoder and UNet of a training.

    `weights` is "ema" for the averaged ones of tools/train_denoiser.py, "model" for those of the moment.
    """
    decoder = folder / "decoder" / "vae.safetensors"
    autoencoder = load_autoencoder(decoder if decoder.exists() else folder / "autoencoder" / "vae.safetensors")
    text_encoder, unet = build_text_encoder(build_tokenizer(folder)).eval(), build_unet().eval()
    state = load_file(folder / "state.safetensors")
    for name, model in (("unet", unet), ("text_encoder", text_encoder)):
        prefix = f"{weights}.{name}."
        found = {key.removeprefix(prefix): value.float() for key, value in state.items() if key.startswith(prefix)}
        missing = model.load_state_dict(found, strict=False)
        assert not missing.unexpected_keys and not any("weight" in key for key in missing.missing_keys), missing
    return autoencoder, text_encoder, unet


def build_tokenizer(work: Path):
    from transformers import CLIPTokenizer

    return CLIPTokenizer.from_pretrained(work / "tokenizer")


def build_text_encoder(tokenizer) -> nn.Module:
    from transformers import CLIPTextConfig, CLIPTextModel

    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=TEXT_WIDTH,
            intermediate_size=3 * TEXT_WIDTH,
            projection_dim=TEXT_WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=TEXT_LENGTH,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def build_unet() -> nn.Module:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=16,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        block_out_channels=(64, 128, 176),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=4,  # diffusers reads this as the number of heads
        norm_num_groups=8,
    )


def build_scheduler():
    from diffusers import DPMSolverMultistepScheduler

    return DPMSolverMultistepScheduler(
        beta_schedule="squaredcos_cap_v2",
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        num_train_timesteps=1000,
    )


def train_tokenizer(work: Path, words: list[str]) -> None:
    """A CLIP tokenizer whose vocabulary holds every one of the words as one entry, but for words with digits."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token=None))
    bpe.normalizer = normalizers.Lowercase()
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=30_000, min_frequency=2, end_of_word_suffix="</w>", show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    bpe.train_from_iterator([" ".join(words)] * 4, trainer)
    model = json.loads(bpe.to_str())["model"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [tuple(m) if isinstance(m, list) else tuple(m.split()) for m in model["merges"]]
    tokens = [*alphabet, *(letter + "</w>" for letter in alphabet), *("".join(pair) for pair in merges)]
    tokens = [*dict.fromkeys(tokens), "<|startoftext|>", "<|endoftext|>"]
    folder = work / "tokenizer"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}, ensure_ascii=False))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(" ".join(pair) for pair in merges) + "\n")
    from transformers import CLIPTokenizer

    tokenizer = CLIPTokenizer(
        str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=TEXT_LENGTH, pad_token="<|endoftext|>"
    )
    for word in words:
        ids = tokenizer(word).input_ids
        # CLIP splits before and after a digit, so "3d" is two entries.
        assert len(ids) == 3 or any(letter.isdigit() for letter in word), (
            f"{word!r} is not one token: {tokenizer.convert_ids_to_tokens(ids)}"
        )
    tokenizer.save_pretrained(folder)
    print(f"tokenizer: {len(tokenizer)} entries -> {folder}")


def has_bf16() -> bool:
    """Whether bf16 is faster than fp32 here: a GPU, or a processor with instructions for it."""
    if torch.cuda.is_available():
        return True
    facts = Path("/proc/cpuinfo")
    return facts.is_file() and any(flag in facts.read_text() for flag in ("avx512_bf16", "amx_bf16"))


# --- the loop's parts -------------------------------------------------------------------------------------------------


class Crew:
    """The processes that train together: rank, size, device, and gradients averaged over all."""

    def __init__(self) -> None:
        self.size = int(os.environ.get("WORLD_SIZE", 1))
        self.rank = int(os.environ.get("RANK", 0))
        cuda = torch.cuda.is_available()
        self.device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if cuda else torch.device("cpu")
        if self.size > 1:
            dist.init_process_group("nccl" if cuda else "gloo")
        if not cuda:
            torch.set_num_threads(1 if self.size > 1 else torch.get_num_threads())

    def average_gradients(self, parameters: list[nn.Parameter]) -> None:
        if self.size == 1:
            return
        flat = torch.cat([p.grad.reshape(-1) for p in parameters])
        dist.all_reduce(flat)
        flat /= self.size
        torch._foreach_copy_(
            [p.grad for p in parameters],
            [part.view_as(p) for part, p in zip(flat.split([p.numel() for p in parameters]), parameters, strict=True)],
        )

    def autocast(self):
        return torch.autocast(self.device.type, torch.bfloat16, enabled=has_bf16())


class Muon(torch.optim.Optimizer):
    """Momentum made orthogonal by five Newton-Schulz steps (Jordan et al. 2024), for kernels flattened to matrices.

    On an autoencoder of factor 8, from the same start and within 5,300 pictures, it reached 23.0 dB and AdamW 20.7.
    """

    def __init__(self, parameters: list[nn.Parameter], lr: float) -> None:
        super().__init__(parameters, {"lr": lr})

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                momentum = state.setdefault("momentum", torch.zeros_like(p)).lerp_(p.grad, 0.05)
                update = p.grad.lerp(momentum, 0.95).flatten(1)
                wide = update.shape[0] <= update.shape[1]
                x = update if wide else update.T
                x = x / (x.norm() + 1e-7)
                for _ in range(5):
                    gram = x @ x.T
                    x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
                rows, columns = update.shape
                p.add_((x if wide else x.T).view_as(p), alpha=-group["lr"] * max(1.0, rows / columns) ** 0.5)


def schedule(step: int, total: int) -> float:
    """Warm up over 100 steps, hold, and fall to zero over the last third."""
    return min(1.0, (step + 1) / 100, max(0.0, (total - step) / (total / 3)))


def save_state(folder: Path, models: dict[str, nn.Module], optimizers, ema: dict[str, Tensor], step: int) -> None:
    tensors = {f"model.{n}.{k}": v for n, m in models.items() for k, v in m.state_dict().items()}
    tensors |= {f"ema.{k}": v for k, v in ema.items()}
    for o, optimizer in enumerate(optimizers):
        for i, state in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{o}.{i}.{k}": torch.as_tensor(v) for k, v in state.items()}
    save_tensors(folder / "state.safetensors", tensors, {"step": str(step)})


def load_state(folder: Path, models: dict[str, nn.Module], optimizers, ema: dict[str, Tensor]) -> int:
    path = folder / "state.safetensors"
    if not path.exists():
        return 0
    from safetensors import safe_open

    with safe_open(path, "pt") as handle:
        step = int(handle.metadata()["step"])
    tensors = load_file(path)
    for name, model in models.items():
        prefix = f"model.{name}."
        model.load_state_dict({k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)})
    for key in ema:
        ema[key].copy_(tensors[f"ema.{key}"])
    for o, optimizer in enumerate(optimizers):
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            if key.startswith(f"optimizer.{o}."):
                index, name = key.removeprefix(f"optimizer.{o}.").split(".", 1)
                state.setdefault(int(index), {})[name] = value
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return step


def train(stage: str, models: dict[str, nn.Module], loss_of, crew: Crew, args, *, ema_decay: float) -> None:
    """The loop that both stages share: `loss_of(step) -> (loss, dict of figures to log)`."""
    parameters = [p for m in models.values() for p in m.parameters() if p.requires_grad]
    tables = {id(m.weight) for model in models.values() for m in model.modules() if isinstance(m, nn.Embedding)}
    kernels = [p for p in parameters if p.ndim >= 2 and min(p.shape[:2]) > 8 and id(p) not in tables]
    taken = {id(p) for p in kernels}
    rest = [p for p in parameters if id(p) not in taken]
    adamw = torch.optim.AdamW(rest, betas=(0.9, 0.99), weight_decay=1e-3, fused=True)
    optimizers, peaks = [adamw, Muon(kernels, args.muon_lr)], [args.lr, args.muon_lr]
    names = {f"{n}.{k}": v for n, m in models.items() for k, v in m.state_dict().items() if v.is_floating_point()}
    ema = {k: v.detach().clone() for k, v in names.items()}
    folder = args.work / stage
    first = load_state(folder, models, optimizers, ema)
    if crew.rank == 0:
        print(
            f"{stage}: {sum(p.numel() for p in parameters) / 1e6:.2f} M parameters, from step {first} to {args.steps}"
        )
    start, sums, count = time.time(), {}, 0
    for step in range(first, args.steps):
        for optimizer, peak in zip(optimizers, peaks, strict=True):
            optimizer.zero_grad()
            for group in optimizer.param_groups:
                group["lr"] = peak * schedule(step, args.steps)
        with crew.autocast():
            loss, figures = loss_of(step)
        loss.backward()
        crew.average_gradients(parameters)
        norm = nn.utils.clip_grad_norm_(parameters, 1.0)
        if not math.isfinite(norm):
            raise FloatingPointError(f"{stage}: gradient norm {norm} at step {step}; resume from {folder}")
        for optimizer in optimizers:
            optimizer.step()
        decay = min(ema_decay, (step + 1) / (step + 10))
        torch._foreach_lerp_(list(ema.values()), [v.detach() for v in names.values()], 1 - decay)
        for key, value in figures.items():
            sums[key] = sums.get(key, 0.0) + float(value)
        count += 1
        if crew.rank == 0 and ((step + 1) % 50 == 0 or step + 1 == args.steps):
            rate = (step + 1 - first) * args.batch * crew.size / (time.time() - start)
            row = {"stage": stage, "step": step + 1, "images": (step + 1) * args.batch * crew.size}
            row |= {k: round(v / count, 5) for k, v in sums.items()} | {"images_per_s": round(rate, 1)}
            row["hours"] = round((time.time() - start) / 3600, 3)
            print(json.dumps(row), flush=True)
            with open(args.work / "log.jsonl", "a") as log:
                log.write(json.dumps(row) + "\n")
            sums, count = {}, 0
        if crew.rank == 0 and ((step + 1) % args.save_every == 0 or step + 1 == args.steps):
            save_state(folder, models, optimizers, ema, step + 1)
            for name, model in models.items():
                weights = {k: ema.get(f"{name}.{k}", v) for k, v in model.state_dict().items()}
                save_tensors(folder / f"{name}.safetensors", weights)


# --- stages -----------------------------------------------------------------------------------------------------------


def train_autoencoder(crew: Crew, args, *, decoder_only: bool) -> None:
    world = WideWorld(tail=tail_nouns(args.data))  # every sprite and ground, so that subjects decode well
    sprites = load_wide_sprites(args.data, world)
    autoencoder = build_autoencoder().to(crew.device, memory_format=torch.channels_last)
    if decoder_only:
        first = load_autoencoder(args.work / "autoencoder" / "vae.safetensors")
        autoencoder.encoder.load_state_dict(first.encoder.state_dict())
        autoencoder.encoder.requires_grad_(False)
        deepen(autoencoder.decoder, first.decoder)

    def loss_of(step: int):
        rng = np.random.default_rng([args.seed, crew.rank, step, decoder_only])
        scenes = [sample_wide_scene(rng, world) for _ in range(args.batch)]
        with torch.autocast(crew.device.type, enabled=False):
            pictures = draw_wide_scenes(scenes, sprites)[0].to(crew.device, memory_format=torch.channels_last)
        latents = autoencoder.encoder(pictures * 2 - 1)
        noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(int(rng.integers(2**31))))
        blur = 0.02 if decoder_only else 0.05
        decoded = (autoencoder.decoder(latents + blur * noise.to(latents)).float() + 1) / 2
        error = decoded - pictures
        mse = error.square().mean()
        edges = sum((error.diff(dim=d)).abs().mean() for d in (2, 3))
        # Unit variance and zero mean per channel, so that the denoiser sees white latents and scaling_factor is 1.
        mean, std = latents.float().mean((0, 2, 3)), latents.float().std((0, 2, 3))
        white = mean.square().mean() + (std + 1e-4).log().square().mean()
        loss = error.abs().mean() + (20 if decoder_only else 8) * mse + 0.5 * edges
        loss = loss if decoder_only else loss + 0.01 * white
        return loss, {"psnr": -10 * mse.detach().log10(), "std": std.mean().detach(), "loss": loss.detach()}

    stage = "decoder" if decoder_only else "autoencoder"
    train(stage, {"vae": autoencoder}, loss_of, crew, args, ema_decay=0.98)


def export(args) -> None:
    """Writes the folder that `StableDiffusionPipeline.from_pretrained` opens, in fp16."""
    from diffusers import StableDiffusionPipeline

    world = WideWorld(tail=tail_nouns(args.data))
    tokenizer = build_tokenizer(args.work)
    autoencoder, text_encoder, unet = load_trained(args.work)
    pipeline = StableDiffusionPipeline(
        vae=autoencoder, text_encoder=text_encoder, tokenizer=tokenizer, unet=unet, scheduler=build_scheduler(),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    ).to(dtype=torch.float16)  # fmt: skip
    # transformers loads a model in the precision of its file and diffusers in fp32: without this, opening the folder
    # with no dtype would give a pipeline of two precisions.
    text_encoder.float()
    pipeline.save_pretrained(args.out)
    config = args.out / "vae" / "config.json"
    kept = {key: value for key, value in json.loads(config.read_text()).items() if key != "block_out_channels"}
    config.write_text(json.dumps(kept, indent=2) + "\n")  # AutoencoderTiny writes it and warns when it reads it
    facts = {
        "format_version": 1,
        "name": "embedded",
        "default_guidance": 4.0,
        "default_steps": 16,
        "world": {
            "nouns": [noun for noun, *_ in world.core],
            "tail": [noun for noun, *_ in world.tail],
            "kinds": sorted({kind for _, kind, _ in world.core}),
            "styles": list(world.styles),
            "backgrounds": list(BACKGROUNDS),
            "places": list(PLACES),
            "patterns": list(PATTERNS),
            "colours": list(COLOURS),
            "accessories": list(ACCESSORIES),
            "drawn": list(world.drawn),
        },
    }
    (args.out / "base.json").write_text(json.dumps(facts, indent=1) + "\n")
    size = sum(f.stat().st_size for f in args.out.rglob("*") if f.is_file())
    print(f"{args.out}: {size / 1e6:.1f} MB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=("autoencoder", "decoder", "export"))
    parser.add_argument("--data", type=Path, help="folder of sprite folders")
    parser.add_argument("--work", type=Path, required=True, help="checkpoints and log")
    parser.add_argument("--out", type=Path, help="export: the model folder to write")
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--batch", type=int, default=32, help="pictures per process and step")
    parser.add_argument("--lr", type=float, default=1e-3, help="peak learning rate of AdamW")
    parser.add_argument("--muon-lr", type=float, default=0.02, help="peak learning rate of Muon")
    parser.add_argument("--save-every", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    export(args) if args.stage == "export" else train_autoencoder(Crew(), args, decoder_only=args.stage == "decoder")


if __name__ == "__main__":
    main()
