"""Shared by the definitions: grids that hold their optimum, curves that are compared at one level, exact floors."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "evidence"))

import both_present
import oft_0
import oft_3
import subjects
import unit_cost
from sd15_shapes import Shape, build, layers

from diffadapt.adapters import OFT


def test_subjects_have_seeds_of_their_own_and_are_not_those_of_the_tuning():
    assert len(set(subjects.SEED_OF.values())) == len(subjects.SUBJECTS) == 16
    assert not set(subjects.SUBJECTS) & set(subjects.TUNING_SUBJECTS)


def test_steps_to_a_level_are_cut_off_alike():
    rising = [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert oft_3.steps_to(rising, 0.5) == pytest.approx(75)
    assert oft_3.steps_to(rising, 2.0) == oft_3.steps_to([0.0] * 6, 0.5) == 150
    assert oft_3.area(rising) == pytest.approx(0.5) and oft_3.area([1.0] * 6) == pytest.approx(1)


def test_the_floors_are_what_no_student_gets_below():
    generator = torch.Generator().manual_seed(0)
    start, teacher = torch.randn(48, 32, generator=generator), torch.randn(48, 32, generator=generator)
    left, values, right = torch.linalg.svd((teacher - start).double(), full_matrices=False)
    nearest = start.double() + left[:, :3] @ torch.diag(values[:3]) @ right[:3]
    told = float((nearest - teacher.double()).norm() / (teacher.double() - start.double()).norm())
    assert oft_0.low_rank_floor(start, teacher, 3) == pytest.approx(told, rel=1e-9)

    layer = build(Shape(48, 32, 0), seed=0)
    hidden = oft_0.hidden("rotation", layer, OFT(block_size=16), 1, generator)
    assert oft_0.procrustes_floor(layer.weight, hidden, 16) < 1e-6
    floor = oft_0.procrustes_floor(start, teacher, 16)
    for _ in range(20):
        turned = torch.cat([w @ torch.linalg.qr(torch.randn(16, 16))[0] for w in start.split(16, 1)], 1)
        assert float((turned - teacher).norm() / (teacher - start).norm()) > floor


def test_the_shapes_are_those_of_stable_diffusion():
    assert sum(layers("transformer_blocks").values()) == 16 * 10  # 8 of attention and 2 of feed-forward in each of 16
    assert Shape(10240, 1280, 0) in layers("transformer_blocks") and Shape(1280, 23040, 3) in layers()


def test_what_a_unit_takes_is_its_steps_pictures_and_start_over_the_pace_of_the_machine(monkeypatch):
    measured = {"start": 6.0, "picture": {"10": 0.4}, "step": {"style, LoRA": 0.2}, "pace": 2.0}
    monkeypatch.setattr(unit_cost, "MEASURED", measured)
    found = unit_cost.cost("style, LoRA", 100, 5, sampling=10)
    assert found.seconds == pytest.approx(100 * 0.1 + 5 * 0.2 + 3.0)
    assert found.words == "estimated: 100 steps at 0.100 s (style, LoRA), 5 pictures at 0.20 s, a start of 3.0 s"


def test_two_concepts_need_two_objects():
    side_by_side = [[10.0, 30.0], [40.0, 30.0]]
    assert both_present.relation([0.9, 0.1], [0.1, 0.9], side_by_side, 0.5, 0.5) == "next to"
    assert both_present.relation([0.9, 0.1], [0.9, 0.1], side_by_side, 0.5, 0.5) is None  # one object cannot be both
    assert both_present.relation([0.9, 0.1], [0.1, 0.9], [[30.0, 10.0], [30.0, 40.0]], 0.5, 0.5) == "above"
