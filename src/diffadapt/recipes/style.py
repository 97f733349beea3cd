"""Teaches a base one or many styles from captioned pictures, without a subject and without a new word.

    loss = E |target - f(x_t, t, caption)|^2

The denoising loss on the pictures as their captions say them (StyleInject, arXiv:2401.13942, small-sample and
large-scale fine-tuning), with any method that needs no word. A few dozen pictures in folders, or shards that are
streamed. Interrupt at any time; the same call resumes and ends with the same adapter, bit for bit on CPU.
"""

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ..adapters import Method, StyleInject, attach
from ..bases import Base
from ..config import check, dump_toml, option, with_overrides
from ..data.cache import TensorCache
from ..data.class_folders import ClassFolders
from ..data.picture import to_picture, write_png
from ..data.prompts import spread
from ..data.shards import Shards
from ..data.styles import Styles
from ..errors import Refused
from ..evaluation.chain_of_forgetting import OWN, chain_of_forgetting
from ..evaluation.evaluate_style import evaluate_style
from ..files import write_json
from ..metrics.features import load_features
from ..objectives import Denoising
from ..progress import say
from ..run_layout import RunLayout, picture
from ..sampling.adapter_files import start_from
from ..training.batches import Batches, Texts
from ..training.finish import finish
from ..training.fit import fit
from ..training.learner import draws_as_it_trains, make_accelerator, refuse_the_impossible, release
from ..training.progress_samples import COUNT, ProgressSamples
from ..training.retention_config import RetentionConfig
from ..training.run import Run, open_run
from ..training.sources import Source
from ..training.style_pictures import CaptionedPictures, StreamedPictures
from .retention import KEPT, premise_of, retained, switched_off

COLLAPSED = 0.1  # share of log2 n below which the routers' entropy means that one branch is left


@dataclass(frozen=True, kw_only=True)
class StyleConfig(RetentionConfig):
    """Settings of `train_style`; the defaults suit a few dozen pictures on the embedded base."""

    caption_dropout: float = option(0.1, "share of captions replaced by the empty prompt", low=0, high=1)
    evaluation_pictures: int = option(
        16, "pictures of each style that are made and measured at the end, 3 or more; 0 measures nothing", low=0
    )
    switch_pictures: int = option(
        0, "of class folders: pictures at each point of the switch-model curve, 3 or more; 0 leaves it out", low=0
    )
    preference: str = option(
        "", "preference model: pickscore:FOLDER or hps:FOLDER; empty: a stand-in on the embedded base, none elsewhere"
    )


@draws_as_it_trains
def train_style(
    base: Base,
    styles: Styles | Shards,
    *,
    method: Method,
    out: str | Path,
    seed: int = 0,
    config: StyleConfig | None = None,
    watch: Callable[[int, float], None] | None = None,
    quiet: bool = False,
    **overrides: Any,
) -> Run:
    """Learns the styles of captioned pictures and writes the run's folder.

    Args:
        base: a loaded base without attachments.
        styles: what `load_styles` returned, one style or many; or shards from `load_shards`, which are streamed and
            leave nothing to measure by.
        method: for example `StyleInject()` or `LoRA(rank=12)`.
        out: the run's folder: new, empty, or that of the same run, which is then resumed.
        seed: of everything random.
        config: settings; `overrides` replace single ones, for example steps=200.
        watch: called with (step, loss) after every step.
        quiet: print nothing.

    Returns:
        the run: folder, adapter file, metrics, report

    Raises:
        Refused: settings that cannot be met; a picture that cannot be used; a folder in use by another run.
        Failed: the loss is not a number (the last good checkpoint stays), a picture or shard is gone or truncated, the
            disk is full.
    """
    started = time.time()
    config = with_overrides(config or StyleConfig(), overrides)
    check(method)
    refuse_the_impossible(base, config)
    if "style" not in method.recipes:
        raise Refused(f"method {method.name!r} cannot learn a style; use style_inject, lora or oft")
    accelerator = make_accelerator(base, config)
    is_main = accelerator.is_main_process
    quiet = quiet or not is_main
    folder, resolution = Path(out), config.resolution or base.resolution
    settings = {"seed": seed, "method": {"name": method.name, **asdict(method)}, "train": config}

    # --- what trains: first, so that what does not fit is refused before anything is written ------------------------
    attachment = attach(base, method, list(config.roles) or None, classes=_new_classes(base, styles), seed=seed)
    try:
        start_from({"adapter": attachment}, config.start_from)
        if is_main:
            recipe, identity = _recipe(styles), {"style": _identity(styles)}
            open_run(folder, base, recipe, settings, identity=identity, tables={recipe: _table(styles)})
        for note in [*styles.notes, *_doubts(styles, method)]:
            say(f"note: {note}", quiet=quiet)

        # --- batches and objective ------------------------------------------------------------------------------------
        source: Source
        if isinstance(styles, Shards):
            source = StreamedPictures(
                base, styles, resolution=resolution, caption_dropout=config.caption_dropout, seed=seed,
                process=accelerator.process_index, processes=accelerator.num_processes,
            )  # fmt: skip
            captions = source.first_captions(COUNT)
        else:
            source = CaptionedPictures(
                base, styles.pictures, resolution=resolution, caption_dropout=config.caption_dropout, seed=seed,
                process=accelerator.process_index, cache=TensorCache(folder / "cache" if is_main else None),
            )  # fmt: skip
            captions = styles.captions()
            if is_main:
                _write_pictures(folder, styles, resolution)
        sources: dict[str, Source] = {"target": source}
        denoising = Denoising(base.noise_schedule, snr_gamma=config.snr_gamma, learned_variance=base.learned_sigma)
        with switched_off([attachment]):
            objective = retained(
                base, denoising, sources, config, folder, accelerator, resolution=resolution, quiet=quiet,
            )  # fmt: skip
            premise = premise_of(base, sources, seed=seed, quiet=quiet)
        by_source = [each.captions() for each in sources.values()]
        texts = Texts(base, [caption for each in by_source for caption in each] if all(by_source) else None)
        batches = Batches(
            base, objective, sources, texts,
            batch_size=config.batch_size, parts=config.gradient_accumulation, seed=seed,
            process=accelerator.process_index,
        )  # fmt: skip

        # --- the loop -------------------------------------------------------------------------------------------------
        asked = spread(captions, COUNT)
        samples = ProgressSamples(base, folder, asked, asked, seed) if is_main and config.sample_every else None
        facts = fit(
            base, {"adapter": attachment}, batches, objective,
            config=config, groups=[{"params": list(attachment.parameters()), "peak": config.learning_rate}],
            folder=folder, accelerator=accelerator, settings=dump_toml(settings), seed=seed, samples=samples,
            log_as=KEPT, watch=watch, quiet=quiet,
        )  # fmt: skip
        facts |= premise
    finally:
        release(base, [attachment])
    accelerator.wait_for_everyone()
    if not is_main:
        return Run(folder)

    # --- what follows ---------------------------------------------------------------------------------------------
    if note := collapse(folder, method):
        facts["notes"] = [note]
        say(f"note: {note}", quiet=quiet)
    held_out = {} if isinstance(styles, Shards) else styles.held_out

    def measure() -> dict[str, Any]:
        adapters = [(folder / "adapter.safetensors", 1.0)]
        found = evaluate_style(
            base, held_out, adapters=adapters, most=config.evaluation_pictures, preference=config.preference, seed=seed,
            out=folder / "styles", kept=TensorCache(RunLayout(folder).untouched), quiet=quiet,
        )  # fmt: skip
        if isinstance(styles, ClassFolders):
            each = max(1, OWN // len(held_out))
            target = torch.cat([part.pixels(range(min(each, len(part))), resolution) for part in held_out.values()])
            encoder = load_features(found["features"], device=base.device) if config.switch_pictures else None
            found["chain_of_forgetting"] = chain_of_forgetting(
                base, adapters, target, list(held_out), encoder, switched=config.switch_pictures, seed=seed,
                quiet=quiet,
            )  # fmt: skip
        return found

    measured = measure if held_out and config.evaluation_pictures else None
    return finish(folder, samples, measured, facts=facts, started=started, quiet=quiet)


def collapse(folder: Path, method: Method) -> str:
    """One sentence when the routers of a StyleInject run ended with one branch in use, "" otherwise."""
    if not isinstance(method, StyleInject) or method.branches == 1:
        return ""
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()[-50:]]
    bits = [row["router_entropy"] for row in rows if "router_entropy" in row]
    mean, most = sum(bits) / max(len(bits), 1), math.log2(method.branches)
    if not bits or mean >= COLLAPSED * most:
        return ""
    return (
        f"the routers use one of {method.branches} branches (entropy {mean:.2f} of {most:.2f} bits over the last "
        f"{len(bits)} steps); lower learning_rate, raise temperature, or take branches = 1"
    )


# --- the parts, in the order of their use -----------------------------------------------------------------------------


def _doubts(styles: Styles | Shards, method: Method) -> list[str]:
    """Warnings about settings that may not be intended."""
    if isinstance(styles, Shards) or len(styles.pictures) > 1:
        return []
    if not isinstance(method, StyleInject) or method.branches == 1:
        return []
    return [f"one style for {method.branches} branches: they can only tell its pictures apart; see method.branches"]


def _new_classes(base: Base, styles: Styles | Shards) -> Sequence[str]:
    """The captions as classes of a class-conditional base; nothing for any other."""
    if not base.own_classes:
        return ()
    if isinstance(styles, Shards):
        raise Refused(f"{base.name!r} is conditioned on classes, and shards do not say theirs beforehand; use folders")
    return list(styles.pictures) if isinstance(styles, ClassFolders) else sorted(set(styles.captions()))


def _identity(styles: Styles | Shards) -> dict[str, Any]:
    """The identity of these pictures, so that a folder is resumed with the same ones only."""
    if isinstance(styles, Shards):
        return {"shards": f"{len(styles.paths)} shards {styles.identity()}"}
    parts = {"pictures": styles.pictures, "held_out": styles.held_out}
    return {
        part: {name: f"{len(each)} pictures {each.identity()}" for name, each in named.items()}
        for part, named in parts.items()
    }


def _recipe(styles: Styles | Shards) -> str:
    """The recipe that reads these pictures again, which is its table's name, too."""
    return "transfer" if isinstance(styles, ClassFolders) else "style"


def _table(styles: Styles | Shards) -> Mapping[str, Any]:
    """The table [style] or [transfer] of run.toml."""
    if isinstance(styles, ClassFolders):
        return {"folder": str(styles.root), "held_out": styles.kept}
    if isinstance(styles, Shards):
        return {"folder": str(styles.paths[0].parent), "shards": True}
    first, *more = [str(each.folder) for each in styles.pictures.values()]
    kept = next((len(each) for each in styles.held_out.values()), 0)
    return {"folder": first, "also": more, "held_out": kept}


def _write_pictures(folder: Path, styles: Styles, resolution: int) -> None:
    """Writes the first pictures of each style as a report shows them."""
    of_each, rows = max(1, COUNT // len(styles.pictures)), []
    for name, each in styles.pictures.items():
        for i in range(min(of_each, len(each))):
            pixels = each.pixels([i], resolution)[0]
            write_png(picture(RunLayout(folder).concept, len(rows)), to_picture(pixels))
            rows.append({"file": f"{name}/{each.examples[i].path.name}", "caption": each.caption(i)})
    write_json(RunLayout(folder).crops, rows)
