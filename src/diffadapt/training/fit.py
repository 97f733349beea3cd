"""The one loop: batches, an objective, what trains, and what is written on the way."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from accelerate import Accelerator
from torch import Tensor

from ..adapters import Attachment, SideInputs
from ..bases import Base, Network
from ..conditioning import Conditioning
from ..errors import Failed, Refused
from ..objectives import Batch, Model, Objective
from . import seeds
from .journal import Journal
from .learner import Learner, rounded_products
from .loop_config import LoopConfig
from .progress_samples import ProgressSamples

COMPILER = "inductor"  # torch.compile's backend


class Rows(Protocol):
    """Where batches come from; `batches.Batches` is one."""

    rows: int

    def batch(self, step: int, part: int) -> Batch:
        """The batch of one accumulation part of one step, a function of its arguments and a seed."""
        ...


def fit(
    base: Network,
    attachments: Mapping[str, Attachment],
    batches: Rows,
    objective: Objective,
    *,
    config: LoopConfig,
    groups: Sequence[dict[str, Any]],
    folder: Path,
    accelerator: Accelerator,
    settings: str,
    seed: int,
    model: Model | None = None,
    samples: ProgressSamples | None = None,
    log_as: Mapping[str, str] | None = None,
    averaged_after: bool = False,
    watch: Callable[[int, float], None] | None = None,
    quiet: bool = False,
) -> dict[str, Any]:
    """Trains what is attached to a base, from the newest checkpoint in the folder on, and writes its files.

    Args:
        base: with the attachments on it.
        attachments: name -> attachment; `<name>.safetensors` is its file.
        batches: rows as the objective draws them.
        objective: gives each row's loss, and the scalar that is minimised.
        config: the loop's settings.
        groups: parameter groups of the optimizer, each with its "peak" learning rate.
        folder: of the run: log, samples and checkpoints on the way, the attachments' files at the end.
        accelerator: of this process.
        settings: TOML for the files' headers.
        seed: of dropout.
        model: what the objective asks; None is the denoiser of the base, which is then a `Base`.
        samples: the pictures on the way, or None.
        log_as: source -> the log's name of the mean loss of its rows; others are not logged.
        averaged_after: whether the parameters are left as the files have them, averaged where there is an average.
        watch: called with (step, loss) after every step.
        quiet: print nothing.

    Returns:
        figures of the training for `metrics.json`

    Raises:
        Failed: the loss is not a number (the last good checkpoint stays), the disk is full.
    """
    if config.compile and model is not None:
        raise Refused("compile = true compiles a base's denoiser, and this recipe asks something else; leave it out")
    learner = Learner(base, attachments, groups, config, folder, accelerator)
    model = AttachedBase(cast(Base, base), attachments, compiled=config.compile) if model is None else model
    images = batches.rows * config.gradient_accumulation * accelerator.num_processes
    journal = Journal(learner, samples, images=images, watch=watch, quiet=quiet)
    waiting = base.offloaded() if config.offload and isinstance(base, Base) else nullcontext()
    with waiting, journal, rounded_products(accelerator.device, config.tf32):
        for step in journal.steps():
            learner.before_step(step)
            parts = []
            for part in range(config.gradient_accumulation):
                batch = batches.batch(step, part)
                torch.manual_seed(seeds.number(seed, accelerator.process_index, step, part))  # dropout
                with accelerator.autocast():
                    learner.begin(SideInputs.of(batch.condition, timesteps=batch.timesteps))
                    losses = objective.losses(model, batch)
                    loss = learner.with_penalties(objective.reduce(losses, batch))
                learner.backward(loss)
                parts.append((batch, losses.detach(), loss.detach()))
            journal.write(learner.after_step(log_row(step + 1, parts, log_as or {})))
    again = journal.done == config.steps
    facts = learner.finish(settings, again=again) | {"resumed_at": journal.done}
    if averaged_after and learner.ema:
        learner.ema.settle()
    return facts


class AttachedBase:
    """A base with attachments, as an objective calls it.

    Args:
        base, attachments: what is called, and what is switched off where the untouched base is asked.
        compiled: the denoiser with its adapters is compiled for the shapes that it is called with. Sampling on the way
            and the teacher are not: what is compiled stands beside the base, which stays as it is.
    """

    def __init__(self, base: Base, attachments: Mapping[str, Attachment], *, compiled: bool = False) -> None:
        self.base, self.attachments = base, attachments
        self._denoise, self._errors = base.denoise, ()
        if compiled:
            from torch._dynamo.exc import TorchDynamoException  # takes a second

            self._denoise, self._errors = torch.compile(base.denoise, backend=COMPILER), (TorchDynamoException,)

    def __call__(self, noisy: Tensor, timesteps: Tensor, condition: Conditioning) -> Tensor:
        try:
            return self._denoise(noisy, timesteps, condition)
        except self._errors as error:
            raise Failed(
                f"torch.compile cannot compile this step ({str(error).strip().splitlines()[0]}); set compile = false"
            ) from error

    def with_variance(self, noisy: Tensor, timesteps: Tensor, condition: Conditioning) -> tuple[Tensor, Tensor]:
        """The same, and the variance that the base learned beside it."""
        return self.base.denoise_with_variance(noisy, timesteps, condition)

    @torch.no_grad()
    def teacher(self, noisy: Tensor, timesteps: Tensor, condition: Conditioning) -> Tensor:
        """The untouched base's prediction: the attachments are off while it is made."""
        before = {attachment: attachment.enabled for attachment in self.attachments.values()}
        try:
            for attachment in before:
                attachment.enabled = False
            return self.base.denoise(noisy, timesteps, condition)
        finally:
            for attachment, enabled in before.items():
                attachment.enabled = enabled


def log_row(step: int, parts: Sequence[tuple[Batch, Tensor, Tensor]], log_as: Mapping[str, str]) -> dict[str, Any]:
    """One line of the log.

    Args:
        step: 1-based.
        parts: batch, losses (N,) and minimised scalar, penalties included, of each accumulation part.
        log_as: source -> name of the mean loss of its rows.

    Returns:
        "step", "loss", the means by source, and "loss_by_timestep": [timestep, loss] of every target row
    """
    row: dict[str, Any] = {"step": step, "loss": torch.stack([loss for *_, loss in parts]).mean().item()}
    for source, name in log_as.items():
        of_source = torch.cat([losses[batch.of(source)] for batch, losses, _ in parts])
        if len(of_source):
            row[name] = of_source.mean().item()
    losses = torch.cat([losses[batch.of("target")] for batch, losses, _ in parts]).tolist()
    times = torch.cat([batch.timesteps[batch.of("target")] for batch, *_ in parts]).tolist()
    row["loss_by_timestep"] = [[int(t), float(v)] for t, v in zip(times, losses, strict=True)]
    return row
