"""Hyperspherical energy, and the change of a layer's neuron geometry between two weights.

A neuron is a row w_i of the weight flattened to (out, in * kh * kw); u_i = w_i / |w_i| is its direction. The energy is

    HE(W) = sum over i != j of 1 / |u_i - u_j|        (Qiu et al. 2023, OFT, arXiv:2306.07280, section 3.1)

over ordered pairs: small where the neurons point evenly in all directions. A rotation on the input side, shared by all
neurons, keeps every norm |w_i| and every cosine u_i . u_j, and with them the energy. The energy alone is a weak
witness, for neurons that point anywhere keep theirs under almost any small change: the cosines and norms stand beside
it.
"""

from dataclasses import dataclass

from torch import Tensor

from ..errors import Refused

# Neurons of one direction would have infinite energy: a distance counts as at least this, an angle of 0.06 degrees.
SHORTEST = 1e-3
ROWS = 1024  # neurons compared with all others at a time: 80 MB a matrix for 10,000 neurons instead of 800


@dataclass(frozen=True, kw_only=True)
class GeometryChange:
    """Change of the neurons of one layer relative to each other; all fields but `energy` are 0 for equal weights.

    Args:
        energy: HE(before); 0 when fewer than two neurons are non-zero.
        energy_change: HE(after) / HE(before) - 1.
        cosine_change: the largest change of the cosine between two neurons, [0, 2].
        norm_change: the largest change of a neuron's norm, as a share of that norm.
    """

    energy: float
    energy_change: float
    cosine_change: float
    norm_change: float


def geometry_change(before: Tensor, after: Tensor) -> GeometryChange:
    """Compares the neurons of a weight before and after, all pairs of them, in float64.

    A neuron that is zero before or after has no direction and is in no pair; one that is zero before has no norm to
    compare with. Two neurons of the same direction count as `SHORTEST` apart, so that the energy stays finite.

    Args:
        before: weight (out, in) or (out, in, kh, kw).
        after: the same shape.

    Raises:
        Refused: the shapes differ, there are no neurons (a bias, the weight of a norm), or a value is not finite.
    """
    if before.shape != after.shape or before.ndim < 2:
        raise Refused(f"no neurons to compare in shapes {tuple(before.shape)} and {tuple(after.shape)}")
    old, new = as_float64(before).flatten(1), as_float64(after).flatten(1)  # (out, in * kh * kw)
    if not (old.isfinite().all() and new.isfinite().all()):
        raise Refused("a weight to compare is not finite; the training went wrong before this")
    norms = old.norm(dim=1), new.norm(dim=1)  # (out,) each
    lengths = (norms[1] / norms[0] - 1).abs()[norms[0] > 0]
    rows = (norms[0] > 0) & (norms[1] > 0)  # K neurons that have a direction in both
    old, new = (weight[rows] / norm[rows, None] for weight, norm in zip((old, new), norms, strict=True))  # (K, D) units
    cosine_change, energies = 0.0, [0.0, 0.0]
    for start in range(0, len(old), ROWS):
        cosines = [units[start : start + ROWS] @ units.T for units in (old, new)]  # (ROWS, K) each
        energies = [energy + _energy(part) for energy, part in zip(energies, cosines, strict=True)]
        cosine_change = max(cosine_change, float((cosines[1] - cosines[0]).abs().max()))
    return GeometryChange(
        energy=energies[0],
        energy_change=energies[1] / energies[0] - 1 if energies[0] else 0.0,
        cosine_change=cosine_change,
        norm_change=float(lengths.max()) if len(lengths) else 0.0,
    )


def hyperspherical_energy(weight: Tensor) -> float:
    """HE of a weight (out, in) or (out, in, kh, kw), in float64; zero rows and parallel ones as `geometry_change`."""
    return geometry_change(weight, weight).energy


def as_float64(weight: Tensor) -> Tensor:
    """The weight in float64 on its own device, or on the CPU if that device has no float64 (mps)."""
    weight = weight.detach()
    return (weight.cpu() if weight.device.type == "mps" else weight).double()


def _energy(cosines: Tensor) -> float:
    """Energy of a block of neurons (rows) with all neurons (columns), without each one's term with itself."""
    inverse = (2 - 2 * cosines).clamp(min=SHORTEST**2).rsqrt()
    return float(inverse.sum()) - len(cosines) / SHORTEST  # a neuron is at `SHORTEST` from itself
