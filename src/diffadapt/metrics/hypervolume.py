"""The area that a set of trade-offs dominates."""

from collections.abc import Iterable

from ..errors import Refused


def hypervolume(points: Iterable[tuple[float, float]], reference: tuple[float, float] = (0.0, 0.0)) -> float:
    """The area between a reference point and the Pareto front of points (x, y), both to be large.

    Zitzler and Thiele 1998: the part of the plane where some point is at least as good in both.

    Args:
        points: one or more; those not above the reference in both count as nothing.
        reference: the corner that the area is measured from.

    Raises:
        Refused: there is no point.
    """
    known = list(points)
    if not known:
        raise Refused("hypervolume: expected one or more points, got none")
    area, height = 0.0, reference[1]
    for x, y in sorted(known, reverse=True):  # from the largest x on, each point adds what lies above those before
        if x > reference[0] and y > height:
            area += (x - reference[0]) * (y - height)
            height = y
    return area
