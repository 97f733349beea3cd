"""C-LoRA: one concept after another without forgetting (Smith et al. 2023, Continual Diffusion, arXiv:2304.06027).

    W_t = W_0 + P_t + A_t B_t,      P_t = sum_{t' < t} A_t' B_t'                    (equation 2)
    penalty = lambda sum_layers || |P_t| o (A_t B_t) ||_F^2                         (equation 3)

W_0 (out, in) and P_t are frozen; A_t (out, r) starts at zero and B_t (r, in) at random, anew for every task, so that a
task begins at the end of the one before. No factor alpha / r: the penalty sees what the layer computes with. `o` is the
entrywise product, and the norm is a sum of squares, so the absolute value changes nothing: the penalty is a decay of
the new change towards zero, weighed by the square of the old one.

The penalty's gradient is written out, 2 lambda G B^T and 2 lambda A^T G with G = P o P o (A B), and computed with its
value; autograd keeps two matrices of the factors' shapes and no dense one. What the past tasks leave is one float32
matrix P, which serves output and penalty alike. Files hold the past factors while they are smaller than P, then P.

Beyond the paper, `importance = "inputs"` weighs a change by what past tasks sent through the layer instead:

    penalty = lambda tr(D C D^T),      D = A_t B_t,   C = sum_{t' < t} E_t' [x x^T]

which is the mean square of what D adds to the layer's outputs on past inputs, exactly. For the keys and values of
cross-attention these inputs are encoded prompts, which no later task changes.

and `importance = "fisher"` is elastic weight consolidation (Kirkpatrick et al. 2017, arXiv:1612.00796) of the same
low-rank change, as a baseline: I_ij^2 = sum_{t' < t} E_t' [(dL / dW_ij)^2] takes the place of P_ij^2.

Strength multiplies the whole change: W_0 + strength (P_t + A_t B_t).

The paper adapts linear layers. A convolution is adapted here by the same equations on its flattened kernel
(out, in * kh * kw), x then being a patch of its input.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ..config import option
from ..errors import Refused
from .adapter import Adapter, Attached, Mergeable, Method

IMPORTANCE = ("abs_of_sum", "sum_of_abs", "sum_of_squares", "inputs", "fisher")
OBSERVED = ("inputs", "fisher")  # those that look at a task's data before it ends
CROSS_ATTENTION = ("cross_attention.key", "cross_attention.value")  # the paper's section 3: text to image
SELF_ATTENTION = ("self_attention.query", "self_attention.key", "self_attention.value")  # its section 5: classification


@dataclass(frozen=True, kw_only=True)
class CLoRA(Method):
    """Low-rank changes that add up over a sequence of tasks, each kept away from what the earlier ones changed."""

    name: ClassVar[str] = "c_lora"
    title: ClassVar[str] = "C-LoRA"
    recipes: ClassVar[tuple[str, ...]] = ("subject", "sequence", "classify")
    replaces_noun: ClassVar[bool] = True

    rank: int = option(16, "rank r of each task's change, 1 to the smaller side of the layer", low=1)
    penalty_weight: float = option(1e8, "lambda, the weight of the penalty; 0 is LoRA without it", low=0)
    penalty_scale: str = option(
        "raw",
        "raw: as in the paper; normalised: the weights of each layer are divided by their mean, so that lambda has no "
        "unit and does not grow with the number of tasks",
        choices=("raw", "normalised"),
    )
    importance: str = option(
        "abs_of_sum",
        "what a change is weighed by: abs_of_sum of past changes (the paper), sum_of_abs, sum_of_squares; inputs, what "
        "past tasks sent through the layer; fisher, the squared gradients of past tasks (EWC)",
        choices=IMPORTANCE,
    )

    def summary(self) -> str:
        return f"{self.title}, rank {self.rank}"

    def observes(self) -> str:
        return {"inputs": "inputs", "fisher": "gradients"}.get(self.importance, "")

    def notes(self, attachment: Attached) -> Mapping[str, float]:
        """The penalty's gradient norm, to be held against the whole gradient's, and the sum of |A B| of this task."""
        layers = [each for each in attachment.adapters.values() if isinstance(each, CLoRAAdapter)]
        squares = sum(each.penalty_gradient_square() for each in layers)
        return {
            "penalty_gradient": math.sqrt(squares),
            "change": sum(float(each.change().abs().sum()) for each in layers),
        }

    def default_roles(self, known: Iterable[str]) -> list[str]:
        """Keys and values of cross-attention; where there is none, queries, keys and values of self-attention."""
        known = list(known)
        return [role for role in CROSS_ATTENTION if role in known] or [role for role in SELF_ATTENTION if role in known]

    def adapts(self, layer: nn.Module) -> bool:
        return isinstance(layer, nn.Linear | nn.Conv2d)

    def build(self, layer: nn.Module, path: str, role: str, generator: torch.Generator) -> Adapter:
        return CLoRAAdapter(layer, self, path, generator)


class CLoRAAdapter(Mergeable):
    """C-LoRA on one layer: parameters `up` (out, r) = A_t and `down` (r, in) = B_t; the past is in buffers.

    `in` of a convolution is in * kh * kw.

    Attributes:
        tasks: how many tasks are folded into the past.
        past: (out, in) float32, P_t; None before the first fold.
        importance: what the penalty weighs with, where that is not `past`: (out, in), or (in, in) of inputs.
        past_up, past_down: (out, tasks r) and (tasks r, in), the factors of the past while they are kept.
    """

    past: Tensor | None
    importance: Tensor | None
    past_up: Tensor | None
    past_down: Tensor | None

    def __init__(self, layer: nn.Module, method: CLoRA, path: str, generator: torch.Generator) -> None:
        super().__init__(layer)
        inner = self.innermost()
        if not isinstance(inner, nn.Linear | nn.Conv2d):
            raise Refused(f"C-LoRA adapts linear and convolution layers; {path} is a {type(inner).__name__}")
        if isinstance(inner, nn.Conv2d) and inner.groups != 1:
            raise Refused(f"C-LoRA cannot adapt {path}: a convolution with {inner.groups} groups; leave its role out")
        shape = tuple(inner.weight.flatten(1).shape)
        if method.rank > min(shape):
            raise Refused(f"rank {method.rank} is larger than layer {path} allows ({shape}: at most {min(shape)})")
        self.method, self.path, self.tasks = method, path, 0
        device = inner.weight.device
        self.up = nn.Parameter(torch.zeros(shape[0], method.rank, device=device))
        self.down = nn.Parameter(fresh(method.rank, shape[1], generator).to(device))
        for name in ("past", "importance", "past_up", "past_down", "seen"):
            self.register_buffer(name, None, persistent=False)
        self.rows_seen = 0
        self._factor = 0.0

    # --- the layer ----------------------------------------------------------------------------------------------------

    def adapted(self, x: Tensor) -> Tensor:
        y = self._with_past(x)
        h = self._product(x.to(self.down.dtype), self.down)
        up = self.strength * self.up
        change = F.linear(h, up) if isinstance(self.innermost(), nn.Linear) else F.conv2d(h, up[:, :, None, None])
        return y + change.to(y.dtype)

    def _product(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """What the layer would put out with another weight (outputs, in), flattened if it is a convolution's."""
        inner = self.innermost()
        if isinstance(inner, nn.Conv2d):
            return inner._conv_forward(x, weight.view(-1, *inner.weight.shape[1:]), bias)
        return F.linear(x, weight, bias)

    def _with_past(self, x: Tensor) -> Tensor:
        """The layer with the past added: one product where the weight is at hand in float32, else two."""
        if self.past is None:
            return self.layer(x)
        if isinstance(self.layer, nn.Linear | nn.Conv2d) and self.layer.weight.dtype == torch.float32:
            weight = torch.add(self.layer.weight.flatten(1), self.past, alpha=self.strength)
            return self._product(x, weight, self.layer.bias)
        return self.layer(x) + self._product(x, self.strength * self.past.to(x.dtype))

    def weight(self, w0: Tensor) -> Tensor:
        flat, change = w0.float().flatten(1), self.up @ self.down
        past = flat if self.past is None else torch.add(flat, self.past, alpha=self.strength)
        return torch.add(past, change, alpha=self.strength).view_as(w0).to(w0.dtype)

    # --- the penalty --------------------------------------------------------------------------------------------------

    def penalty(self) -> Tensor | None:
        """lambda || I o (A B) ||_F^2, or lambda tr(D C D^T) of inputs; None for the first task."""
        weigh = self.past if self.method.importance == "abs_of_sum" else self.importance
        if weigh is None or not self._factor:
            return None
        if self.method.importance == "inputs":
            return _OfInputs.apply(self.up, self.down, weigh, self._factor)
        return _OfEntries.apply(self.up, self.down, weigh, self._factor)

    def penalty_gradient_square(self) -> float:
        """The squared norm of the penalty's gradient with respect to `up` and `down`, where they are now."""
        with torch.enable_grad():
            penalty = self.penalty()
            if penalty is None:
                return 0.0
            gradients = torch.autograd.grad(penalty, (self.up, self.down))
        return sum(float(gradient.square().sum()) for gradient in gradients)

    def _settle_factor(self) -> None:
        """lambda, divided by the mean weight when that is asked for."""
        weigh = self.past if self.method.importance == "abs_of_sum" else self.importance
        self._factor = self.method.penalty_weight
        if weigh is not None and self.method.penalty_scale == "normalised":
            inputs = self.method.importance == "inputs"
            mean = float(weigh.diagonal().mean() if inputs else weigh.square().mean())
            self._factor = self._factor / mean if mean else 0.0

    # --- from task to task --------------------------------------------------------------------------------------------

    def observe_(self, x: Tensor) -> None:
        """Takes in what the present task sends through the layer; only `importance = "inputs"` asks for it."""
        if self.method.importance == "inputs":
            rows = self._received(x).flatten(0, -2)
            self._see(rows.t() @ rows, len(rows))

    def observe_gradient_(self, x: Tensor, gradient: Tensor) -> None:
        """Takes in the squared gradients of the weight, row by row; only `importance = "fisher"` asks for it."""
        if self.method.importance == "fisher":
            grads = gradient.detach().float()
            if isinstance(self.innermost(), nn.Conv2d):
                grads = grads.flatten(2).transpose(1, 2)
            grads = grads.reshape(len(grads), -1, grads.shape[-1])
            for row, grad in zip(self._received(x), grads, strict=True):
                self._see((grad.t() @ row).square(), 1)

    def _received(self, x: Tensor) -> Tensor:
        """(N, positions, in) what the weight is multiplied by, in float32: tokens, or a convolution's patches."""
        inner, x = self.innermost(), x.detach().float()
        if isinstance(inner, nn.Conv2d):
            patches = F.unfold(x, inner.kernel_size, inner.dilation, cast(int, inner.padding), inner.stride)
            return patches.transpose(1, 2)
        return x.reshape(len(x), -1, x.shape[-1])

    def _see(self, statistic: Tensor, rows: int) -> None:
        self.seen = statistic if self.seen is None else self.seen + statistic
        self.rows_seen += rows

    @torch.no_grad()
    def fold_(self, generator: torch.Generator) -> None:
        """Ends a task: P <- P + A B; A starts at zero again and B at random. The output stays what it was.

        Raises:
            Refused: the importance is that of inputs or gradients, and none were observed.
        """
        if self.method.importance in OBSERVED:
            if self.seen is None:
                raise Refused(
                    f"importance = {self.method.importance}, but {self.path} has seen none of the task's "
                    f"{self.method.observes()}; run "
                    "the task's prompts or pictures once inside attachment.observing() before fold_()"
                )
            mean = self.seen / self.rows_seen
            if self.method.importance == "inputs":
                self.importance = mean if self.importance is None else self.importance + mean
            else:
                before = torch.zeros_like(mean) if self.importance is None else self.importance
                self.importance = torch.sqrt(before.square() + mean)
            self.seen, self.rows_seen = None, 0
        up, down = self.up.detach().clone(), self.down.detach().clone()
        if self.tasks == 0:
            self.past_up, self.past_down = up, down
        elif self.past_up is not None and self.past_down is not None:
            self.past_up, self.past_down = torch.cat([self.past_up, up], 1), torch.cat([self.past_down, down])
        self._accumulate(up, down)
        self._collapse()
        self.up.zero_()
        self.down.copy_(fresh(self.down.shape[0], self.down.shape[1], generator))
        self._settle_factor()

    def _accumulate(self, up: Tensor, down: Tensor) -> None:
        """One more task in P and in the importance; always one task at a time, so that a file gives the same bits."""
        change = up @ down
        self.past = change if self.past is None else self.past + change
        self.tasks += 1
        if self.method.importance == "sum_of_abs":
            self.importance = change.abs() if self.importance is None else self.importance + change.abs()
        if self.method.importance == "sum_of_squares":  # the penalty squares it, as it squares the others
            before = torch.zeros_like(change) if self.importance is None else self.importance
            self.importance = torch.hypot(before, change)

    def _collapse(self) -> None:
        """Drops the factors of the past when they have become larger than what they are kept instead of."""
        if self.past is None or self.past_up is None or self.past_down is None:
            return
        dense = self.past.numel() * (2 if self.method.importance in ("sum_of_abs", "sum_of_squares") else 1)
        if self.past_up.numel() + self.past_down.numel() >= dense:
            self.past_up = self.past_down = None

    # --- files --------------------------------------------------------------------------------------------------------

    def own_state(self) -> dict[str, Tensor]:
        """`up`, `down`, and of the past its factors, or where those are larger `past` (and `importance`) itself."""
        state: dict[str, Tensor] = {"up": self.up, "down": self.down}
        if self.tasks:
            state["tasks"] = torch.tensor(float(self.tasks))
        kept = ("past_up", "past_down") if self.past_up is not None else ("past", "importance")
        more = ("importance",) if self.method.importance in OBSERVED else ()
        held = {name: getattr(self, name) for name in (*kept, *more)}
        if self.seen is not None:  # observed and not folded yet: the pictures may be gone when the next task comes
            state |= {"seen": self.seen, "rows_seen": torch.tensor(float(self.rows_seen), dtype=torch.float64)}
        return state | {name: value for name, value in held.items() if value is not None}

    @torch.no_grad()
    def make_room_(self, tensors: Mapping[str, Tensor]) -> None:
        """Takes the past over from a file's tensors of this layer; what does not fit is left to be refused after."""
        out, (rank, inputs) = len(self.up), self.down.shape
        device = self.up.device
        self.past = self.importance = self.past_up = self.past_down = self.seen = None
        self.tasks = self.rows_seen = 0
        count = int(tensors["tasks"]) if "tasks" in tensors else 0
        held = {name: value.to(device, torch.float32) for name, value in tensors.items()}
        if count and "past_up" in held and "past_down" in held:
            up, down = held["past_up"].clone(), held["past_down"].clone()
            if up.shape != (out, count * rank) or down.shape != (count * rank, inputs):
                return
            for a, b in zip(up.split(rank, 1), down.split(rank), strict=True):
                self._accumulate(a.contiguous(), b)
            self.past_up, self.past_down = up, down
        elif count and "past" in held and held["past"].shape == (out, inputs):
            self.past, self.tasks = held["past"].clone(), count
            if "importance" in held:
                self.importance = held["importance"].clone()
        if self.method.importance in OBSERVED:
            self.importance = held["importance"].clone() if "importance" in held else None
            if "seen" in held and "rows_seen" in held:
                self.seen, self.rows_seen = held["seen"].clone(), int(held["rows_seen"])
        self._settle_factor()

    def change(self) -> Tensor:
        """(out, in) A_t B_t, what the present task changes."""
        return (self.up @ self.down).detach()


def fresh(rank: int, inputs: int, generator: torch.Generator) -> Tensor:
    """(rank, inputs) B at the start of a task: kaiming-uniform with a = sqrt(5), as LoRA's reference code has it."""
    return (torch.rand(rank, inputs, generator=generator) * 2 - 1) / math.sqrt(inputs)


class _OfEntries(torch.autograd.Function):
    """factor || I o (A B) ||_F^2 with its gradient, one dense matrix at a time and none kept."""

    @staticmethod
    def forward(ctx: Any, up: Tensor, down: Tensor, weigh: Tensor, factor: float) -> Tensor:
        with torch.autocast(up.device.type, enabled=False):
            dense = (up @ down).mul_(weigh)
            value = factor * torch.linalg.vector_norm(dense).square()
            dense.mul_(weigh)
            ctx.save_for_backward((2 * factor) * (dense @ down.t()), (2 * factor) * (up.t() @ dense))
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        up, down = ctx.saved_tensors
        return gradients[0] * up, gradients[0] * down, None, None


class _OfInputs(torch.autograd.Function):
    """factor tr(A B C B^T A^T) with its gradient, in matrices of the factors' shapes."""

    @staticmethod
    def forward(ctx: Any, up: Tensor, down: Tensor, moment: Tensor, factor: float) -> Tensor:
        with torch.autocast(up.device.type, enabled=False):
            seen = down @ moment  # (r, in)
            inner, outer = seen @ down.t(), up.t() @ up  # (r, r)
            ctx.save_for_backward((2 * factor) * (up @ inner), (2 * factor) * (outer @ seen))
            return factor * (inner * outer).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        up, down = ctx.saved_tensors
        return gradients[0] * up, gradients[0] * down, None, None
