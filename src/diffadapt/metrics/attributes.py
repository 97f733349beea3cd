"""Attribute accuracy: is the named thing in the picture, in the named style, in the named place?"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..errors import Refused


def attribute_accuracy(
    predicted: Mapping[str, Sequence[str]], expected: Mapping[str, Sequence[str | None]]
) -> dict[str, Tensor]:
    """Which predictions are right, per attribute; the accuracy is the mean of each result.

    The protocol of compositional benchmarks such as GenEval (Ghosh et al., 2023): a classifier looks for what the
    prompt asked for, attribute by attribute. `describe` of the probe's features gives the predictions.

    Args:
        predicted: attribute -> one label a picture.
        expected: attribute -> one label a picture, None if the prompt does not say (that picture is left out).
            Attributes that only `predicted` holds are left out.

    Returns:
        attribute -> (K,) of 0.0 and 1.0 for the K pictures with an expectation, in the order of the pictures.

    Raises:
        Refused: an expected attribute was not predicted, or the counts differ.
    """
    right = {}
    for attribute, wanted in expected.items():
        if attribute not in predicted:
            raise Refused(f"no prediction of {attribute!r}; there are {', '.join(predicted)}")
        labels = predicted[attribute]
        if len(labels) != len(wanted):
            raise Refused(f"{attribute}: got {len(labels)} predictions for {len(wanted)} pictures")
        pairs = zip(labels, wanted, strict=True)
        right[attribute] = torch.tensor([float(label == want) for label, want in pairs if want is not None])
    return right
