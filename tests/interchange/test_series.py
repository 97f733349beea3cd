import math

import pytest
import torch

from diffadapt.adapters.oft import skew
from diffadapt.interchange.series import series


def exact(q):
    identity = torch.eye(q.shape[-1], dtype=q.dtype)
    return (identity + q) @ torch.linalg.inv(identity - q)


@pytest.fixture
def q():
    generator = torch.Generator().manual_seed(0)
    return skew(0.05 * torch.randn(4, 16 * 15 // 2, generator=generator, dtype=torch.float64), 16)


@pytest.mark.parametrize(("terms", "power"), [(3, 3), (4, 3), (5, 4), (6, 5), (8, 7)])
def test_the_series_is_the_rotation_less_one_power_of_it(q, terms, power):
    expected = exact(q) @ (torch.eye(16, dtype=q.dtype) - torch.linalg.matrix_power(q, power))
    torch.testing.assert_close(series(q, terms), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("terms", range(1, 9))
def test_the_terms_are_counted_as_peft_does(q, terms):
    from peft.tuners.oft.layer import OFTRotationModule

    i, j = torch.triu_indices(16, 16, 1)
    module = OFTRotationModule(4, len(i), 16, 64).double()
    theirs = module._cayley_batch(q[:, i, j], 16, True, terms)
    torch.testing.assert_close(series(q, terms), theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize("theta", [0.05, 0.3, 0.7])
def test_five_terms_shrink_a_plane_and_keep_its_angle(theta):
    q = torch.tensor([[[0.0, theta], [-theta, 0.0]]], dtype=torch.float64)
    (r,) = series(q, 5)
    scale = r.det().sqrt()
    assert math.isclose(scale, 1 - theta**4)
    torch.testing.assert_close(r / scale, exact(q)[0])
    assert float((r.T @ r - torch.eye(2)).abs().max()) <= 2 * theta**4
