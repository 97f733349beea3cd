"""OFT-1: orthogonal fine-tuning keeps the hyperspherical energy, at any strength; LoRA and full fine-tuning do not."""

from typing import Any

import torch
from contact_sheet import write_sheet

from diffadapt.adapters import OFT, LoRA, Method, Selective
from diffadapt.data.concept import Concept, load_concept
from diffadapt.data.demo_subject import NOUN, draw_demo_subject
from diffadapt.data.picture import to_picture
from diffadapt.evaluation.geometry import movement
from diffadapt.evidence import (
    Claim,
    Context,
    Curve,
    Design,
    Finding,
    Plot,
    Results,
    Settings,
    Table,
    Unit,
    Verdict,
)
from diffadapt.recipes.subject import train_subject
from diffadapt.sampling.sample import adapted, sample

STRENGTHS = (-1.0, 0.25, 0.5, 1.0, 2.0)
GOAL = 1e-6
ROLES = ("self_attention.*", "cross_attention.*", "feed_forward.*", "residual.conv")
CONTENDERS: dict[str, tuple[str, Method, float]] = {  # title, method, learning rate
    "oft": ("OFT", OFT(), 2e-3),
    "lora": ("LoRA", LoRA(rank=4), 2e-3),
    "full": ("full fine-tuning", Selective(), 2e-4),
}
CHANGES = {"cosine_change": "cosine of two neurons", "norm_change": "norm of a neuron", "energy_change": "energy"}


def units(results: Results, settings: Settings) -> list[Unit]:
    training = [{"stage": "train", "contender": name, "seed": seed} for seed in settings.seeds for name in CONTENDERS]
    return [*training, {"stage": "pictures", "seed": settings.seeds[0]}] if results else training


def run(unit: Unit, context: Context) -> dict[str, Any]:
    if unit["stage"] == "pictures":
        return draw(unit, context)
    _, method, rate = CONTENDERS[unit["contender"]]
    run = train_subject(
        context.base, demo_concept(context), method=method, out=context.folder, seed=unit["seed"], steps=200,
        batch_size=2, learning_rate=rate, roles=ROLES, sample_every=0, evaluation_prompts=0, quiet=True,
        memory_bank=str(context.shared / f"bank-{NOUN}"),
    )  # fmt: skip
    scores: dict[str, Any] = {"angle_degrees": [], **{name: {} for name in CHANGES}}
    for strength in STRENGTHS:
        with adapted(context.base, [(run.adapter, strength)]) as attachments:
            rows = movement(attachments)["weight_drift"]
        for name in CHANGES:
            scores[name][f"{strength:g}"] = [float(f"{row[name]:.4g}") for row in rows if row["energy"]]
        if strength == 1:
            scores["angle_degrees"] = [float(f"{row['angle_degrees']:.4g}") for row in rows if row["energy"]]
    return scores


def draw(unit: Unit, context: Context) -> dict[str, Any]:
    """The subject as each contender draws it, at every strength, the same seed throughout."""
    concept = demo_concept(context)
    prompt = f"a large {concept.token} {NOUN} on a yellow background"
    shown = [to_picture(pixels) for pixels in concept.pixels(context.base.resolution)]
    rows = [("what was shown", shown[: len(STRENGTHS)])]
    for name, (title, _, _) in CONTENDERS.items():
        adapter = context.folder_of({**unit, "stage": "train", "contender": name}) / "adapter.safetensors"
        pictures = [sample(context.base, prompt, adapters=[(adapter, s)], seed=0)[0] for s in STRENGTHS]
        rows.append((f"{title} at strength {', '.join(f'{s:g}' for s in STRENGTHS)}", pictures))
    return {"picture": write_sheet(context.pictures / "strengths.png", rows)}


def demo_concept(context: Context) -> Concept:
    return load_concept(draw_demo_subject(context.shared / "demo"), NOUN)


def largest(results: Results, contender: str, change: str, strength: float) -> float:
    """The largest change over all layers, pairs of neurons and seeds."""
    runs = results.where(stage="train", contender=contender)
    return max(abs(value) for each in runs for value in each.scores[change][f"{strength:g}"])


def judge(results: Results) -> Verdict:
    kept = max(largest(results, "oft", "cosine_change", strength) for strength in STRENGTHS)
    moved = {name: largest(results, name, "cosine_change", 1.0) for name in ("lora", "full")}
    rows = [
        [title, f"{strength:g}", *(f"{largest(results, name, change, strength):.1e}" for change in CHANGES)]
        for name, (title, _, _) in CONTENDERS.items()
        for strength in STRENGTHS
    ]
    turned = {}
    for name in CONTENDERS:
        runs = results.where(stage="train", contender=name)
        turned[name] = sum(sum(e.scores["angle_degrees"]) / len(e.scores["angle_degrees"]) for e in runs) / len(runs)
    changed = max(largest(results, "oft", "energy_change", strength) for strength in STRENGTHS)
    return Verdict(
        paper=Finding(
            status="reproduced" if kept <= GOAL < min(moved.values()) else "not reproduced",
            sentence=(
                f"Over all pairs of neurons, layers, strengths and seeds, OFT changes no cosine by more than {kept:.1e}"
                f" and the energy by {changed:.1e} at most, while its neurons turn by {turned['oft']:.1f} degrees on "
                "average."
            ),
        ),
        goal=Finding(
            status="met" if kept <= GOAL < min(moved.values()) else "not met",
            sentence=(
                f"At strength 1 LoRA changes cosines by up to {moved['lora']:.2g} (neurons turn by {turned['lora']:.1f}"
                f" degrees) and full fine-tuning by up to {moved['full']:.2g} ({turned['full']:.1f} degrees)."
            ),
        ),
        tables=[
            Table(
                title="Largest change over all layers and seeds",
                columns=["contender", "strength", *CHANGES.values()],
                rows=rows,
                note="Cosines as a difference; norms and energy as a share of what they were.",
            )
        ],
        plots=[
            Plot(
                title="Largest change of the cosine of two neurons",
                caption="Over all layers and seeds; strength 0 is the base, 1 as trained.",
                x_label="strength",
                y_label="change of a cosine",
                curves=[
                    Curve(name=title, points=[(s, largest(results, name, "cosine_change", s)) for s in STRENGTHS])
                    for name, (title, _, _) in CONTENDERS.items()
                ],
                log_y=True,
            )
        ],
        pictures=[("strengths.png", "The demo's subject from -1 to twice the strength it was trained at, one seed")],
    )


def null(unit: Unit, generator: torch.Generator) -> dict[str, Any]:
    """All contenders are LoRA, each with another seed."""
    return fabricated(0.17 + 0.02 * float(torch.rand((), generator=generator)))


def oracle(unit: Unit) -> dict[str, Any]:
    return fabricated(1e-7 if unit.get("contender") == "oft" else 0.1)


def fabricated(change: float) -> dict[str, Any]:
    at = {f"{strength:g}": [0.0, -change] for strength in STRENGTHS}
    return {"angle_degrees": [5.0, 7.0]} | {name: at for name in CHANGES}


CLAIM = Claim(
    id="OFT-1",
    title="Orthogonal fine-tuning keeps the hyperspherical energy of the neurons",
    paper=(
        "Section 3.1 and figure 1: the energy of all layers stays at its first value over 3,000 iterations of OFT, and "
        "rises under DreamBooth and LoRA; an orthogonal matrix shared by all neurons keeps every angle between them"
    ),
    goal=(
        "no cosine of two neurons of any layer changes by more than 1e-6, at any strength from -1 to 2; LoRA and full "
        "fine-tuning change them by more"
    ),
    design=Design(
        resampled="nothing: the largest over all layers, pairs and seeds", margin="1e-6, the rounding of float32",
        half_width=None, pilot="", seconds=66.0,
    ),
    units=units,
    run=run,
    judge=judge,
    null=null,
    oracle=oracle,
)  # fmt: skip
