"""A preview of a subject's training: trained parameters, pictures, memory, disk, time.

Parameters, files and pictures are exact. Memory is counted on fake tensors, without what a GPU's context and allocator
add. Time is that of one step and one picture on this machine, times their number; other work on the machine changes it.
"""

import math
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from ..adapters import Attachment, Method, SideInputs, attach
from ..bases import Base
from ..data.concept import Concept
from ..report.page import duration, file_size
from ..sampling.sample import default_line, drawing_autocast, drawn_in, generate
from ..training.memory import CountedMemory
from ..training.retention_config import MemoryConfig
from .picture_count import PictureConfig, count_pictures, in_words
from .retention import memory_latents

_PNG = 1.5  # bytes a pixel, of photographs; drawings take less
DRAWN_AT_ONCE = 8  # pictures


class PlanConfig(PictureConfig, Protocol):
    """The settings of `train_subject` that a plan reads; the recipe, which says its plan, stands above it."""

    @property
    def resolution(self) -> int: ...
    @property
    def roles(self) -> tuple[str, ...]: ...
    @property
    def train_token(self) -> bool: ...
    @property
    def batch_size(self) -> int: ...
    @property
    def gradient_accumulation(self) -> int: ...
    @property
    def mixed_precision(self) -> str: ...
    @property
    def gradient_checkpointing(self) -> bool: ...
    @property
    def offload(self) -> bool: ...
    @property
    def ema_decay(self) -> float: ...
    @property
    def keep_checkpoints(self) -> int: ...
    @property
    def optimizer(self) -> str: ...
    @property
    def objective(self) -> str: ...
    @property
    def memory(self) -> MemoryConfig: ...


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The preview that `plan_subject` returns.

    Attributes:
        what: method and base in words.
        roles: role -> number of layers that are adapted.
        parameters: that train, the new word's included.
        adapter_bytes: of the finished file's tensors.
        pictures: what for -> how many are made.
        memory_bytes: at the peak of a step: weights, activations, gradients, moments; None where it was not or cannot
            be counted.
        drawing_bytes: at the peak of drawing pictures, `DRAWN_AT_ONCE` of them: weights, activations, and the moments
            where pictures are drawn on the way; None likewise. A GPU that has less draws fewer at once.
        disk_bytes: of the run's folder, about.
        seconds: of training and of pictures on this machine, about; empty when it was not measured.
    """

    what: str
    roles: dict[str, int]
    parameters: int
    adapter_bytes: int
    pictures: dict[str, int]
    disk_bytes: int
    memory_bytes: int | None = None
    drawing_bytes: int | None = None
    seconds: dict[str, float] = field(default_factory=dict)

    def lines(self) -> list[str]:
        """The plan in words, a line for each thing that is known."""
        roles = ", ".join(f"{role} ({count})" for role, count in self.roles.items()) or "the new word alone"
        known = [f"trains      {self.what}: {roles}", f"parameters  {self.parameters:,}"]
        known += [f"file        {file_size(self.adapter_bytes)}"]
        known += [f"pictures    {in_words(self.pictures)}"] if self.pictures else []
        if self.memory_bytes:
            known += [
                f"memory      {file_size(self.memory_bytes)} at a step's peak, counted; a GPU's context comes on top"
            ]
        if self.drawing_bytes:
            fewer = "fewer at once where a GPU has less"
            known += [f"drawing     {file_size(self.drawing_bytes)} for {DRAWN_AT_ONCE} pictures at once, {fewer}"]
        known += [f"disk        about {file_size(self.disk_bytes)}"]
        if self.seconds:
            parts = ", ".join(f"{duration(seconds)} of {phase}" for phase, seconds in self.seconds.items())
            known += [f"time        about {duration(sum(self.seconds.values()))} on this machine: {parts}"]
        return known


def plan_subject(base: Base, concept: Concept, *, method: Method, config: PlanConfig, timed: bool = True) -> Plan:
    """Preview `train_subject` with these arguments; nothing is written and the base stays as it is.

    Args:
        base, concept, method, config: as for `train_subject`.
        timed: measure a step and a picture on this machine, which takes about as long as five of them.

    Raises:
        Refused: the settings do not fit the base.
    """
    if method.replaces_noun:
        concept = concept.standing_alone()
    tokens = concept.tokens if config.train_token else None
    attachment = attach(base, method, list(config.roles) or None, tokens=tokens)
    try:
        with drawn_in(base, config.mixed_precision):
            plan = count(base, attachment, concept, config)
            return replace(
                plan,
                memory_bytes=_memory(base, attachment, config),
                drawing_bytes=_drawing_memory(base, attachment, config) if plan.pictures else None,
                seconds=_time(base, concept, attachment, config, plan.pictures) if timed else {},
            )
    finally:
        attachment.detach()


def count(base: Base, attachment: Attachment, concept: Concept, config: PlanConfig) -> Plan:
    """The part of a plan that is known at once: what trains, its file, pictures and disk. `train` says it, too.

    Args:
        base: with the attachment on it.
        attachment: what is to be trained.
        concept, config: as for `train_subject`.
    """
    role_of = base.select([*base.roles])
    parameters = sum(parameter.numel() for parameter in attachment.parameters())
    size = sum(tensor.numel() * tensor.element_size() for tensor in attachment.state_dict().values())
    memory = memory_latents(base, config.objective, config.memory)
    pictures = ({"the memory": memory} if memory else {}) | count_pictures(concept, config)
    side = config.resolution or base.resolution
    state = size + parameters * (_moments(config) + 4 * bool(config.ema_decay))
    kept = math.ceil(config.steps / config.checkpoint_every) if config.checkpoint_every else 0
    # one more while a new one is written, before the oldest goes
    kept = min(kept, config.keep_checkpoints + 1) if config.keep_checkpoints else kept
    shown = sum(pictures.values()) - pictures.get("evaluation", 0) - memory
    return Plan(
        what=f"{attachment.method.name} on {base.name}",
        roles=dict(Counter(role_of[path] for path in attachment.layers)),
        parameters=parameters,
        adapter_bytes=size,
        pictures=pictures,
        disk_bytes=round(size + kept * (size + state) + _PNG * side**2 * shown),
    )


def _moments(config: PlanConfig) -> int:
    """Bytes of the optimizer's two moments of a parameter."""
    return 2 if config.optimizer == "adamw8bit" else 8


def _rows(config: PlanConfig) -> int:
    return config.batch_size * (2 if config.prior_weight else 1)


def _step(base: Base, attachment: Attachment, config: PlanConfig) -> tuple[Callable[[], None], Callable[[], None]]:
    """A training step on noise and an empty prompt, whose shapes and work are those of a real one, in two parts.

    Returns:
        what comes before the denoiser (text, side inputs), and the denoiser's way there and back
    """
    side, rows = config.resolution or base.resolution, _rows(config)
    small, channels, device = side // base.downsampling, int(base.denoiser.config.in_channels), base.device
    precision = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(config.mixed_precision)
    times = torch.full((rows,), base.num_train_timesteps // 2, device=device)
    autocast = torch.autocast(device.type, dtype=precision, enabled=precision is not None)
    conditions = []

    def before() -> None:
        with torch.no_grad(), autocast:
            conditions[:] = [base.condition([""] * rows)]
        attachment.begin(SideInputs.of(conditions[0], timesteps=times))

    def there_and_back() -> None:
        noisy = torch.randn(rows, channels, small, small, device=device)
        with autocast:
            loss = base.denoise(noisy, times, conditions[0]).float().square().mean()
        if loss.requires_grad:  # with a new word alone the gradient goes on into the text encoder, which is small
            loss.backward()

    return before, there_and_back


def _memory(base: Base, attachment: Attachment, config: PlanConfig) -> int | None:
    """Bytes at the peak of a step: what stands, and the activations, counted on fake tensors; None where that fails."""
    waiting = [parameter for part in base.idle_parts() for parameter in part.parameters()] if config.offload else []
    resident = {*(each for part in base.all_parts() for each in part.parameters())} - {*waiting}
    standing = sum(each.numel() * each.element_size() for each in resident)
    parameters = sum(parameter.numel() for parameter in attachment.parameters())
    before, there_and_back = _step(base, attachment, config)
    if config.gradient_checkpointing:
        base.checkpoint_gradients_(True)
        base.denoiser.train()
    try:
        before()
        with FakeTensorMode(allow_non_fake_inputs=True), CountedMemory() as counted:
            there_and_back()
    except DataDependentOutputException:  # a method that looks at values, which fake tensors do not have
        return None
    finally:
        base.denoiser.eval()
        base.checkpoint_gradients_(False)
        for parameter in attachment.parameters():
            parameter.grad = None
    return standing + counted.peak + parameters * (_moments(config) + 4 * bool(config.ema_decay))


def _drawing_memory(base: Base, attachment: Attachment, config: PlanConfig) -> int | None:
    """Bytes at the peak of drawing: what stands, one denoising step with guidance, and the decoding of its pictures."""
    rows = DRAWN_AT_ONCE * (2 if base.default_guidance > 1 else 1)
    small, channels = base.resolution // base.downsampling, int(base.denoiser.config.in_channels)
    device = base.device
    times = torch.full((rows,), base.num_train_timesteps // 2, device=device)
    try:
        with torch.no_grad(), drawing_autocast(base):
            condition = base.condition([""] * rows)
            attachment.begin(SideInputs.of(condition, timesteps=times))
            with FakeTensorMode(allow_non_fake_inputs=True), CountedMemory() as counted:
                base.denoise(torch.randn(rows, channels, small, small, device=device), times, condition)
                base.decode_latents(torch.randn(DRAWN_AT_ONCE, channels, small, small, device=device))
    except DataDependentOutputException:  # a method that looks at values, which fake tensors do not have
        return None
    parameters = sum(parameter.numel() for parameter in attachment.parameters())
    moments = parameters * _moments(config) if config.sample_every else 0
    weights = {*(each for part in base.all_parts() for each in part.parameters())}
    return sum(each.numel() * each.element_size() for each in weights) + counted.peak + moments


def _time(
    base: Base, concept: Concept, attachment: Attachment, config: PlanConfig, pictures: dict[str, int]
) -> dict[str, float]:
    """Seconds of the training and of the pictures, from one of each."""
    before, there_and_back = _step(base, attachment, config)
    line = default_line(base, concept.class_prompt, 0, steps=2)

    def step() -> None:
        before()
        there_and_back()

    one_step, two_denoised = _seconds(base, step), _seconds(base, lambda: generate(base, [line]))
    for parameter in attachment.parameters():
        parameter.grad = None
    one_picture = two_denoised / 2 * base.default_steps
    return {
        "training": one_step * config.steps * config.gradient_accumulation,
        "pictures": one_picture * sum(pictures.values()),
    }


def _seconds(base: Base, action: Callable[[], Any]) -> float:
    """Of one call, after one that warms up."""
    action()
    if base.device.type == "cuda":
        torch.cuda.synchronize()
    began = time.perf_counter()
    action()
    if base.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began
