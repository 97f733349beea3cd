"""Measures what an adapter learned and what it forgot: fidelity, alignment, diversity and, always, drift.

Each figure comes with its 95 % interval and the untouched base's figure. Subject prompts follow the DreamBooth
benchmark: 25 prompts, 4 pictures each.
"""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import Refused
from .arguments import adapters, add_adapters, add_base, add_bias, load, new_folder, read_bias

SUMMARY = "measure fidelity, alignment, diversity and drift"
EXAMPLES = """\
  diffadapt evaluate --adapter runs/biscuit --concept photos/biscuit --noun cat
  diffadapt evaluate --adapter runs/biscuit:0.6 --concept photos/biscuit --noun cat --json > half.json
  diffadapt evaluate --base stable-diffusion-v1-5/stable-diffusion-v1-5 --adapter a.safetensors \\
      --concept photos/biscuit --noun cat --features clip:openai/clip-vit-base-patch32
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_base(parser)
    add_adapters(parser, required=True)
    add_bias(parser)
    parser.add_argument("--concept", required=True, metavar="DIR", help="the pictures that the adapter learned")
    parser.add_argument("--noun", required=True, help="what they show one of, such as cat")
    parser.add_argument("--token", help="the adapter's word for it; default: what the adapter says, else <DIR>")
    parser.add_argument("--prompts", type=int, default=25, metavar="N", help="subject prompts, up to 25 (default 25)")
    parser.add_argument("--per-prompt", type=int, default=4, metavar="N", help="pictures of each (default 4)")
    parser.add_argument("--drift", type=int, default=25, metavar="N", help="unrelated prompts for drift (default 25)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the pictures (default 0)")
    parser.add_argument("--steps", type=int, metavar="N", help="denoising steps; default: the base's")
    parser.add_argument(
        "--features", action="append", default=[], metavar="NAME",
        help="encoder: probe, second, clip:ID or dino:ID; may be repeated; default: what suits the base",
    )  # fmt: skip
    parser.add_argument(
        "--questions", metavar="ID",
        help="ask a model of visual questions too, such as Salesforce/blip-vqa-base or a folder; for photographs",
    )  # fmt: skip
    parser.add_argument("--out", metavar="DIR", help="a new folder for metrics.json and the drift pictures")
    parser.add_argument("--json", action="store_true", help="print all figures as JSON")


def run(arguments: argparse.Namespace) -> int:
    chosen, bias = adapters(arguments), read_bias(arguments.bias)
    out = new_folder(arguments.out) if arguments.out else None
    from ..adapters import read_adapter
    from ..data.concept import load_concept
    from ..evaluation.evaluate import evaluate
    from ..files import write_json

    token = arguments.token or first_token(read_adapter(path)[2] for path, _ in chosen)
    concept = load_concept(arguments.concept, arguments.noun, token=token)
    metrics = evaluate(
        load(arguments), concept, adapters=chosen, bias=bias, out=out, prompts=arguments.prompts,
        per_prompt=arguments.per_prompt, drift_count=arguments.drift, seed=arguments.seed, features=arguments.features,
        questions=arguments.questions,
        steps=arguments.steps, quiet=False,
    )  # fmt: skip
    if out:
        write_json(Path(out) / "metrics.json", metrics)
    print(json.dumps(metrics, indent=1) if arguments.json else table(metrics))
    return 0


def first_token(of_adapters: Any) -> str | None:
    """The one token that the adapters taught; None when they taught none.

    Raises:
        Refused: they taught several, so that --token must say which is meant.
    """
    tokens = [next(iter(tokens)) for tokens in of_adapters if tokens]  # the first of a multi-vector token is the word
    if len(set(tokens)) > 1:
        raise Refused(f"the adapters taught {', '.join(tokens)}; say with --token which one the pictures show")
    return tokens[0] if tokens else None


def table(metrics: Mapping[str, Any]) -> str:
    """The figures as aligned text, each with its interval and what it stands beside.

    "floor" is what the untouched base comes to when it is drawn again from other seeds, "perfect" what perfect
    renderings of the same prompts reach.
    """
    beside = [name for name in ("base", "floor", "perfect") if any(name in row for row in metrics["values"].values())]
    rows = [("metric", "value", "95 % interval", *beside, "better")]
    for name, row in metrics["values"].items():
        interval = f"{_figure(row.get('low'))} to {_figure(row.get('high'))}"
        found = (_figure(row.get(each)) for each in beside)
        rows.append((name, _figure(row["value"]), interval, *found, row.get("better", "")))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([*lines, f"features: {metrics.get('features', '')}"])


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
