"""train.compile with the real compiler (inductor): is it the same step, how long does it compile, what does it gain?

    python benchmarks/compiled_step.py --out benchmarks/results/compiled_step-<where>.json

For each method the embedded base's denoiser is adapted and run forward and backward on one batch, plainly and
compiled, from the same values. `prediction` and `gradient` are the largest difference over the largest value, `lost` is
the number of tensors, of `tensors`, whose gradient is zero throughout compiled and is not plainly. `--bf16` computes
both in bfloat16, where they differ by rounding and nothing may be lost (training refuses it: something is).
`first_step_s` is the time of the first compiled step, which compiles; `ratio` the median time of a compiled step over
that of a plain one, the two taking turns. The process's own clock is used, so that a busy machine lengthens it less;
the compiler's helper processes are then not in `first_step_s`, which is wall time.
"""

import argparse
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from diffadapt.adapters import OFT, Attachment, LoRA, Method, SideInputs, StyleInject, attach
from diffadapt.bases import Base, load_base
from diffadapt.files import write_json
from diffadapt.training.fit import AttachedBase
from diffadapt.training.run import made_by

METHODS: dict[str, Method] = {"lora": LoRA(), "oft": OFT(), "style_inject": StyleInject()}


def step(
    model: AttachedBase, attachment: Attachment, inputs: tuple[Any, ...], bf16: bool
) -> tuple[Tensor, list[Tensor]]:
    """The prediction of one batch and the gradients of its mean square."""
    _, timesteps, condition = inputs
    attachment.begin(SideInputs.of(condition, timesteps=timesteps))
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        prediction = model(*inputs)
    prediction.float().square().mean().backward()
    gradients = [parameter.grad.clone() for parameter in attachment.parameters() if parameter.grad is not None]
    for parameter in attachment.parameters():
        parameter.grad = None
    return prediction.detach(), gradients


def seconds(model: AttachedBase, attachment: Attachment, inputs: tuple[Any, ...], bf16: bool) -> float:
    before = time.process_time()
    step(model, attachment, inputs, bf16)
    return time.process_time() - before


def measured(base: Base, method: Method, batch: int, rounds: int, bf16: bool) -> dict[str, float]:
    generator = torch.Generator().manual_seed(0)
    side = base.resolution // base.downsampling
    noisy = torch.randn(batch, int(base.denoiser.config.in_channels), side, side, generator=generator)
    timesteps = torch.randint(base.num_train_timesteps, (batch,), generator=generator)
    inputs = (noisy, timesteps, base.condition(["a cat"] * batch))
    attachment = attach(base, method)
    try:
        with torch.no_grad():  # away from the start, where half of the gradients are zero
            for parameter in attachment.parameters():
                parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
        attachment.train()
        plain, compiled = (AttachedBase(base, {"adapter": attachment}, compiled=on) for on in (False, True))
        prediction, gradients = step(plain, attachment, inputs, bf16)
        start = time.perf_counter()
        its_prediction, its_gradients = step(compiled, attachment, inputs, bf16)
        first = time.perf_counter() - start
        times = [
            (seconds(plain, attachment, inputs, bf16), seconds(compiled, attachment, inputs, bf16))
            for _ in range(rounds)
        ]
    finally:
        attachment.detach()
        torch._dynamo.reset()
    largest = max(float(each.abs().max()) for each in gradients)
    apart = max(float((a - b).abs().max()) for a, b in zip(gradients, its_gradients, strict=True))
    lost = sum(bool(a.any()) and not b.any() for a, b in zip(gradients, its_gradients, strict=True))
    return {
        "prediction": float((prediction - its_prediction).abs().max() / prediction.abs().max()),
        "gradient": apart / largest,
        "tensors": len(gradients),
        "lost": lost,
        "first_step_s": round(first, 1),
        "plain_s": round(median(a for a, _ in times), 3),
        "ratio": round(median(b / a for a, b in times), 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="embedded")
    parser.add_argument("--methods", nargs="+", default=[*METHODS], choices=[*METHODS])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--bf16", action="store_true", help="by autocast")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    base = load_base(args.base, device="cpu")
    rows = {}
    for name in args.methods:
        rows[name] = measured(base, METHODS[name], args.batch, args.rounds, args.bf16)
        print(name, rows[name], flush=True)
        if args.out:  # after each, as a compilation can take ten minutes
            settings = {"base": args.base, "batch": args.batch, "rounds": args.rounds, "bf16": args.bf16}
            write_json(args.out, {"made_by": made_by(), "settings": settings, "methods": rows})


if __name__ == "__main__":
    main()
