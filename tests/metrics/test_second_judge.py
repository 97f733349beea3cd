"""The second judge tells subjects apart wherever they stand, as the probe does; files that do not fit are refused."""

import json

import pytest
import torch

from diffadapt.errors import Refused
from diffadapt.files import read_json
from diffadapt.metrics.features import load_features
from diffadapt.metrics.second_judge import WEIGHTS, SecondJudge, load_second_judge


def picture(kind: str, left: int, top: int, side: int, ground: tuple[float, float, float]) -> torch.Tensor:
    """A thing that no emoji set holds, on a plain ground."""
    y, x = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    u, v = (x - left) / side * 2 - 1, (y - top) / side * 2 - 1
    drawn = torch.tensor(ground).view(3, 1, 1).expand(3, 64, 64).clone()
    if kind == "target":
        radius = (u.square() + v.square()).sqrt()
        drawn[:, radius < 1] = torch.tensor([0.9, 0.1, 0.1]).view(3, 1)
        drawn[:, radius < 0.6] = 1.0
        drawn[:, radius < 0.3] = torch.tensor([0.1, 0.2, 0.8]).view(3, 1)
    else:
        drawn[:, (u.abs() < 1) & (v.abs() < 0.35)] = torch.tensor([0.1, 0.6, 0.2]).view(3, 1)
        drawn[:, (u.abs() < 0.3) & (v.abs() < 1)] = torch.tensor([0.95, 0.8, 0.1]).view(3, 1)
    return drawn


@pytest.mark.parametrize("name", ["probe", "second"])
def test_two_pictures_of_a_subject_are_more_alike_than_those_of_two(name: str):
    places = [(4, 10, 40, (0.8, 0.2, 0.2)), (22, 20, 36, (0.3, 0.5, 0.9))]
    rows = load_features(name).subjects(
        torch.stack([picture(kind, *place) for kind in ("target", "cross") for place in places])
    )
    alike = rows @ rows.T
    assert rows.norm(dim=1).allclose(torch.ones(4))
    assert min(alike[0, 1], alike[2, 3]) > max(alike[0, 2], alike[0, 3], alike[1, 2], alike[1, 3]) + 0.2


def test_the_card_says_what_it_serves_and_how_right_it_is():
    card = read_json(WEIGHTS / "judge.json")
    assert "wide" in card["serves"] and "reads no text" in card["does_not_serve"]
    for world in ("first_world", "wide_world"):
        found = card["held_out"]
        assert 1 / found["among"] < found[f"{world}_second"]["top1"] <= 1
        assert found[f"{world}_second"]["cosine_same"] > found[f"{world}_second"]["cosine_other"]
        assert -1 <= found[f"{world}_agreement"] <= 1
    assert sum(file.stat().st_size for file in WEIGHTS.iterdir()) <= 5e6


def test_it_reads_no_text():
    with pytest.raises(Refused, match="subjects only"):
        load_features("second").texts(["a cat"])


def test_its_maps_are_those_of_its_layers():
    maps = load_features("second").maps(torch.rand(2, 3, 64, 64))
    assert [tuple(each.shape) for each in maps] == [
        (2, 24, 1024), (2, 48, 256), (2, 48, 256), (2, 96, 64), (2, 192, 64)
    ]  # fmt: skip


def test_weights_that_do_not_fit_or_are_newer_are_refused(tmp_path):
    from diffadapt.files import save_tensors

    save_tensors(tmp_path / "judge.safetensors", SecondJudge((8, 8, 8, 8), 4).state_dict(), {})
    card = {"format_version": 1, "widths": [8, 8, 8, 8], "features": 4}
    (tmp_path / "judge.json").write_text(json.dumps(card))
    assert load_second_judge(tmp_path)(torch.rand(1, 3, 64, 64)).shape == (1, 4)
    for wrong, message in (({"features": 8}, "do not make"), ({"format_version": 2}, "newer diffadapt")):
        (tmp_path / "judge.json").write_text(json.dumps(card | wrong))
        with pytest.raises(Refused, match=message):
            load_second_judge(tmp_path)
