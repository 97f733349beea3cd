import pytest


@pytest.fixture
def base(tiny_v_base):
    """A tiny base, freshly loaded."""
    return tiny_v_base
