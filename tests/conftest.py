"""What every test gets: needs by name, assertions that explain themselves, and hypothesis fit for a busy machine.

Tests are found by the paths of the repository (``pythonpath`` in pyproject.toml): shared helpers are imported as
``from tests.support.needs import needs``. There is no ``__init__.py`` below ``tests``.
"""

import os
import signal
from typing import Final

import pytest

pytest.register_assert_rewrite("tests.support")

from hypothesis import settings  # noqa: E402 (rewriting is asked for before anything imports a helper)

from tests.support.needs import UnknownNeed, check, needs, required  # noqa: E402 (as above)

# No deadline: two cores, shared with real targets under load, say nothing about one example's time.
settings.register_profile("wetink", deadline=None, derandomize="CI" in os.environ, print_blob=True)
settings.load_profile("wetink")

ONE_BY_ONE: Final = (
    "tests/kernel",
    "tests/fault",
    "tests/integration/agent",
    "tests/integration/whole",
    "tests/deploy",
)
"""Directories whose tests freeze, attach to and time real processes: of them one runs at a time."""


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
    """Refuse a marker with a need that nobody has defined, which would be misread as met; say what may run at once."""
    for item in items:
        item.add_marker(pytest.mark.xdist_group(_group_of(item)))
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


def _group_of(item: pytest.Item) -> str:
    """Name the tests that a test may not run beside; those of a module share what its fixtures start."""
    place = item.path.relative_to(item.config.rootpath)
    return "processes" if any(place.is_relative_to(directory) for directory in ONE_BY_ONE) else str(place)


def _needs_of(item: pytest.Item) -> list[str]:
    return sorted({name for marker in item.iter_markers("needs") for name in marker.args})
