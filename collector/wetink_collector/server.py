"""The collector as a whole: its parts put together, started, kept in order and drained."""

import asyncio
import gc
import sys
import time
from collections.abc import AsyncIterator, Collection, Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager, closing, contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import grpc
import structlog
from grpc_health.v1 import health
from grpc_health.v1.health_pb2 import HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import add_HealthServicer_to_server
from grpc_reflection.v1alpha import reflection

from wetink.pages import MESSAGE_BYTES_MAX
from wetink.v1 import dirty_pb2, ingest_pb2, insight_pb2, session_pb2
from wetink.v1.dirty_pb2_grpc import add_DirtyServiceServicer_to_server
from wetink.v1.ingest_pb2 import TargetStarted
from wetink.v1.ingest_pb2_grpc import add_IngestServiceServicer_to_server
from wetink.v1.insight_pb2_grpc import add_InsightServiceServicer_to_server
from wetink.v1.session_pb2_grpc import add_SessionServiceServicer_to_server
from wetink.v1.types_pb2 import END_REASON_LOST
from wetink_collector import descriptors, handshakes, metrics, metrics_page
from wetink_collector.access import Gate
from wetink_collector.address import Address, AddressUnusable, TcpAddress, UnixAddress
from wetink_collector.agents import Agents
from wetink_collector.answer import Answerer
from wetink_collector.bookmarks import Bookmarks
from wetink_collector.caller import Tokens
from wetink_collector.catalog import Catalog
from wetink_collector.committer import Committer
from wetink_collector.data_directory import held
from wetink_collector.dirty import DirtyService
from wetink_collector.errors import StoreUnavailable
from wetink_collector.housekeeping import Housekeeping
from wetink_collector.ingest import IngestService
from wetink_collector.insight.histories import Histories
from wetink_collector.insight.inquiry import Inquiry
from wetink_collector.insight.service import InsightService
from wetink_collector.limits import DEFAULTS, Limits
from wetink_collector.retention import KEPT_WITHOUT_END, Retention
from wetink_collector.sessions import SessionService
from wetink_collector.store.interface import (
    IncarnationEnded,
    RecordDamaged,
    Store,
)
from wetink_collector.store.memory import MemoryStore
from wetink_collector.store.sqlite import SqliteStore
from wetink_collector.tls import ServerTls, TlsFiles
from wetink_collector.unix_peers import Allowed, UnixPeers

SERVICES: Final = (
    ingest_pb2.DESCRIPTOR.services_by_name["IngestService"].full_name,
    dirty_pb2.DESCRIPTOR.services_by_name["DirtyService"].full_name,
    insight_pb2.DESCRIPTOR.services_by_name["InsightService"].full_name,
    session_pb2.DESCRIPTOR.services_by_name["SessionService"].full_name,
)

MESSAGE_HEADROOM_BYTES: Final = 4096
"""What the transport takes over the contract's bound, so that a message of exactly 1 MiB passes."""

CALLS_MAX: Final = 4096
"""Bound on open calls and streams together: each may hold the page sets of one target."""

CONNECTIONS_MAX: Final = 4096
"""Bound on open connections, where descriptors allow: each of 4096 hosts has one, and more wait until another goes."""

IDLE_SECONDS_MAX: Final = 30
"""How long a connection may stay open without a call; clients come back by themselves with the next one."""

CONNECTION_SECONDS_MAX: Final = 60
"""How long a connection takes new calls; those that are open go on, as agents' streams and watches do. Whoever may have
none that lasts, since nobody knows them, keeps no connection from others for longer."""

CALLS_OF_CONNECTION_MAX: Final = 1024
"""Bound on the calls that one connection has open; its peer waits with more."""

PROBES_MAX: Final = 256
"""Bound on connections to the port for health, where descriptors allow, and on calls there."""

PROBE_SECONDS_MAX: Final = 5
"""How long such a connection lives, with a second more for what it has just asked."""

READERS: Final = 2
"""Threads that read and merge pages for answers. Merging holds the interpreter's lock, so more would gain nothing.
Insight has as many of its own: what it counts takes long at times, and nobody who copies memory waits for that."""

SWITCH_SECONDS: Final = 0.0005
"""How long the event loop waits for the interpreter's lock where a thread has it. With Python's own 5 ms each of its
system calls, in which it lets go of the lock, may cost as much. Threads that let go of it of themselves gave their
processor away as well, on a machine that is busy."""

FULL_COLLECTION_AFTER: Final = 700
"""After how many looks at younger objects Python looks at all of them for cycles that nobody holds. That keeps every
thread from the lock, for 80 to 160 ms with the histories of a thousand targets, and with Python's own 10 it was due
each few seconds: now after five million more objects. Most garbage needs no such look, and most cycles end young."""

DRAIN_SECONDS: Final = 5.0
"""How long agents have to half-close; below the 10 s after which container runtimes kill."""

GRACE_SECONDS: Final = 2.0
"""How long open calls may go on after that."""

TIDY_SECONDS: Final = 5.0
"""How often silent streams are looked for, and targets that ended long ago are forgotten."""

OPTIONS: Final = (
    ("grpc.max_allowed_incoming_connections", CONNECTIONS_MAX),
    ("grpc.max_concurrent_streams", CALLS_OF_CONNECTION_MAX),
    ("grpc.server_handshake_timeout_ms", 10_000),  # a peer that connects and says nothing is gone after this
    ("grpc.max_connection_idle_ms", IDLE_SECONDS_MAX * 1000),
    ("grpc.max_connection_age_ms", CONNECTION_SECONDS_MAX * 1000),
    ("grpc.so_reuseport", 0),  # a second collector on the port is told so, and does not take half of the streams
    ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX + MESSAGE_HEADROOM_BYTES),
    ("grpc.max_send_message_length", MESSAGE_BYTES_MAX + MESSAGE_HEADROOM_BYTES),
    ("grpc.http2.bdp_probe", 0),  # else a stream that nobody reads takes 4 MiB and not 64 KiB
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.ping_timeout_ms", 5_000),  # without it a hung peer is found after 70 s and not 15
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),  # below the clients' 10 s: they are not "too many pings"
)

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Settings:
    """How a collector is to run. Without ``data`` it keeps everything in memory; ``health`` is for probes alone."""

    listen: Address
    data: Path | None
    metrics: TcpAddress | None
    tls: TlsFiles | None = None
    tokens: Path | None = None
    health: Address | None = None
    unix_allow: Sequence[Allowed] = ()
    trust_domains: Collection[str] = ()
    retention: Retention = KEPT_WITHOUT_END
    limits: Limits = DEFAULTS


async def serve(settings: Settings, stop: asyncio.Event) -> None:
    """Run a collector until it is to stop, then drain it.

    Raises:
        StoreUnusable: The data directory cannot be used.
        AddressUnusable: An address cannot be listened on.
        SecurityUnusable: Certificates or tokens cannot be used.
    """
    settings.listen.check_free()
    if settings.health:
        settings.health.check_free()
    tls = ServerTls(settings.tls) if settings.tls else None
    tokens = Tokens(settings.tokens) if settings.tokens else None
    peers = _unix_peers(settings)
    gate = Gate(
        certificates=settings.tls is not None and settings.tls.client_ca is not None,
        trust_domains=settings.trust_domains,
        tokens=tokens,
        peers=peers,
    )
    with (
        _handshakes_audited(tls),
        _metrics_served(settings.metrics) as metrics_address,
        _store(settings.data) as store,
        _threads("reader") as threads,
        _threads("insight-reader") as insight_threads,
    ):
        contents = store.contents()
        catalog = Catalog(store.store_id, contents)
        bookmarks = Bookmarks()
        committer = Committer(store, catalog, bookmarks)
        shares = _shares(settings)
        collector = _Collector(catalog, committer, settings.limits)
        async with committer.running(collector):
            answerer = Answerer(store, catalog, threads, collector.drop, bookmarks)
            dirty = DirtyService(catalog, collector.agents, committer, answerer)
            histories = Histories(store, catalog)
            insight = InsightService(Inquiry(catalog, store, histories, insight_threads))
            sessions = SessionService(catalog, collector.agents, committer, answerer, contents.sessions)
            housekeeping = Housekeeping(catalog, committer, sessions, settings.retention)
            where = peers.address if peers else settings.listen
            async with (
                histories.running(),
                sessions.running(),
                _health_served(settings.health, collector, shares) as health_address,
                _listening(where, collector, (dirty, insight, sessions), gate, tls, housekeeping, shares) as address,
                peers.serving() if peers else nullcontext(),
            ):
                log.info(
                    "listening",
                    address=str(settings.listen if peers else address),
                    data=str(settings.data or "in memory, for as long as this process lives"),
                    metrics=str(metrics_address) if metrics_address else None,
                    health=str(health_address) if health_address else None,
                    tls=tls is not None,
                    identified_by=_identified_by(settings),
                )
                await stop.wait()
                log.info("draining")
                await collector.health.enter_graceful_shutdown()
                dirty.drain()
                await collector.agents.drain(DRAIN_SECONDS)
    log.info("stopped")


class _Collector:
    """Acts on the state of the store: listens to the committer, and speaks to agents and to health probes."""

    def __init__(self, catalog: Catalog, committer: Committer, limits: Limits) -> None:
        self.agents = Agents(catalog, limits)
        self.committer = committer
        self.health = health.aio.HealthServicer()
        self._catalog = catalog
        self._tasks: set[asyncio.Task[None]] = set()

    def store_failed(self) -> None:
        self.agents.store_failed()
        self._spawn(self.set_serving(serving=False))

    def store_recovered(self) -> None:
        self.agents.store_recovered()
        self._spawn(self.set_serving(serving=True))

    def record_damaged(self, damage: RecordDamaged) -> None:
        self._spawn(self._try_to_drop(damage))

    async def drop(self, damage: RecordDamaged, started: TargetStarted | None = None) -> None:
        """End the incarnation of a damaged record. Its agent begins a new one, and no cursor of the old is answered.

        Args:
            damage: What was found.
            started: How the incarnation began whose record is meant; None where it cannot be another by now.

        Raises:
            StoreUnavailable: That could not be written.
        """
        # The store shows a commit a moment before the catalog knows it: what looks like missing rounds may be the start
        # of a newer incarnation.
        await self.committer.settle(damage.incarnation.target.host_id)
        record = self._catalog.get(damage.incarnation.target)
        if (
            record is None
            or record.incarnation != damage.incarnation
            or (started is not None and record.started is not started)
            or (record.ended and record.ended.rounds_dropped)
        ):
            return
        log.error("record_damaged", target=record.name, error=str(damage))
        metrics.GAPS.labels("store").inc()
        metrics.RESYNCS.labels("damaged").inc()
        # First the stream: what it would append to the log has nothing to stand on any more.
        self.agents.end_for_resync(damage)
        await self.committer.commit(
            [IncarnationEnded(damage.incarnation, END_REASON_LOST, time.time_ns(), str(damage), rounds_dropped=True)]
        )

    async def set_serving(self, *, serving: bool) -> None:
        """Tell health probes, of the whole and of each service."""
        state = HealthCheckResponse.SERVING if serving else HealthCheckResponse.NOT_SERVING
        for service in ("", *SERVICES):
            await self.health.set(service, state)

    async def tidy(self, housekeeping: Housekeeping, watch: descriptors.Watch) -> None:
        """End silent streams, let go of what is kept no longer, and count what there is; for ever."""
        while True:
            self._count()
            watch.look()
            await asyncio.sleep(TIDY_SECONDS)
            self.agents.end_silent(time.monotonic())
            with suppress(StoreUnavailable):
                await housekeeping.let_go()

    def _count(self) -> None:
        records = self._catalog.all()
        ended = sum(1 for record in records if record.ended)
        metrics.TARGETS.labels("ended").set(ended)
        metrics.TARGETS.labels("living").set(len(records) - ended)
        metrics.HOSTS.set(len(self._catalog.hosts))

    async def _try_to_drop(self, damage: RecordDamaged) -> None:
        with suppress(StoreUnavailable):
            await self.drop(damage)

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


@asynccontextmanager
async def _listening(
    where: Address,
    collector: _Collector,
    services: tuple[DirtyService, InsightService, SessionService],
    gate: Gate,
    tls: ServerTls | None,
    housekeeping: Housekeeping,
    shares: descriptors.Shares,
) -> AsyncIterator[Address]:
    options = {**dict(OPTIONS), "grpc.max_allowed_incoming_connections": shares.connections}
    server = grpc.aio.server(options=tuple(options.items()), maximum_concurrent_rpcs=CALLS_MAX, interceptors=[gate])
    add_IngestServiceServicer_to_server(IngestService(collector.agents, collector.committer), server)
    add_DirtyServiceServicer_to_server(services[0], server)
    add_InsightServiceServicer_to_server(services[1], server)
    add_SessionServiceServicer_to_server(services[2], server)
    add_HealthServicer_to_server(collector.health, server)
    reflection.enable_server_reflection((*SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
    address = _bind(server, where, tls)
    await server.start()
    await collector.set_serving(serving=True)
    watch = descriptors.Watch(shares.connections, shares.each)
    tidying = asyncio.create_task(collector.tidy(housekeeping, watch))
    try:
        yield address
    finally:
        tidying.cancel()
        await server.stop(GRACE_SECONDS)


@asynccontextmanager
async def _health_served(
    address: Address | None, collector: _Collector, shares: descriptors.Shares
) -> AsyncIterator[Address | None]:
    """Serve health alone, in the clear: who probes has no certificate, and learns only whether the collector serves."""
    if address is None:
        yield None
        return
    # By name: of two values for one option gRPC takes the first.
    options = {
        **dict(OPTIONS),
        "grpc.max_allowed_incoming_connections": shares.probes,
        # Anybody can connect here, so nobody stays: a probe asks once.
        "grpc.max_connection_age_ms": PROBE_SECONDS_MAX * 1000,
        "grpc.max_connection_age_grace_ms": 1000,
    }
    server = grpc.aio.server(options=tuple(options.items()), maximum_concurrent_rpcs=PROBES_MAX)
    add_HealthServicer_to_server(collector.health, server)
    bound = _bind(server, address, None)
    await server.start()
    try:
        yield bound
    finally:
        await server.stop(None)


def _shares(settings: Settings) -> descriptors.Shares:
    # At a Unix socket whose peers are told apart: the peer's connection, and both ends of that to gRPC.
    each = 3 if settings.unix_allow else 1
    shares = descriptors.Shares.of(
        descriptors.limit(),
        connections_max=dict(OPTIONS)["grpc.max_allowed_incoming_connections"],
        probes_max=PROBES_MAX if settings.health else 0,
        pages_max=metrics_page.CONNECTIONS_MAX if settings.metrics else 0,
        each=each,
    )
    if shares.connections < CONNECTIONS_MAX:
        log.info(
            "connections_bounded", connections_max=shares.connections, why="there are no more descriptors to be had"
        )
    return shares


def _unix_peers(settings: Settings) -> UnixPeers | None:
    if not settings.unix_allow:
        return None
    assert isinstance(settings.listen, UnixAddress)
    peers = UnixPeers(settings.listen, settings.unix_allow)
    peers.prepare()
    return peers


def _identified_by(settings: Settings) -> str:
    """Say what tells peers apart, for the log."""
    found = [
        *(["certificates"] if settings.tls and settings.tls.client_ca else []),
        *(["tokens"] if settings.tokens else []),
        *(["users of the socket"] if settings.unix_allow else []),
    ]
    return " or ".join(found) or "nothing: whoever can connect may do everything"


def _bind(server: grpc.aio.Server, address: Address, tls: ServerTls | None) -> Address:
    """Listen, and give the address with the port that was found."""
    try:
        if tls:
            port = server.add_secure_port(str(address), tls.credentials())
        else:
            port = server.add_insecure_port(str(address))
    except RuntimeError as error:
        message = f"cannot listen on {address}: {error}"
        raise AddressUnusable(message) from error
    return replace(address, port=port) if isinstance(address, TcpAddress) else address


@contextmanager
def _handshakes_audited(tls: ServerTls | None) -> Iterator[None]:
    with handshakes.audited() if tls else nullcontext():
        yield


@contextmanager
def _store(directory: Path | None) -> Iterator[Store]:
    if directory is None:
        yield MemoryStore()
        return
    with held(directory), closing(SqliteStore(directory)) as store:
        yield store


@contextmanager
def _metrics_served(address: TcpAddress | None) -> Iterator[TcpAddress | None]:
    if address is None:
        yield None
        return
    with ExitStack() as stack:
        try:
            port = stack.enter_context(metrics_page.served(address.host, address.port))
        except OSError as error:
            message = (
                f"cannot serve metrics on {address}: {error.strerror}; stop what is there, or give another --metrics"
            )
            raise AddressUnusable(message) from error
        yield replace(address, port=port)


@contextmanager
def _threads(name: str) -> Iterator[ThreadPoolExecutor]:
    sys.setswitchinterval(SWITCH_SECONDS)
    gc.set_threshold(*gc.get_threshold()[:2], FULL_COLLECTION_AFTER)
    with ThreadPoolExecutor(READERS, thread_name_prefix=name) as threads:
        yield threads
