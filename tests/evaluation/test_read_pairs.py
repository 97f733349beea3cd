"""What an evaluation of a style wrote is read back as it was."""

import pytest
import torch

from diffadapt.errors import Refused
from diffadapt.evaluation.evaluate_style import _write, read_pairs


def test_written_pictures_are_read_back_in_order_each_on_its_side(tmp_path):
    adapted, base = (torch.rand(11, 3, 4, 4, generator=torch.Generator().manual_seed(i)) for i in (0, 1))
    _write(tmp_path, adapted, base)
    for read, written in zip(read_pairs(tmp_path), (adapted, base), strict=True):
        assert torch.equal(read, (written * 255).round() / 255)


def test_a_folder_without_such_pictures_is_refused(tmp_path):
    with pytest.raises(Refused, match="expected pictures NN-adapted.png"):
        read_pairs(tmp_path)
