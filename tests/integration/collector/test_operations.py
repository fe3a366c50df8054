"""What an operator sees: health, reflection, metrics, one sentence for each mistake, and a drain."""

import signal
import socket
import stat
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from importlib.metadata import version
from pathlib import Path

import grpc
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from tests.integration.collector.wire import Agent, Reader, batch, refused, start, target
from tests.support.certificates import Authority
from tests.support.collector import CollectorProcess, running_collector, start_collector
from tests.support.service import PATIENCE_SECONDS
from wetink_collector import metrics_page
from wetink_collector.server import SERVICES

COMMAND = (sys.executable, "-c", "from wetink_collector.command import main; main()")
ONE = target()
NAME = "host-1/1@100"


def says(*arguments: str, environment: dict[str, str] | None = None) -> tuple[int, str]:
    """Run the command to its end; give its exit code and what it wrote to standard error."""
    done = subprocess.run(
        [*COMMAND, *arguments], capture_output=True, text=True, timeout=60, check=False, env=environment
    )
    return done.returncode, done.stderr


def fails(data: Path, *options: str, listen: str = "127.0.0.1:0") -> str:
    """Start a collector that cannot run; give the one sentence it ends with."""
    process = start_collector(data, listen=listen, options=options)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 1, error
    return one_sentence(error)


def one_sentence(error: str) -> str:
    """Accept a single line from the command itself, and give it."""
    (line,) = error.splitlines()
    assert line.startswith("wetink-collector: "), line
    return line


def check(address: str, service: str = "") -> int:
    """Ask for health."""
    with grpc.insecure_channel(address) as channel:
        call = channel.unary_unary(
            "/grpc.health.v1.Health/Check",
            request_serializer=HealthCheckRequest.SerializeToString,
            response_deserializer=HealthCheckResponse.FromString,
        )
        status: int = call(HealthCheckRequest(service=service), timeout=20).status
        return status


@pytest.mark.parametrize("service", ["", *SERVICES])
def test_health_of_the_whole_and_of_each_service(collector: CollectorProcess, service: str) -> None:
    """A probe may ask for either."""
    assert check(collector.address, service) == HealthCheckResponse.SERVING


def test_health_of_a_service_that_is_not_here(collector: CollectorProcess) -> None:
    """NOT_FOUND, as the health protocol says."""
    with refused(grpc.StatusCode.NOT_FOUND):
        check(collector.address, "other.Service")


def test_reflection_lists_the_services_and_their_files(collector: CollectorProcess) -> None:
    """A tool with no .proto at hand can call everything."""
    with grpc.insecure_channel(collector.address) as channel:
        database = ProtoReflectionDescriptorDatabase(channel)
        services = set(database.get_services())
        file = database.FindFileContainingSymbol("wetink.v1.DirtyService")

    assert {*SERVICES, "grpc.health.v1.Health"} <= services
    assert [method.name for method in file.service[0].method] == [
        "ListHosts",
        "ListTargets",
        "ListMappings",
        "Track",
        "Untrack",
        "Barrier",
        "Thaw",
        "GetDirty",
        "Watch",
        "StreamEvents",
    ]


def test_page_of_metrics_is_held_by_nobody(tmp_path: Path) -> None:
    """Connections that never ask, or drip, are closed in their time, and more than a bound are not taken."""
    with running_collector(tmp_path, options=["--metrics", "127.0.0.1:0"]) as collector, ExitStack() as held:
        assert collector.metrics_address
        host, _, port = collector.metrics_address.rpartition(":")
        began = time.monotonic()
        silent = [held.enter_context(socket.create_connection((host, int(port)))) for _ in range(60)]
        for one in silent:
            with suppress(OSError):
                one.sendall(b"GET /metrics HTTP/1.1\r\nX: ")
        threads = len(list(Path(f"/proc/{collector.process.pid}/task").iterdir()))
        while time.monotonic() < began + metrics_page.SECONDS_MAX - 1:
            for one in silent:
                with suppress(OSError):
                    one.sendall(b"x")
            time.sleep(0.5)
        for one in silent:
            one.settimeout(PATIENCE_SECONDS)
            with suppress(ConnectionResetError):
                assert one.recv(1) == b""
        assert threads < 60 + 2 * metrics_page.CONNECTIONS_MAX
        assert page_of(collector, lambda lines: any(line.startswith("wetink_") for line in lines))


def page_of(collector: CollectorProcess, holds: Callable[[Sequence[str]], bool]) -> Sequence[str]:
    """Give the lines of the page for Prometheus, once it is to be had and something holds of it."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        lines: Sequence[str] = ()
        # A connection that was closed may still have its place for a moment.
        with (
            suppress(OSError),
            urllib.request.urlopen(f"http://{collector.metrics_address}/metrics", timeout=20) as response,
        ):
            lines = response.read().decode().splitlines()
        if holds(lines):
            return lines
        assert time.monotonic() < deadline, lines
        time.sleep(0.05)


def test_metrics_count_what_happens_and_name_no_process(tmp_path: Path) -> None:
    """With bounded labels: no pid, no host, no address."""
    with running_collector(tmp_path, options=["--metrics", "127.0.0.1:0"]) as collector:
        with Agent(collector.address, "a-host-with-a-name") as agent:
            one = target(4242, host_id="a-host-with-a-name")
            agent.hello()
            agent.deliver(one, [1, 2, 3], [4])
            agent.say(batch(one, 1), batch(one, 9))
            agent.error()
        Reader(collector.address).dirty("a-host-with-a-name/4242")
        with refused():
            Reader(collector.address).dirty("nowhere/1")
        # That the host was seen becomes durable after its stream has ended.
        page = page_of(collector, lambda lines: "wetink_unacked_bytes 0.0" in lines)

    lines = [line for line in page if line.startswith("wetink_")]
    for expected in (
        'wetink_batches_received_total{result="taken"} 2.0',
        'wetink_batches_received_total{result="duplicate"} 1.0',
        'wetink_batches_received_total{result="gap"} 1.0',
        'wetink_pages_received_total{kind="written"} 4.0',
        'wetink_gaps_total{layer="ingest"} 1.0',
        'wetink_streams_refused_total{reason="ROUND_GAP"} 1.0',
        'wetink_calls_total{code="OK",method="GetDirty"} 1.0',
        'wetink_calls_total{code="NOT_FOUND",method="GetDirty"} 1.0',
        "wetink_streams 0.0",
        "wetink_unacked_bytes 0.0",
    ):
        assert expected in lines
    assert any(line.startswith("wetink_store_commit_duration_seconds_count") for line in lines)
    assert not [line for line in lines if "4242" in line or "a-host" in line]


def test_second_collector_on_the_same_data(collector: CollectorProcess) -> None:
    """Two writers would tear the store."""
    assert collector.data

    sentence = fails(collector.data)

    assert "in use by another collector" in sentence
    assert str(collector.data) in sentence


def test_data_of_a_collector_that_was_killed_can_be_used_at_once(tmp_path: Path) -> None:
    """The kernel lets go of the lock."""
    with running_collector(tmp_path) as collector:
        collector.kill()
    with running_collector(tmp_path):
        pass


@pytest.mark.parametrize("path", ["/proc/none", "file/below"])
def test_data_that_cannot_be_written(tmp_path: Path, path: str) -> None:
    """One sentence with the reason, even for root."""
    (tmp_path / "file").write_text("a regular file")

    sentence = fails(tmp_path / path)

    assert "cannot be written" in sentence
    assert path in sentence


def test_data_of_something_else(tmp_path: Path) -> None:
    """A file that is no store is left as it is."""
    (tmp_path / "wetink.sqlite3").write_bytes(b"no database" * 100)

    sentence = fails(tmp_path)

    assert "cannot be opened" in sentence
    assert (tmp_path / "wetink.sqlite3").read_bytes() == b"no database" * 100


def test_address_in_use(collector: CollectorProcess, tmp_path: Path) -> None:
    """A second collector does not take half of the streams."""
    assert "Address already in use" in fails(tmp_path, listen=collector.address)
    assert "Address already in use" in fails(tmp_path, "--metrics", collector.address)


def test_unix_socket_in_use(tmp_path: Path) -> None:
    """It is not taken away from whoever listens on it; one left behind by a crash is replaced."""
    address = f"unix:{tmp_path}/socket"
    with running_collector(listen=address) as first:
        assert stat.S_ISSOCK((tmp_path / "socket").stat().st_mode)
        assert "another process listens there" in fails(tmp_path / "data", listen=address)
        assert check(first.address) == HealthCheckResponse.SERVING
        first.kill()
    with running_collector(listen=address) as second:
        assert check(second.address) == HealthCheckResponse.SERVING


def test_unix_socket_that_cannot_be_made(tmp_path: Path) -> None:
    """One sentence, and nothing of gRPC's own."""
    assert "none/socket: No such file or directory" in fails(tmp_path, listen=f"unix:{tmp_path}/none/socket")


@pytest.mark.parametrize(
    "arguments, part",
    [
        (["--listen", "unix:/tmp/a%20b"], "is no path that clients can write"),
        (["--listen", "0.0.0.0:0"], "--insecure"),
        (["--listen", "[::]:0"], "--insecure"),
        (["--listen", "192.0.2.1:7419"], "--insecure"),
        (["--listen", "nonsense"], "HOST:PORT"),
        (["--listen", "127.0.0.1:99999"], "HOST:PORT"),
        (["--listen", "no.such.host.invalid:1"], "no.such.host.invalid"),
        (["--metrics", "unix:/tmp/x"], "no TCP address"),
        (["--metrics", "nonsense"], "HOST:PORT"),
        (["--metrics", "0.0.0.0:0"], "--metrics 0.0.0.0:0 can be reached from other hosts"),
        (["--metrics", "0.0.0.0:0", "--insecure"], "say --metrics-in-clear"),
        (["--listen", "0.0.0.0:0", "--metrics-in-clear"], "say --insecure"),
        (["--metrics", "no.such.host.invalid:1"], "no.such.host.invalid"),
        (["--trust-domain", "a.example"], "needs --tls-client-ca"),
        (["--trust-domain", "A/b"], "--trust-domain 'A/b' is none"),
        (["--data", ""], "--data is empty: name a directory"),
        (["--nonsense"], "--nonsense"),
    ],
)
def test_usage_that_is_wrong(arguments: list[str], part: str) -> None:
    """One sentence, and exit code 2."""
    code, error = says(*arguments)

    assert (code, part in one_sentence(error)) == (2, True)


def test_open_address_with_insecure() -> None:
    """Who says it in full gets it; of metrics apart, since that opens nothing else."""
    options = ["--metrics", "0.0.0.0:0", "--metrics-in-clear", "--insecure"]
    with running_collector(listen="0.0.0.0:0", options=options) as collector:
        assert collector.address.startswith("0.0.0.0:")
        assert collector.metrics_address
        assert collector.metrics_address.startswith("0.0.0.0:")


def test_version_and_help() -> None:
    """Both end at once, with 0."""
    shown = subprocess.run([*COMMAND, "--version"], capture_output=True, text=True, timeout=60, check=True)
    helped = subprocess.run([*COMMAND, "--help"], capture_output=True, text=True, timeout=60, check=True)

    assert shown.stdout.strip() == version("wetink")
    assert "--listen" in helped.stdout
    assert "Example:" in helped.stdout
    assert "Exit codes: 0 done" in helped.stdout


@pytest.mark.parametrize("text", ["listen = [", "nonsense = 1", "\xff"])
def test_config_that_is_malformed(tmp_path: Path, text: str) -> None:
    """One sentence that names the file."""
    config = tmp_path / "collector.toml"
    config.write_bytes(text.encode("latin-1"))

    code, error = says("--config", str(config))

    assert code == 2
    assert str(config) in one_sentence(error)


@pytest.mark.parametrize(
    "text, said",
    [
        ("listen = 5", "has listen = 5, which must be a text in quotes"),
        ('insecure = "x"', 'has insecure = "x", which must be true or false'),
        ("[data]", "has data = {}, which must be a text in quotes"),
        ("metrics = 2026-01-01", 'has metrics = "2026-01-01", which must be a text in quotes'),
        (r'data = "a\u0000b"', r'has data = "a\u0000b", in which the character \u0000 cannot be'),
    ],
)
def test_config_with_a_value_of_another_type(tmp_path: Path, text: str, said: str) -> None:
    """The file is named, the key, and what it should be."""
    config = tmp_path / "collector.toml"
    config.write_text(text, encoding="utf-8")

    code, error = says("--config", str(config))

    assert (code, one_sentence(error)) == (2, f"wetink-collector: config file {config} {said}")


def test_config_environment_and_flag_in_rising_order(tmp_path: Path) -> None:
    """What is nearer to the person who starts it counts."""
    config = tmp_path / "collector.toml"
    config.write_text(f'data = "{tmp_path}/from-config"\nmetrics = "127.0.0.1:0"\n')
    environment = {"WETINK_COLLECTOR_DATA": f"{tmp_path}/from-environment"}

    with running_collector(options=["--config", str(config)]):
        assert (tmp_path / "from-config").is_dir()
    with running_collector(options=["--config", str(config)], environment=environment) as collector:
        assert (tmp_path / "from-environment").is_dir()
        assert collector.metrics_address
    with running_collector(tmp_path / "from-flag", options=["--config", str(config)], environment=environment):
        assert (tmp_path / "from-flag").is_dir()


def test_log_says_where_and_where_to(tmp_path: Path) -> None:
    """One line when it listens; it does not hide that memory forgets."""
    with running_collector() as forgetful:
        assert "in memory" in forgetful.events("listening")[0]["data"]
    with running_collector(tmp_path) as durable:
        assert durable.events("listening")[0]["data"] == str(tmp_path)
        assert not durable.address.endswith(":0")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_drain(tmp_path: Path, number: signal.Signals) -> None:
    """
    Agents are told and half-close, what they sent until then is durable and acknowledged, health says NOT_SERVING, and
    the exit code is 0.
    """
    with running_collector(tmp_path) as collector, Agent(collector.address) as agent:
        agent.hello()
        agent.deliver(ONE, [1])
        collector.process.send_signal(number)
        agent.hear("drain")
        assert check(collector.address) == HealthCheckResponse.NOT_SERVING
        agent.say(batch(ONE, 2, written=[2]))
        acks = [said.ack.positions[0].round for said in agent.end()]

        assert acks[-1] == 2
        assert collector.process.wait(20) == 0
        assert [collector.wait_for_log(event)["event"] for event in ("draining", "stopped")] == ["draining", "stopped"]
    with running_collector(tmp_path) as collector:
        assert Reader(collector.address).dirty(NAME).written == {NAME: {1, 2}}


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_crash_in_native_code_leaves_what_every_thread_did(tmp_path: Path, *, tls: bool) -> None:
    """On standard error, which is read on its way out where there is TLS."""
    options: list[str] = []
    if tls:
        proof = Authority(tmp_path).collector()
        options = ["--tls-cert", str(proof.cert), "--tls-key", str(proof.key), "--health", "127.0.0.1:0"]
    with running_collector(options=options) as collector:
        collector.process.send_signal(signal.SIGSEGV)
        assert collector.process.wait(PATIENCE_SECONDS) == -signal.SIGSEGV

    assert "Fatal Python error: Segmentation fault" in collector.log
    assert "most recent call first" in collector.log


def test_drain_does_not_wait_for_ever(tmp_path: Path) -> None:
    """An agent that does not go is cut off, with UNAVAILABLE."""
    with running_collector(tmp_path) as collector, Agent(collector.address) as agent:
        agent.hello()
        began = time.monotonic()
        collector.process.terminate()
        agent.hear("drain")
        with Agent(collector.address, "host-2") as late, refused(grpc.StatusCode.UNAVAILABLE):
            late.hello()

        assert agent.error()[:2] == (grpc.StatusCode.UNAVAILABLE, "COLLECTOR_DRAINING")
        assert collector.process.wait(PATIENCE_SECONDS) == 0
        assert time.monotonic() - began > 4


def test_peer_that_only_connects_costs_nothing(collector: CollectorProcess) -> None:
    """Connections that say nothing, or nonsense, do not keep others from being served."""
    host, _, port = collector.address.rpartition(":")
    with socket.create_connection((host, int(port))) as silent, socket.create_connection((host, int(port))) as noisy:
        noisy.sendall(b"GET / HTTP/1.1\r\n\r\n" * 100)
        assert silent.fileno()
        with Agent(collector.address) as agent:
            agent.hello()
            agent.say(start(ONE))
            agent.deliver(ONE, [1])
    assert "Traceback" not in collector.log
