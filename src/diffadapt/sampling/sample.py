"""Prompts to pictures, with any number of adapters, each at its own strength.

pictures = sample(base, "a <biscuit> cat on a red background", adapters=[("biscuit.safetensors", 0.8)], seed=0)
pictures = sample(base, "a cat at night", adapters=[("runs/edges", 1.0)], control="edges.png")
"""

import inspect
import math
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from ..adapters import Attachment, GatedConcept, SideInputs
from ..adapters.hint import SIGNAL
from ..bases import Base
from ..data.picture import to_picture
from ..errors import Refused
from ..progress import Aside, Steps
from .adapter_files import adapter_files, load_file
from .cached_projections import cached_projections
from .control_signal import Control, check_control, each_control, read_signal
from .hand_back import check_share, handed_back

LAST_SEED = 2**63 - 1  # of torch's generator
LARGEST_SIDE = 16384  # pixels; no base makes larger ones


@dataclass(frozen=True, kw_only=True)
class PromptLine:
    """One prompt with its options; None means the base's default or what the command line said.

    `control` is the signal of the picture, for adapters that follow one.
    """

    prompt: str
    negative: str | None = None
    width: int | None = None
    height: int | None = None
    seed: int | None = None
    guidance: float | None = None
    steps: int | None = None
    control: Control | None = None


KOHYA_OPTIONS = {
    "n": "negative", "w": "width", "h": "height", "d": "seed", "l": "guidance", "s": "steps", "cn": "control"
}  # fmt: skip


def parse_prompt_line(line: str) -> PromptLine:
    """Reads a line of a prompt file as kohya's sd-scripts write them: "a cat --n blurry --w 64 --d 3 --l 7 --s 20".

    Raises:
        Refused: an unknown option, an option without a value, or a value that is not a number where one is needed.
    """
    head, *parts = (" " + line.strip()).split(" --")
    result = PromptLine(prompt=head.strip())
    for part in parts:
        key, _, value = part.strip().partition(" ")
        name = KOHYA_OPTIONS.get(key)
        if name is None:
            known = ", ".join(f"--{k} {v}" for k, v in KOHYA_OPTIONS.items())
            raise Refused(f"prompt option --{key} in {line.strip()!r}; known options: {known}")
        kind = {"negative": str, "control": str, "guidance": float}.get(name, int)
        try:
            if not value.strip():
                raise ValueError
            result = replace(result, **{name: kind(value.strip())})
        except ValueError as error:
            raise Refused(f"prompt option --{key} in {line.strip()!r} needs {kind.__name__}, got {value!r}") from error
    if not result.prompt:
        raise Refused(f"no prompt before the options in {shlex.quote(line)}")
    return result


def repeated(lines: Sequence[PromptLine], number: int) -> list[PromptLine]:
    """Each line `number` times; one with a seed of its own counts on from it."""
    return [
        line if line.seed is None else replace(line, seed=line.seed + i) for line in lines for i in range(number)
    ]  # fmt: skip


@contextmanager
def adapted(base: Base, adapters: Sequence[tuple[str | Path | Attachment, float]]) -> Iterator[list[Attachment]]:
    """Within the block the base carries the adapters at their strengths; afterwards it is as before.

    A path, of a file or of a finished run's folder, is loaded and detached again; an attachment that is on the base
    already only has its strength set for the block.
    """
    loaded: list[Attachment] = []
    before: list[tuple[Attachment, float]] = []
    try:
        active = []
        for adapter, strength in adapters:
            if isinstance(adapter, Attachment):
                if adapter not in base.attachments:
                    raise Refused("the attachment given is not on this base; load its file instead")
                before.append((adapter, adapter.strength))
                found = [adapter]
            else:
                found = []
                for file in adapter_files(adapter):
                    found.append(load_file(base, file))
                    loaded.append(found[-1])
            for attachment in found:
                attachment.strength = strength
                active.append(attachment)
        yield active
    finally:
        for attachment, strength in reversed(before):  # one that was given twice, too
            attachment.strength = strength
        for attachment in reversed(loaded):
            attachment.detach()


@contextmanager
def biased(attachments: Sequence[Attachment], bias: Mapping[str, float]) -> Iterator[None]:
    """Within the block the gates of these concepts, by their word, have these biases.

    Raises:
        Refused: no such concept is among the attachments; lists those that are.
    """
    concepts = {each.shared.word: each.shared for each in attachments if isinstance(each.shared, GatedConcept)}
    for word in bias:
        if word not in concepts:
            known = ", ".join(concepts) or "none"
            raise Refused(f"got a bias for {word!r}, but the concepts with a gate that are attached are: {known}")
        if not math.isfinite(bias[word]):
            raise Refused(f"the bias for {word!r} must be a finite number, got {bias[word]}")
    before = {word: concepts[word].bias for word in bias}
    for word, value in bias.items():
        concepts[word].bias = value
    try:
        yield
    finally:
        for word, value in before.items():
            concepts[word].bias = value


def sample(
    base: Base,
    prompts: str | PromptLine | Sequence[str | PromptLine],
    *,
    adapters: Sequence[tuple[str | Path | Attachment, float]] = (),
    control: Control | Sequence[Control] | None = None,
    bias: Mapping[str, float] | None = None,
    seed: int = 0,
    steps: int | None = None,
    guidance: float | None = None,
    negative: str = "",
    batch: int = 8,
    width: int | None = None,
    height: int | None = None,
    hand_back: float = 0.0,
    progress: bool = False,
) -> list[Image.Image]:
    """Samples one picture per prompt.

    Args:
        base: a loaded base.
        prompts: one prompt or several; a `PromptLine`'s own options win over the arguments here.
        adapters: (file, run's folder or attachment, strength) pairs; strength 0 is the base, 1 as trained.
        control: the signal that a control adapter follows, of the picture's size: a picture's file, a PIL picture or a
            tensor (3, H, W) in [0, 1]; one for all prompts, or one for each.
        bias: word of a concept -> bias of its gate, for perfusion; less shows more of the concept.
        seed: picture i starts from seed + i, whatever the batch size.
        steps: denoising steps, None for the base's default; guidance: classifier-free guidance scale, 1 for none.
        negative: negative prompt.
        batch: pictures made at once.
        width, height: pixels, None for the base's resolution.
        hand_back: share of the last denoising steps that the untouched base does, 0 to 1; see `hand_back.py`.
        progress: show progress on stderr.

    Returns:
        PIL pictures in the order of the prompts.

    Raises:
        Refused: an adapter does not fit the base, no prompt, a size that the base cannot make, a control signal that is
            missing, of another size than the picture, or of no use to what is attached.
    """
    lines = [prompts] if isinstance(prompts, str | PromptLine) else list(prompts)
    lines = [PromptLine(prompt=line) if isinstance(line, str) else line for line in lines]
    if not lines:
        raise Refused("no prompt to sample; give at least one")
    controls = each_control(control, len(lines))
    whole = [
        PromptLine(
            prompt=line.prompt,
            negative=negative if line.negative is None else line.negative,
            width=int(_first(line.width, width, base.resolution)),
            height=int(_first(line.height, height, base.resolution)),
            seed=seed + i if line.seed is None else line.seed,
            guidance=_first(line.guidance, guidance, base.default_guidance),
            steps=int(_first(line.steps, steps, base.default_steps)),
            control=controls[i] if line.control is None else line.control,
        )
        for i, line in enumerate(lines)
    ]
    bar = Steps("sample", len(whole), quiet=not progress)
    with adapted(base, adapters) as attachments, biased(attachments, bias or {}), bar:
        pixels = generate(base, whole, batch=batch, hand_back=hand_back, bar=bar)
    return [to_picture(row) for row in pixels]


def generate(
    base: Base, lines: Sequence[PromptLine], *, batch: int = 8, hand_back: float = 0.0, bar: Steps | Aside | None = None
) -> list[Tensor]:
    """`sample` on complete prompt lines and with whatever is attached now -> pixels (3, H, W) in [0, 1] each, on CPU.

    Where a batch does not fit into the GPU's memory it is halved until it does; pictures do not depend on it. `bar` is
    advanced by every picture.
    """
    check_lines(base, lines)
    check_share(hand_back)
    check_control(base, [(line.prompt, line.control is not None) for line in lines])
    results: list[Tensor | None] = [None] * len(lines)
    groups: dict[tuple[object, ...], list[int]] = {}
    for i, line in enumerate(lines):
        groups.setdefault((line.width, line.height, line.guidance, line.steps), []).append(i)
    for members in groups.values():
        while members:
            rows = members[:batch]
            try:
                with base.awake():
                    made = _generate_batch(base, [lines[i] for i in rows], hand_back)
            except torch.OutOfMemoryError:
                if len(rows) == 1:
                    raise
                batch = len(rows) // 2
                torch.cuda.empty_cache()  # does nothing where there is no GPU
                continue
            for i, pixels in zip(rows, made, strict=True):
                results[i] = pixels
            members = members[len(rows) :]
            if bar is not None:
                bar.advance(by=len(rows))
    return [pixels for pixels in results if pixels is not None]


@contextmanager
def drawn_in(base: Base, mixed_precision: str) -> Iterator[None]:
    """Within the block a base in float32 draws in a run's precision, as one that was loaded in it does.

    Of bf16 alone: in fp16 the autoencoder of Stable Diffusion XL overflows.
    """
    before = base.draws_in
    base.draws_in = torch.bfloat16 if mixed_precision == "bf16" and base.dtype == torch.float32 else None
    try:
        yield
    finally:
        base.draws_in = before


def drawing_autocast(base: Base) -> torch.autocast:
    """The precision in which pictures are drawn: the base's own, or that of `drawn_in`."""
    dtype = base.draws_in or base.dtype  # adapters and new words are float32, whatever the base is
    return torch.autocast(
        base.device.type, dtype=dtype, enabled=dtype != torch.float32, cache_enabled=base.draws_in is None
    )  # what was cast of a whole base in float32 would be kept beside it


@torch.no_grad()
def _generate_batch(base: Base, lines: list[PromptLine], hand_back: float) -> Tensor:
    """Pixels (N, 3, H, W) in [0, 1]; the lines share all but prompt, seed and control signal."""
    first = lines[0]
    assert first.guidance is not None and first.steps and first.width and first.height
    prompts = [line.prompt for line in lines]
    if first.guidance > 1:
        negative = [line.negative or "" for line in lines]
        prompts = negative + prompts if base.unconditional_first else prompts + negative
    condition = replace(base.condition(prompts), control=_control(lines, first.guidance > 1))
    switched_on = [each for each in base.attachments if each.enabled]
    base.check_size(first.width, first.height)
    watching = [a for a in switched_on if any("timesteps" in adapter.needs for adapter in a.adapters.values())]
    for attachment in switched_on:
        if attachment not in watching:
            attachment.begin(SideInputs.of(condition))

    def hand_out_timesteps(denoiser: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if watching:
            timesteps = timestep_of(denoiser, args, kwargs).expand(len(prompts))
            for attachment in watching:
                attachment.begin(SideInputs.of(condition, timesteps=timesteps))

    hook = base.denoiser.register_forward_pre_hook(hand_out_timesteps, with_kwargs=True)
    try:
        # What is switched off on the way must not be cached.
        last_steps = handed_back(base, hand_back) if hand_back else cached_projections(base)
        with last_steps, drawing_autocast(base):
            pictures = base.generate(
                condition,
                guidance=first.guidance,
                steps=first.steps,
                width=first.width,
                height=first.height,
                generators=[torch.Generator().manual_seed(line.seed or 0) for line in lines],
            )
        return pictures.float().cpu()
    finally:
        hook.remove()


def timestep_of(denoiser: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """The timestep (scalar, (1,) or (N,)) of a call of a denoiser, however the pipeline passes it.

    Raises:
        Refused: the denoiser has no argument called `timestep`.
    """
    given = inspect.signature(denoiser.forward).bind(*args, **kwargs).arguments
    if "timestep" not in given:
        raise Refused(f"{type(denoiser).__name__} is given {', '.join(given)}; expected an argument timestep")
    return torch.as_tensor(given["timestep"])


def _control(lines: list[PromptLine], guided: bool) -> dict[str, Tensor] | None:
    """The signals (N, 3, H, W) of a batch; with guidance (2 N, ...), since both branches follow the signal."""
    if lines[0].control is None:
        return None
    signals = torch.stack([read_signal(line.control, (line.width, line.height)) for line in lines])
    return {SIGNAL: torch.cat([signals, signals]) if guided else signals}


def default_line(
    base: Base,
    prompt: str,
    seed: int,
    *,
    steps: int | None = None,
    guidance: float | None = None,
    control: Control | None = None,
) -> PromptLine:
    """A prompt line with every option filled in from the base's defaults, as `generate` takes it."""
    return PromptLine(
        prompt=prompt,
        seed=seed,
        width=base.resolution,
        height=base.resolution,
        guidance=_first(guidance, base.default_guidance),
        steps=steps or base.default_steps,
        control=control,
    )


def check_lines(base: Base, lines: Sequence[PromptLine]) -> None:
    """Raises Refused for a size the base cannot make or options out of range."""
    step = base.side_step
    for line in lines:
        for side in (line.width, line.height):
            if side is not None and (side < step or side % step or side > LARGEST_SIDE):
                raise Refused(
                    f"width and height must be multiples of {step} pixels from {step} to {LARGEST_SIDE}, got {side} "
                    f"for {line.prompt!r}"
                )
        if line.steps is not None and not 1 <= line.steps <= base.num_train_timesteps:
            raise Refused(f"steps must be 1 to {base.num_train_timesteps}, the base's own, got {line.steps}")
        if line.guidance is not None and not 0 <= line.guidance < math.inf:
            raise Refused(f"guidance must be a finite number from 0 up, got {line.guidance}")
        if line.seed is not None and not 0 <= line.seed <= LAST_SEED:
            raise Refused(f"a seed is a whole number from 0 to {LAST_SEED}, got {line.seed}")


def _first(*values: float | None) -> float:
    return next(value for value in values if value is not None)
