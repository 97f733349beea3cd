import pytest
import torch
import torch.nn.functional as F

from diffadapt.data.drawn_styles import HELD_OUT, draw_in_style
from diffadapt.errors import Refused
from diffadapt.metrics.features import load_features
from diffadapt.metrics.style import content_kept, gram, style_distance


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_the_gram_matrix_is_the_mean_outer_product_over_places():
    x = normal(2, 3, 5)
    expected = torch.stack([sum(torch.outer(row[:, i], row[:, i]) for i in range(5)) / 5 for row in x.double()])
    torch.testing.assert_close(gram(x), expected)


def test_where_things_are_does_not_count():
    x, reference = normal(4, 3, 20), normal(5, 3, 30, seed=1)
    moved = x[:, :, torch.randperm(20, generator=torch.Generator().manual_seed(2))]
    torch.testing.assert_close(style_distance([x], [reference]), style_distance([moved], [reference]))


def test_the_distance_is_zero_for_the_style_itself_and_known_for_a_multiple():
    x = normal(1, 3, 20)
    assert style_distance([x], [x]).item() == pytest.approx(0)
    assert style_distance([2 * x, x], [x, x]).item() == pytest.approx((3**2 + 0) / 2)  # G is four times as large


def test_layers_and_shapes_that_do_not_fit_are_refused():
    with pytest.raises(Refused, match="1 layers of features and 2"):
        style_distance([normal(1, 3, 4)], [normal(1, 3, 4)] * 2)
    with pytest.raises(Refused, match="expected finite features"):
        gram(normal(3, 4))


def test_a_drawing_is_nearest_to_others_of_its_own_style_whatever_is_drawn():
    """Sixteen pictures in each of the eight held-out styles: half are the style's reference, half are judged."""
    encoder = load_features("probe")
    contents = F.interpolate(normal(16, 3, 5, 5).sigmoid(), 64, mode="bicubic").clamp(0, 1)
    references = {style: encoder.maps(draw_in_style(style, contents[:8])) for style in HELD_OUT}
    for style in HELD_OUT:
        judged = encoder.maps(draw_in_style(style, contents[8:]))
        means = {other: style_distance(judged, reference).mean() for other, reference in references.items()}
        assert min(means, key=lambda other: means[other]) == style


def test_content_is_kept_by_a_common_shift_and_not_by_other_pictures():
    base = normal(6, 40)
    torch.testing.assert_close(content_kept(3 * base + normal(1, 40, seed=1), base), torch.ones(6))
    assert content_kept(normal(6, 40, seed=2), base).abs().mean() < 0.3
    torch.testing.assert_close(content_kept(-base, base), -torch.ones(6))
    with pytest.raises(Refused, match="got 2, give 3 or more"):
        content_kept(base[:2], base[:2])
