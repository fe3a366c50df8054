"""DirtyService at its edge: requests are checked, agents are asked, and answers are sent.

The rpcs are documented in ``wetink/v1/dirty.proto``.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any, Final, TypeAlias

from google.rpc import code_pb2
from grpc.aio import ServicerContext

from wetink.names import NameMalformed, check_host_id, parse_target
from wetink.v1 import dirty_pb2 as pb
from wetink.v1.dirty_pb2_grpc import DirtyServiceServicer
from wetink.v1.ingest_pb2 import CommandResult
from wetink.v1.types_pb2 import END_REASON_EXITED, END_REASON_UNSPECIFIED, Freeze
from wetink_collector.agents import DRAINING_SENTENCE, Agents
from wetink_collector.answer import Answerer, Ending, are_all_reached, consistency, is_unbroken
from wetink_collector.asked import barrier_seconds, check_hold, chosen_now, freeze_of, positions_of
from wetink_collector.barrier import Reached, reach
from wetink_collector.catalog import Catalog, HostRecord, TargetRecord
from wetink_collector.committer import Committer
from wetink_collector.cursor import Cursor, Position, decode, encode
from wetink_collector.edge import edge
from wetink_collector.errors import (
    AgentDisconnected,
    AgentSilent,
    Draining,
    HostUnknown,
    MappingsUnknown,
    ProcessUnknown,
    Refusal,
    RequestMalformed,
    TargetRefused,
    TargetUnknown,
    TrackForbidden,
    TrackRefused,
)
from wetink_collector.event_history import EventReader
from wetink_collector.identity import TargetKey
from wetink_collector.page import page
from wetink_collector.selection import listed, parse, parse_non_empty, resolve
from wetink_collector.session import Session, disconnected
from wetink_collector.store.interface import TargetUnwanted, TargetWanted

COMMAND_SECONDS_MAX: Final = 15.0
"""How long an agent may take to track or untrack: an attach takes milliseconds, a process that is stopped or held by a
debugger some seconds."""

SENTENCE_CHARACTERS_MAX: Final = 1024
"""Bound on an agent's sentence that a call ends with: callers take no status of over 8 KiB, and then know no reason."""

INTERVAL_MS_MAX: Final = 3_600_000
"""Bound on the time between two answers of a watch: after an hour an ended target is forgotten."""

_Context: TypeAlias = ServicerContext[Any, Any]


class DirtyService(DirtyServiceServicer):
    """The service that orchestrators speak with."""

    def __init__(self, catalog: Catalog, agents: Agents, committer: Committer, answerer: Answerer) -> None:
        """Answer from a catalog and a store, and ask agents."""
        self._catalog = catalog
        self._agents = agents
        self._committer = committer
        self._answerer = answerer
        self._drained: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def drain(self) -> None:
        """End every watch and every stream of events: its reader goes on where the collector comes back."""
        if not self._drained.done():
            self._drained.set_result(None)

    async def ListHosts(  # noqa: N802 (named in the .proto)
        self,
        request: pb.ListHostsRequest,
        context: _Context,
    ) -> pb.ListHostsResponse:
        """List hosts."""
        async with edge(_SERVICE, "ListHosts", context):
            found = self._catalog.hosts.values()
            hosts, token = page(request, found, key=lambda host: host.host_id, entry=self._host)
            return pb.ListHostsResponse(hosts=hosts, next_page_token=token)

    async def ListTargets(  # noqa: N802 (as above)
        self, request: pb.ListTargetsRequest, context: _Context
    ) -> pb.ListTargetsResponse:
        """List targets."""
        async with edge(_SERVICE, "ListTargets", context):
            found = listed(parse(request.selection), self._catalog)
            targets, token = page(request, found, key=lambda record: record.order, entry=self._info)
            return pb.ListTargetsResponse(targets=targets, next_page_token=token)

    async def ListMappings(  # noqa: N802 (as above)
        self, request: pb.ListMappingsRequest, context: _Context
    ) -> pb.ListMappingsResponse:
        """Tell what a target has mapped."""
        async with edge(_SERVICE, "ListMappings", context):
            return self._mappings(self._target(request.target))

    async def Track(self, request: pb.TrackRequest, context: _Context) -> pb.TrackResponse:  # noqa: N802 (as above)
        """Have an agent track a process, now and whenever it comes back."""
        async with edge(_SERVICE, "Track", context):
            return pb.TrackResponse(target=self._info(await self._track(request)))

    async def Untrack(self, request: pb.UntrackRequest, context: _Context) -> pb.UntrackResponse:  # noqa: N802 (as above)
        """Have an agent stop tracking a process."""
        async with edge(_SERVICE, "Untrack", context):
            return pb.UntrackResponse(target=self._info(await self._untrack(request)))

    async def Thaw(self, request: pb.ThawRequest, context: _Context) -> pb.ThawResponse:  # noqa: N802 (as above)
        """Let targets go on that are held frozen."""
        async with edge(_SERVICE, "Thaw", context):
            return await self._thaw(request)

    async def Barrier(self, request: pb.BarrierRequest, context: _Context) -> pb.BarrierResponse:  # noqa: N802 (as above)
        """Make every write from before the call known."""
        async with edge(_SERVICE, "Barrier", context):
            return await self._barrier(request)

    async def GetDirty(  # noqa: N802 (as above)
        self, request: pb.GetDirtyRequest, context: _Context
    ) -> AsyncIterator[pb.GetDirtyResponse]:
        """Give what is dirty since a cursor."""
        async with edge(_SERVICE, "GetDirty", context):
            async for part in self._get_dirty(request):
                if isinstance(part, Ending):
                    yield pb.GetDirtyResponse(summary=part.summary)
                else:
                    yield pb.GetDirtyResponse(pages=part)

    async def Watch(  # noqa: N802 (as above)
        self, request: pb.WatchRequest, context: _Context
    ) -> AsyncIterator[pb.WatchResponse]:
        """Give what is dirty since a cursor, again and again."""
        async with edge(_SERVICE, "Watch", context, lasting=True):
            async for part in self._watch(request):
                if isinstance(part, Ending):
                    yield pb.WatchResponse(summary=part.summary)
                elif request.pages:
                    yield pb.WatchResponse(pages=part)

    async def StreamEvents(  # noqa: N802 (as above)
        self, request: pb.StreamEventsRequest, context: _Context
    ) -> AsyncIterator[pb.StreamEventsResponse]:
        """Give the single writes of a target that are kept, and those to come."""
        async with edge(_SERVICE, "StreamEvents", context, lasting=True):
            async for chunk in self._stream_events(request):
                yield chunk

    async def _track(self, request: pb.TrackRequest) -> TargetRecord:
        host_id = _host_id(request.host_id)
        if not request.pid:
            message = "pid 0 is no process; give the one that the host's agent sees"
            raise RequestMalformed(message)
        if host_id not in self._catalog.hosts:
            message = f"host {host_id} is not known here; `wetink hosts` lists those that are"
            raise HostUnknown(message)
        session = self._session(host_id)
        async with _answered_in_time(session):
            result = await session.track(request.pid)
            _check_tracked(result, session, request.pid)
            target = TargetKey.of(result.position.target)
            record = await self._when(target, lambda record: _has_begun(record, result.position.incarnation))
            if record.is_refused and record.ended:
                raise TargetRefused(record.ended.message)
            await self._committer.commit((TargetWanted(target),))
            return record

    def _mappings(self, record: TargetRecord) -> pb.ListMappingsResponse:
        table = self._catalog.mappings.get(record.incarnation)
        if table is None:
            message = (
                f"the agent of host {record.target.host_id} has not told what {record.name} has mapped: it is older "
                "than this call, or has not come back since the collector started"
            )
            raise MappingsUnknown(message)
        return pb.ListMappingsResponse(
            name=record.name,
            incarnation=table.incarnation,
            round=table.round,
            mappings=table.mappings,
            cut=table.cut,
            unseen_writers=table.unseen_writers,
        )

    async def _untrack(self, request: pb.UntrackRequest) -> TargetRecord:
        record = self._target(request.target)
        target = record.target
        session = self._agents.session(target.host_id)
        if not (record.ended and (session is None or record.ended.reason == END_REASON_EXITED)):
            session = self._session(target.host_id)
            async with _answered_in_time(session):
                _check_untracked(await session.untrack(target), record)
                record = await self._when(target, lambda record: record.ended is not None)
        await self._committer.commit((TargetUnwanted(target),))
        return record

    async def _barrier(self, request: pb.BarrierRequest) -> pb.BarrierResponse:
        chosen = parse_non_empty(request.selection)
        records = chosen_now(self._catalog, chosen)
        reached = await self._reach(records, request.timeout_ms, freeze_of(request))
        now = [self._catalog.get(record.target) or record for record in records]
        statuses = [await self._answerer.status_at(record, reached.get(record.target)) for record in now]
        positions = {
            record.target: Position(part.incarnation, part.round)
            for record, part in zip(now, statuses, strict=True)
            # Of what ended with a gap no copy can go on. Who means it by its name is told so, once; where it is only
            # one of many, the others' would be of no use.
            if is_unbroken(record) or chosen.names_target(record.target)
        }
        return pb.BarrierResponse(
            cursor=encode(Cursor(self._catalog.store_id, positions)),
            targets=statuses,
            consistency=consistency(statuses, all_reached=are_all_reached(now, reached)),
        )

    async def _thaw(self, request: pb.ThawRequest) -> pb.ThawResponse:
        if request.hold:
            check_hold(request.hold)
        records = chosen_now(self._catalog, parse_non_empty(request.selection))
        by_host = {
            host_id: [record.target for record in records if record.target.host_id == host_id]
            for host_id in {record.target.host_id for record in records}
        }
        asked = [self._thaw_host(host_id, targets, request.hold) for host_id, targets in by_host.items()]
        thawed = dict(pair for pairs in await asyncio.gather(*asked) for pair in pairs)
        return pb.ThawResponse(
            targets=[
                pb.ThawStatus(name=record.name, held=not why and held, message=why)
                for record in records
                for held, why in (thawed[record.target],)
            ]
        )

    async def _thaw_host(
        self, host_id: str, targets: Sequence[TargetKey], hold: str
    ) -> list[tuple[TargetKey, tuple[bool, str]]]:
        """Give, of each target of a host, whether it was held, and why nobody could be asked."""
        session = self._agents.session(host_id)
        try:
            if session is None:
                raise disconnected(host_id)
            if not session.can_freeze:
                return [(target, (False, "")) for target in targets]
            async with _answered_in_time(session):
                answer = await session.thaw(hold, targets)
        except (AgentDisconnected, AgentSilent) as refusal:
            return [(target, (False, str(refusal))) for target in targets]
        thawed = {TargetKey.of(target) for target in answer.targets}
        return [(target, (target in thawed, "")) for target in targets]

    async def _get_dirty(self, request: pb.GetDirtyRequest) -> AsyncIterator[pb.DirtyPages | Ending]:
        chosen = parse_non_empty(request.selection)
        cursor = decode(request.cursor) if request.cursor else None
        records = chosen_now(self._catalog, chosen, cursor)
        positions = positions_of(self._catalog, cursor, chosen, records)
        freeze = freeze_of(request)
        if freeze and not request.barrier:
            message = "freeze without barrier: nothing would be harvested while the targets are frozen; ask for both"
            raise RequestMalformed(message)
        reached = await self._reach(records, request.barrier_timeout_ms, freeze) if request.barrier else None
        answer = self._answerer.answer(
            records, positions, chosen=chosen, reached=reached, strictness=request.strictness
        )
        async for part in answer:
            yield part

    async def _watch(self, request: pb.WatchRequest) -> AsyncIterator[pb.DirtyPages | Ending]:
        if request.interval_min_ms > INTERVAL_MS_MAX:
            message = f"interval_min_ms is {request.interval_min_ms}, at most {INTERVAL_MS_MAX} is possible"
            raise RequestMalformed(message)
        chosen = parse_non_empty(request.selection)
        cursor = decode(request.cursor) if request.cursor else None
        held = cursor.positions if cursor else {}
        positions = positions_of(self._catalog, cursor, chosen, resolve(chosen, self._catalog, held))
        told: Mapping[TargetKey, _Told] = {}
        with self._catalog.bell(()) as bell:
            while True:
                records = resolve(chosen, self._catalog, positions)
                bell.targets = frozenset(record.target for record in records)
                news = {record.target: self._state(record) for record in records}
                if news and news != told:
                    answer = self._answerer.answer(
                        records, positions, chosen=chosen, reached=None, strictness=request.strictness
                    )
                    async for part in answer:
                        yield part
                        if isinstance(part, Ending):
                            positions = part.cursor.positions
                    told = {target: replace(news[target], round=positions[target].round) for target in positions}
                    # Told as not covered, and in no cursor.
                    others = (one for one in records if one.target not in positions and self._catalog.may_live(one))
                    told |= {one.target: news[one.target] for one in others}
                    if chosen.only_names and all(record.ended for record in records):
                        return
                    await self._unless_drained(asyncio.sleep(request.interval_min_ms / 1000))
                await self._unless_drained(bell.wait())

    async def _stream_events(self, request: pb.StreamEventsRequest) -> AsyncIterator[pb.StreamEventsResponse]:
        target = self._target(request.target).target
        reader = EventReader(self._catalog.events, target)
        with self._catalog.bell((target,)) as bell:
            while True:
                # Looked at first: what comes with the end is there by then.
                record = self._catalog.get(target)
                chunks = reader.take()
                for chunk, forgotten_count in chunks:
                    if chunk.incarnation == request.after_incarnation and chunk.last_round <= request.after_round:
                        continue
                    yield pb.StreamEventsResponse(
                        incarnation=chunk.incarnation,
                        first_round=chunk.first_round,
                        last_round=chunk.last_round,
                        events=chunk.columns,
                        forgotten_count=forgotten_count,
                    )
                if chunks:
                    # Nothing is sent of what is passed over, and it may be much: others are served meanwhile.
                    await asyncio.sleep(0)
                    continue
                if not request.follow or record is None or record.ended:
                    return
                await self._unless_drained(bell.wait())

    async def _unless_drained(self, awaitable: Awaitable[None]) -> None:
        waiting = asyncio.ensure_future(awaitable)
        try:
            await asyncio.wait({waiting, self._drained}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            waiting.cancel()
        if self._drained.done():
            raise Draining(DRAINING_SENTENCE)

    async def _reach(
        self, records: Sequence[TargetRecord], timeout_ms: int, freeze: Freeze | None
    ) -> Mapping[TargetKey, Reached]:
        timeout_seconds = barrier_seconds(timeout_ms)
        return await reach(records, self._agents, self._catalog, timeout_seconds=timeout_seconds, freeze=freeze)

    async def _when(self, target: TargetKey, holds: Callable[[TargetRecord], bool]) -> TargetRecord:
        with self._catalog.bell((target,)) as bell:
            while not ((record := self._catalog.get(target)) and holds(record)):
                await bell.wait()
            return record

    def _target(self, text: str) -> TargetRecord:
        try:
            name = parse_target(text)
        except NameMalformed as error:
            raise RequestMalformed(str(error)) from error
        record = self._catalog.find(name)
        if record is None:
            message = f"target {name} is not known here; `wetink targets` lists those that are"
            raise TargetUnknown(message)
        return record

    def _session(self, host_id: str) -> Session:
        session = self._agents.session(host_id)
        if session is None:
            raise disconnected(host_id)
        return session

    def _state(self, record: TargetRecord) -> "_Told":
        connected = self._catalog.connected(record.target.host_id)
        return _Told(record.incarnation.incarnation, record.round, connected=connected, ended=record.ended is not None)

    def _host(self, host: HostRecord) -> pb.Host:
        return pb.Host(
            host_id=host.host_id,
            boot_id=host.boot_id,
            connected=host.connected,
            last_seen_time_ns=host.last_seen_time_ns,
            agent_version=host.agent_version,
            target_count=sum(1 for record in self._catalog.on_host(host.host_id) if not record.ended),
            spool_bytes=host.spool_bytes,
            rounds_united=host.rounds_united,
        )

    def _info(self, record: TargetRecord) -> pb.TargetInfo:
        started, ended, last = record.started, record.ended, record.last
        info = pb.TargetInfo(
            name=record.name,
            target=started.target,
            incarnation=started.incarnation,
            round=record.round,
            live=ended is None and self._catalog.connected(record.target.host_id),
            end_reason=ended.reason if ended else END_REASON_UNSPECIFIED,
            end_message=ended.message if ended else "",
            command=started.command,
            cgroup=started.cgroup,
            page_size=started.page_size,
            backend=started.backend,
            backend_reason=started.backend_reason,
            scope=started.scope,
            labels=started.labels,
            ancestors=started.ancestors,
            pace=record.pace,
        )
        if last:
            info.as_of_time_ns = last.last_time_ns
            info.populated_page_count = last.populated_page_count
            info.last_written_page_count = last.written_page_count
            info.last_window_ns = record.window_ns
            info.cautious_page_count = last.cautious_page_count
        return info


@dataclass(frozen=True, slots=True)
class _Told:
    """What a watch has told of a target: it speaks again when something of this is different."""

    incarnation: int
    round: int
    connected: bool
    ended: bool


@asynccontextmanager
async def _answered_in_time(session: Session) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(COMMAND_SECONDS_MAX):
            yield
    except TimeoutError as error:
        message = f"the agent of host {session.host_id} did not answer in {COMMAND_SECONDS_MAX:.0f} s; see its log"
        raise AgentSilent(message) from error


def _host_id(text: str) -> str:
    try:
        return check_host_id(text)
    except NameMalformed as error:
        raise RequestMalformed(str(error)) from error


def _check_tracked(result: CommandResult, session: Session, pid: int) -> None:
    """Accept the agent's answer to Track.

    Raises:
        ProcessUnknown, TrackForbidden, TrackRefused, RequestMalformed: It did not track the process.
    """
    if result.code:
        refusal = _REFUSAL_OF.get(result.code, TrackRefused)
        said = result.message[:SENTENCE_CHARACTERS_MAX]
        raise refusal(said or f"the agent of host {session.host_id} cannot track process {pid}")
    target = result.position.target
    if (target.host_id, target.boot_id) != (session.host_id, session.hello.boot_id):
        message = f"the agent of host {session.host_id} answered about a target of host {target.host_id[:253]!r}"
        raise TrackRefused(message)


def _check_untracked(result: CommandResult, record: TargetRecord) -> None:
    """Accept the agent's answer to Untrack. A process that it does not track is what was asked for."""
    if result.code not in (code_pb2.OK, code_pb2.NOT_FOUND):
        raise TrackRefused(result.message[:SENTENCE_CHARACTERS_MAX] or f"the agent cannot stop tracking {record.name}")


def _has_begun(record: TargetRecord, incarnation: int) -> bool:
    return record.incarnation.incarnation >= incarnation


_SERVICE: Final = pb.DESCRIPTOR.services_by_name["DirtyService"].full_name
_REFUSAL_OF: Final[Mapping[int, type[Refusal]]] = {
    code_pb2.NOT_FOUND: ProcessUnknown,
    code_pb2.PERMISSION_DENIED: TrackForbidden,
    code_pb2.INVALID_ARGUMENT: RequestMalformed,
    code_pb2.RESOURCE_EXHAUSTED: TargetRefused,
}
