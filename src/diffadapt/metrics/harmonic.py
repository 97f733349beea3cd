"""One number for qualities that must all be good at once."""

from collections.abc import Sequence

from ..errors import Refused


def harmonic_mean(values: Sequence[float]) -> float:
    """n / sum(1 / v): low as soon as one value is low, so fidelity cannot be bought with alignment.

    The F-measure of information retrieval (van Rijsbergen, 1979, chapter 7) at equal weights.

    Args:
        values: numbers in [0, inf); at least one. Put similarities on one scale first.

    Returns:
        Between the smallest and the largest value; 0 when one of them is 0.

    Raises:
        Refused: no values, or one that is negative or not a number.
    """
    if not values or any(not value >= 0 for value in values):
        raise Refused(f"harmonic_mean: expected one or more numbers >= 0, got {list(values)}")
    return 0.0 if min(values) == 0 else len(values) / sum(1 / value for value in values)
