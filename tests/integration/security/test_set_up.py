"""From `init-pki` to a dirty set, with our own agent, command and SDK."""

import asyncio
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.integration.client.command import failure, wetink
from tests.integration.security.audit import Audit
from tests.integration.security.conftest import wanting_certificates
from tests.support.agent import HOST, start_agent
from tests.support.certificates import Authority, Proof
from tests.support.collector import CollectorProcess, running_collector
from tests.support.service import Service
from wetink_client import AsyncCollector, Collector
from wetink_client.errors import CollectorUnavailable, InvalidRequest, Refused

COMMAND = Path(sys.executable).with_name("wetink-collector")


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give what `init-pki` makes for the host of tests."""
    directory = tmp_path_factory.mktemp("set-up") / "pki"
    done = subprocess.run([COMMAND, "init-pki", directory, "--host", HOST], capture_output=True, text=True, check=True)

    assert done.stderr == ""
    for name in ("collector.pem", "collector.key", "ca.pem", f"agent-{HOST}.pem", f"agent-{HOST}.key", "reader.key"):
        assert f"{directory}/{name}" in done.stdout
    return directory


@pytest.fixture
def collector(start: Callable[..., CollectorProcess], pki: Path) -> CollectorProcess:
    """Give a collector as the output of `init-pki` starts it."""
    return start(
        *("--tls-cert", f"{pki}/collector.pem", "--tls-key", f"{pki}/collector.key"),
        *("--tls-client-ca", f"{pki}/ca.pem", "--health", "127.0.0.1:0"),
    )


def proof(pki: Path, name: str) -> list[str]:
    """Give the options of a client."""
    return ["--tls-ca", f"{pki}/ca.pem", "--tls-cert", f"{pki}/{name}.pem", "--tls-key", f"{pki}/{name}.key"]


def keywords(ca: Path, of: Proof | None) -> dict[str, Any]:
    """Give the same to the SDK."""
    return {"tls_ca": ca, **({"tls_cert": of.cert, "tls_key": of.key} if of else {})}


def closed_afterwards(request: pytest.FixtureRequest, agent: Service) -> Service:
    """Stop an agent at the end of the test."""
    request.addfinalizer(agent.close)
    return agent


@pytest.mark.needs("kernel", "root")
def test_first_set_up_gives_a_dirty_set(
    collector: CollectorProcess, audit: Audit, pki: Path, request: pytest.FixtureRequest
) -> None:
    """Agent, reader and admin with the files made for them; what a reader may not is one sentence."""
    with subprocess.Popen(["sleep", "60"]) as sleeper:
        request.addfinalizer(sleeper.kill)
        options = [*proof(pki, f"agent-{HOST}"), "--pid", str(sleeper.pid)]
        closed_afterwards(request, start_agent(collector.address, *options)).wait_for_log("connected")
        at = ["--collector", collector.address]

        dirty = wetink(*at, *proof(pki, "reader"), "dirty", f"{HOST}/{sleeper.pid}", "--barrier", "--json")
        assert (dirty.returncode, dirty.stderr) == (0, "")
        code, sentence = failure(*at, *proof(pki, "reader"), "untrack", f"{HOST}/{sleeper.pid}")
        assert code == 1
        assert sentence.startswith(
            f"collector {collector.address} refuses the call: reader reader may not call Untrack"
        )
        assert "certificate or token of admin" in sentence
        assert wetink(*at, *proof(pki, "admin"), "untrack", f"{HOST}/{sleeper.pid}").returncode == 0
        sleeper.kill()

    audit.wait_for(method="Untrack", result="PERMISSION_DENIED")
    audit.wait_for(method="Untrack", result="OK", role="admin")


@pytest.mark.needs("kernel", "root")
def test_agent_of_another_host_says_so_once(
    collector: CollectorProcess, audit: Audit, pki: Path, request: pytest.FixtureRequest
) -> None:
    """The log names the host it may write for; it tries on, and does not say it again."""
    options = [*proof(pki, f"agent-{HOST}"), "--host-id", "elsewhere"]
    agent = closed_afterwards(request, start_agent(collector.address, *options))

    why = agent.wait_for_log("collector_unreachable")["why"]
    assert HOST in why
    assert "elsewhere" in why
    audit.wait_for(method="Stream", result="PERMISSION_DENIED", target=None)
    collector.wait_for_log("audit", 3)
    assert len(agent.events("collector_unreachable")) == 1
    assert "Traceback" not in agent.log


@pytest.mark.needs("kernel", "root")
def test_agent_reads_its_files_at_each_connect(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> None:
    """Authority and certificate are replaced while the collector is away: the agent goes on with the new ones."""
    first, second = Authority(tmp_path), Authority(tmp_path_factory.mktemp("next"), "next")
    own = first.peer("agent", HOST)
    with running_collector(options=wanting_certificates(first)) as collector:
        address = collector.address
        options = ["--tls-ca", str(first.ca), "--tls-cert", str(own.cert), "--tls-key", str(own.key)]
        agent = closed_afterwards(request, start_agent(address, *options))
        agent.wait_for_log("connected")
    with running_collector(listen=address, options=wanting_certificates(second)):
        agent.wait_for_log("collector_unreachable")
        renewed = second.peer("agent", HOST)
        for old, new in ((first.ca, second.ca), (own.key, renewed.key), (own.cert, renewed.cert)):
            old.write_bytes(new.read_bytes())
        agent.wait_for_log("connected", 2)
    assert "Traceback" not in agent.log


def test_sdk_goes_on_with_new_files(tmp_path: Path, start: Callable[..., CollectorProcess]) -> None:
    """One client outlives its certificate: the next call goes with the one that was written meanwhile."""
    authority = Authority(tmp_path)
    collector = start(*wanting_certificates(authority))
    reader, stranger = authority.peer("reader", "ci"), authority.named("stranger", "nobody")
    with Collector(collector.address, **keywords(authority.ca, reader)) as client:
        assert client.hosts() == ()
        for old, new in ((reader.key, stranger.key), (reader.cert, stranger.cert)):
            old.write_bytes(new.read_bytes())
        with pytest.raises(Refused, match="names no role"):
            client.hosts()
        authority.peer("reader", "ci")
        assert client.hosts() == ()


def test_sdk_and_command_tell_what_is_wrong(tmp_path: Path, start: Callable[..., CollectorProcess]) -> None:
    """Of the certificate, the authority, the role and the files: one sentence each, with the address."""
    authority, other = Authority(tmp_path), Authority(tmp_path, "other")
    collector = start(*wanting_certificates(authority))
    agent = authority.peer("agent", "host-1")

    for ca, of in ((authority.ca, None), (other.ca, agent), (authority.ca, other.peer("reader", "x"))):
        with Collector(collector.address, **keywords(ca, of)) as client, pytest.raises(CollectorUnavailable) as raised:
            client.hosts()
        assert collector.address in str(raised.value)
        assert "\n" not in str(raised.value)
    with (
        Collector(collector.address, **keywords(authority.ca, agent)) as client,
        pytest.raises(Refused, match="ListHosts"),
    ):
        client.hosts()
    with pytest.raises(InvalidRequest, match="--tls-cert and --tls-key go together"):
        Collector(collector.address, tls_ca=authority.ca, tls_cert=agent.cert)
    at = ["--collector", collector.address]
    code, sentence = failure(*at, "--tls-ca", str(other.ca), "hosts")
    assert code == 3
    assert "authority" in sentence
    code, sentence = failure(*at, "hosts")
    assert code == 3
    assert "--tls-ca" in sentence
    code, sentence = failure(*at, "--tls-ca", str(tmp_path / "none"), "hosts")
    assert code == 2
    assert f"{tmp_path / 'none'} cannot be read" in sentence


def test_words_around_certificates_may_be_in_any_language(
    tmp_path: Path, start: Callable[..., CollectorProcess]
) -> None:
    """Bundles name their authorities in comments: both sides take them, whatever the encoding."""
    authority = Authority(tmp_path)
    options, reader = wanting_certificates(authority), authority.peer("reader", "ci")
    for path in tmp_path.glob("*.pem"):
        path.write_bytes("# T\u00fcrktrust \u7f51\n".encode() + path.read_bytes() + b"\n# Caf\xe9\n")
    collector = start(*options)

    with Collector(collector.address, **keywords(authority.ca, reader)) as client:
        assert client.hosts() == ()


def test_async_sdk_shows_its_certificate(tmp_path: Path, start: Callable[..., CollectorProcess]) -> None:
    """As the other does."""
    authority = Authority(tmp_path)
    collector = start(*wanting_certificates(authority))

    async def ask(of: Proof) -> int:
        async with AsyncCollector(collector.address, **keywords(authority.ca, of)) as client:
            return len(await client.hosts())

    assert asyncio.run(ask(authority.peer("reader", "ci"))) == 0
    with pytest.raises(Refused):
        asyncio.run(ask(authority.peer("agent", "host-1")))


def test_nothing_is_overwritten(pki: Path) -> None:
    """A second run ends with one sentence, and exit code 1."""
    before = {path: path.read_bytes() for path in pki.iterdir()}
    again = subprocess.run([COMMAND, "init-pki", pki, "--host", "other"], capture_output=True, text=True, check=False)

    assert again.returncode == 1
    assert again.stdout == ""
    (sentence,) = again.stderr.splitlines()
    assert sentence.startswith(f"wetink-collector: {pki}/")
    assert "is there already, and nothing was written" in sentence
    assert {path: path.read_bytes() for path in pki.iterdir()} == before


@pytest.mark.parametrize(
    "arguments, part",
    [
        (["--host", "a/b"], "no host id"),
        (["--host", "h" * 250], "give the host a shorter --host-id"),
        (["--name", "b\u00fccher.example"], "neither a DNS name nor an IP address"),
        (["--host", "good", "--name", "collector.example:7419"], "neither a DNS name nor an IP address"),
    ],
)
def test_name_that_cannot_be_one_is_told(tmp_path: Path, arguments: list[str], part: str) -> None:
    """And nothing is written."""
    ended = subprocess.run(
        [COMMAND, "init-pki", tmp_path / "pki", *arguments], capture_output=True, text=True, check=False
    )

    assert ended.returncode in (1, 2)
    assert part in ended.stderr
    assert len(ended.stderr.splitlines()) == 1
    assert not (tmp_path / "pki").exists()
