"""The streams of all agents, by host: who is there, who deposes whom, and what is lost when one comes back."""

import asyncio
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, Final

import structlog
from grpc.aio import EOF, ServicerContext

from wetink.pages import MESSAGE_BYTES_MAX
from wetink.v1.ingest_pb2 import Hello, Track, Welcome
from wetink_collector import metrics, versions
from wetink_collector.caller import CALLER
from wetink_collector.catalog import HOST_KEPT_SECONDS, Catalog
from wetink_collector.committer import STORE_SENTENCE, Committer
from wetink_collector.errors import (
    AgentSilent,
    Deposed,
    Draining,
    HostForbidden,
    HostsTooMany,
    MessageMalformed,
    Refusal,
    RoundGap,
    StoreUnavailable,
)
from wetink_collector.intake import Opening, open_stream
from wetink_collector.limits import DEFAULTS, HOSTS_MAX, Limits
from wetink_collector.message_checks import check_hello
from wetink_collector.room import OF_STREAM_BYTES_MAX
from wetink_collector.session import Session
from wetink_collector.store.interface import Change, HostSeen, RecordDamaged, TargetUnwanted

IN_FLIGHT_BYTES_MAX: Final = OF_STREAM_BYTES_MAX
"""Bound on what an agent sends without an acknowledgement: 60 rounds of 64 Ki random pages. What does not fit before
the writer waits in the transport, and 64 agents at theirs take half a gigabyte of both."""

HEARTBEAT_INTERVAL_MS: Final = 5000
"""How often an agent that has nothing else to say does so."""

SILENCE_SECONDS_MAX: Final = 30.0
"""After six missed heartbeats the agent does not live, whatever its transport says."""

HELLO_SECONDS_MAX: Final = 10.0
"""How long a stream may stay open without a Hello."""

APART_SENTENCE: Final = (
    "agent and collector are tried together only where they are at most one minor version apart: upgrade the older one"
)

DRAINING_SENTENCE: Final = "the collector is going down; come back with back-off"

log = structlog.get_logger()


class Agents:
    """Every host's stream. A newer stream of a host deposes the older one."""

    def __init__(self, catalog: Catalog, limits: Limits = DEFAULTS) -> None:
        """Begin without any.

        Args:
            catalog: Hears of them.
            limits: What each of them may take.
        """
        self._catalog = catalog
        self._limits = limits
        self._sessions: dict[str, Session] = {}
        self._drained = asyncio.Event()
        self._draining = False
        self._store_failed = False

    def session(self, host_id: str) -> Session | None:
        """Give a host's stream, where one is open and welcomed."""
        session = self._sessions.get(host_id)
        return session if session and session.welcomed else None

    async def serve(self, context: ServicerContext[Any, Any], committer: Committer) -> None:
        """Serve one stream from its Hello to its end.

        Raises:
            Refusal: As ``IngestService.Stream`` documents them.
        """
        hello = await _hello(context)
        _check_host(hello.host_id)
        session = Session(hello, context, committer, self._catalog, self._limits)
        metrics.STREAMS.inc()
        try:
            await self._serve(session, committer)
        finally:
            metrics.STREAMS.dec()
            session.close()

    async def drain(self, seconds: float) -> None:
        """Ask all agents to half-close, take no new streams, and end those that are still there after a while."""
        self._draining = True
        for session in self._sessions.values():
            session.drain()
        if self._sessions:
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._drained.wait()
        self._end_all(Draining(DRAINING_SENTENCE))

    def end_silent(self, now: float) -> None:
        """End the streams of agents that have not spoken for too long.

        Args:
            now: As ``time.monotonic`` gives it.
        """
        for session in self._sessions.values():
            if session.silent_seconds(now) > SILENCE_SECONDS_MAX:
                message = f"the agent of host {session.host_id} said nothing for {SILENCE_SECONDS_MAX:.0f} s"
                session.end(AgentSilent(message))

    def store_failed(self) -> None:
        """End all streams: what they queued is not durable, and they must send it again."""
        self._store_failed = True
        self._end_all(StoreUnavailable(STORE_SENTENCE))

    def store_recovered(self) -> None:
        """Take streams again."""
        self._store_failed = False

    def end_for_resync(self, damage: RecordDamaged) -> None:
        """End the stream of a target whose record is damaged, so that its agent begins a new incarnation."""
        target = damage.incarnation.target
        if session := self._sessions.get(target.host_id):
            metadata = {"target": str(target), "incarnation": str(damage.incarnation.incarnation), "round": "0"}
            session.end(RoundGap(f"{damage}; begin a new incarnation", **metadata))

    async def _serve(self, session: Session, committer: Committer) -> None:
        host_id = session.host_id
        await self._take_over(session)
        try:
            await committer.settle(host_id)
            session.check()
            opening = open_stream(session.hello, self._catalog.on_host(host_id), time.time_ns())
            await committer.commit([*self._changes(session.hello, opening)])
            session.check()
            await session.welcome(self._welcome(session.hello, opening))
            agent_version = versions.printable(session.hello.agent_version)
            log.info(
                "agent_connected",
                host=host_id,
                version=agent_version,
                target_count=len(opening.positions),
                lost_count=len(opening.lost),
            )
            if versions.are_apart(agent_version, versions.OWN):
                log.warning(
                    "versions_apart",
                    host=host_id,
                    agent=agent_version,
                    collector=versions.OWN,
                    what_to_do=APART_SENTENCE,
                )
            await session.run()
        finally:
            await self._leave(session, committer)

    async def _take_over(self, session: Session) -> None:
        if self._draining:
            raise Draining(DRAINING_SENTENCE)
        if self._store_failed:
            raise StoreUnavailable(STORE_SENTENCE)
        self._check_room(session.host_id)
        older = self._sessions.get(session.host_id)
        self._sessions[session.host_id] = session
        if older:
            if older.welcomed:
                self._catalog.set_connected(session.host_id, connected=False)
            older.end(Deposed(f"a newer stream of host {session.host_id} has taken over"))
            await older.closed()

    def _check_room(self, host_id: str) -> None:
        known = self._catalog.hosts
        if host_id in known or host_id in self._sessions:
            return
        if len(known) + len(self._sessions.keys() - known.keys()) >= HOSTS_MAX:
            message = (
                f"host {host_id} is not taken: there are {HOSTS_MAX} hosts already, and one is forgotten when its "
                f"agent has been away for {HOST_KEPT_SECONDS / 3600:.0f} hours"
            )
            raise HostsTooMany(message)

    def _changes(self, hello: Hello, opening: Opening) -> Iterator[Change]:
        yield HostSeen(hello.host_id, hello.boot_id, hello.agent_version, time.time_ns())
        yield from opening.lost
        metrics.RESYNCS.labels("lost").inc(len(opening.lost))
        # Nothing of an earlier boot runs any more, and its pids mean others now.
        yield from (
            TargetUnwanted(target) for target in self._catalog.wanted(hello.host_id) if target.boot_id != hello.boot_id
        )

    def _welcome(self, hello: Hello, opening: Opening) -> Welcome:
        return Welcome(
            positions=opening.positions,
            in_flight_bytes_max=min(IN_FLIGHT_BYTES_MAX, self._limits.in_flight_bytes),
            message_bytes_max=MESSAGE_BYTES_MAX,
            heartbeat_interval_ms=HEARTBEAT_INTERVAL_MS,
            wanted=[
                Track(pid=target.pid, start_time_ticks=target.start_time_ticks)
                for target in self._catalog.wanted(hello.host_id)
            ],
            store_id=self._catalog.store_id,
            collector_version=versions.OWN,
        )

    async def _leave(self, session: Session, committer: Committer) -> None:
        if self._sessions.get(session.host_id) is not session:
            return
        del self._sessions[session.host_id]
        if not self._sessions:
            self._drained.set()
        if not session.welcomed:
            return
        self._catalog.set_connected(session.host_id, connected=False)
        log.info("agent_disconnected", host=session.host_id)
        hello = session.hello
        seen = HostSeen(hello.host_id, hello.boot_id, hello.agent_version, time.time_ns())
        with suppress(StoreUnavailable):
            await committer.submit((seen,))

    def _end_all(self, refusal: Refusal) -> None:
        for session in self._sessions.values():
            session.end(refusal)


async def _hello(context: ServicerContext[Any, Any]) -> Hello:
    try:
        async with asyncio.timeout(HELLO_SECONDS_MAX):
            message = await context.read()
    except TimeoutError as error:
        text = f"a stream was open for {HELLO_SECONDS_MAX:.0f} s without a Hello"
        raise AgentSilent(text) from error
    if message is EOF or message.WhichOneof("message") != "hello":
        text = "a stream began without a Hello; it must be the first message"
        raise MessageMalformed(text)
    check_hello(message.hello)
    hello: Hello = message.hello
    return hello


def _check_host(host_id: str) -> None:
    """Keep an agent to its own host.

    Raises:
        HostForbidden: Its certificate or token names another one.
    """
    own = CALLER.get().host_id
    if own not in (None, host_id):
        message = (
            f"the agent of host {own} may not write for host {host_id}: give it --host-id {own}, or its own identity"
        )
        raise HostForbidden(message)
