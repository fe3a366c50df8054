"""Build the contract's requests from what a caller says, and how long each may take. Nothing is sent from here."""

import math
from typing import Final

from wetink import names
from wetink.names import NameMalformed
from wetink.v1 import dirty_pb2, types_pb2
from wetink_client.errors import InvalidRequest
from wetink_client.values import Freeze, Selectable, Selection, Strictness

LIST_SECONDS_MAX: Final = 10.0
"""Deadline of a list, all its pages together: the collector answers out of its memory."""

PAGE_SIZE: Final = 1000
"""Entries asked for in one call: the contract's bound."""

AGENT_SECONDS_MAX: Final = 30.0
"""Deadline of a call that an agent answers: it may have terabytes of address space to register."""

TRANSFER_SECONDS_MAX: Final = 60.0
"""Default deadline of an answer with pages, without its barrier: a terabyte of random pages over a busy link."""

BARRIER_SECONDS: Final = 5.0
"""Default time the collector waits for agents at a barrier."""

BARRIER_SECONDS_MAX: Final = 60.0
"""The contract's bound on it."""

MARGIN_SECONDS: Final = 5.0
"""How much longer than the collector itself a caller waits, so that it hears the collector's reason."""

CHANNEL_OPTIONS: Final = (
    # A fixed window: the estimate would let megabytes queue before a reader that is busy copying.
    ("grpc.http2.bdp_probe", 0),
    # A collector that hangs is found after 15 s. The third of these is needed where its kernel still answers, the last
    # where nothing is said for a while, as in a watch over what does not change: it would be a minute then.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.ping_timeout_ms", 5_000),
    ("grpc.http2.max_pings_without_data", 0),
    # Also the bound on one attempt to connect, which is 20 s otherwise. A collector that comes back is found soon.
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.min_reconnect_backoff_ms", 3_000),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    # Messages have at most 1 MiB, but a collector that knows nothing of pages gives any list whole.
    ("grpc.max_receive_message_length", 16 << 20),
    # Addresses reveal layout: they go to the collector, not through a proxy that an environment variable names.
    ("grpc.enable_http_proxy", 0),
    # Each client has a connection of its own, so that closing one or its back-off does not concern another.
    ("grpc.use_local_subchannel_pool", 1),
)
"""Options of the channel, the same for both clients."""

_UINT32_MAX: Final = (1 << 32) - 1
_STRICTNESSES: Final = {
    Strictness.STRICT: types_pb2.STRICTNESS_STRICT,
    Strictness.STRICT_WHEN_FROZEN: types_pb2.STRICTNESS_STRICT_WHEN_FROZEN,
    Strictness.LENIENT: types_pb2.STRICTNESS_LENIENT,
}


def check_address(address: str) -> str:
    """Give a collector's address back when it can be one.

    Raises:
        InvalidRequest: It is neither ``HOST:PORT`` nor ``unix:PATH``.
    """
    try:
        return names.check_address(address)
    except NameMalformed as error:
        raise InvalidRequest(str(error)) from error


def hosts() -> dirty_pb2.ListHostsRequest:
    """Ask for the first page of the hosts."""
    return dirty_pb2.ListHostsRequest(page_size=PAGE_SIZE)


def targets(selection: Selectable | None) -> dirty_pb2.ListTargetsRequest:
    """Ask for the first page of targets; None means all."""
    if selection is None:
        return dirty_pb2.ListTargetsRequest(page_size=PAGE_SIZE)
    return dirty_pb2.ListTargetsRequest(selection=selected(selection), page_size=PAGE_SIZE)


def process(target: str) -> names.TargetName:
    """Read a target's name.

    Raises:
        InvalidRequest: It is none.
    """
    (text,) = Selection(targets=(target,)).targets
    return names.parse_target(text)


def mappings(target: str) -> dirty_pb2.ListMappingsRequest:
    """Ask what a target has mapped."""
    (name,) = Selection(targets=(target,)).targets
    return dirty_pb2.ListMappingsRequest(target=name)


def track(host: str, pid: int) -> dirty_pb2.TrackRequest:
    """Ask to track a process."""
    if not 1 <= pid <= _UINT32_MAX:
        message = f"{pid} is no process id: write a number from 1 on"
        raise InvalidRequest(message, "REQUEST_MALFORMED")
    (host_id,) = Selection(hosts=(host,)).hosts
    return dirty_pb2.TrackRequest(host_id=host_id, pid=pid)


def untrack(target: str) -> dirty_pb2.UntrackRequest:
    """Ask to stop tracking."""
    (name,) = Selection(targets=(target,)).targets
    return dirty_pb2.UntrackRequest(target=name)


def barrier(selection: Selectable, *, barrier_seconds: float, freeze: Freeze | None = None) -> dirty_pb2.BarrierRequest:
    """Ask for a barrier."""
    return dirty_pb2.BarrierRequest(
        selection=selected(selection), timeout_ms=barrier_milliseconds(barrier_seconds), freeze=freeze_message(freeze)
    )


def thaw(selection: Selectable, hold: str) -> dirty_pb2.ThawRequest:
    """Ask that targets go on."""
    return dirty_pb2.ThawRequest(selection=selected(selection), hold=hold)


def dirty(
    selection: Selectable,
    since: str | None,
    *,
    barrier: bool,
    barrier_seconds: float,
    strictness: Strictness = Strictness.STRICT,
    freeze: Freeze | None = None,
) -> dirty_pb2.GetDirtyRequest:
    """Ask for dirty pages."""
    return dirty_pb2.GetDirtyRequest(
        selection=selected(selection),
        cursor=since or "",
        barrier=barrier,
        barrier_timeout_ms=barrier_milliseconds(barrier_seconds),
        strictness=_STRICTNESSES[strictness],
        freeze=freeze_message(freeze),
    )


def freeze_message(freeze: Freeze | None) -> types_pb2.Freeze | None:
    """Say how targets are to be frozen.

    Raises:
        InvalidRequest: They cannot be held like that.
    """
    if freeze is None:
        return None
    if not 0 <= freeze.hold_seconds <= BARRIER_SECONDS_MAX:
        message = f"targets cannot be held frozen for {freeze.hold_seconds:g} s: at most {BARRIER_SECONDS_MAX:g}"
        raise InvalidRequest(message, "REQUEST_MALFORMED")
    if bool(freeze.hold_seconds) != bool(freeze.hold):
        message = "a hold needs a name and a time: give both, or neither to freeze for the barrier alone"
        raise InvalidRequest(message, "REQUEST_MALFORMED")
    return types_pb2.Freeze(
        hold_ms=math.ceil(freeze.hold_seconds * 1000), hold=freeze.hold, whole_cgroups=freeze.whole_cgroups
    )


def watch(
    selection: Selectable,
    since: str | None,
    *,
    pages: bool,
    interval_seconds_min: float,
    strictness: Strictness = Strictness.STRICT,
) -> dirty_pb2.WatchRequest:
    """Ask for dirty pages, or only their counts, again and again."""
    return dirty_pb2.WatchRequest(
        selection=selected(selection),
        cursor=since or "",
        pages=pages,
        interval_min_ms=_interval_milliseconds(interval_seconds_min),
        strictness=_STRICTNESSES[strictness],
    )


def selected(selection: Selectable) -> dirty_pb2.Selection:
    """Give the message of a selection."""
    chosen = Selection.of(selection)
    return dirty_pb2.Selection(
        targets=chosen.targets,
        hosts=chosen.hosts,
        cgroups=chosen.cgroups,
        labels=names.parse_labels(chosen.labels),
    )


def barrier_milliseconds(seconds: float) -> int:
    """Give how long a barrier may take; rounded up, because 0 would leave the time to the collector.

    Raises:
        InvalidRequest: It cannot be as long.
    """
    if not 0 < seconds <= BARRIER_SECONDS_MAX:
        message = (
            f"a barrier cannot wait {seconds:g} s for the agents: more than 0, and at most {BARRIER_SECONDS_MAX:g}"
        )
        raise InvalidRequest(message, "REQUEST_MALFORMED")
    return math.ceil(seconds * 1000)


def _interval_milliseconds(seconds: float) -> int:
    if not 0 <= seconds <= _UINT32_MAX / 1000:
        message = f"{seconds:g} s is no time between two answers: write a number from 0 on"
        raise InvalidRequest(message, "REQUEST_MALFORMED")
    return math.ceil(seconds * 1000)
