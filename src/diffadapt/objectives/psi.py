"""How much of each noise level is re-learned (psi) and how much is kept: families of Zhong et al. 2024, section 3.3.

All of them are functions of the noise level and not of a scheduler's step number, whose direction differs between
schedulers (descending tables of flow matching, continuous times that grow towards the data). A noise level is told by
its ratio r = sigma / alpha: sqrt((1 - a) / a) of a schedule with alphas_cumprod a, s / (1 - s) of flow matching, sigma
of EDM; 0 is clean and infinity pure noise.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ..errors import Refused

Family = Literal["power", "snr", "step", "table"]
FAMILIES: tuple[Family, ...] = ("power", "snr", "step", "table")


def noise_quantile(ratio: Tensor, law: Tensor) -> Tensor:
    """Where noise levels stand among those that the base was trained on.

    Args:
        ratio: (N,) noise ratios.
        law: (M,) noise ratios as training draws them: of all steps where each is equally likely, else many draws.

    Returns:
        (N,) float64 in [0, 1]: the share of training at this noise level or below. On a schedule of T equally likely
        steps it is (i + 1) / T, i the rank of the step by its noise; under EDM's law the paper's cdf(sigma).
    """
    ordered = law.double().sort().values
    return torch.searchsorted(ordered, ratio.double().contiguous(), right=True).double() / len(ordered)


def psi(
    family: Family,
    ratio: Tensor,
    quantile: Tensor,
    *,
    tau: float = 1.0,
    step_at: float = 0.3,
    table: Sequence[float] = (),
) -> Tensor:
    """The share of a noise level that is re-learned; xi = 1 - psi is the share that is kept.

    Args:
        family: "power" quantile ** tau (the paper's default with tau 1; tau 0 keeps nothing); "snr" 1 / (1 + SNR),
            which is 1 - alphas_cumprod; "step" 0 up to the quantile `step_at`, then 1; "table" straight lines between
            values at equally spaced quantiles from 0 to 1.
        ratio, quantile: (N,) of the noise levels, see `noise_quantile`.
        tau, step_at, table: of the family.

    Returns:
        (N,) float64 in [0, 1], not decreasing with noise

    Raises:
        Refused: an unknown family, a negative tau, a table that leaves [0, 1] or decreases.
    """
    if family == "power":
        if tau < 0:
            raise Refused(f"psi decreases with noise at tau = {tau}; it must not: use 0 or more")
        return quantile.double() ** tau
    if family == "snr":
        return 1 / (1 + 1 / ratio.double().square())
    if family == "step":
        return (quantile > step_at).double()
    if family == "table":
        if len(table) < 2 or min(table) < 0 or max(table) > 1 or any(b < a for a, b in zip(table, table[1:])):  # noqa: B905
            raise Refused(f"psi_table must hold 2 or more values in [0, 1] that do not decrease, got {list(table)}")
        values = np.interp(quantile.double().numpy(), np.linspace(0, 1, len(table)), table)
        return torch.from_numpy(values)
    raise Refused(f"psi family {family!r}; expected {', '.join(FAMILIES)}")
