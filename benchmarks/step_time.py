"""Time and memory of a training step: diffadapt's methods against the frozen floor, PEFT and LyCORIS.

    python benchmarks/step_time.py --out benchmarks/results/step_time-<where>.json
    python benchmarks/step_time.py --model blocks --out benchmarks/results/step_time-blocks-<where>.json

Two models: the UNet of a base (--base), and `blocks`, three transformer blocks of Stable Diffusion 1.5's widths (320,
640 and 1280, context 768) with random weights, on --side squared latents. On both, all attention layers are adapted.

The floor is forward and backward with only the model's input requiring a gradient: what any adapter pays before it
does anything. All contenders take turns within one run, round by round, so that a busy machine slows all alike; the
figure is the median over rounds of each contender's time divided by the floor's of that round. `--clock cpu` counts the
process's own time, which other processes lengthen less. `--forward` times a forward pass without gradient, as sampling
does. `--contenders` takes a few by name. LyCORIS is measured where it is installed (`pip install --no-deps lycoris-lora
einops toml`).
"""

import argparse
import importlib.util
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from diffadapt.adapters import IA3, OFT, DoRA, GainedLoRA, LoRA, Method, Selective, SideInputs, StyleInject, attach
from diffadapt.adapters.oft import OFTAdapter, solve_together
from diffadapt.bases import load_base
from diffadapt.files import write_json
from diffadapt.training.optimizer import build_optimizer
from diffadapt.training.run import made_by, peak_memory_mb

LAYERS = ("to_q", "to_k", "to_v", "to_out.0")
WIDTHS = (320, 640, 1280)  # of Stable Diffusion 1.5's transformer blocks; each works at half the side of the one before
FULL = "diffadapt full"


def methods(model: str, rank: int) -> dict[str, Method]:
    """Contender -> our method. Blocks of 32 do not divide the embedded base's 176 inputs; 16 do."""
    size = 16 if model == "base" else 32
    return {
        "diffadapt LoRA": LoRA(rank=rank),
        f"diffadapt OFT b={size}": OFT(block_size=size),
        "diffadapt OFT r=4": OFT(blocks=4),
        "diffadapt LoRA r=12": LoRA(rank=12),
        "diffadapt DoRA r=12": DoRA(rank=12),
        "diffadapt LoRA with gains r=12": GainedLoRA(rank=12),
        "diffadapt IA3": IA3(),
        "diffadapt StyleInject n=4 r=4": StyleInject(),  # as many parameters as LoRA of rank 12
        "diffadapt StyleInject none": StyleInject(variance="none"),
        FULL: Selective(),
    }


def peers(model: str, rank: int) -> dict[str, Callable[[nn.Module], list[nn.Parameter]]]:
    """Contender -> what puts another tool's adapters on a model and returns what trains."""
    size = 16 if model == "base" else 32
    found: dict[str, Callable[[nn.Module], list[nn.Parameter]]] = {
        "PEFT LoRA": lambda module: _peft(module, "LoraConfig", r=rank, lora_alpha=rank),
        f"PEFT OFT b={size} exact": lambda module: _peft(
            module, "OFTConfig", r=0, oft_block_size=size, use_cayley_neumann=False
        ),
        f"PEFT OFT b={size} Neumann": lambda module: _peft(
            module, "OFTConfig", r=0, oft_block_size=size, use_cayley_neumann=True
        ),
    }
    if importlib.util.find_spec("lycoris") and importlib.util.find_spec("einops"):
        found[f"LyCORIS diag-oft b={size}"] = lambda module: _lycoris(module, size)
    return found


def _peft(module: nn.Module, config: str, **settings: Any) -> list[nn.Parameter]:
    import peft

    peft.inject_adapter_in_model(getattr(peft, config)(target_modules=list(LAYERS), **settings), module)
    return [parameter for parameter in module.parameters() if parameter.requires_grad]


def _lycoris(module: nn.Module, size: int) -> list[nn.Parameter]:
    from lycoris import LycorisNetwork, create_lycoris

    LycorisNetwork.apply_preset({"enable_conv": False, "target_module": [], "target_name": [f".*{n}" for n in LAYERS]})
    network = create_lycoris(module, 1.0, linear_dim=size, linear_alpha=1, algo="diag-oft")
    network.apply_to()
    module.lycoris = network  # kept alive with what it stands on
    return list(network.parameters())


class Blocks(nn.Module):
    """Three transformer blocks, one after the other on inputs of their own."""

    def __init__(self, side: int) -> None:
        from diffusers.models.attention import BasicTransformerBlock

        super().__init__()
        torch.manual_seed(0)
        self.tokens = [(side // 2**i) ** 2 for i in range(len(WIDTHS))]
        self.blocks = nn.ModuleList(
            BasicTransformerBlock(width, 8, width // 8, cross_attention_dim=768) for width in WIDTHS
        )
        self.requires_grad_(False).eval()

    def forward(self, inputs: list[Tensor], text: Tensor) -> Tensor:
        outputs = [
            block(x, encoder_hidden_states=text).square().mean() for block, x in zip(self.blocks, inputs, strict=True)
        ]
        return torch.stack(outputs).sum()


class Contender:
    """A model with something that trains on it; `step` is forward, backward and optimizer step."""

    def __init__(self, name: str, args: argparse.Namespace) -> None:
        self.name, self.begin, self.end, self.forward = name, lambda: None, lambda: None, args.forward
        self.clock = time.process_time if args.clock == "cpu" else time.perf_counter
        generator = torch.Generator().manual_seed(0)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        if args.model == "base":
            base = load_base(args.base)
            module = base.denoiser
            shape = (args.batch, base.denoiser.config.in_channels, *2 * [base.denoiser.config.sample_size])
            inputs = [torch.randn(shape, generator=generator).to(base.device, base.dtype)]
            timesteps = torch.randint(0, base.num_train_timesteps, (args.batch,), generator=generator).to(base.device)
            with torch.no_grad():
                condition = base.condition(["a cat on a red background"] * args.batch)
            self.loss = lambda: base.denoise(inputs[0], timesteps, condition).float().square().mean()
        else:
            module = Blocks(args.side).to(device)
            shapes = [(args.batch, tokens, width) for tokens, width in zip(module.tokens, WIDTHS, strict=True)]
            inputs = [torch.randn(shape, generator=generator).to(device) for shape in shapes]
            text = torch.randn(args.batch, 77, 768, generator=generator).to(device)
            self.loss = lambda: module(inputs, text)
        ours = methods(args.model, args.rank)
        if name == "floor":
            parameters = [value.requires_grad_() for value in inputs]
        elif name in ours and args.model == "base":
            roles = None if name == FULL else ["self_attention.*", "cross_attention.*"]
            attachment = attach(base, ours[name], roles)
            parameters = list(attachment.parameters())
            self.begin, self.end = (
                lambda: attachment.begin(SideInputs.of(condition, timesteps=timesteps)),
                attachment.project_,
            )
        elif name == FULL:
            parameters = list(module.requires_grad_().parameters())
        elif name in ours:
            parameters = self._put(ours[name], module)
        else:
            parameters = peers(args.model, args.rank)[name](module)
        self.parameters = 0 if name == "floor" else sum(p.numel() for p in parameters)
        groups = [{"params": parameters, "lr": 0.0 if name == "floor" else 1e-4}]
        self.optimizer = build_optimizer("adamw", groups, weight_decay=1e-2)
        self.is_floor = name == "floor"

    def _put(self, method: Method, module: nn.Module) -> list[nn.Parameter]:
        """Our adapters on a model that is no base."""
        generator, adapters = torch.Generator().manual_seed(0), []
        for path, layer in list(module.named_modules()):
            if path.endswith(LAYERS):
                parent, _, last = path.rpartition(".")
                role = "cross_attention." if ".attn2." in path else "self_attention."
                role += {"to_k": "key", "to_v": "value", "to_q": "query"}.get(last, "out")
                adapter = method.build(layer, path, role, generator)
                setattr(module.get_submodule(parent), last, adapter)
                adapters.append(adapter)
        turning = [adapter for adapter in adapters if isinstance(adapter, OFTAdapter)]
        self.begin = lambda: solve_together(turning)
        return [parameter for adapter in adapters for _, parameter in adapter.own_parameters()]

    def step(self) -> float:
        """Seconds of one training step."""
        _wait()
        start = self.clock()
        if self.forward:
            with torch.no_grad():
                self.begin()
                self.loss()
            _wait()
            return self.clock() - start
        self.optimizer.zero_grad()
        self.begin()
        self.loss().backward()
        if not self.is_floor:
            self.optimizer.step()
            self.end()
        _wait()
        return self.clock() - start


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def peak_memory(name: str, args: argparse.Namespace) -> float:
    """Peak memory of a process that does nothing but this contender's steps, in MB."""
    command = [sys.executable, "-W", "ignore", __file__, "--only", name]
    for key in ("model", "base", "rank", "batch", "side", "threads", "clock"):
        command += [f"--{key}", str(getattr(args, key))]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=("base", "blocks"), default="base")
    parser.add_argument("--base", default="embedded")
    parser.add_argument("--rank", type=int, default=4)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--side", type=int, default=32, help="of the latents, for --model blocks; 64 is 512 pixels")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--forward", action="store_true", help="time a forward pass without gradient")
    parser.add_argument("--contenders", nargs="*", help="names of those that are measured beside the floor; all")
    parser.add_argument("--no-memory", action="store_true", help="leave out the peak memory, a process for each")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--only", help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.only:
        only = Contender(args.only, args)
        for _ in range(3):
            only.step()
        print(peak_memory_mb(torch.device("cuda" if torch.cuda.is_available() else "cpu")))
        return
    names = ["floor", *methods(args.model, args.rank), *peers(args.model, args.rank)]
    if args.contenders:
        names = ["floor", *(name for name in names if name in args.contenders)]
    contenders = [Contender(name, args) for name in names]
    times: dict[str, list[float]] = {name: [] for name in names}
    for round_ in range(-3, args.rounds):
        for contender in contenders:
            seconds = contender.step()
            if round_ >= 0:
                times[contender.name].append(seconds)
    rows = []
    for contender in contenders:
        own, floor = times[contender.name], times["floor"]
        ratios = sorted(a / b for a, b in zip(own, floor, strict=True))
        rows.append(
            {
                "contender": contender.name,
                "milliseconds": round(1e3 * median(own), 2),
                "times_floor": round(median(ratios), 3),
                "times_floor_quartiles": [round(ratios[len(ratios) // 4], 3), round(ratios[3 * len(ratios) // 4], 3)],
                "trainable_parameters": contender.parameters,
                "peak_memory_mb": None if args.no_memory else round(peak_memory(contender.name, args), 1),
            }
        )
        print(json.dumps(rows[-1]), flush=True)
    if args.out:
        keys = ("model", "base", "rank", "batch", "side", "rounds", "threads", "clock", "forward")
        commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
        facts = {**made_by(), "commit": commit}
        settings = {key: getattr(args, key) for key in keys}
        write_json(args.out, {"benchmark": "step_time", "settings": settings, "made_by": facts, "rows": rows})


if __name__ == "__main__":
    main()
