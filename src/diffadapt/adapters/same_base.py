"""Whether a file was trained on the base that it is brought to."""

from collections.abc import Mapping
from pathlib import Path

from ..errors import Refused
from ..network import Network


def refuse_another_base(base: Network, path: str | Path, header: Mapping[str, str]) -> None:
    """Raises Refused when a file's header names another base, or one that predicts something else."""
    predicts = getattr(base, "prediction_type", "none")  # a network that is no denoiser predicts nothing
    learned = header.get("prediction_type", predicts)  # files before it was written do not say
    if learned != predicts:
        raise Refused(
            f"{path} was trained on a base that predicts {learned}, and this one was loaded to predict "
            f"{predicts}; load it with prediction_type={learned!r} (--prediction-type {learned})"
        )
    if header["base_fingerprint"] != base.fingerprint:
        raise Refused(
            f"{path} was trained on base {header['base']!r} ({header['base_fingerprint']}), this is {base.name!r} "
            f"({base.fingerprint}); load that base, or pass any_base=True if the two are siblings"
        )
