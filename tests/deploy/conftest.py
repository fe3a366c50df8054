from collections.abc import Iterator

import pytest

from tests.deploy.engine import Engine, running_engine
from tests.deploy.images import build_all


@pytest.fixture(scope="session")
def engine() -> Iterator[Engine]:
    """An engine of the tests' own that has the images."""
    with running_engine() as engine:
        build_all(engine)
        yield engine
