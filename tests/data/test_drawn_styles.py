"""Styles that can be drawn: a fixed split, pictures in and pictures out, the same drawing every time."""

import pytest
import torch

from diffadapt.data.drawn_styles import HELD_OUT, SEEN, STYLE_FUNCTIONS, draw_in_style
from diffadapt.errors import Refused


def picture(size: int = 64) -> torch.Tensor:
    """A red disc on a blue ground that brightens to the right, (1, 3, size, size)."""
    v, u = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    disc = ((u - size / 2) ** 2 + (v - size / 2) ** 2 < (size / 4) ** 2).float()
    ground = torch.stack([u / size * 0.4, u / size * 0.5, 0.4 + u / size * 0.5])
    return (ground * (1 - disc) + disc * torch.tensor([0.85, 0.2, 0.15])[:, None, None])[None]


def test_eight_styles_are_seen_and_eight_held_out_and_none_is_both():
    assert len(SEEN) == len(HELD_OUT) == 8 and not set(SEEN) & set(HELD_OUT)
    assert set(STYLE_FUNCTIONS) == {*SEEN, *HELD_OUT}


@pytest.mark.parametrize("style", STYLE_FUNCTIONS)
def test_a_drawing_has_the_picture_s_shape_and_range_and_is_the_same_every_time(style):
    drawn = draw_in_style(style, picture())
    assert drawn.shape == (1, 3, 64, 64) and drawn.dtype == torch.float32
    assert drawn.min() >= 0 and drawn.max() <= 1 and drawn.isfinite().all()
    assert torch.equal(drawn, draw_in_style(style, picture()))
    assert draw_in_style(style, picture(96)).shape == (1, 3, 96, 96)


@pytest.mark.parametrize("style", STYLE_FUNCTIONS)
def test_a_picture_s_drawing_does_not_depend_on_the_others_of_its_batch(style):
    batch = torch.cat([picture(), picture().flip(-1)])
    assert torch.allclose(draw_in_style(style, batch)[:1], draw_in_style(style, picture()), atol=1e-5)


@pytest.mark.parametrize("style", STYLE_FUNCTIONS)
def test_the_disc_can_still_be_told_from_its_ground(style):
    drawn = draw_in_style(style, picture())
    empty = draw_in_style(style, picture() * 0 + torch.tensor([0.2, 0.25, 0.65])[None, :, None, None])
    assert (drawn - empty).abs().mean() > 0.02


def test_no_two_styles_draw_alike():
    drawn = {style: draw_in_style(style, picture()) for style in STYLE_FUNCTIONS}
    for first in drawn:
        for second in drawn:
            assert first == second or (drawn[first] - drawn[second]).abs().mean() > 0.03, (first, second)


def test_an_unknown_style_and_a_wrong_shape_are_refused():
    with pytest.raises(Refused, match="unknown drawn style 'oil'; known: halftone"):
        draw_in_style("oil", picture())
    with pytest.raises(Refused, match="expected"):
        draw_in_style("chalk", torch.zeros(3, 64, 64))
