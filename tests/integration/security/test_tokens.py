"""Bearer tokens: whose they are, where they may travel, and what a file that changes does."""

import socket
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import grpc
import pytest

from tests.integration.client.command import failure, wetink
from tests.integration.collector.wire import Agent, Reader, batch, refused, target
from tests.integration.security.audit import Audit, leaks
from tests.support.certificates import Authority, credentials
from tests.support.collector import CollectorProcess, start_collector
from tests.support.service import Service
from tests.support.service import start as start_service
from wetink.v1 import dirty_pb2 as pb
from wetink_client import Collector, Refused

AGENT, READER, ADMIN = "token-of-an-agent-aaaa", "token-of-a-reader-bbbb", "token-of-an-admin-cccc"
LINES = f"agent host-1 {AGENT}\nreader mover {READER}\nadmin root {ADMIN}\n"

Start = Callable[..., CollectorProcess]


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    """Give the collector's file of tokens."""
    path = tmp_path / "tokens"
    path.write_text(LINES)
    for name, token in (("agent", AGENT), ("reader", READER), ("admin", ADMIN)):
        (tmp_path / f"{name}.token").write_text(f"{token}\n")
    return path


@pytest.fixture
def over_tls(start: Start, authority: Authority, tokens: Path) -> CollectorProcess:
    """Give a collector that wants tokens, over TLS."""
    own = authority.collector()
    return start(
        "--tls-cert", str(own.cert), "--tls-key", str(own.key), "--tokens", str(tokens), "--health", "127.0.0.1:0"
    )


def test_each_token_has_its_role(over_tls: CollectorProcess, authority: Authority) -> None:
    """An agent delivers, a reader reads, an admin may track besides; none does another's."""
    audit = Audit(over_tls)
    one = target(host_id="host-1")
    with Agent(over_tls.address, credentials=credentials(authority.ca, token=AGENT)) as agent:
        agent.hello()
        agent.deliver(one, [1, 2])
        reader = Reader(over_tls.address, credentials(authority.ca, token=READER))
        assert reader.dirty("host-1/1").message_count
        with refused(grpc.StatusCode.PERMISSION_DENIED):
            reader.stub.Track(pb.TrackRequest(host_id="host-1", pid=5), timeout=20)
        with refused(grpc.StatusCode.NOT_FOUND):
            admin = Reader(over_tls.address, credentials(authority.ca, token=ADMIN))
            admin.stub.Track(pb.TrackRequest(host_id="nowhere", pid=5), timeout=20)
    with refused(grpc.StatusCode.PERMISSION_DENIED):
        Reader(over_tls.address, credentials(authority.ca, token=AGENT)).hosts()

    audit.wait_for(caller="mover", role="reader", method="Track", target="host-1/5", result="PERMISSION_DENIED")
    audit.wait_for(caller="root", role="admin", method="Track", target="nowhere/5", result="NOT_FOUND")
    audit.wait_for(caller="host-1", role="agent", method="ListHosts", result="PERMISSION_DENIED")


def test_agent_is_kept_to_the_host_of_its_token(over_tls: CollectorProcess, authority: Authority) -> None:
    """It is told which one that is."""
    audit = Audit(over_tls)
    with Agent(over_tls.address, "host-2", credentials=credentials(authority.ca, token=AGENT)) as agent:
        with refused(grpc.StatusCode.PERMISSION_DENIED):
            agent.hello()
        assert agent.error()[:2] == (grpc.StatusCode.PERMISSION_DENIED, "HOST_FORBIDDEN")

    audit.wait_for(caller="host-1", role="agent", method="Stream", result="PERMISSION_DENIED")


@pytest.mark.parametrize("token", [None, "token-of-nobody-at-all"])
def test_caller_without_a_token_that_is_known(
    over_tls: CollectorProcess, authority: Authority, token: str | None
) -> None:
    """Nobody, and it is written down."""
    audit = Audit(over_tls)
    with refused(grpc.StatusCode.UNAUTHENTICATED):
        Reader(over_tls.address, credentials(authority.ca, token=token)).hosts()

    audit.wait_for(caller=None, method="ListHosts", result="UNAUTHENTICATED")
    assert token is None or token not in over_tls.log


@pytest.mark.parametrize("values", [("Basic abc",), (f"Bearer {ADMIN}", f"Bearer {ADMIN}"), ("Bearer ",)])
def test_header_that_is_no_single_token(start: Start, tokens: Path, tmp_path: Path, values: tuple[str, ...]) -> None:
    """Nobody: not the first of two, either."""
    collector = start("--tokens", str(tokens), listen=f"unix:{tmp_path}/socket")
    with refused(grpc.StatusCode.UNAUTHENTICATED):
        Reader(collector.address).stub.ListHosts(
            pb.ListHostsRequest(), metadata=tuple(("authorization", value) for value in values), timeout=20
        )


def test_token_in_the_clear_is_refused(start: Start) -> None:
    """Also by a collector that wants none: it was shown to the whole way, and whoever sent it should hear of it."""
    collector = start()
    audit = Audit(collector)
    with refused(grpc.StatusCode.UNAUTHENTICATED):
        Reader(collector.address).stub.ListHosts(
            pb.ListHostsRequest(), metadata=(("authorization", f"Bearer {ADMIN}"),), timeout=20
        )

    assert "over TCP without TLS" in audit.wait_for(method="ListHosts", result="UNAUTHENTICATED")["why"]
    assert ADMIN not in collector.log


def test_collector_takes_no_tokens_in_the_clear(tokens: Path) -> None:
    """Not on loopback, and not with --insecure."""
    for options in ([], ["--insecure"]):
        process = start_collector(options=["--tokens", str(tokens), *options])
        _, error = process.communicate(timeout=60)
        assert process.returncode == 2, error
        assert "needs --tls-cert and --tls-key" in error


def test_client_sends_no_token_in_the_clear(tokens: Path) -> None:
    """Nobody is asked, and nothing is sent."""
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        token = str(tokens.with_name("admin.token"))
        code, sentence = failure("--collector", address, "--token-file", token, "hosts")
        agent = Service(start_service("wetink_agent.command", ["--collector", address, "--token-file", token]), "agent")
        assert agent.process.wait(60) == 2
        agent.close()
        listener.settimeout(0.5)
        with pytest.raises(TimeoutError):
            listener.accept()

    assert (code, "needs --tls-ca" in sentence) == (2, True)
    assert "needs --tls-ca" in agent.log


def test_unix_socket_carries_tokens(start: Start, tokens: Path, tmp_path: Path) -> None:
    """Nobody is on the way there."""
    collector = start("--tokens", str(tokens), listen=f"unix:{tmp_path}/socket")

    known = wetink("--collector", collector.address, "--token-file", str(tmp_path / "reader.token"), "hosts")
    code, sentence = failure("--collector", collector.address, "hosts")

    assert known.returncode == 0, known.stderr
    assert (code, "--token-file" in sentence) == (1, True)


def test_tokens_are_read_again_on_both_sides(over_tls: CollectorProcess, authority: Authority, tokens: Path) -> None:
    """The collector forgets the old one, the client begins to use the new one, and a watch goes on all the while."""
    fresh, own = "token-of-a-reader-newly", tokens.with_name("reader.token")
    with (
        Agent(over_tls.address, credentials=credentials(authority.ca, token=AGENT)) as agent,
        Collector(over_tls.address, tls_ca=authority.ca, token_file=own) as client,
    ):
        agent.hello()
        one = target(host_id="host-1")
        agent.deliver(one, [1])
        watch = client.watch("host-1/1")
        assert next(watch).complete
        tokens.write_text(LINES.replace(READER, fresh))
        with pytest.raises(Refused, match="not one of those"):
            client.hosts()
        own.write_text(fresh)
        assert [host.host_id for host in client.hosts()] == ["host-1"]
        agent.say(batch(one, 2, written=[2]))
        assert next(watch).byte_count == 4096
        watch.close()
    over_tls.wait_for_log("tokens_loaded")


def test_file_that_is_none_is_told_at_the_start(tmp_path: Path, authority: Authority) -> None:
    """One sentence, which names the line and not what stands in it."""
    path, own = tmp_path / "tokens", authority.collector()
    path.write_text(f"agent {ADMIN}\n")
    process = start_collector(options=["--tls-cert", str(own.cert), "--tls-key", str(own.key), "--tokens", str(path)])
    _, error = process.communicate(timeout=60)

    assert process.returncode == 1
    assert f"wetink-collector: {path} line 1 is none of" in error
    assert ADMIN not in error
    assert leaks(error, tmp_path) == []
