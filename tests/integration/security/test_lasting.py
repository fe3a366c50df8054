"""Calls that stay open outlive what they were let in with by a bounded time, and lose nothing by it."""

import datetime as dt
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path

import grpc
import pytest

from tests.integration.collector.wire import Agent, Reader, batch, durable, position, refused, target
from tests.integration.security.audit import Audit
from tests.integration.security.conftest import wanting_certificates
from tests.support.certificates import Authority, credentials
from tests.support.collector import HASTY, CollectorProcess
from wetink.v1 import dirty_pb2 as pb

AGENT, READER, OTHER = "token-of-an-agent-aaaa", "token-of-a-reader-bbbb", "token-of-another-cccc"
ONE = target()

Start = Callable[..., CollectorProcess]


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    """Give the collector's file of tokens."""
    path = tmp_path / "tokens"
    path.write_text(f"agent host-1 {AGENT}\nreader mover {READER}\n")
    return path


@pytest.fixture
def collector(start: Start, authority: Authority, tokens: Path) -> CollectorProcess:
    """Give a collector that takes tokens, and looks after open calls often."""
    own = authority.collector()
    options = ["--tls-cert", str(own.cert), "--tls-key", str(own.key), "--tokens", str(tokens)]
    return start(*options, "--health", "127.0.0.1:0", module=HASTY)


@pytest.mark.parametrize("lines", ["", f"agent host-2 {AGENT}\nadmin mover {READER}\n"])
def test_token_that_is_withdrawn_ends_what_is_open(
    collector: CollectorProcess, authority: Authority, tokens: Path, lines: str
) -> None:
    """Streams and watches of whoever is nobody by now, or somebody else: UNAUTHENTICATED, with an audit line."""
    audit = Audit(collector)
    with Agent(collector.address, credentials=credentials(authority.ca, token=AGENT)) as agent:
        agent.hello()
        agent.deliver(ONE, [1])
        reader = Reader(collector.address, credentials(authority.ca, token=READER))
        watch = reader.stub.Watch(pb.WatchRequest(selection=pb.Selection(hosts=["host-1"])), timeout=60)
        assert next(watch).ByteSize()
        tokens.write_text(f"reader other {OTHER}\n{lines}")

        assert agent.error()[:2] == (grpc.StatusCode.UNAUTHENTICATED, "IDENTITY_UNKNOWN")
        with refused(grpc.StatusCode.UNAUTHENTICATED, "IDENTITY_UNKNOWN"):
            list(watch)

    audit.wait_for(method="Stream", caller="host-1", result="UNAUTHENTICATED")
    audit.wait_for(method="Watch", caller="mover", result="UNAUTHENTICATED")
    assert "Traceback" not in collector.log


def test_token_that_stays_keeps_what_is_open(collector: CollectorProcess, authority: Authority, tokens: Path) -> None:
    """Others may come and go in the file."""
    with Agent(collector.address, credentials=credentials(authority.ca, token=AGENT)) as agent:
        agent.hello()
        agent.deliver(ONE, [1])
        tokens.write_text(f"reader other {OTHER}\nagent host-1 {AGENT}\n")
        collector.wait_for_log("tokens_loaded")
        agent.say(batch(ONE, 2, written=[2]))
        agent.acknowledged(ONE, 2)


def let_in_for_a_while(opened: ExitStack, collector: CollectorProcess, authority: Authority) -> tuple[Agent, Reader]:
    """Open a stream and a connection with certificates that expire soon, though not before both have been used."""
    for seconds in (3, 10, 30):
        short = dt.timedelta(seconds=seconds)
        reader = Reader(collector.address, credentials(authority.ca, authority.peer("reader", "ci", good_for=short)))
        own = authority.peer("agent", "host-1", good_for=short)
        agent = opened.enter_context(Agent(collector.address, credentials=credentials(authority.ca, own)))
        # A busy machine may need longer than that for it.
        with suppress(grpc.RpcError):
            agent.hello()
            agent.deliver(ONE, [1])
            assert [host.host_id for host in reader.hosts()] == ["host-1"]
            return agent, reader
    message = "no certificate was good for long enough"
    raise AssertionError(message)


def test_certificate_that_expires_ends_what_is_open(start: Start, tmp_path: Path) -> None:
    """Also new calls over the connection that it was shown for; with the next one an agent goes on where it was."""
    authority = Authority(tmp_path)
    collector = start(*wanting_certificates(authority), module=HASTY)
    audit = Audit(collector)
    with ExitStack() as opened:
        agent, reader = let_in_for_a_while(opened, collector, authority)
        assert agent.error()[:2] == (grpc.StatusCode.UNAUTHENTICATED, "IDENTITY_UNKNOWN")
    with refused(grpc.StatusCode.UNAUTHENTICATED, "IDENTITY_UNKNOWN"):
        reader.hosts()
    with Agent(collector.address, credentials=credentials(authority.ca, authority.peer("agent", "host-1"))) as agent:
        assert list(agent.hello(position(ONE)).positions) == [durable(ONE, 1)]

    assert "expired" in audit.wait_for(method="Stream", caller="host-1", result="UNAUTHENTICATED")["why"]
    audit.wait_for(method="ListHosts", caller=None, result="UNAUTHENTICATED")
