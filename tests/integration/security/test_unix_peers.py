import contextlib
import os
import random
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest

from tests.integration.collector.wire import Agent, Reader, refused, target
from tests.integration.security.audit import Audit
from tests.support.collector import CollectorProcess, running_collector, start_collector
from wetink.v1 import dirty_pb2 as pb
from wetink_collector.caller import Role
from wetink_collector.unix_peers import (
    CONNECTIONS_MAX,
    STRANGERS_MAX,
    Allowed,
    PeersMalformed,
    parse_allowed,
)

UID, OTHER_UID, GID = 64001, 64002, 64003
WETINK = Path(sys.executable).with_name("wetink")

AGENT = """
import sys
from tests.integration.collector.wire import Agent, refused, target
with Agent(sys.argv[1], sys.argv[2]) as agent:
    try:
        agent.hello()
    except Exception as error:
        print(error.code().name)
    else:
        agent.deliver(target(host_id=sys.argv[2]), [1])
        print("delivered")
"""


@pytest.fixture
def directory() -> Iterator[Path]:
    """Give a directory that every user can enter; pytest's own are for one."""
    with tempfile.TemporaryDirectory(prefix="wetink-peers-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.fixture
def collector(start: Callable[..., CollectorProcess], directory: Path) -> CollectorProcess:
    """Give a collector at a Unix socket, with a user who is agent and reader, and a group of readers."""
    allowed = [f"{UID}:agent:host-1", f"{UID}:reader", f"@{GID}:reader", "root:admin"]
    options = [option for one in allowed for option in ("--unix-allow", one)]
    return start(*options, listen=f"unix:{directory}/socket")


def serves(collector: CollectorProcess) -> None:
    """Wait until root is answered: as an admin it reads."""
    deadline = time.monotonic() + 60
    while True:
        try:
            Reader(collector.address).hosts()
        except grpc.RpcError:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        else:
            return


def as_user(uid: int, *command: str, groups: str = "") -> subprocess.CompletedProcess[str]:
    """Run a program as another user; its groups beside the first one are given."""
    whom = [
        "setpriv",
        "--reuid",
        str(uid),
        "--regid",
        str(uid),
        *(["--groups", groups] if groups else ["--clear-groups"]),
    ]
    return subprocess.run([*whom, *command], capture_output=True, text=True, timeout=60, check=False)


def wetink(
    collector: CollectorProcess, uid: int, *arguments: str, groups: str = ""
) -> subprocess.CompletedProcess[str]:
    """Run the client's command as another user."""
    return as_user(uid, str(WETINK), "--collector", collector.address, *arguments, groups=groups)


@pytest.mark.needs("root")
def test_user_is_what_the_kernel_says(collector: CollectorProcess, audit: Audit) -> None:
    """One user delivers and reads, and tracks nothing; root tracks and does not read for it."""
    delivered = as_user(UID, sys.executable, "-c", AGENT, collector.address, "host-1")
    assert (delivered.stdout.strip(), delivered.stderr) == ("delivered", "")

    assert wetink(collector, UID, "hosts").returncode == 0
    tracked = wetink(collector, UID, "track", "host-1", "1")
    assert tracked.returncode == 1
    assert len(tracked.stderr.splitlines()) == 1

    line = audit.wait_for(method="Track", result="PERMISSION_DENIED")
    assert line["caller"] == f"uid-{UID}"
    assert line["peer"].startswith(f"unix uid {UID} pid ")
    with refused(grpc.StatusCode.UNAVAILABLE, "AGENT_DISCONNECTED"):
        Reader(collector.address).stub.Track(pb.TrackRequest(host_id="host-1", pid=1), timeout=20)
    assert audit.wait_for(method="Track", result="UNAVAILABLE")["caller"] == "uid-0"


@pytest.mark.needs("root")
def test_user_writes_for_its_own_host_alone(collector: CollectorProcess, audit: Audit) -> None:
    """As with a certificate."""
    assert as_user(UID, sys.executable, "-c", AGENT, collector.address, "host-2").stdout.strip() == "PERMISSION_DENIED"

    audit.wait_for(method="Stream", result="PERMISSION_DENIED", caller=f"uid-{UID}")


@pytest.mark.needs("root")
def test_user_who_is_not_named_may_do_nothing(collector: CollectorProcess, audit: Audit) -> None:
    """UNAUTHENTICATED with a sentence, though the file lets everybody connect; health it may ask for."""
    listed = wetink(collector, OTHER_UID, "hosts")

    assert listed.returncode == 1
    assert "--unix-allow" in listed.stderr
    assert audit.wait_for(method="ListHosts", result="UNAUTHENTICATED")["peer"].startswith(f"unix uid {OTHER_UID} ")
    assert as_user(OTHER_UID, sys.executable, "-c", AGENT, collector.address, "host-1").stdout.strip() == (
        "UNAUTHENTICATED"
    )
    assert wetink(collector, OTHER_UID, "health").returncode == 0


@pytest.mark.needs("root")
def test_group_counts_where_the_user_is_not_named(collector: CollectorProcess) -> None:
    """Also one beside the first: the kernel gives all of them."""
    assert wetink(collector, OTHER_UID, "hosts", groups=str(GID)).returncode == 0
    assert wetink(collector, OTHER_UID, "track", "host-1", "1", groups=str(GID)).returncode == 1


@pytest.mark.parametrize("name", ["a socket", 't\u00fcr "[a]"'])
def test_path_may_have_what_grpc_escapes(start: Callable[..., CollectorProcess], directory: Path, name: str) -> None:
    """A peer is who it is wherever the socket lies."""
    collector = start("--unix-allow", f"{os.geteuid()}:reader", listen=f"unix:{directory}/{name}")

    assert Reader(collector.address).hosts() == []


@pytest.mark.needs("root")
@pytest.mark.usefixtures("collector")
def test_way_around_the_kernel_is_closed(directory: Path) -> None:
    """The socket of gRPC itself cannot be reached by others, and who reaches it all the same, as root, is nobody."""
    private = f"unix:{directory}/.socket.private/grpc"

    assert stat.S_IMODE((directory / ".socket.private").stat().st_mode) == 0o700
    around = as_user(UID, str(WETINK), "--collector", private, "hosts")
    assert around.returncode == 3
    assert "Permission denied" in around.stderr
    with refused(grpc.StatusCode.UNAUTHENTICATED):
        Reader(private).hosts()


@pytest.mark.needs("root")
def test_strangers_use_up_only_what_is_theirs(collector: CollectorProcess, directory: Path) -> None:
    """However many connections they hold, those who are named come in."""
    holds = (
        "import socket, sys, time\nheld = []\n"
        f"for _ in range({STRANGERS_MAX * 3}):\n"
        "    held.append(socket.socket(socket.AF_UNIX)); held[-1].connect(sys.argv[1])\n"
        "print('held', flush=True); time.sleep(60)\n"
    )
    command = ["setpriv", "--reuid", str(OTHER_UID), "--regid", str(OTHER_UID), "--clear-groups", sys.executable]
    with subprocess.Popen(
        [*command, "-c", holds, f"{directory}/socket"], stdout=subprocess.PIPE, text=True
    ) as stranger:
        try:
            assert stranger.stdout
            assert stranger.stdout.readline() == "held\n"
            collector.wait_for_log("connections_refused")
            assert wetink(collector, UID, "hosts").returncode == 0
            assert len(collector.events("connections_refused")) == 1
        finally:
            stranger.kill()


def connected(directory: Path) -> socket.socket:
    """Connect, and say nothing."""
    one = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    one.connect(f"{directory}/socket")
    return one


def is_closed(one: socket.socket) -> bool:
    """Whether the other side has closed, or does within a while."""
    one.settimeout(60)
    try:
        while one.recv(4096):
            pass
    except TimeoutError:
        return False
    except OSError:
        pass
    return True


@pytest.mark.needs("root")
def test_connections_are_bounded_and_given_back(collector: CollectorProcess, directory: Path) -> None:
    """More than the bound are closed at once; when some have gone, others come in."""
    with contextlib.ExitStack() as held:
        open_ones = [held.enter_context(connected(directory)) for _ in range(CONNECTIONS_MAX + 20)]
        collector.wait_for_log("connections_refused")
        assert sum(is_closed(one) for one in open_ones[-20:]) == 20
    serves(collector)


def test_socket_of_a_collector_that_was_killed_is_taken_over(directory: Path) -> None:
    """With what it left in its own directory; afterwards nothing is left."""
    listen, options = f"unix:{directory}/socket", ["--unix-allow", "0:admin"]
    with running_collector(listen=listen, options=options) as first:
        first.kill()
    with running_collector(listen=listen, options=options) as second:
        serves(second)

    assert list(directory.iterdir()) == []


def test_address_in_use_is_told(collector: CollectorProcess) -> None:
    """A second collector does not take the socket away."""
    process = start_collector(listen=collector.address, options=["--unix-allow", "0:admin"])
    _, error = process.communicate(timeout=60)

    assert process.returncode == 1
    assert "another process listens there" in error
    serves(collector)


@pytest.mark.needs("root")
def test_directory_that_is_somebody_elses_is_not_used(directory: Path) -> None:
    """Who made it first could read along."""
    (directory / ".socket.private").mkdir()
    subprocess.run(["chown", str(UID), directory / ".socket.private"], check=True)
    process = start_collector(listen=f"unix:{directory}/socket", options=["--unix-allow", "0:admin"])
    _, error = process.communicate(timeout=60)

    assert process.returncode == 1
    assert f"{directory}/.socket.private is not this collector's; remove it" in error


def test_large_sets_pass_whole(start: Callable[..., CollectorProcess], directory: Path) -> None:
    """Messages of most of a megabyte, both ways."""
    allowed = [f"{os.geteuid()}:agent:host-1", f"{os.geteuid()}:reader"]
    collector = start(
        *(option for one in allowed for option in ("--unix-allow", one)), listen=f"unix:{directory}/socket"
    )
    scattered = set(random.Random(4).sample(range(1 << 34), 60_000))  # noqa: S311 (nothing secret is drawn)
    with Agent(collector.address) as agent:
        agent.hello()
        agent.deliver(target(), scattered)

        assert Reader(collector.address).dirty("host-1/1@100").written == {"host-1/1@100": scattered}


@pytest.mark.parametrize(
    "text, allowed",
    [
        ("0:admin", Allowed(0, is_group=False, role=Role.ADMIN)),
        ("root:reader", Allowed(0, is_group=False, role=Role.READER)),
        ("1000:agent:host-1", Allowed(1000, is_group=False, role=Role.AGENT, host_id="host-1")),
        ("@0:reader", Allowed(0, is_group=True, role=Role.READER)),
        ("@root:admin", Allowed(0, is_group=True, role=Role.ADMIN)),
    ],
)
def test_who_is_allowed_is_said_by_name_or_number(text: str, allowed: Allowed) -> None:
    """Users and groups."""
    assert parse_allowed([text]) == (allowed,)


@pytest.mark.parametrize(
    "text",
    [
        *("", "0", "0:", ":admin", "0:root", "0:agent", "0:agent:", "0:agent:a/b", "0:admin:x", "-1:admin"),
        *("nobody-of-this-name:admin", "@nobody-of-this-name:admin", "4294967295:admin", "@@0:admin"),
        *("65534:admin", "@65534:reader"),  # everybody without a number in this user namespace
    ],
)
def test_entry_that_allows_nobody_is_told(text: str) -> None:
    """A misspelt one must not let somebody else in."""
    with pytest.raises(PeersMalformed):
        parse_allowed([text])


@pytest.mark.parametrize(
    "arguments, part",
    [
        (["--unix-allow", "0:admin"], "it needs --listen unix:PATH, not 127.0.0.1:7419"),
        (["--listen", "unix:/tmp/x", "--unix-allow", "0:god"], "--unix-allow: '0:god' is none of USER:reader"),
        (["--listen", f"unix:/tmp/{'x' * 90}", "--unix-allow", "0:admin"], "the path is too long"),
    ],
)
def test_usage_that_is_wrong(arguments: list[str], part: str) -> None:
    """One sentence."""
    command = [sys.executable, "-c", "from wetink_collector.command import main; main()"]
    ended = subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=60, check=False)

    assert ended.returncode in (1, 2)
    assert len(ended.stderr.splitlines()) == 1
    assert part in ended.stderr
