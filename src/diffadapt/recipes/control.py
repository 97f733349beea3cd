"""Teaches a base to follow a control signal from pairs: the controllable generation of OFT (Qiu et al. 2023,
arXiv:2306.07280, section 4.2) with any method, and ControlNet (Zhang et al. 2023, arXiv:2302.05543) as its baseline.

    loss = E |target - f(x_t, t, caption, signal)|^2

The denoising loss on the pictures, with the signal fed in: for a method by a hint (`adapters/hint.py`), which trains
beside it, for a ControlNet by its own encoder. Captions are dropped now and then, so that guidance works; the signal
never is, and guidance keeps it in both branches. Interrupt at any time; the same call resumes and ends with the same
files, bit for bit on CPU.
"""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ..adapters import Attachment, Method, attach
from ..adapters.control_net import ControlNet, attach_control_net, hint_for
from ..bases import Base
from ..config import check, dump_toml, option, with_overrides
from ..controls import SIGNALS
from ..data.cache import TensorCache
from ..data.control_pairs import ControlPairs
from ..errors import Refused
from ..evaluation.evaluate_control import evaluate_control
from ..objectives import Denoising
from ..progress import say
from ..sampling.adapter_files import start_from
from ..training.batches import Batches, Texts
from ..training.control_samples import ControlSamples
from ..training.finish import finish
from ..training.fit import fit
from ..training.learner import draws_as_it_trains, make_accelerator, refuse_the_impossible, release
from ..training.progress_samples import COUNT
from ..training.retention_config import RetentionConfig
from ..training.run import Run, open_run, write_pictures
from ..training.sources import PairPictures, Source
from .retention import KEPT, premise_of, retained, switched_off


@dataclass(frozen=True, kw_only=True)
class ControlConfig(RetentionConfig):
    """Settings of `train_control`; the defaults suit the embedded base."""

    batch_size: int = option(8, "pairs a step and process", low=1)
    hint_learning_rate: float | None = option(None, "peak learning rate of the hint; unset means learning_rate", low=0)
    caption_dropout: float = option(
        0.1, "share of captions replaced by the empty prompt; the signal stays", low=0, high=1
    )
    sample_pairs: int = option(COUNT, "held-out signals that samples on the way follow, and are read again from", low=1)
    evaluation_pairs: int = option(32, "held-out pairs that are sampled and scored at the end; 0 measures none", low=0)


@draws_as_it_trains
def train_control(
    base: Base,
    pairs: ControlPairs,
    *,
    method: Method,
    out: str | Path,
    held_out: ControlPairs | None = None,
    seed: int = 0,
    config: ControlConfig | None = None,
    watch: Callable[[int, float], None] | None = None,
    quiet: bool = False,
    **overrides: Any,
) -> Run:
    """Learns to follow the pairs' signals and writes the run's folder.

    Args:
        base: a loaded base without attachments.
        pairs: what `load_control_pairs` or `ControlPairs.in_memory` returned.
        method: for example `OFT(blocks=4)` or `LoRA(rank=4)`, which get a hint beside them; or `ControlNet()`.
        out: the run's folder: new, empty, or that of the same run, which is then resumed.
        held_out: pairs that are not trained on: their signals make the samples on the way, and they are scored at the
            end. None takes the samples' signals from the first pairs, and measures nothing.
        seed: of everything random.
        config: settings; `overrides` replace single ones, for example steps=200.
        watch: called with (step, loss) after every step.
        quiet: print nothing.

    Returns:
        the run: folder, files, metrics, report. `adapter.safetensors` holds the method or the ControlNet,
        `hint.safetensors` the hint; where an adapter is asked for, the folder stands for both.

    Raises:
        Refused: settings that cannot be met; a picture or signal that cannot be used; a folder in use by another run.
        Failed: the loss is not a number (the last good checkpoint stays), the disk is full.
    """
    started = time.time()
    config = with_overrides(config or ControlConfig(), overrides)
    check(method)
    refuse_the_impossible(base, config)
    if "control" not in method.recipes:
        raise Refused(f"method {method.name!r} cannot learn to follow a signal; use lora, oft or controlnet")
    accelerator = make_accelerator(base, config)
    is_main = accelerator.is_main_process
    quiet = quiet or not is_main
    folder, resolution, shown = Path(out), config.resolution or base.resolution, held_out or pairs
    settings = {"seed": seed, "method": {"name": method.name, **asdict(method)}, "train": config}

    # --- what trains: first, so that what does not fit is refused before anything is written ------------------------
    attachments = attach_all(base, method, config, seed)
    try:
        start_from(attachments, config.start_from)
        pairs.read([0], resolution)
        if is_main:
            identities = {"identity": pairs.identity(), "held_out": held_out.identity() if held_out else ""}
            table = {**pairs.source, "held_out": len(held_out or ())}
            open_run(folder, base, "control", settings, identity={"pairs": identities}, tables={"pairs": table})
            _write_pairs(folder, shown.first(COUNT), resolution)
        for note in pairs.notes:
            say(f"note: {note}", quiet=quiet)

        # --- batches and objective; there may be too many texts to keep, so each is encoded as it comes --------------
        cache = TensorCache(folder / "cache" if is_main and pairs.in_files else None)
        target = PairPictures(
            base, pairs, resolution=resolution, caption_dropout=config.caption_dropout, seed=seed,
            process=accelerator.process_index, cache=cache,
        )  # fmt: skip
        sources: dict[str, Source] = {"target": target}
        with switched_off(attachments.values()):
            objective = retained(
                base, Denoising(base.noise_schedule, snr_gamma=config.snr_gamma), sources, config, folder, accelerator,
                resolution=resolution, signal=SIGNALS[pairs.signal] if pairs.signal else None, cache=cache, quiet=quiet,
            )  # fmt: skip
            premise = premise_of(base, sources, seed=seed, quiet=quiet)
        batches = Batches(
            base, objective, sources, Texts(base),
            batch_size=config.batch_size, parts=config.gradient_accumulation, seed=seed,
            process=accelerator.process_index,
        )  # fmt: skip

        # --- the loop -------------------------------------------------------------------------------------------------
        followed = shown.first(config.sample_pairs)
        samples = ControlSamples(base, followed, folder, seed) if is_main and config.sample_every else None
        facts = fit(
            base, attachments, batches, objective,
            config=config, groups=_groups(attachments, config), folder=folder, accelerator=accelerator,
            settings=dump_toml(settings), seed=seed, samples=samples, log_as=KEPT, watch=watch, quiet=quiet,
        )  # fmt: skip
        facts |= premise | (samples.convergence() if samples else {})
    finally:
        release(base, attachments.values())
    accelerator.wait_for_everyone()
    if not is_main:
        return Run(folder)

    # --- what follows -------------------------------------------------------------------------------------------------
    measured = held_out.first(config.evaluation_pairs) if held_out and config.evaluation_pairs else None

    def measure() -> dict[str, Any]:
        assert measured is not None
        return evaluate_control(base, measured, adapters=[(folder, 1.0)], seed=seed, quiet=quiet)

    return finish(folder, samples, measure if measured else None, facts=facts, started=started, quiet=quiet)


# --- the parts, in the order of their use -----------------------------------------------------------------------------


def _write_pairs(folder: Path, pairs: ControlPairs, resolution: int) -> None:
    """Pairs as the report shows them: picture and signal side by side."""
    pictures, signals = pairs.read(range(len(pairs)), resolution)
    table = [{"file": pair.name, "caption": pair.caption} for pair in pairs.pairs]
    write_pictures(folder, torch.cat([pictures, signals], dim=3), table)


def attach_all(base: Base, method: Method, config: ControlConfig, seed: int) -> dict[str, Attachment]:
    """The trained attachments by the names of their files: a method and the hint beside it, or a ControlNet."""
    if isinstance(method, ControlNet):
        if config.roles:
            raise Refused("a ControlNet stands on no roles; leave train.roles out")
        return {"adapter": attach_control_net(base, method, seed=seed)}
    adapter = attach(base, method, list(config.roles) or None, seed=seed)
    try:
        return {"adapter": adapter, "hint": attach(base, hint_for(base), seed=seed)}
    except Refused:
        adapter.detach()
        raise


def _groups(attachments: dict[str, Attachment], config: ControlConfig) -> list[dict[str, Any]]:
    """Parameter groups: the method and the hint, each with its peak learning rate."""
    rates = {"adapter": config.learning_rate, "hint": config.hint_learning_rate}
    return [
        {"params": list(attachment.parameters()), "peak": config.learning_rate if rates[name] is None else rates[name]}
        for name, attachment in attachments.items()
    ]
