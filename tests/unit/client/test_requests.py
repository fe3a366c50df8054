import pytest

from wetink.v1 import dirty_pb2
from wetink_agent import uplink
from wetink_client import InvalidRequest, Selection, requests


@pytest.mark.parametrize(
    "address", ["127.0.0.1:7419", "collector:1", "a.b-c:65535", "[::1]:7419", "unix:/run/wetink.sock", "unix:w.sock"]
)
def test_address_is_a_port_or_a_socket(address: str) -> None:
    """Each form that the documentation names."""
    assert requests.check_address(address) == address


@pytest.mark.parametrize(
    "address",
    [
        "",
        "collector",
        "collector:",
        ":7419",
        "collector:0",
        "collector:65536",
        "http://collector:7419",
        "unix:",
        "a b:1",
    ],
)
def test_address_of_another_form_is_refused(address: str) -> None:
    """GRPC would take some of them, and ask port 443."""
    with pytest.raises(InvalidRequest, match="write HOST:PORT or unix:PATH"):
        requests.check_address(address)


@pytest.mark.parametrize("seconds,milliseconds", [(5.0, 5000), (0.0001, 1), (0.0015, 2), (60.0, 60_000)])
def test_barrier_time_never_becomes_zero(seconds: float, milliseconds: int) -> None:
    """0 would mean the collector's own time."""
    assert requests.barrier("h/1", barrier_seconds=seconds).timeout_ms == milliseconds
    assert requests.dirty("h/1", None, barrier=True, barrier_seconds=seconds).barrier_timeout_ms == milliseconds


@pytest.mark.parametrize("seconds", [0.0, -1.0, 60.1, float("nan"), float("inf")])
def test_barrier_time_has_bounds(seconds: float) -> None:
    """Those of the contract."""
    with pytest.raises(InvalidRequest, match="more than 0, and at most 60"):
        requests.barrier("h/1", barrier_seconds=seconds)


@pytest.mark.parametrize("seconds", [-1.0, float("nan"), float("inf")])
def test_interval_has_bounds(seconds: float) -> None:
    """It must fit the field."""
    with pytest.raises(InvalidRequest, match="write a number from 0 on"):
        requests.watch("h/1", None, pages=True, interval_seconds_min=seconds)


@pytest.mark.parametrize("pid", [0, -1, 1 << 32])
def test_pid_has_bounds(pid: int) -> None:
    """It must be one, and fit the field."""
    with pytest.raises(InvalidRequest, match="no process id"):
        requests.track("host-1", pid)


def test_request_says_what_was_asked() -> None:
    """Nothing is added and nothing is lost."""
    selection = Selection(targets=("h/1",), hosts=("h",), cgroups=("/a",), labels=("pod=p", "tier="))

    dirty = requests.dirty(selection, "cursor", barrier=True, barrier_seconds=2)
    watch = requests.watch(selection, None, pages=False, interval_seconds_min=0.25)

    assert (dirty.cursor, dirty.barrier) == ("cursor", True)
    assert dirty.selection == dirty_pb2.Selection(
        targets=["h/1"], hosts=["h"], cgroups=["/a"], labels={"pod": "p", "tier": ""}
    )
    assert (watch.cursor, watch.pages, watch.interval_min_ms) == ("", False, 250)
    assert requests.untrack("h/1@2").target == "h/1@2"
    assert (requests.track("h", 7).host_id, requests.track("h", 7).pid) == ("h", 7)
    assert not requests.targets(None).HasField("selection")


def test_collector_that_hangs_is_found_as_soon_by_readers_as_by_agents() -> None:
    """Also where nothing was said for a while: gRPC of itself would then send a ping a minute, after two."""
    pings = ("grpc.keepalive_time_ms", "grpc.keepalive_timeout_ms", "grpc.http2.ping_timeout_ms")
    ours, of_agents = dict(requests.CHANNEL_OPTIONS), dict(uplink.CHANNEL_OPTIONS)

    for option in (*pings, "grpc.http2.max_pings_without_data"):
        assert ours[option] == of_agents[option], option
    assert ours["grpc.http2.max_pings_without_data"] == 0
