"""How the probe's training goes on from a probe: deeper, and saying the same at first."""

import sys
from pathlib import Path

import torch
from torch import nn

from diffadapt.metrics.probe import Probe, ProbeShape

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))
from train_probe import deepen


def probe(blocks: tuple[int, int, int, int], seed: int) -> Probe:
    torch.manual_seed(seed)
    labels = dict.fromkeys(("object", "colour"), ("x", "y"))
    shape = ProbeShape(labels=labels, words=("<pad>", "<unk>", "x"), widths=(4, 6, 8, 12), blocks=blocks)
    made = Probe(shape)
    for layer in made.modules():
        if isinstance(layer, nn.BatchNorm2d) and layer.running_mean is not None:
            layer.running_mean.normal_()
    return made.eval()


def test_a_deeper_probe_says_what_the_one_says_that_it_begins_with():
    old, new = probe((0, 1, 1, 1), 0), probe((1, 2, 1, 3), 1)
    pictures, words = torch.rand(5, 3, 64, 64), old.tokenize(["x", "x y"])
    assert not torch.allclose(old.image(pictures)[2], new.image(pictures)[2], atol=1e-3)
    deepen(old, new)
    for head, logits in old.image(pictures)[0].items():
        torch.testing.assert_close(new.image(pictures)[0][head], logits)
    torch.testing.assert_close(new.image(pictures)[2], old.image(pictures)[2])
    torch.testing.assert_close(new.text(words), old.text(words))
