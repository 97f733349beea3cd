"""The cost of perfusion: sampling with live concepts against the base, a training step against the frozen floor.

    python benchmarks/perfusion_time.py --out benchmarks/results/perfusion_time-<where>.json

Sampling: the base as it is; with one concept attached and in every prompt; with 100 attached, of which two are in each
prompt; and the base with keys and values computed at every denoising step, as pipelines do it. lucidrains' package
(`pip install --no-deps perfusion-pytorch beartype einops opt-einsum`) edits the projections at every step; its text
encoder, which we do not use, pulls torchvision, so an empty module stands in for it.

Training: forward and backward with only the denoiser's input requiring a gradient, against perfusion's whole step
(text encoder, edit, both backward, optimizer, anchor), and against a step that trains a new word alone, which is what
any method with one pays. Each contender has a base of its own, all take turns round by round, and the figure is the
median over rounds of a contender's time divided by the floor's of that round.
"""

import argparse
import contextlib
import importlib.util
import subprocess
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from torch import nn

from diffadapt.adapters import Method, Perfusion, SideInputs, Token, attach
from diffadapt.bases import Base, load_base
from diffadapt.conditioning import Conditioning
from diffadapt.files import write_json
from diffadapt.sampling import sample as sampling
from diffadapt.training.run import made_by

LIBRARY = 100
ROLES = ("cross_attention.key", "cross_attention.value")


def concepts(base: Base, count: int) -> None:
    """Puts concepts on a base, their anchors apart as trained ones are."""
    generator = torch.Generator().manual_seed(0)
    for i in range(count):
        shared = attach(base, Perfusion(), tokens={f"<c{i}>": "animal"}).shared
        shared.anchor += 0.5 * shared.anchor.std() * torch.randn(shared.anchor.shape, generator=generator)


def generating(base: Base, subject: str, args: argparse.Namespace, *, remember: bool = True) -> Callable[[], object]:
    """One call makes `args.pictures` pictures of a subject."""
    grounds = ("on a red background", "in a meadow", "at night", "on a white background")
    prompts = [f"a large {subject} {grounds[i % 4]}" for i in range(args.pictures)]
    lines = [sampling.default_line(base, prompt, i, steps=args.steps) for i, prompt in enumerate(prompts)]

    def run() -> object:
        kept = sampling.cached_projections
        if not remember:
            sampling.cached_projections = lambda _: contextlib.nullcontext()
        try:
            return sampling.generate(base, lines, batch=args.pictures)
        finally:
            sampling.cached_projections = kept

    return run


def lucidrains(base: Base, args: argparse.Namespace) -> Callable[[], object]:
    """The same with the package's modules on the projections, evaluated as it evaluates them."""
    empty = types.ModuleType("open_clip")
    empty.tokenizer = types.SimpleNamespace(tokenize=None)  # pyright: ignore[reportAttributeAccessIssue]
    sys.modules.setdefault("open_clip", empty)
    from perfusion_pytorch.perfusion import Rank1EditModule  # pyright: ignore[reportMissingImports]

    length, c = base.tokenizer.model_max_length, base.covariance()
    matrix = (c.matrix + c.ridge * torch.eye(len(c.matrix))).float()
    e = base.condition(["a animal"]).text[0, 2].detach()
    for role in ROLES:
        for path in base.roles[role]:
            layer = base.module(path)
            assert isinstance(layer, nn.Linear)
            module = Rank1EditModule(layer, C=matrix, text_seq_len=length, is_key_proj=role.endswith("key")).eval()
            module.initted.fill_(True)
            module.ema_concept_text_encs[0] = e
            module.concept_outputs.data[0] = layer(e)
            base.replace_(path, module)
    return generating(base, "animal", args, remember=False)


def samplers(args: argparse.Namespace) -> dict[str, Callable[[], object]]:
    one, library = load_base("embedded"), load_base("embedded")
    concepts(one, 1)
    concepts(library, LIBRARY)
    result = {
        "base": generating(load_base("embedded"), "animal next to a animal", args),
        "one concept": generating(one, "<c0> next to a animal", args),
        f"{LIBRARY} concepts, two in the prompt": generating(library, "<c3> next to a <c70>", args),
        "base, keys and values at every step": generating(
            load_base("embedded"), "animal next to a animal", args, remember=False
        ),
    }
    if all(importlib.util.find_spec(name) for name in ("perfusion_pytorch", "beartype", "einops", "opt_einsum")):
        result["lucidrains, one concept"] = lucidrains(load_base("embedded"), args)
    return result


def trainers(args: argparse.Namespace) -> dict[str, Callable[[], object]]:
    """The floor's step, perfusion's, and that of textual inversion."""
    generator, n = torch.Generator().manual_seed(0), args.batch
    floor_base = load_base("embedded")
    side = floor_base.denoiser.config.sample_size
    noisy = torch.randn(n, floor_base.denoiser.config.in_channels, side, side, generator=generator)
    wanted, times = torch.randn(noisy.shape, generator=generator), torch.linspace(50, 950, n).long()
    text = floor_base.condition(["a animal on a red background"] * n).text.detach()

    def floor() -> None:
        x = noisy.clone().requires_grad_()
        (floor_base.denoise(x, times, Conditioning(text=text)) - wanted).square().mean().backward()

    def training(method: Method) -> Callable[[], None]:
        base = load_base("embedded")
        attachment = attach(base, method, tokens={"<x>": "animal"})
        ids = base.tokenize(["a <x> on a red background"] * n)
        optimizer = torch.optim.AdamW(attachment.parameters(), lr=1e-4, weight_decay=0.0)

        def step() -> None:
            attachment.train()
            optimizer.zero_grad()
            encoded = base.encode_ids(ids[:1]).expand(n, -1, -1)  # a recipe encodes each distinct prompt once
            attachment.begin(SideInputs(token_ids=ids, text=encoded))
            (base.denoise(noisy, times, Conditioning(text=encoded)) - wanted).square().mean().backward()
            optimizer.step()
            attachment.project_()

        return step

    return {"floor": floor, "perfusion": training(Perfusion()), "a new word alone": training(Token())}


def measure(contenders: dict[str, Callable[[], object]], rounds: int) -> dict[str, dict[str, float]]:
    """Seconds and the ratio to the first contender, medians over rounds in which all take turns."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for run in contenders.values():
        run()  # to warm up
    for index in range(rounds):
        order = list(contenders)[index % len(contenders) :] + list(contenders)[: index % len(contenders)]
        for name in order:
            start = time.perf_counter()
            contenders[name]()
            seconds[name].append(time.perf_counter() - start)
    first = seconds[next(iter(contenders))]
    return {
        name: {
            "seconds": round(median(values), 4),
            "ratio": round(median(a / b for a, b in zip(values, first, strict=True)), 4),
        }
        for name, values in seconds.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--pictures", type=int, default=4, help="made at once")
    parser.add_argument("--steps", type=int, default=16, help="denoising steps")
    parser.add_argument("--batch", type=int, default=4, help="rows of a training step")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True).stdout
    result = {
        "made_by": made_by(),
        "commit": commit.strip(),
        "settings": {key: value for key, value in vars(args).items() if key != "out"},
        "sampling": measure(samplers(args), args.rounds),
        "training": measure(trainers(args), args.rounds),
    }
    for kind in ("sampling", "training"):
        for name, row in result[kind].items():
            print(f"{kind:9} {name:40} {row['seconds']:8.3f} s  {row['ratio']:.3f}")
    if args.out:
        write_json(args.out, result)


if __name__ == "__main__":
    main()
