"""OFT-6: the Gram matrix of a layer's neurons stays through a real optimizer run, at the widths of SD 1.5.

Each layer is trained on the outputs of a teacher with AdamW in float32, on fresh white noise in every step, through the
same forward pass that a training uses; then every norm and every cosine of two neurons is compared with before, in
float64. Two controls that are called OFT elsewhere must fail the same test: PEFT's default, which sums five terms of a
series in place of the inverse, and a rotation of the outputs. LoRA stands beside them.
"""

from typing import Any

import torch
import torch.nn.functional as F
from sd15_shapes import Shape, build, layers
from torch import Tensor, nn

from diffadapt.adapters import OFT, LoRA
from diffadapt.adapters.adapter import Mergeable, effective_weight
from diffadapt.evidence import Claim, Context, Design, Finding, Results, Settings, Table, Unit, Verdict
from diffadapt.metrics.energy import geometry_change
from diffadapt.metrics.weight_drift import neuron_angles

STEPS, ROWS, RATE, BLOCK = 100, 64, 5e-3, 32
GOAL = 1e-6
CONTROLLED = 1280  # neurons up to which the controls are trained too
TITLES = {
    "oft": "OFT", "peft": "PEFT's OFT as it comes (a series)", "output": "the same rotation on the outputs",
    "lora": "LoRA, rank 8",
}  # fmt: skip
CONTROLS = ("peft", "output")


def units(results: Results, settings: Settings) -> list[Unit]:
    return [
        {"neurons": shape.neurons, "inputs": shape.inputs, "contender": name, "seed": 0}
        for shape in layers("transformer_blocks")
        for name in TITLES
        if name == "oft" or shape.neurons <= CONTROLLED
    ]


def run(unit: Unit, context: Context) -> dict[str, Any]:
    seed, shape = unit["seed"], Shape(unit["neurons"], unit["inputs"], 0)
    torch.manual_seed(seed)
    layer = build(shape, seed)
    before = layer.get_parameter("weight").clone()
    generator = torch.Generator().manual_seed(seed + 1)
    # The teacher is no rotation of the layer, so that nothing but the method itself keeps the neurons where they are.
    noise = torch.randn(before.shape, generator=generator)
    teacher = before + 0.5 * before.norm() / noise.norm() * noise
    student = student_of(unit["contender"], layer, generator)
    trained = [parameter for parameter in student.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=RATE, weight_decay=0.0)
    losses = []
    for _ in range(STEPS):
        x = torch.randn(ROWS, shape.inputs, generator=generator)
        loss = F.mse_loss(student(x), x @ teacher.T)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    with torch.no_grad():
        after = weight_of(student, shape.inputs)
    change = geometry_change(before, after)
    return {
        "cosine_change": change.cosine_change,
        "norm_change": change.norm_change,
        "energy_change": change.energy_change,
        "angle_degrees": float(neuron_angles(before, after).mean()),
        "loss": [losses[0], losses[-1]],
        "parameters": sum(parameter.numel() for parameter in trained),
    }


class Outputs(nn.Module):
    """A layer whose outputs are rotated: R W in place of W R^T."""

    def __init__(self, layer: nn.Module, neurons: int, generator: torch.Generator) -> None:
        super().__init__()
        self.layer = layer
        same = nn.Linear(neurons, neurons, bias=False).requires_grad_(False)
        nn.init.eye_(same.weight)
        self.turn = OFT(block_size=BLOCK).build(same, "layer", "", generator)

    def forward(self, x: Tensor) -> Tensor:
        return self.turn(self.layer(x))


def student_of(name: str, layer: nn.Module, generator: torch.Generator) -> nn.Module:
    if name == "output":
        return Outputs(layer, len(layer.get_parameter("weight")), generator)
    if name == "peft":
        from peft import OFTConfig, get_peft_model

        config = OFTConfig(target_modules=["0"], oft_block_size=BLOCK, r=0)
        return get_peft_model(nn.Sequential(layer), config).train()  # type: ignore[arg-type]
    method = OFT(block_size=BLOCK) if name == "oft" else LoRA(rank=8)
    return method.build(layer, "layer", "", generator).train()


def weight_of(student: nn.Module, inputs: int) -> Tensor:
    """(out, in): the adapted weight; of what does not state it, what it does to each unit vector."""
    if isinstance(student, Mergeable):
        return effective_weight(student).clone()
    return student.eval()(torch.eye(inputs)).T


def largest(results: Results, contender: str, change: str = "cosine_change") -> float:
    return max(abs(each.scores[change]) for each in results.where(contender=contender))


def judge(results: Results) -> Verdict:
    rows = []
    for shape, count in layers("transformer_blocks").items():
        for each in results.where(neurons=shape.neurons, inputs=shape.inputs):
            changes = [f"{abs(each.scores[k]):.1e}" for k in ("cosine_change", "norm_change", "energy_change")]
            title = TITLES[each.unit["contender"]]
            rows.append([shape.name, count, title, *changes, round(each.scores["angle_degrees"], 1)])
    kept = max(largest(results, "oft"), largest(results, "oft", "norm_change"))
    turned = min(each.scores["angle_degrees"] for each in results.where(contender="oft"))
    moved = {name: min(abs(e.scores["cosine_change"]) for e in results.where(contender=name)) for name in TITLES}
    fails = all(moved[name] > GOAL for name in CONTROLS)
    return Verdict(
        paper=Finding(
            status="reproduced" if largest(results, "oft") <= GOAL and turned > 1 else "not reproduced",
            sentence=f"After {STEPS} steps of AdamW, which turned neurons by {turned:.1f} degrees or more on average, "
            f"no cosine of two neurons of any shape has changed by more than {largest(results, 'oft'):.1e}.",
        ),
        goal=Finding(
            status="met" if kept <= GOAL and fails else "not met",
            sentence=f"Cosines and norms: {kept:.1e} at most. The controls fail at every shape: PEFT's series changes "
            f"cosines by {moved['peft']:.1e} or more, a rotation of the outputs by {moved['output']:.1e} or more; LoRA "
            f"by {moved['lora']:.1e} or more.",
        ),
        tables=[
            Table(
                title="Largest change of any pair of neurons",
                columns=["shape", "layers", "contender", "cosine", "norm", "energy", "mean turn, degrees"],
                rows=rows,
                note=f"{STEPS} steps of AdamW at {RATE:g} on {ROWS} fresh rows of white noise, blocks of {BLOCK}, "
                "float32, compared in float64; norms and energy as shares of what they were. One seed.",
            )
        ],
    )


def null(unit: Unit, generator: torch.Generator) -> dict[str, Any]:
    """OFT and its controls are LoRA, each with another seed."""
    return fabricated(0.2 + 0.02 * float(torch.rand((), generator=generator)))


def oracle(unit: Unit) -> dict[str, Any]:
    return fabricated(1e-7 if unit["contender"] == "oft" else 0.1)


def fabricated(change: float) -> dict[str, Any]:
    return {"cosine_change": change, "norm_change": change, "energy_change": change, "angle_degrees": 10.0}


CLAIM = Claim(
    id="OFT-6",
    title="Training keeps the Gram matrix of the neurons, and what only looks like it does not",
    paper="Section 3.1 and figure 1: one orthogonal matrix, applied to all neurons of a layer, keeps every angle "
    "between them through the whole of training",
    goal="at every shape of Stable Diffusion 1.5's transformer blocks cosines and norms change by at most 1e-6; PEFT's "
    "default series and a rotation of the outputs, trained alike at the shapes of up to 1280 neurons, fail that",
    design=Design(
        resampled="nothing: exact, one seed", margin="1e-6, the rounding of float32", half_width=None, pilot="",
        seconds=10.0,
    ),
    units=units,
    run=run,
    judge=judge,
    null=null,
    oracle=oracle,
    needs_base=False,
)  # fmt: skip
