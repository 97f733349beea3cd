"""Default training settings of each method: the learning rate of one would ruin another.

Of the embedded base these are the ones that docs/presets.md measures, of Stable Diffusion
those of the papers and of the configs in configs/. A method that is not listed takes the recipe's defaults.
"""

from collections.abc import Mapping
from typing import Any

from ..bases.defaults import read_defaults
from ..config import Option
from ..errors import Refused
from ..files import at_home, is_there
from .subject import SubjectConfig

PRESETS = ("quick", "likeness", "keep", "small")
PRESET_OPTION = Option(
    "train.preset", "text", "", "settings for a purpose, under what is set beside it; empty takes the method's own",
    choices=("", *PRESETS),
)  # fmt: skip

_PERFUSION = {
    "learning_rate": 0.03, "token_learning_rate": 0.006, "schedule": "constant", "warmup": 0, "weight_decay": 0.0,
    "snr_gamma": 0.0, "prior_weight": 0.0,
}  # fmt: skip
# Pictures of a photo base cost more than the steps, so that the evaluation draws a third of the benchmark's;
# `diffadapt evaluate` draws all.
_FEWER = {"evaluation_prompts": 8, "evaluation_pictures": 2}
_PHOTOS = {
    **_FEWER,
    "batch_size": 1,
    "mixed_precision": "bf16",
    "gradient_checkpointing": True,
    "checkpoint_every": 200,
}
_WHOLE = ("self_attention.*", "cross_attention.*", "feed_forward.*", "residual.conv")
_SMALL: Mapping[str, Mapping[str, Any]] = {
    "lora": {"steps": 300, "learning_rate": 2e-3, "roles": _WHOLE},
    "oft": {"steps": 300, "learning_rate": 2e-3, "roles": _WHOLE},
    "selective": {"learning_rate": 2e-4},
    "perfusion": {**_PERFUSION, "steps": 200},
    # the class cannot be lost when no weight of the base changes
    "token": {"token_learning_rate": 2e-2, "prior_weight": 0.0},
}
_LOW_RANK = {
    **_PHOTOS, "steps": 800, "learning_rate": 1e-4, "token_learning_rate": 5e-4, "prior_pictures": 100,
    "sample_every": 400,
}  # fmt: skip
_STABLE_DIFFUSION: Mapping[str, Mapping[str, Any]] = {
    "lora": _LOW_RANK,
    "dora": _LOW_RANK,
    "gained_lora": _LOW_RANK,
    "ia3": {**_LOW_RANK, "learning_rate": 3e-3},
    "oft": {
        **_PHOTOS, "steps": 1000, "learning_rate": 6e-5, "token_learning_rate": 5e-4, "schedule": "constant",
        "warmup": 0, "snr_gamma": 0.0, "prior_pictures": 200, "sample_every": 500,
    },
    "selective": {
        **_PHOTOS, "steps": 800, "learning_rate": 5e-6, "token_learning_rate": 5e-4, "prior_pictures": 200,
        "sample_every": 400,
    },
    "perfusion": {
        **_PERFUSION, **_FEWER, "steps": 400, "batch_size": 4, "gradient_accumulation": 4, "max_grad_norm": 0.0,
        "mixed_precision": "fp16",
    },
    "token": {**_PHOTOS, "steps": 2000, "token_learning_rate": 5e-4, "prior_weight": 0.0, "sample_every": 500},
}  # fmt: skip


# A preset -> method -> "train" or "method" -> option -> value, beside the method's own settings; {} leaves those alone.
# benchmarks/presets.py measures what each one gives on the embedded base, see docs/presets.md; those of Stable
# Diffusion are first values.
_LITTLE = {"evaluation_prompts": 6, "evaluation_pictures": 2, "prior_pictures": 24, "sample_every": 0}
_Presets = Mapping[str, Mapping[str, Mapping[str, Mapping[str, Any]]]]
_SMALL_PRESETS: _Presets = {
    "quick": {
        "lora": {"train": {**_LITTLE, "steps": 120, "learning_rate": 4e-3, "roles": _WHOLE}, "method": {"rank": 8}},
        "oft": {"train": {**_LITTLE, "steps": 120, "learning_rate": 4e-3, "roles": _WHOLE}},
        "selective": {"train": {**_LITTLE, "steps": 100, "learning_rate": 3e-4}},
        "perfusion": {"train": {**_LITTLE, "steps": 100}},
        "token": {"train": {**_LITTLE, "steps": 150}},
    },
    "likeness": {
        "lora": {"train": {"steps": 300, "learning_rate": 4e-3, "roles": _WHOLE}, "method": {"rank": 8}},
        "oft": {"train": {"steps": 300, "learning_rate": 4e-3, "roles": _WHOLE}},
        "selective": {},
        "perfusion": {"train": {"steps": 300}},
        "token": {"train": {"steps": 400}, "method": {"vectors": 4}},
    },
    "keep": {
        "lora": {
            "train": {"steps": 250, "learning_rate": 1.5e-3, "prior_pictures": 96, "roles": _WHOLE},
            "method": {"rank": 8},
        },
        "oft": {"train": {"steps": 250, "learning_rate": 1.5e-3, "prior_pictures": 96, "roles": _WHOLE}},
        "selective": {"train": {"steps": 200, "learning_rate": 1e-4, "prior_pictures": 96}},
        "perfusion": {"train": {"steps": 150}},
        "token": {"train": {"steps": 300}},
    },
    "small": {
        "lora": {
            "train": {"steps": 250, "learning_rate": 4e-3, "roles": ("cross_attention.*",)},
            "method": {"rank": 1},
        },
        "oft": {
            "train": {"steps": 250, "learning_rate": 4e-3, "roles": ("cross_attention.*",)},
            "method": {"block_size": 8},
        },
        "selective": {"train": {"steps": 250, "learning_rate": 4e-3}, "method": {"train": "bias"}},
        "perfusion": {"train": {"steps": 150}},
        "token": {"train": {"steps": 300}, "method": {"vectors": 1}},
    },
}  # fmt: skip
_STABLE_DIFFUSION_PRESETS: _Presets = {
    "quick": {
        "lora": {"train": {"steps": 400, "learning_rate": 2e-4, "prior_pictures": 50, "evaluation_prompts": 4}},
        "oft": {"train": {"steps": 400, "learning_rate": 1e-4, "prior_pictures": 50, "evaluation_prompts": 4}},
        "selective": {"train": {"steps": 400, "prior_pictures": 50, "evaluation_prompts": 4}},
        "perfusion": {"train": {"steps": 200, "evaluation_prompts": 4}},
        "token": {"train": {"steps": 800, "evaluation_prompts": 4}},
    },
    "likeness": {
        "lora": {"train": {"steps": 1200}, "method": {"rank": 16}},
        "oft": {"train": {"steps": 1500}},
        "selective": {"train": {"steps": 1000}},
        "perfusion": {"train": {"steps": 600}},
        "token": {"train": {"steps": 3000}, "method": {"vectors": 4}},
    },
    "keep": {
        "lora": {"train": {"steps": 800, "learning_rate": 5e-5, "prior_pictures": 200}},
        "oft": {"train": {"steps": 1000, "learning_rate": 3e-5}},
        "selective": {"train": {"steps": 600, "learning_rate": 2e-6}},
        "perfusion": {},
        "token": {},
    },
    "small": {
        "lora": {"train": {"roles": ("cross_attention.*",)}, "method": {"rank": 1}},
        "oft": {"train": {"roles": ("cross_attention.*",)}},
        "selective": {"train": {"learning_rate": 1e-4}, "method": {"train": "bias"}},
        "perfusion": {},
        "token": {"method": {"vectors": 1}},
    },
}


def own_settings(base: str, method: str, preset: str = "") -> dict[str, Any]:
    """The settings of `train_subject` that a method on a base takes unless it is told otherwise.

    Args:
        base: as it is named. The embedded one, or a folder that was copied, saved or merged from it, has settings of
            its own; anything else is taken for Stable Diffusion.
        method: its name.
        preset: one of `PRESETS`, or empty for the method's own settings alone.

    Returns:
        option of `SubjectConfig` -> value, only those that differ from the recipe's defaults

    Raises:
        Refused: an unknown preset, or one that the method does not have.
    """
    own = (_SMALL if _is_embedded(base) else _STABLE_DIFFUSION).get(method, {})
    return {**own, **_preset(base, method, preset).get("train", {})}


def own_options(base: str, method: str, preset: str = "") -> dict[str, Any]:
    """The method's options that a preset sets, such as a rank; {} without one. Arguments as of `own_settings`."""
    return dict(_preset(base, method, preset).get("method", {}))


def _is_embedded(base: str) -> bool:
    """Whether a base is the embedded one, or a folder of it under another name: its card lists the words it knows."""
    folder = at_home(base)
    return base == "embedded" or (is_there(base) and folder.is_dir() and bool(read_defaults(folder).world))


def _preset(base: str, method: str, preset: str) -> Mapping[str, Mapping[str, Any]]:
    if not preset:
        return {}
    if preset not in PRESETS:
        raise Refused(f"train.preset: expected {' or '.join(PRESETS)}, got {preset!r}")
    known = (_SMALL_PRESETS if _is_embedded(base) else _STABLE_DIFFUSION_PRESETS)[preset]
    if method not in known:
        raise Refused(f"train.preset: there is no {preset!r} for {method}; there are presets for {', '.join(known)}")
    return known[method]


def own_config(base: str, method: str, preset: str = "") -> SubjectConfig:
    """The settings as a whole config: `train_subject(base, concept, method=..., config=own_config(...))`."""
    return SubjectConfig(**own_settings(base, method, preset))
