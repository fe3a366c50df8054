import pytest

from tests.conventions.tools import judge


@pytest.mark.timeout(300)  # without a cache, on two busy cores
def test_mypy_has_no_complaint() -> None:
    """Strict, over everything: packages and tests, as pyproject.toml says."""
    judge("mypy")
