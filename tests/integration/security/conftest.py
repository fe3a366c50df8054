"""An authority, and collectors that ask who calls. Nothing secret may be in what they log, whatever a test does."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.integration.security.audit import Audit, leaks
from tests.support.certificates import Authority
from tests.support.collector import COMMAND, CollectorProcess, running_collector


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., CollectorProcess]]:
    """Give what starts a collector with options; it runs until the end of the test."""
    with ExitStack() as started:

        def start(*options: str, listen: str = "127.0.0.1:0", module: str = COMMAND) -> CollectorProcess:
            collector = started.enter_context(running_collector(listen=listen, options=options, module=module))
            started.callback(lambda: _assert_nothing_leaked(collector, tmp_path))
            return collector

        yield start


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Give the authority whose word the collector takes."""
    return Authority(tmp_path_factory.mktemp("pki"))


@pytest.fixture(scope="module")
def shared_collector(authority: Authority) -> Iterator[CollectorProcess]:
    """Give a collector that wants certificates, for all tests of a module that leave its files alone."""
    with running_collector(options=wanting_certificates(authority)) as collector:
        yield collector
        _assert_nothing_leaked(collector, authority.ca.parent)


@pytest.fixture
def collector(shared_collector: CollectorProcess) -> CollectorProcess:
    """Give that collector."""
    return shared_collector


@pytest.fixture
def audit(collector: CollectorProcess) -> Audit:
    """Give what it writes down from now on."""
    return Audit(collector)


def wanting_certificates(authority: Authority) -> list[str]:
    """Give the options of a collector that wants certificates."""
    own = authority.collector()
    files = ["--tls-cert", str(own.cert), "--tls-key", str(own.key), "--tls-client-ca", str(authority.ca)]
    return [*files, "--health", "127.0.0.1:0"]


def _assert_nothing_leaked(collector: CollectorProcess, directory: Path) -> None:
    assert leaks(collector.log, directory) == []
