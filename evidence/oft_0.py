"""OFT-0: what OFT and LoRA can learn, exactly: a hidden rotation and a hidden low-rank change, at the shapes of SD 1.5.

A student with the layer's weight W learns a teacher T by least squares, |W' - T|^2, which is the expected squared error
of their outputs on inputs that are white noise. Both floors are known in closed form:

    LoRA of rank r     the singular values of T - W behind the first r (Eckart and Young 1936)
    OFT                per block the rotation nearest to T (orthogonal Procrustes, Schoenemann 1966; of determinant 1,
                       since Cayley reaches no other: Kabsch 1976)

LoRA has at least as many parameters as OFT. The optimizer is L-BFGS, for both; errors are shares of |T - W|.
"""

import math
from typing import Any

import torch
from sd15_shapes import Shape, build, layers
from torch import Tensor, nn

from diffadapt.adapters import OFT, Adapter, LoRA
from diffadapt.adapters.oft import OFTAdapter
from diffadapt.evidence import Claim, Context, Design, Finding, Results, Settings, Table, Unit, Verdict

BLOCKS = "transformer_blocks"  # attention and feed-forward layers: what the paper adapts
BLOCK = 64  # divides every width
MOVED, ITERATIONS = 0.3, 300
ROUNDING, FLOOR = 1e-5, 0.01  # error that counts as rounding; by how much of itself a floor may be missed
KINDS = ("rotation", "low rank")


def units(results: Results, settings: Settings) -> list[Unit]:
    return [
        {"neurons": shape.neurons, "inputs": shape.inputs, "hidden": kind, "seed": 0}
        for shape in layers(BLOCKS)
        for kind in KINDS
    ]


def run(unit: Unit, context: Context) -> dict[str, Any]:
    shape = Shape(unit["neurons"], unit["inputs"], 0)
    torch.manual_seed(unit["seed"])
    layer, generator = build(shape, unit["seed"]), torch.Generator().manual_seed(unit["seed"] + 1)
    oft, path = OFT(block_size=BLOCK), "layer"
    students: dict[str, Adapter] = {"oft": oft.build(layer, path, "", generator)}
    count = parameters(students["oft"])
    rank = math.ceil(count / (shape.neurons + shape.inputs))
    students["lora"] = LoRA(rank=rank).build(layer, path, "", generator)
    start = layer.weight.flatten(1)
    teacher = hidden(unit["hidden"], layer, oft, rank, generator)
    found = {name: fit(student, layer, teacher) for name, student in students.items()}
    return {
        "rank": rank,
        "parameters": {name: parameters(student) for name, student in students.items()},
        "moved": float((teacher - start).norm() / start.norm()),
        "error": found,
        "floor": {
            "oft": procrustes_floor(start, teacher, oft.block_size),
            "lora": low_rank_floor(start, teacher, rank),
        },
    }


def hidden(kind: str, layer: nn.Module, oft: OFT, rank: int, generator: torch.Generator) -> Tensor:
    """The teacher's weight (out, in): turned block by block, or changed by a matrix of a rank."""
    weight = layer.get_parameter("weight")
    if kind == "rotation":
        turning = oft.build(layer, "layer", "", generator)
        assert isinstance(turning, OFTAdapter)
        with torch.no_grad():
            turning.q.normal_(generator=generator)
            # |R - I|_F is 2 |Q|_F for a small Q, and |Q|_F^2 is twice the sum of the upper triangle's squares
            turning.q *= MOVED / 2 / (turning.q.square().sum(1, keepdim=True) * 2 / turning.block_size).sqrt()
            return turning.weight(weight).flatten(1)
    start = weight.flatten(1)
    change = torch.randn(len(start), rank, generator=generator) @ torch.randn(rank, start.shape[1], generator=generator)
    return start + MOVED * start.norm() / change.norm() * change


def fit(student: Adapter, layer: nn.Module, teacher: Tensor) -> float:
    """Trains a student; returns |W' - T| / |T - W|, measured in float64."""
    weight = layer.get_parameter("weight")
    scale = (teacher - weight.flatten(1)).square().sum()
    optimizer = torch.optim.LBFGS(
        [parameter for _, parameter in student.own_parameters()], max_iter=ITERATIONS, history_size=10,
        tolerance_grad=1e-12, tolerance_change=1e-13, line_search_fn="strong_wolfe",
    )  # fmt: skip

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = (student.weight(weight).flatten(1) - teacher).square().sum() / scale
        loss.backward()
        return loss

    optimizer.step(closure)
    with torch.no_grad():
        left = student.weight(weight).flatten(1).double() - teacher.double()
    return float(left.norm() / (teacher.double() - weight.flatten(1).double()).norm())


def low_rank_floor(start: Tensor, teacher: Tensor, rank: int) -> float:
    """The least |W' - T| / |T - W| of a change of a rank."""
    change = teacher.double() - start.double()
    gram = change @ change.T if len(change) <= change.shape[1] else change.T @ change
    squares = torch.linalg.eigvalsh(gram).flip(0).clamp(min=0)
    return float((squares[rank:].sum() / squares.sum()).sqrt())


def procrustes_floor(start: Tensor, teacher: Tensor, block: int) -> float:
    """The least |W' - T| / |T - W| of rotations of blocks of the inputs."""
    squares = 0.0
    for w, t in zip(start.double().split(block, 1), teacher.double().split(block, 1), strict=True):
        left, _, right = torch.linalg.svd(w.T @ t)
        if torch.det(left @ right) < 0:  # the nearest orthogonal matrix mirrors: turn the weakest direction back
            left[:, -1] *= -1
        squares += float((w @ (left @ right) - t).square().sum())
    return math.sqrt(squares) / float((teacher.double() - start.double()).norm())


def parameters(student: Adapter) -> int:
    return sum(parameter.numel() for _, parameter in student.own_parameters())


def judge(results: Results) -> Verdict:
    rows = []
    for each in results.where(hidden="rotation"):
        shape = Shape(each.unit["neurons"], each.unit["inputs"], 0)
        cells: list[Any] = [shape.name, layers(BLOCKS)[shape], each.scores["rank"]]
        (other,) = results.where(**{**each.unit, "hidden": "low rank"})
        for found in (each.scores, other.scores):
            for name in ("oft", "lora"):
                cells.append(f"{found['error'][name]:.1e} ({found['floor'][name]:.1e})")
        rows.append(cells)
    own = {"rotation": "oft", "low rank": "lora"}  # who can learn it
    worst = {k: max(e.scores["error"][own[k]] for e in results.where(hidden=k)) for k in KINDS}
    others = {"rotation": "lora", "low rank": "oft"}
    missed = {k: max(off_the_floor(e.scores, others[k]) for e in results.where(hidden=k)) for k in KINDS}
    least = {k: min(e.scores["floor"][others[k]] for e in results.where(hidden=k)) for k in KINDS}
    learned = {k: worst[k] <= ROUNDING for k in KINDS}
    floored = {k: missed[k] <= FLOOR and least[k] > 100 * ROUNDING for k in KINDS}
    return Verdict(
        paper=Finding(
            status="reproduced" if learned["rotation"] and floored["rotation"] else "not reproduced",
            sentence=f"OFT learns a hidden rotation to {worst['rotation']:.1e} of it at every one of {len(rows)} "
            f"shapes; LoRA with as many parameters keeps at least {least['rotation']:.2f} of it, which is its floor to "
            f"{missed['rotation']:.1%}.",
        ),
        goal=Finding(
            status="met" if all(learned.values()) and all(floored.values()) else "not met",
            sentence=f"The other way round LoRA learns a hidden low-rank change to {worst['low rank']:.1e} and OFT "
            f"keeps at least {least['low rank']:.2f} of it, its floor to {missed['low rank']:.1%}.",
        ),
        tables=[
            Table(
                title="Error that is left, and in brackets the least that is possible",
                columns=[
                    "shape", "layers", "rank", "rotation: OFT", "rotation: LoRA", "low rank: OFT", "low rank: LoRA",
                ],
                rows=rows,
                note=f"Shares of the hidden change, |W' - T| / |T - W|; the change is {MOVED:g} of the weight. OFT has "
                f"blocks of {BLOCK}; LoRA has the rank that gives at "
                "least as many parameters. One seed; weights are drawn, inputs are white noise.",
            )
        ],
    )  # fmt: skip


def off_the_floor(scores: dict[str, Any], name: str) -> float:
    """By how much of itself a floor is missed; above it or, which cannot be, below."""
    return abs(scores["error"][name] / scores["floor"][name] - 1)


def null(unit: Unit, generator: torch.Generator) -> dict[str, Any]:
    """OFT is LoRA with another seed: both end at LoRA's floor, of either change."""
    floor = 0.8 if unit["hidden"] == "rotation" else 1e-7
    noise = {name: 1 + 1e-4 * float(torch.rand((), generator=generator)) for name in ("oft", "lora")}
    return fabricated({name: floor * factor for name, factor in noise.items()})


def oracle(unit: Unit) -> dict[str, Any]:
    learned = ("oft", "lora") if unit["hidden"] == "rotation" else ("lora", "oft")
    return fabricated({learned[0]: 1e-7, learned[1]: 0.8})


def fabricated(error: dict[str, float]) -> dict[str, Any]:
    return {"rank": 16, "error": error, "floor": dict(error)}


CLAIM = Claim(
    id="OFT-0",
    title="OFT learns a hidden rotation exactly where LoRA cannot, and LoRA a hidden low-rank change",
    paper="Section 3: what is to be learned of a pretrained layer is a rotation of its neurons, which an additive "
    "low-rank change does not hold",
    goal="at every shape of Stable Diffusion 1.5's transformer blocks: a rotation to 1e-5 by OFT while LoRA ends "
    "within 1 % of its Eckart-Young floor; a low-rank change the other way round, with OFT "
    "within 1 % of its Procrustes floor",
    design=Design(
        resampled="nothing: exact, one seed",
        margin="1e-5 of the change counts as rounding, 1 % of a floor as the floor",
        half_width=None,
        pilot="",
        seconds=10.0,
    ),
    units=units,
    run=run,
    judge=judge,
    null=null,
    oracle=oracle,
    needs_base=False,
)
