"""Default training settings of each method: the learning rate of one would ruin another.

Of the embedded base these are the settings that its evidence was measured with (docs/evidence), of Stable Diffusion
those of the papers and of the configs in configs/. A method that is not listed takes the recipe's defaults.
"""

from collections.abc import Mapping
from typing import Any

from .subject import SubjectConfig

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
_SMALL: Mapping[str, Mapping[str, Any]] = {
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


def own_settings(base: str, method: str) -> dict[str, Any]:
    """The settings of `train_subject` that a method on a base takes unless it is told otherwise.

    Args:
        base: as it is named: "embedded", or anything else, which is taken for Stable Diffusion.
        method: its name.

    Returns:
        option of `SubjectConfig` -> value, only those that differ from the recipe's defaults
    """
    return dict((_SMALL if base == "embedded" else _STABLE_DIFFUSION).get(method, {}))


def own_config(base: str, method: str) -> SubjectConfig:
    """The same as a whole config."""
    return SubjectConfig(**own_settings(base, method))
