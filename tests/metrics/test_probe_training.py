"""How the probe's training goes on from a probe: deeper, and saying the same at first."""

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from diffadapt.metrics.probe import Probe, ProbeShape

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))
from train_probe import deepen


def probe(blocks: tuple[int, int, int, int], seed: int, *, style_by_object: bool = False) -> Probe:
    torch.manual_seed(seed)
    labels = {"object": ("x", "y", "z"), "colour": ("x", "y"), "style": ("x", "y")}
    made = Probe(
        ProbeShape(
            labels=labels, words=("<pad>", "<unk>", "x"), widths=(4, 6, 8, 12), blocks=blocks,
            style_by_object=style_by_object,
        )
    )  # fmt: skip
    for layer in made.modules():
        if isinstance(layer, nn.BatchNorm2d) and layer.running_mean is not None:
            layer.running_mean.normal_()
    return made.eval()


@pytest.mark.parametrize("style_by_object", [False, True])
def test_a_deeper_probe_says_what_the_one_says_that_it_begins_with(style_by_object: bool):
    old, new = probe((0, 1, 1, 1), 0), probe((1, 2, 1, 3), 1, style_by_object=style_by_object)
    pictures, words = torch.rand(5, 3, 64, 64), old.tokenize(["x", "x y"])
    assert not torch.allclose(old.image(pictures)[2], new.image(pictures)[2], atol=1e-3)
    deepen(old, new)
    for head, logits in old.image(pictures)[0].items():
        torch.testing.assert_close(new.image(pictures)[0][head], logits)
    torch.testing.assert_close(new.image(pictures)[2], old.image(pictures)[2])
    torch.testing.assert_close(new.text(words), old.text(words))


def test_the_style_of_an_object_is_read_with_the_weights_of_that_object():
    """Sure of an object, the probe adds the logits that belong to it, and the others' have no say."""
    asked = probe((0, 1, 1, 1), 0, style_by_object=True)
    pictures = torch.rand(4, 3, 64, 64)
    with torch.no_grad():
        asked.image.heads["object"].bias.copy_(torch.tensor([0.0, 60.0, 0.0]))  # "y" without a doubt
    before = asked.image(pictures)[0]["style"]
    rows = asked.image.style_by_object.weight.view(3, 2, -1)  # object, style, width
    with torch.no_grad():
        rows[[0, 2]] += 5
    torch.testing.assert_close(asked.image(pictures)[0]["style"], before)
    with torch.no_grad():
        rows[1, 0].zero_()
    changed = asked.image(pictures)[0]["style"]
    assert not torch.allclose(changed[:, 0], before[:, 0]) and torch.equal(changed[:, 1], before[:, 1])
