"""What every test gets: needs by name, assertions that explain themselves, and hypothesis fit for a busy machine.

Tests are found by the paths of the repository (``pythonpath`` in pyproject.toml): shared helpers are imported as
``from tests.support.needs import needs``. There is no ``__init__.py`` below ``tests``.
"""

import os
import signal

import pytest

pytest.register_assert_rewrite("tests.support")

from hypothesis import settings  # noqa: E402 (rewriting is asked for before anything imports a helper)

from tests.support.environment import forget_callers  # noqa: E402 (as above)
from tests.support.needs import UnknownNeed, check, needs, required  # noqa: E402 (as above)

# Before any module of tests looks at the environment.
forget_callers()

# No deadline: two cores, shared with real targets under load, say nothing about one example's time.
settings.register_profile("wetink", deadline=None, derandomize="CI" in os.environ, print_blob=True)
settings.load_profile("wetink")


def pytest_configure(config: pytest.Config) -> None:
    """Describe the marker, refuse a ``WETINK_REQUIRE`` that names nothing, and let programs be interrupted."""
    # A shell starts what it puts into the background with SIGINT ignored, and every program would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    config.addinivalue_line(
        "markers", "needs(name, ...): skip where one of these is missing; see tests/support/needs.py"
    )
    config.addinivalue_line("markers", "soak: does more in make soak; see tests/support/amounts.py")
    try:
        required()
    except UnknownNeed as error:
        raise pytest.UsageError(str(error)) from error


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Refuse a marker with a need that nobody has defined: it would be misread as met."""
    for item in items:
        for name in _needs_of(item):
            try:
                check(name)
            except UnknownNeed as error:
                message = f"{item.nodeid}: {error}"
                raise pytest.UsageError(message) from error


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Ask for the needs of a test before its fixtures start anything."""
    needs(*_needs_of(item))


def _needs_of(item: pytest.Item) -> list[str]:
    return sorted({name for marker in item.iter_markers("needs") for name in marker.args})
