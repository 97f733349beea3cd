"""The shapes of all files that diffadapt reads, in one place, and the check of a value against its shape.

A shape is written in Python's own terms:

    str, bool, dict, ...       a value of that type; float also takes whole numbers, and none takes nan or infinity
    (str, None)                one of several
    [shape]                    a list of such values; [shape, shape, ...] is one of exactly as many
    {"key": shape}             a table with at least this key; Maybe(shape) is a key that may be missing
    {str: shape}               a table with any keys, all of whose values are such

Twenty lines hold a value against that. A validation library (pydantic, msgspec) would do the same with a compiled
dependency and messages for programmers; what people need to read is which file, which entry, what was expected.
"""

import sys
from dataclasses import dataclass
from typing import Any

from .errors import Refused

DEEPEST = 40  # tables in tables; more is no file of ours


@dataclass(frozen=True)
class Maybe:
    """A key of a table that may be missing."""

    shape: Any


NUMBER = (int, float)
TEXTS = {str: str}

# --- our own files ----------------------------------------------------------------------------------------------------
ADAPTER_HEADER = {
    "format_version": str, "method": str, "config": str, "roles": str, "tokens": str, "base": str,
    "base_fingerprint": str,
}  # fmt: skip
ADAPTER_CLASSES = [str]
ADAPTER_ROLES = [str]
ADAPTER_TOKENS = TEXTS
BANK = {
    "settings": {
        "base_fingerprint": str, "resolution": int, "guidance": NUMBER, "steps": int, "seed": int,
    },
    "pictures": [{"file": str, "prompt": str, "seed": int, "sha256": str}],
}  # fmt: skip
BASE_DEFAULTS = {
    "format_version": Maybe(int), "default_guidance": Maybe(NUMBER), "default_steps": Maybe(int), "encoder": Maybe(str),
    "world": Maybe((None, {str: [str]})),
}  # fmt: skip
CLASSES = {
    "learned": [
        {"classes": [str], "contents": str, "files": {"adapter": str, "head": str}, "trainable": int,
         "change": Maybe((int, float, None)), "penalty_ratio": Maybe((int, float, None))},
    ],
    "answers": [[[bool]]],
}  # fmt: skip
FOLLOWED = {str: NUMBER}
CHECKPOINT = {"step": int, "of": Maybe(int), "sha256": {"state.safetensors": str, str: str}}
LOG_LINE = {"step": int, "loss": Maybe((int, float, None)), "seconds": Maybe(NUMBER)}
METRICS = {
    "values": Maybe({str: {"value": (int, float, None)}}), "features": Maybe((str, None)),
    "protocol": Maybe((str, dict)), "weight_drift": Maybe([dict]), "not_measured": Maybe([dict]),
}  # fmt: skip
_UNIT = {str: (str, int, float, bool, None, list, dict)}
RESULTS = {
    "format": Maybe(int), "measures": Maybe(int), "commit": str, "uncommitted_changes": Maybe(bool),
    "base": {"fingerprint": str}, "units": [{"unit": _UNIT, "scores": dict, "seconds": NUMBER}],
    "failed": [{"unit": _UNIT, "error": str}],
}  # fmt: skip
SELECTION = {"steps": [dict]}
SEQUENCE = {
    "learned": [
        {"name": str, "token": str, "phrase": str, "contents": [str], "captions": Maybe((None, [(str, None)])),
         "adapter": str, "trainable": int, "change": Maybe((int, float, None)),
         "penalty_ratio": Maybe((int, float, None)), "losses": Maybe(dict)},
    ],
    "scores": [[NUMBER]],
}  # fmt: skip
SHARD_CAPTIONS = [str]

# --- those of others --------------------------------------------------------------------------------------------------
MODEL_INDEX = {"_class_name": str}
_WHOLE, _REAL, _FLAG = Maybe((int, None)), Maybe((int, float, None)), Maybe((bool, None))
PEFT_CONFIG = {
    "peft_type": str, "r": _WHOLE, "lora_alpha": _REAL, "alpha_pattern": Maybe((None, {str: NUMBER})),
    "rank_pattern": Maybe((None, {str: int})), "use_rslora": _FLAG, "use_dora": _FLAG, "lora_dropout": _REAL,
    "oft_block_size": _WHOLE, "block_share": _FLAG, "module_dropout": _REAL, "coft": _FLAG, "eps": _REAL,
    "use_cayley_neumann": _FLAG, "num_cayley_neumann_terms": _WHOLE,
}  # fmt: skip
METADATA_ROW = {"file_name": str}
_DENOISER = {"sample_size": Maybe(int), "in_channels": Maybe(int), "pos_embed_max_size": Maybe(int)}
_TOKENIZER = {"model_max_length": _WHOLE}
COMPONENTS = {
    "unet/config.json": {**_DENOISER, "sample_size": int}, "transformer/config.json": _DENOISER,
    "vae/config.json": {"scaling_factor": Maybe(NUMBER), "shift_factor": _REAL, "latent_channels": Maybe(int)},
    "text_encoder/config.json": dict, "text_encoder_2/config.json": dict, "text_encoder_3/config.json": dict,
    "tokenizer/tokenizer_config.json": _TOKENIZER, "tokenizer_2/tokenizer_config.json": _TOKENIZER,
    "tokenizer_3/tokenizer_config.json": _TOKENIZER,
    "scheduler/scheduler_config.json": {"num_train_timesteps": Maybe(int), "prediction_type": Maybe(str)},
}  # fmt: skip
VIT_CONFIG = {"model_type": str, "image_size": Maybe(int)}
_SIDE = Maybe((int, None, {"shortest_edge": _WHOLE, "height": _WHOLE, "width": _WHOLE}))
_CHANNELS = Maybe([float, float, float])
PREPROCESSOR = {
    "size": _SIDE, "crop_size": _SIDE, "do_center_crop": _FLAG, "image_mean": _CHANNELS, "image_std": _CHANNELS,
}  # fmt: skip


def hold(value: Any, shape: Any, place: str) -> Any:
    """The value, when it has the shape.

    Args:
        value: what a JSON or TOML file held, or a part of it.
        shape: see the top of this file.
        place: the file, and the entry in it, for the message.

    Raises:
        Refused: it has another shape; says which entry, what was expected and what is there.
    """
    _hold(value, shape, place, 0)
    return value


def _hold(value: Any, shape: Any, place: str, depth: int) -> None:
    if depth > DEEPEST:
        raise Refused(f"{place}: tables lie more than {DEEPEST} deep in each other")
    if isinstance(shape, tuple):
        inside = [each for each in shape if isinstance(each, dict | list) and isinstance(value, type(each))]
        if len(inside) == 1:  # the message can say what is wrong in it
            _hold(value, inside[0], place, depth)
        elif not any(_fits(value, each, place, depth) for each in shape):
            raise Refused(f"{place}: expected {words(shape)}, got {shown(value)}")
    elif isinstance(shape, list):
        if not isinstance(value, list) or (len(shape) > 1 and len(value) != len(shape)):
            raise Refused(f"{place}: expected {words(shape)}, got {shown(value)}")
        for i, each in enumerate(value):
            _hold(each, shape[i if len(shape) > 1 else 0], f"{place}[{i}]", depth + 1)
    elif isinstance(shape, dict):
        if not isinstance(value, dict):
            raise Refused(f"{place}: expected {words(shape)}, got {shown(value)}")
        any_key = shape.get(str)
        for key in value if any_key is not None else ():
            _hold(value[key], any_key, f"{place}: {key}", depth + 1)
        for key, inner in shape.items():
            if key is str:
                continue
            if key not in value:
                if not isinstance(inner, Maybe):
                    raise Refused(f"{place}: {key} is missing, expected {words(inner)}")
                continue
            _hold(value[key], inner.shape if isinstance(inner, Maybe) else inner, f"{place}: {key}", depth + 1)
    elif not _is(value, shape):
        raise Refused(f"{place}: expected {words(shape)}, got {shown(value)}")


def _fits(value: Any, shape: Any, place: str, depth: int) -> bool:
    try:
        _hold(value, shape, place, depth)
    except Refused:
        return False
    return True


def _is(value: Any, shape: Any) -> bool:
    if shape is None:
        return value is None
    if shape in (int, float) and isinstance(value, bool):
        return False
    if shape is float:
        return isinstance(value, int | float) and -sys.float_info.max <= value <= sys.float_info.max
    return isinstance(value, shape)


def words(shape: Any) -> str:
    """A shape for a person."""
    if isinstance(shape, tuple):
        parts = list(dict.fromkeys(words(each) for each in shape if each is not int or float not in shape))
        return " or ".join(parts)
    if isinstance(shape, list):
        return f"a list of {len(shape)}" if len(shape) > 1 else "a list"
    if isinstance(shape, dict):
        return "a table"
    names = {None: "nothing", str: "text", int: "a whole number", float: "a number", bool: "true or false"}
    return names.get(shape, "a table" if shape is dict else str(shape))


def shown(value: Any) -> str:
    """A value and its kind, short enough for a sentence."""
    kinds = {
        dict: "a table", list: "a list", str: "text", bool: "true or false", int: "a whole number", float: "a number",
    }  # fmt: skip
    if value is None:
        return "nothing (null)"
    text = repr(value)
    return f"{text[:60]}{'...' if len(text) > 60 else ''} ({kinds.get(type(value), type(value).__name__)})"
