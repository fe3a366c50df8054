"""What the rows of the matrix share: a target that is tracked, by each backend that the row is about."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.swap import NoSwap, swap_file
from tests.support.watched import BACKENDS, Watched, watched


@pytest.fixture(params=list(BACKENDS))
def backend(request: pytest.FixtureRequest) -> str:
    """Give the name of the backend."""
    return str(request.param)


@pytest.fixture
def row(backend: str) -> Iterator[Watched]:
    """Give a target that is tracked; nothing is harvested yet."""
    with watched(backend) as here:
        yield here


@pytest.fixture
def says(record_property: Callable[[str, object], None]) -> Callable[[str], None]:
    """Give what notes, for ``docs/kernel-matrix.md``, how wetink says that a row is a limit."""
    return lambda words: record_property("says", words)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Give a file of 16 pages on a disk, each full of its own number."""
    path = tmp_path / "file"
    path.write_bytes(b"".join(bytes([page + 1]) * 4096 for page in range(16)))
    return path


@pytest.fixture
def swap(tmp_path: Path) -> Iterator[None]:
    """Give the machine a file to swap to, for this test."""
    try:
        with swap_file(tmp_path / "swap"):
            yield
    except NoSwap as error:
        pytest.skip(f"needs swap: {error}")
