"""Bases by hub id: into the local cache of huggingface_hub, or out of it when offline."""

import re
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TypeVar

from ..errors import Refused
from .local_folder import INDEX, check_class, first_line

Result = TypeVar("Result")


def looks_like_hub_id(name: str) -> bool:
    """Whether a name has the form owner/name; ids without an owner are not used by bases."""
    return re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]*\w", name) is not None


def fetch_pipeline(name: str, supported: Collection[str]) -> Path:
    """The local snapshot of a pipeline, downloaded if need be: safetensors only, without the safety checker.

    Raises:
        Refused: it cannot be had (offline, unknown, gated, pickled weights only), or its class is not supported.
    """
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline
    from huggingface_hub import hf_hub_download

    check_class(Path(_reach(name, lambda: hf_hub_download(name, INDEX))), supported)  # before gigabytes come

    without = dict.fromkeys(("safety_checker", "feature_extractor", "image_encoder"))
    return Path(_reach(name, lambda: DiffusionPipeline.download(name, use_safetensors=True, **without)))


def fetch_configuration(name: str) -> Path:
    """The local snapshot of a pipeline's configuration and tokenizer files, no weights.

    Raises:
        Refused: it cannot be had.
    """
    from huggingface_hub import snapshot_download

    wanted = ["*.json", "*.txt", "*/*.json", "*/*.txt"]
    return Path(_reach(name, lambda: snapshot_download(name, allow_patterns=wanted)))


def _reach(name: str, action: Callable[[], Result]) -> Result:
    from huggingface_hub import constants

    try:
        return action()
    except Refused:
        raise
    except Exception as error:  # requests, httpx, gated, not found, offline: the classes differ between versions
        if constants.HF_HUB_OFFLINE:
            raise Refused(
                f"base {name!r} is neither a folder or file here nor in the local cache, and HF_HUB_OFFLINE forbids "
                "downloading; unset it, or give a local folder"
            ) from error
        raise Refused(
            f"base {name!r} is not a folder or file here and cannot be loaded from the hub ({first_line(error)}); "
            "check the name and the network, or give a local folder"
        ) from error
