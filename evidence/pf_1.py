"""PF-1: a concept is 100 KB. Files of concepts with the shapes of real bases, written and weighed."""

import json
from pathlib import Path
from typing import Any

import torch

from diffadapt.adapters import Perfusion, attach
from diffadapt.evidence import Claim, Context, Design, Finding, Results, Settings, Table, Unit, Verdict
from diffadapt.files import save_tensors

# Of each base: width of the text, outputs of its cross-attention layers, width of the new word's embeddings.
SHAPES = {
    "Stable Diffusion 1.5": (768, [320] * 5 + [640] * 5 + [1280] * 6, 768),
    "Stable Diffusion XL": (2048, [640] * 10 + [1280] * 60, 768 + 1280),
    "PixArt": (1152, [1152] * 28, 4096),
}
LOCKS = {"local": "keys regenerated", "trained": "keys stored"}
MOST, PAPER = 60_000, 105_984


def units(results: Results, settings: Settings) -> list[Unit]:
    return [{"base": name, "key_lock": lock} for name in SHAPES for lock in LOCKS]


def run(unit: Unit, context: Context) -> dict[str, Any]:
    """The header is that of a concept of the present base with a run's settings in it, the tensors have real shapes."""
    attachment = attach(context.base, Perfusion(key_lock=unit["key_lock"]), tokens={"<concept>": "animal"})
    try:
        settings = {"settings": (context.base.name + " " * 1200)[:1200]}
        written = attachment.save(context.folder / "header.safetensors", settings).read_bytes()
        names = set(attachment.state_dict())
    finally:
        attachment.detach()
    size = int.from_bytes(written[:8], "little")
    header = json.loads(written[8 : 8 + size])["__metadata__"]
    width, outputs, word = SHAPES[unit["base"]]
    counts = {"targets": sum(outputs), "key_targets": sum(outputs), "anchor": width, "vectors": word}
    bytes_of = {}
    for dtype in (torch.float32, torch.float16):
        tensors = {name: torch.zeros(counts[name.rpartition(".")[2]], dtype=dtype) for name in names}
        file = save_tensors(Path(context.folder) / "concept.safetensors", tensors, header)
        bytes_of[str(dtype).removeprefix("torch.")] = file.stat().st_size
    return bytes_of


def judge(results: Results) -> Verdict:
    rows = [
        [each.unit["base"], LOCKS[each.unit["key_lock"]], f"{each.scores['float32']:,}", f"{each.scores['float16']:,}"]
        for each in results
    ]
    (mine,) = results.where(base="Stable Diffusion 1.5", key_lock="local")
    size = mine.scores["float32"]
    return Verdict(
        paper=Finding(
            status="reproduced" if size <= PAPER else "not reproduced",
            sentence=f"At the shapes of Stable Diffusion 1.5 a concept takes {size:,} bytes in float32, all in.",
        ),
        goal=Finding(
            status="met" if size <= MOST else "not met",
            sentence=f"{size:,} bytes, where at most {MOST:,} were aimed at.",
        ),
        tables=[Table(title="Bytes on disk", columns=["base", "layout", "float32", "float16"], rows=rows)],
    )


def null(unit: Unit, generator: torch.Generator) -> dict[str, Any]:
    """The concept is a LoRA of rank 4 of the same layers, with another seed."""
    return dict.fromkeys(("float32", "float16"), 500_000 + int(torch.randint(100, (), generator=generator)))


def oracle(unit: Unit) -> dict[str, Any]:
    return {"float32": MOST, "float16": MOST // 2}


CLAIM = Claim(
    id="PF-1",
    title="A concept is 100 KB",
    paper="Abstract: a concept takes 100 KB; o*_K, o*_V, i* and v* in float32 are 105,984 bytes",
    goal="at most 60,000 bytes in float32 at the shapes of Stable Diffusion 1.5, on disk",
    design=Design(resampled="nothing: exact", margin="none", half_width=None, pilot="", seconds=0.1),
    units=units,
    run=run,
    judge=judge,
    null=null,
    oracle=oracle,
)
