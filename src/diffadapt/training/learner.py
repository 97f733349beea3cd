"""Trained parameters and their state: one update, checkpoints, resuming, the moving average."""

import contextlib
import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor

from ..adapters import Attachment, SideInputs
from ..bases import Base, Network
from ..config import check
from ..errors import Failed, Refused
from ..run_layout import RunLayout, checkpoint_of
from ..sampling.sample import drawn_in
from .checkpoint import (
    load_checkpoint,
    optimizer_tensors,
    prefixed,
    restore_optimizer,
    restore_scaler,
    save_checkpoint,
    scaler_tensors,
    without_prefix,
)
from .ema import EMA
from .loop_config import LoopConfig
from .optimizer import build_optimizer
from .run import peak_memory_mb
from .schedule import learning_rate_factor

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")


def draws_as_it_trains(
    train: Callable[Concatenate[Base, _Arguments], _Result],
) -> Callable[Concatenate[Base, _Arguments], _Result]:
    """A recipe whose pictures, from first to last, are drawn in the precision that it trains in; see `drawn_in`."""

    @functools.wraps(train)
    def trained(base: Base, *arguments: _Arguments.args, **settings: _Arguments.kwargs) -> _Result:
        of_config = getattr(settings.get("config"), "mixed_precision", "no")
        with drawn_in(base, str(settings.get("mixed_precision", of_config))):
            return train(base, *arguments, **settings)

    return trained


def make_accelerator(base: Network, config: LoopConfig) -> Accelerator:
    """accelerate keeps one precision per process; a second run in the process may ask for another."""
    shared = AcceleratorState._shared_state
    if shared and shared.get("_mixed_precision") != config.mixed_precision:
        AcceleratorState._reset_state()
    return Accelerator(cpu=base.device.type == "cpu", mixed_precision=config.mixed_precision)


@contextlib.contextmanager
def rounded_products(device: torch.device, on: bool) -> Iterator[None]:
    """Within the block a GPU may round the factors of fp32 matrix products to TF32, ten bits: up to eight times faster.

    Only here, and never where weights are merged or measured.
    """
    before = torch.backends.cuda.matmul.allow_tf32
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = on
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def refuse_the_impossible(base: Network, config: LoopConfig) -> None:
    """Reject settings no recipe supports, before writing anything."""
    check(config)
    if base.attachments:
        raise Refused("training starts from the untouched base; detach what is attached first")
    if config.mixed_precision == "fp16" and base.device.type == "cpu":
        raise Refused("mixed_precision = fp16 needs a GPU; on the CPU use no or bf16")
    if config.compile and config.mixed_precision == "bf16" and base.device.type == "cpu":
        # torch 2.13 (inductor): a UNet compiled for a CPU in bf16 gets no gradient through the interpolate of its
        # upsampling, so that all that lies before it learns nothing; a tiny one shows it at a batch of 4, two
        # convolutions around an interpolate do not. Eager, in float32 or with the doubling written out it is right.
        raise Refused(
            "compile = true with mixed_precision = bf16 on the CPU would train only a part of the adapter: what "
            "torch.compile makes of a UNet's upsampling there passes no gradient on; leave one of the two out"
        )
    if config.resolution % base.side_step:
        raise Refused(f"resolution must be a multiple of {base.side_step} pixels, got {config.resolution}")


def release(base: Network, attachments: Iterable[Attachment]) -> None:
    """Leaves the base as it was before the training, whether that ended well or not."""
    for attachment in reversed([*attachments]):
        attachment.detach()
    base.checkpoint_gradients_(False)


class Learner:
    """The attachments of a run, with optimizer and moving average. What resuming restores is in here.

    Args:
        base: what is adapted.
        attachments: name -> attachment; `<name>.safetensors` is its file.
        groups: parameter groups of the optimizer, each with its "peak" learning rate; empty ones are left out.
        config: the loop's settings.
        folder: the run's.
        accelerator: places and averages.

    Attributes:
        parameters: all that trains, in the order of the attachments.
        kept: the step of the last checkpoint, 0 when there is none.
    """

    def __init__(
        self,
        base: Network,
        attachments: Mapping[str, Attachment],
        groups: Sequence[dict[str, Any]],
        config: LoopConfig,
        folder: Path,
        accelerator: Accelerator,
    ) -> None:
        self.attachments, self.config, self.folder, self.accelerator = attachments, config, folder, accelerator
        used = [{**group, "lr": 0.0} for group in groups if group["params"]]
        self.optimizer = accelerator.prepare(build_optimizer(config.optimizer, used, weight_decay=config.weight_decay))
        self.parameters = [parameter for each in attachments.values() for parameter in each.parameters()]
        self.ema = EMA(self.parameters, config.ema_decay) if config.ema_decay else None
        self.kept = 0
        if config.gradient_checkpointing:
            base.checkpoint_gradients_(True)

    def averaged(self) -> contextlib.AbstractContextManager[None]:
        """Within the block the parameters are their moving averages, where there are any."""
        return self.ema.applied() if self.ema else contextlib.nullcontext()

    def resume(self) -> int:
        """Restores the newest checkpoint, if there is one; returns how many steps are done."""
        found = load_checkpoint(RunLayout(self.folder).checkpoints)
        if found is None:
            return 0
        self.kept, tensors, _ = found
        for name, attachment in self.attachments.items():
            attachment.load_state_dict(without_prefix(name, tensors))
        restore_optimizer(self.optimizer, tensors)
        restore_scaler(self.accelerator.scaler, tensors)
        if self.ema:
            self.ema.load_state(without_prefix("ema", tensors))
        return self.kept

    # --- one step -----------------------------------------------------------------------------------------------------

    def before_step(self, step: int) -> None:
        """Training mode, learning rates of this 0-based step, no gradients."""
        config = self.config
        for attachment in self.attachments.values():
            attachment.train()
        factor = learning_rate_factor(step, total=config.steps, warmup=config.warmup, schedule=config.schedule)
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * factor
        self.optimizer.zero_grad()

    def begin(self, side: SideInputs) -> None:
        """Hands the side inputs of a batch to every attachment."""
        for attachment in self.attachments.values():
            attachment.begin(side)

    def with_penalties(self, loss: Tensor) -> Tensor:
        """The loss with what the attachments add to it."""
        for attachment in self.attachments.values():
            penalty = attachment.penalty()
            loss = loss if penalty is None else loss + penalty
        return loss

    def backward(self, loss: Tensor) -> None:
        """Adds this batch's share to the gradients."""
        self.accelerator.backward(loss / self.config.gradient_accumulation)

    def after_step(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """One optimizer step, and all that follows it.

        Args:
            row: the log's line of the step, with "step", 1-based, and "loss".

        Returns:
            the line with "lr" of the first group and "grad_norm" before clipping.

        Raises:
            Failed: the loss is not a number; nothing is changed.
        """
        if not math.isfinite(row["loss"]):
            raise self._diverged(f"the loss is {row['loss']} at step {row['step']} of {self.folder}")
        self._average_over_processes()
        norm = self.accelerator.clip_grad_norm_(self.parameters, self.config.max_grad_norm or math.inf)
        self.optimizer.step()
        for attachment in self.attachments.values():
            attachment.project_()
        if self.ema:
            self.ema.update()
        for attachment in self.attachments.values():
            attachment.train(False)
        rate = self.optimizer.param_groups[0]["lr"]
        notes = {name: value for each in self.attachments.values() for name, value in each.notes().items()}
        return {**row, **notes, "lr": rate, "grad_norm": float(norm) if norm is not None else 0.0}

    def refuse_what_is_no_number(self, step: int) -> None:
        """Raises Failed when the update of this 1-based step left values that are not numbers: nothing is to be made of
        them, and the next loss, which would tell, may not come."""
        if not torch.stack([parameter.detach().isfinite().all() for parameter in self.parameters]).all():
            raise self._diverged(f"the update of step {step} of {self.folder} gave values that are not numbers")

    def _diverged(self, what: str) -> Failed:
        return Failed(
            f"{what}; expected a number. "
            + (f"The adapter of step {self.kept} is kept in checkpoints; " if self.kept else "Nothing is kept; ")
            + f"lower learning_rate ({self.config.learning_rate:g}) and use a new folder"
        )

    def _average_over_processes(self) -> None:
        """Gradients averaged over all processes; what trains is small, so one flat tensor does."""
        if self.accelerator.num_processes == 1:
            return
        for parameter in self.parameters:
            # One that a process had no use for has no gradient there, and elsewhere it has. A zero is no nothing:
            # weight decay would move what does not train.
            if parameter.grad is None and parameter.requires_grad:
                parameter.grad = torch.zeros_like(parameter)
        grads = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        flat = self.accelerator.reduce(torch.cat([g.reshape(-1) for g in grads]), reduction="mean")
        assert isinstance(flat, Tensor)
        for grad, part in zip(grads, flat.split([g.numel() for g in grads]), strict=True):
            grad.copy_(part.view_as(grad))

    # --- files --------------------------------------------------------------------------------------------------------

    def checkpoint(self, step: int) -> None:
        """Writes all that the next step depends on, and the adapters as a user would load them."""
        state = optimizer_tensors(self.optimizer) | scaler_tensors(self.accelerator.scaler)
        for name, attachment in self.attachments.items():
            state |= prefixed(name, attachment.state_dict())
        state |= prefixed("ema", self.ema.state()) if self.ema else {}
        place = RunLayout(self.folder).checkpoints
        self.save(checkpoint_of(place, step))
        save_checkpoint(place, step, state, {"of": self.config.steps}, keep=self.config.keep_checkpoints)
        self.kept = step

    def finish(self, settings: str, *, again: bool = False) -> dict[str, Any]:
        """Writes the finished files, in the first process; returns figures of the training for `metrics.json`.

        Args:
            settings: TOML for the files' headers.
            again: no step was done, since all were before: files that are there stay as they are.
        """
        if self.accelerator.is_main_process and not (again and self._there()):
            self.save(self.folder, {"settings": settings})
        count = sum(parameter.numel() for parameter in self.parameters)
        return {"trainable_parameters": count, "peak_memory_mb": round(peak_memory_mb(self.accelerator.device), 1)}

    def _there(self) -> bool:
        return all((self.folder / f"{name}.safetensors").is_file() for name in self.attachments)

    def save(self, folder: Path, metadata: Mapping[str, str] | None = None) -> None:
        """Writes `<name>.safetensors` of every attachment, averaged where there is a moving average."""
        with self.averaged():
            for name, attachment in self.attachments.items():
                attachment.save(folder / f"{name}.safetensors", metadata)
