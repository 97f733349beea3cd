"""Teaches a base one subject from a few pictures: DreamBooth (Ruiz et al. 2022, arXiv:2208.12242) with any method.

    loss = L(a <token> noun) + prior_weight * L(a noun)

The first term is the denoising loss on the concept's pictures; the second is the same on pictures of the class that
the untouched base made (the memory bank), so that the class is not lost to the subject. Interrupt at any time; the
same call resumes and ends with the same adapter, bit for bit on CPU.
"""

import contextlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor, nn

from ..adapters import Attachment, Method, SideInputs, Token, attach
from ..adapters.token import TokenAdapter
from ..bases import Base
from ..config import check, dump_toml, option, with_overrides
from ..data.cache import TensorCache
from ..data.concept import Concept
from ..data.memory_bank import BankSettings, MemoryBank
from ..errors import Failed, Refused
from ..objectives import NoiseSchedule, denoising_loss
from ..training import seeds
from ..training.checkpoint import (
    load_checkpoint,
    optimizer_tensors,
    prefixed,
    restore_optimizer,
    save_checkpoint,
    without_prefix,
)
from ..training.ema import EMA
from ..training.log import RunLog, Steps, say
from ..training.optimizer import OPTIMIZERS, build_optimizer
from ..training.schedule import SCHEDULES, learning_rate_factor
from .concept_batches import Batch, ConceptBatches
from .finish import finish
from .progress_samples import ProgressSamples
from .run import Run, claim_folder, peak_memory_mb, write_header
from .sample import PromptLine, generate, to_picture


@dataclass(frozen=True, kw_only=True)
class SubjectConfig:
    """Settings of `train_subject`; the defaults suit LoRA on the embedded base."""

    steps: int = option(400, "optimizer steps", low=1)
    batch_size: int = option(4, "concept pictures a step and process; as many class pictures come beside them", low=1)
    gradient_accumulation: int = option(1, "batches whose gradients are averaged before an optimizer step", low=1)
    learning_rate: float = option(2e-3, "peak learning rate of the layers' adapters", low=0)
    token_learning_rate: float = option(5e-3, "peak learning rate of the new token's vectors", low=0)
    schedule: str = option("cosine", "learning rate over time: constant, linear or cosine", choices=SCHEDULES)
    warmup: int = option(20, "steps of linear warm-up", low=0)
    optimizer: str = option("adamw", "adamw, or adamw8bit with bitsandbytes on a GPU", choices=OPTIMIZERS)
    weight_decay: float = option(1e-2, "AdamW's decoupled weight decay of the layers; tokens have none", low=0)
    max_grad_norm: float = option(1.0, "gradients are scaled down to this norm; 0 leaves them", low=0)
    snr_gamma: float = option(5.0, "Min-SNR gamma of the loss weights; 0 weighs all noise levels alike", low=0)
    prior_weight: float = option(1.0, "weight of prior preservation; 0 switches it off", low=0)
    prior_pictures: int = option(48, "class pictures sampled once from the base", low=1)
    prior_prompts: tuple[str, ...] = option((), "prompts of the class pictures; empty means 'a NOUN'")
    memory_bank: str = option("", "folder of the class pictures; empty means memory_banks beside the run's folder")
    train_token: bool = option(True, "learn the token's vector; false takes the token as a rare word of the tokenizer")
    roles: tuple[str, ...] = option((), "roles to adapt, such as cross_attention.*; empty means the method's default")
    masked: bool = option(False, "count the loss inside the concept's masks only")
    ema_decay: float = option(0.0, "decay of the moving average that is saved; 0 saves the last values", low=0, high=1)
    caption_dropout: float = option(0.0, "share of concept captions replaced by the empty prompt", low=0, high=1)
    gradient_checkpointing: bool = option(False, "trade time for memory in the denoiser")
    mixed_precision: str = option("no", "no, bf16 or fp16 (GPU)", choices=("no", "bf16", "fp16"))
    resolution: int = option(0, "side of the training pictures in pixels; 0 means the base's", low=0)
    checkpoint_every: int = option(100, "steps between checkpoints; 0 writes none", low=0)
    keep_checkpoints: int = option(2, "how many full checkpoints stay on disk; 0 keeps all", low=0)
    sample_every: int = option(100, "steps between sample pictures; 0 makes none", low=0)
    evaluation_prompts: int = option(
        25, "prompts of the evaluation at the end, up to 25; 0 measures nothing", low=0, high=25
    )
    evaluation_pictures: int = option(4, "pictures of each of these prompts; 2 or more measure diversity too", low=1)


def train_subject(
    base: Base,
    concept: Concept,
    *,
    method: Method,
    out: str | Path,
    seed: int = 0,
    config: SubjectConfig | None = None,
    watch: Callable[[int, float], None] | None = None,
    quiet: bool = False,
    **overrides: Any,
) -> Run:
    """Learns a concept and writes the run's folder.

    Args:
        base: a loaded base without attachments.
        concept: what `load_concept` returned.
        method: for example `LoRA(rank=4)`, `Token()` (textual inversion) or `Selective()` (full fine-tuning).
        out: the run's folder: new, empty, or that of the same run, which is then resumed.
        seed: of everything random.
        config: settings; `overrides` replace single ones, for example steps=200.
        watch: called with (step, loss) after every step.
        quiet: print nothing.

    Returns:
        the run: folder, adapter file, metrics, report

    Raises:
        Refused: settings that cannot be met; a folder in use by another run.
        Failed: the loss is not a number (the last good checkpoint stays), the disk is full.
    """
    config = with_overrides(config or SubjectConfig(), overrides)
    check(config)
    check(method)
    _refuse_the_impossible(base, concept, method, config)
    accelerator = _accelerator(base, config)
    first = accelerator.is_main_process
    quiet = quiet or not first
    folder = Path(out)
    pictures = {
        "folder": concept.folder.name,
        "noun": concept.noun,
        "token": concept.token,
        "contents": list(concept.contents),
    }
    settings = {"seed": seed, "method": {"name": method.name, **vars(method)}, "train": config}

    # --- what trains: first, so that what does not fit is refused before anything is written ------------------------
    tokens = {concept.token: concept.noun} if config.train_token else None
    attachment = attach(base, method, list(config.roles) or None, tokens=tokens, seed=seed)
    attachment.enabled = False
    log = None
    try:
        if first:
            claim_folder(folder, dump_toml({"base": base.fingerprint, **settings, "concept": pictures}))
            where = {"folder": str(concept.folder), "noun": concept.noun, "token": concept.token}
            again = {"recipe": "subject", "base": base.name, "out": str(folder), **settings, "concept": where}
            write_header(folder, base, concept, dump_toml(again), config.resolution or base.resolution)
        for note in concept.notes:
            say(f"note: {note}", quiet=quiet)

        # --- data: latents of the concept and of its class, encoded once ----------------------------------------------
        bank = None
        if config.prior_weight:
            bank = _class_pictures(base, concept, config, folder, accelerator, quiet)
        batches = ConceptBatches(
            base, concept, bank,
            resolution=config.resolution or base.resolution,
            batch_size=config.batch_size,
            masked=config.masked,
            caption_dropout=config.caption_dropout,
            parts=config.gradient_accumulation,
            seed=seed,
            process=accelerator.process_index,
            cache=TensorCache(folder / "cache" if first else None),
        )  # fmt: skip
        batches.encode_text(attachment)
        attachment.enabled = True

        # --- optimizer ------------------------------------------------------------------------------------------------
        optimizer = build_optimizer(config.optimizer, _groups(attachment, config), weight_decay=config.weight_decay)
        optimizer = accelerator.prepare(optimizer)
        parameters = list(attachment.parameters())
        ema = EMA(parameters, config.ema_decay) if config.ema_decay else None
        averaged = ema.applied if ema else contextlib.nullcontext
        schedule = NoiseSchedule(alphas_cumprod=base.alphas_cumprod, prediction_type=base.prediction_type)
        if config.gradient_checkpointing:
            base.denoiser.enable_gradient_checkpointing()

        # --- resume ---------------------------------------------------------------------------------------------------
        done = 0
        found = load_checkpoint(folder / "checkpoints")
        if found is not None:
            done, tensors, _ = found
            attachment.load_state_dict(without_prefix("adapter", tensors))
            restore_optimizer(optimizer, tensors)
            if ema:
                ema.load_state(without_prefix("ema", tensors))
            say(f"resumed at step {done} of {config.steps} in {folder}", quiet=quiet)
        log = RunLog(folder / "log.jsonl", resume_at=done) if first else None
        samples = ProgressSamples(base, concept, folder, seed) if first and config.sample_every else None
        if samples:
            samples.save_base(attachment)

        # --- the loop -------------------------------------------------------------------------------------------------
        with Steps("train", config.steps, done=done, quiet=quiet) as bar:
            for step in range(done, config.steps):
                clock = time.perf_counter()
                attachment.train()
                factor = learning_rate_factor(step, total=config.steps, warmup=config.warmup, schedule=config.schedule)
                for group in optimizer.param_groups:
                    group["lr"] = group["peak"] * factor
                optimizer.zero_grad()
                told: list[tuple[Batch, Tensor, Tensor]] = []
                for part in range(config.gradient_accumulation):
                    batch = batches.batch(step, part)
                    torch.manual_seed(seeds.number(seed, accelerator.process_index, step, part))  # dropout
                    with accelerator.autocast():
                        attachment.begin(
                            SideInputs(timesteps=batch.timesteps, token_ids=batch.token_ids, text=batch.text)
                        )
                        losses = denoising_loss(
                            base.denoise, schedule, batch.latents, batch.text, batch.noise, batch.timesteps,
                            snr_gamma=config.snr_gamma, mask=batch.mask,
                        )  # fmt: skip
                        loss = losses[: batch.concept_rows].mean()
                        if bank:
                            loss = loss + config.prior_weight * losses[batch.concept_rows :].mean()
                        penalty = attachment.penalty()
                        loss = loss if penalty is None else loss + penalty
                    accelerator.backward(loss / config.gradient_accumulation)
                    told.append((batch, losses.detach(), loss.detach()))
                row = _row(step + 1, told)
                if not math.isfinite(row["loss"]):
                    raise Failed(
                        f"the loss is {row['loss']} at step {step + 1} of {folder}; expected a number. "
                        + (f"The adapter of step {done} is kept in checkpoints; " if done else "Nothing is kept; ")
                        + f"lower learning_rate ({config.learning_rate:g}) and use a new folder"
                    )
                _average_over_processes(accelerator, parameters)
                norm = accelerator.clip_grad_norm_(parameters, config.max_grad_norm or math.inf)
                optimizer.step()
                attachment.project_()
                if ema:
                    ema.update()
                attachment.train(False)

                # --- what is written on the way -----------------------------------------------------------------------
                now, last = step + 1, step + 1 == config.steps
                seen = now * batches.rows * config.gradient_accumulation * accelerator.num_processes
                row |= {"lr": optimizer.param_groups[0]["lr"], "grad_norm": float(norm) if norm is not None else 0.0}
                row |= {"seconds": time.perf_counter() - clock, "images": seen}
                if log:
                    log.write(row)
                if watch:
                    watch(now, row["loss"])
                bar.advance(f"loss {row['loss']:.4f}")
                if samples and (now % config.sample_every == 0 or last):
                    with averaged():
                        samples.save(f"step-{now:06d}")
                if first and config.checkpoint_every and (now % config.checkpoint_every == 0 or last):
                    state = prefixed("adapter", attachment.state_dict()) | optimizer_tensors(optimizer)
                    state |= prefixed("ema", ema.state()) if ema else {}
                    with averaged():
                        attachment.save(folder / "checkpoints" / f"step-{now:06d}" / "adapter.safetensors")
                    save_checkpoint(
                        folder / "checkpoints", now, state, {"of": config.steps}, keep=config.keep_checkpoints
                    )
                    done = now

        # --- the result -----------------------------------------------------------------------------------------------
        facts = {
            "trainable_parameters": sum(p.numel() for p in parameters),
            "peak_memory_mb": round(peak_memory_mb(), 1),
        }
        with averaged():
            if first:
                attachment.save(folder / "adapter.safetensors", {"settings": dump_toml(settings)})
    finally:
        attachment.detach()
        base.denoiser.disable_gradient_checkpointing()
        if log:
            log.close()
    accelerator.wait_for_everyone()
    if not first:
        return Run(folder)
    return finish(
        base, concept, folder, seed=seed, facts=facts, started=time.time(),
        prompts=config.evaluation_prompts, per_prompt=config.evaluation_pictures, quiet=quiet,
    )  # fmt: skip


# --- the loop's parts, in the order of their use ----------------------------------------------------------------------


def _refuse_the_impossible(base: Base, concept: Concept, method: Method, config: SubjectConfig) -> None:
    """All that can be known to be wrong before the first file is written."""
    if base.attachments:
        raise Refused("train_subject starts from the untouched base; detach what is attached first")
    if isinstance(method, Token) and not config.train_token:
        raise Refused("textual inversion learns the token and nothing else; leave train_token on")
    if config.masked and concept.masks(config.resolution or base.resolution) is None:
        raise Refused(f"masked = true, but no picture in {concept.folder} has a mask (alpha, or NAME-masklabel.png)")
    if not config.train_token and concept.token.startswith("<"):
        raise Refused(
            f"train_token = false takes the token as a word of the tokenizer, and {concept.token!r} is none; "
            "name a rare word, such as token = 'sks'"
        )
    if config.mixed_precision == "fp16" and base.device.type == "cpu":
        raise Refused("mixed_precision = fp16 needs a GPU; on the CPU use no or bf16")
    if config.resolution % 8:
        raise Refused(f"resolution must be a multiple of 8 pixels, got {config.resolution}")
    base.check_noun(concept.noun)


def _accelerator(base: Base, config: SubjectConfig) -> Accelerator:
    """accelerate keeps one precision per process; a second run in the process may ask for another."""
    shared = AcceleratorState._shared_state
    if shared and shared.get("_mixed_precision") != config.mixed_precision:
        AcceleratorState._reset_state()
    return Accelerator(cpu=base.device.type == "cpu", mixed_precision=config.mixed_precision)


def _class_pictures(
    base: Base, concept: Concept, config: SubjectConfig, folder: Path, accelerator: Accelerator, quiet: bool
) -> MemoryBank:
    """The memory bank of the concept's class: sampled by the first process, read by all."""
    side = config.resolution or base.resolution
    settings = BankSettings(
        base_fingerprint=base.fingerprint, resolution=side, guidance=base.default_guidance, steps=base.default_steps
    )
    prompts = list(config.prior_prompts) or [concept.class_prompt]
    name = f"{concept.noun.replace(' ', '-')}-{base.fingerprint.split(':')[-1][:8]}-{side}"
    if config.prior_prompts:
        name += f"-{len(prompts)}-prompts"
    place = Path(config.memory_bank) if config.memory_bank else folder.parent / "memory_banks" / name

    def make(asked: list[str], its_seeds: list[int]) -> list[Any]:
        lines = [
            PromptLine(
                prompt=prompt, seed=seed, width=side, height=side, guidance=settings.guidance, steps=settings.steps
            )
            for prompt, seed in zip(asked, its_seeds, strict=True)
        ]
        return [to_picture(pixels) for pixels in generate(base, lines, batch=len(lines))]

    bank = MemoryBank(place, settings)
    if accelerator.is_main_process:
        missing = bank.missing(config.prior_pictures)
        if missing:
            say(f"sampling {len(missing)} pictures of the class ({prompts[0]!r}) into {place}", quiet=quiet)
        bank.ensure(config.prior_pictures, prompts, make)
    accelerator.wait_for_everyone()
    if not accelerator.is_main_process:
        bank = MemoryBank(place, settings)
        bank.ensure(config.prior_pictures, prompts, make)
    return bank


def _groups(attachment: Attachment, config: SubjectConfig) -> list[dict[str, Any]]:
    """Parameter groups: layers and tokens, each with its peak learning rate; empty ones left out."""
    layers, vectors = [], []
    for adapter in attachment.adapters.values():
        own = [parameter for _, parameter in adapter.own_parameters()]
        (vectors if isinstance(adapter, TokenAdapter) else layers).extend(own)
    groups = [
        {"params": layers, "lr": 0.0, "peak": config.learning_rate},
        {"params": vectors, "lr": 0.0, "peak": config.token_learning_rate, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def _row(step: int, told: list[tuple[Batch, Tensor, Tensor]]) -> dict[str, Any]:
    """One line of the log: the step's losses (with the penalty), and each concept row's loss with its timestep."""
    concept = torch.cat([losses[: batch.concept_rows] for batch, losses, _ in told])
    prior = torch.cat([losses[batch.concept_rows :] for batch, losses, _ in told])
    times = torch.cat([batch.timesteps[: batch.concept_rows] for batch, _, _ in told])
    row: dict[str, Any] = {"step": step, "loss": torch.stack([loss for *_, loss in told]).mean().item()}
    row["loss_concept"] = concept.mean().item()
    if len(prior):
        row["loss_prior"] = prior.mean().item()
    row["loss_by_timestep"] = [[int(t), float(v)] for t, v in zip(times.tolist(), concept.tolist(), strict=True)]
    return row


def _average_over_processes(accelerator: Accelerator, parameters: list[nn.Parameter]) -> None:
    """Gradients averaged over all processes; what trains is small, so one flat tensor does."""
    if accelerator.num_processes == 1:
        return
    grads = [p.grad for p in parameters if p.grad is not None]
    flat = accelerator.reduce(torch.cat([g.reshape(-1) for g in grads]), reduction="mean")
    assert isinstance(flat, Tensor)
    for grad, part in zip(grads, flat.split([g.numel() for g in grads]), strict=True):
        grad.copy_(part.view_as(grad))
