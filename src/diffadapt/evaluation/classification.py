"""Accuracy of a classifier on every task so far, without being told which task a picture is of."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..adapters import SideInputs
from ..bases import Classifier
from ..metrics import kept

AT_ONCE = 64  # pictures


@torch.no_grad()
def right(network: Classifier, pictures: Tensor, labels: Tensor, known: int) -> list[bool]:
    """Of each picture whether its class has the highest logit among the `known` first classes of the head.

    Args:
        network: with its attachments, if any.
        pictures: (N, 3, R, R) in [0, 1]; labels: (N,).
        known: the classes seen so far, of all tasks.
    """
    found: list[bool] = []
    for rows, truth in zip(pictures.split(AT_ONCE), labels.split(AT_ONCE), strict=True):
        rows, truth = rows.to(network.device), truth.to(network.device)
        side = SideInputs.of(network.condition(rows, truth))
        for attachment in network.attachments:
            attachment.begin(side)
        found += (network(rows)[:, :known].argmax(1) == truth).tolist()
    return found


def summary(answers: Sequence[Sequence[Sequence[bool]]]) -> dict[str, Any]:
    """Accuracies over a sequence of tasks.

    Args:
        answers: [i][j]: of each test picture of task j, whether it was right after task i.

    Returns:
        "scores": R[i][j], the share right; "average" (A_N), "forgetting" (F_N, CODA-Prompt's), "forgetting_from_best",
        and "stages": after each task the share right of all pictures so far
    """
    scores = [[sum(each) / len(each) for each in row] for row in answers]
    count = len(scores)
    matrix = torch.zeros(count, count, dtype=torch.float64)
    for i, row in enumerate(scores):
        matrix[i, : len(row)] = torch.tensor(row, dtype=torch.float64)
    found = kept(matrix)
    return {
        "scores": scores,
        "average": found.average,
        "forgetting": found.forgetting,
        "forgetting_from_best": found.forgetting_from_best,
        "stages": [sum(map(sum, row)) / sum(map(len, row)) for row in answers],
    }
