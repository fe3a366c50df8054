"""The calls of DirtyService, for threads and for asyncio: who is tracked, what is dirty, and as of when.

What a request is and what an answer means is decided in ``requests``, ``values``, ``answers`` and ``errors``, for both
alike.
"""

from __future__ import annotations

import time
from contextlib import aclosing
from typing import TYPE_CHECKING, TypeVar

from wetink.v1 import dirty_pb2
from wetink_client import requests
from wetink_client.errors import CollectorUnavailable
from wetink_client.requests import (
    AGENT_SECONDS_MAX,
    BARRIER_SECONDS,
    LIST_SECONDS_MAX,
    MARGIN_SECONDS,
    TRANSFER_SECONDS_MAX,
)
from wetink_client.transport import AsyncTransport, Transport
from wetink_client.values import (
    BarrierResult,
    DirtyCounts,
    Freeze,
    Host,
    Selectable,
    Selection,
    Strictness,
    TargetInfo,
    TargetMappings,
    Thawed,
    all_ended,
    barrier_of,
    check_frozen,
    host_of,
    mappings_of,
    target_of,
    thawed_of,
    tree_of,
    watched_counts_of,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Generator, Mapping

    import grpc

    from wetink_client.answers import Assembly, DirtySet, OneAnswer
    from wetink_client.events import EventBatch, EventReader
    from wetink_client.transport import AsyncStubs, Stubs

_ListRequest = TypeVar("_ListRequest", bound=dirty_pb2.ListHostsRequest | dirty_pb2.ListTargetsRequest)
_ListResponse = TypeVar("_ListResponse", bound=dirty_pb2.ListHostsResponse | dirty_pb2.ListTargetsResponse)


class DirtyCalls(Transport):
    """What ``Collector`` asks of hosts, targets and their dirty sets."""

    def hosts(self) -> tuple[Host, ...]:
        """List the hosts that have, or had, an agent, in the order of their ids."""
        pages = self._walk(lambda stubs: stubs.dirty.ListHosts, requests.hosts())
        return tuple(host_of(host) for page in pages for host in page.hosts)

    def targets(self, selection: Selectable | None = None) -> tuple[TargetInfo, ...]:
        """List targets in the order of their names, also those that ended not long ago.

        Args:
            selection: None or an empty one means all.
        """
        pages = self._walk(lambda stubs: stubs.dirty.ListTargets, requests.targets(selection))
        return tuple(target_of(target) for page in pages for target in page.targets)

    def tree(self, root: str) -> Selection:
        """Select a process and all targets that descend from it, as they are now.

        Those whose tracking was refused, failed or was lost are among them: no answer that leaves them out is complete.
        Agents of the first version tell of no ancestors: of theirs the process alone is found.

        Args:
            root: ``HOST/PID``, or ``HOST/PID@START``, which must itself be a target.

        Raises:
            NotFound: No target is it, or descends from it.
        """
        name = requests.process(root)
        return tree_of(self.targets(Selection(hosts=(name.host_id,))), name)

    def mappings(self, target: str) -> TargetMappings:
        """Tell what a target has mapped, and what of it can change unseen, as its agent said last.

        Args:
            target: ``HOST/PID@START`` or ``HOST/PID``.

        Raises:
            NotFound: No such target.
            MappingsUnknown: Nobody has told it: the agent is older, or has not come back since the collector started.
        """
        return mappings_of(
            self._ask(lambda stubs: stubs.dirty.ListMappings, requests.mappings(target), LIST_SECONDS_MAX)
        )

    def track(self, host: str, pid: int) -> TargetInfo:
        """Begin to track a process, and go on when the agent or the collector restarts.

        Tracking a tracked process changes nothing and succeeds.

        Args:
            host: Host id, as ``hosts()`` lists it.
            pid: In the pid namespace of the host's agent.

        Raises:
            NotFound: No such host or process.
            AgentUnavailable: The host's agent is not connected or does not answer.
            Refused: The agent's sentence says why.
        """
        response = self._ask(lambda stubs: stubs.dirty.Track, requests.track(host, pid), AGENT_SECONDS_MAX)
        return target_of(response.target)

    def untrack(self, target: str) -> TargetInfo:
        """Stop tracking, and give the target as it ended.

        Raises:
            NotFound: No such target.
            AgentUnavailable: The host's agent is not connected or does not answer.
        """
        response = self._ask(lambda stubs: stubs.dirty.Untrack, requests.untrack(target), AGENT_SECONDS_MAX)
        return target_of(response.target)

    def barrier(
        self, selection: Selectable, *, barrier_seconds: float = BARRIER_SECONDS, freeze: Freeze | bool = False
    ) -> BarrierResult:
        """Make every write from before the call known: harvest on the hosts, commit, then answer.

        A target that was not reached, or not frozen where that was asked for, is in the result with its reason; the
        call itself succeeds.

        Args:
            selection: Must not be empty.
            barrier_seconds: How long to wait for the agents, at most 60.
            freeze: Freeze all of them before the first is harvested, until the last was or for longer. Who holds
                targets calls ``thaw``, also after a failure: otherwise they go on when the hold's time is over.

        Raises:
            NotFound: A named target is not known.
            Refused: The collector is older than freezing.
        """
        how = Freeze.of(freeze)
        request = requests.barrier(selection, barrier_seconds=barrier_seconds, freeze=how)
        result = barrier_of(self._ask(lambda stubs: stubs.dirty.Barrier, request, barrier_seconds + MARGIN_SECONDS))
        check_frozen(result.targets.values(), how, self.address)
        return result

    def thaw(self, selection: Selectable, hold: str = "") -> Mapping[str, Thawed]:
        """Let targets go on that a hold keeps frozen, and give what became of each, by name.

        Args:
            selection: Must not be empty.
            hold: The hold's name. Empty means every hold on them, also those of others.

        Raises:
            NotFound: A named target is not known.
        """
        return thawed_of(self._ask(lambda stubs: stubs.dirty.Thaw, requests.thaw(selection, hold), AGENT_SECONDS_MAX))

    def dirty(
        self,
        selection: Selectable,
        since: str | None = None,
        *,
        barrier: bool = False,
        barrier_seconds: float = BARRIER_SECONDS,
        freeze: Freeze | bool = False,
        transfer_seconds: float = TRANSFER_SECONDS_MAX,
        strictness: Strictness = Strictness.STRICT,
    ) -> DirtySet:
        """Ask which pages are dirty since a cursor.

        The reader's rule: copy what is written, drop what vanished, finish, and only then ask for the next set.

        Args:
            selection: Must not be empty.
            since: The cursor of an earlier answer. None means from the beginning: every populated page is written and
                nothing vanished; drop all you hold of the targets first. A target that the cursor does not name is
                answered from its beginning, too.
            barrier: Whether to harvest first. Without it the answer is as of the last committed rounds.
            barrier_seconds: How long to wait for the agents then, at most 60.
            freeze: As for ``barrier``, and it harvests first too. The answer is as of the harvest that was frozen.
            transfer_seconds: How long the rest may take.
            strictness: Whether pages to which something may have written unseen count as written. Finish a migration
                on a strict answer only; a collector that knows nothing of this is always strict.

        Raises:
            NotFound: A named target is not known.
            ResynchronisationNeeded: The cursor leads nowhere any more: drop all you hold, ask without it.
            BrokenAnswer: The answer was cut off or damaged. It is never a smaller set.
            Refused: The collector is older than freezing.
        """
        how = Freeze.of(freeze)
        barrier = barrier or how is not None
        request = requests.dirty(
            selection, since, barrier=barrier, barrier_seconds=barrier_seconds, strictness=strictness, freeze=how
        )
        deadline_seconds = transfer_seconds + (barrier_seconds if barrier else 0)
        answer = one_answer()
        for part in self._listen(lambda stubs: stubs.dirty.GetDirty, request, deadline_seconds):
            answer.take(part)
        found = answer.finish()
        check_frozen(found.targets.values(), how, self.address)
        return found

    def watch(
        self,
        selection: Selectable,
        since: str | None = None,
        *,
        interval_seconds_min: float = 0.0,
        strictness: Strictness = Strictness.STRICT,
    ) -> Generator[DirtySet]:
        """Ask again and again: first what is dirty since the cursor, then each time rounds were committed.

        A reader that is slow gets fewer, larger answers. It has no deadline: it ends when the caller stops listening,
        when every target of a selection by names alone has exited or been untracked, or with CollectorUnavailable,
        also when a collector is silent on the connection for 15 s. To go on after that, watch again since the last
        answer's cursor.

        Args:
            selection: Must not be empty. Targets that come to match later are included from their first round.
            since: As for ``dirty``.
            interval_seconds_min: The least time between two answers. 0 means each commit.
            strictness: As for ``dirty``.

        Raises:
            NotFound: A named target is not known.
            ResynchronisationNeeded: A target's incarnation ended: drop all you hold of it and watch
                again without a cursor.
            BrokenAnswer: An answer was damaged. It is never a smaller set.
        """
        chosen = Selection.of(selection)
        request = requests.watch(
            chosen, since, pages=True, interval_seconds_min=interval_seconds_min, strictness=strictness
        )
        assembly = _assembly()
        is_over = False
        for part in self._listen(lambda stubs: stubs.dirty.Watch, request, None):
            answer = assembly.take(part)
            is_over = answer is not None and all_ended(chosen, answer)
            if answer is not None:
                yield answer
        if not is_over:
            raise _watch_ended(self.address)

    def watch_counts(
        self,
        selection: Selectable,
        since: str | None = None,
        *,
        interval_seconds_min: float = 0.0,
        strictness: Strictness = Strictness.STRICT,
    ) -> Generator[DirtyCounts]:
        """Ask again and again how much is dirty, without the pages. Apart from that as ``watch``."""
        chosen = Selection.of(selection)
        request = requests.watch(
            chosen, since, pages=False, interval_seconds_min=interval_seconds_min, strictness=strictness
        )
        is_over = False
        for part in self._listen(lambda stubs: stubs.dirty.Watch, request, None):
            counts = watched_counts_of(part)
            is_over = all_ended(chosen, counts)
            yield counts
        if not is_over:
            raise _watch_ended(self.address)

    def events(self, target: str, *, follow: bool = False) -> Generator[EventBatch]:
        """Give the single writes of one target that the collector keeps, oldest first.

        They say who wrote, when and in which order, where the target's backend knows; what is dirty is for ``dirty``
        to say. The collector keeps a bounded number: what was lost or forgotten is in the batches.

        Args:
            target: ``HOST/PID@START`` or ``HOST/PID``.
            follow: Go on with later rounds, without a deadline, until the target ends.

        Raises:
            NotFound: The target is not known.
        """
        request = dirty_pb2.StreamEventsRequest(target=target, follow=follow)
        reader = _event_reader()
        for message in self._listen(
            lambda stubs: stubs.dirty.StreamEvents, request, None if follow else TRANSFER_SECONDS_MAX
        ):
            yield reader.read(message)

    def _walk(
        self,
        method: Callable[[Stubs], grpc.UnaryUnaryMultiCallable[_ListRequest, _ListResponse]],
        request: _ListRequest,
    ) -> Generator[_ListResponse]:
        """Give a list page by page, under one deadline."""
        until = time.monotonic() + LIST_SECONDS_MAX
        while True:
            page = self._ask(method, request, until - time.monotonic())
            yield page
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token


class AsyncDirtyCalls(AsyncTransport):
    """The same for asyncio: each method does what that of ``DirtyCalls`` of the same name does."""

    async def hosts(self) -> tuple[Host, ...]:
        """As ``Collector.hosts``."""
        pages = self._walk(lambda stubs: stubs.dirty.ListHosts, requests.hosts())
        return tuple([host_of(host) async for page in pages for host in page.hosts])

    async def targets(self, selection: Selectable | None = None) -> tuple[TargetInfo, ...]:
        """As ``Collector.targets``."""
        pages = self._walk(lambda stubs: stubs.dirty.ListTargets, requests.targets(selection))
        return tuple([target_of(target) async for page in pages for target in page.targets])

    async def tree(self, root: str) -> Selection:
        """As ``Collector.tree``."""
        name = requests.process(root)
        return tree_of(await self.targets(Selection(hosts=(name.host_id,))), name)

    async def mappings(self, target: str) -> TargetMappings:
        """As ``Collector.mappings``."""
        return mappings_of(
            await self._ask(lambda stubs: stubs.dirty.ListMappings, requests.mappings(target), LIST_SECONDS_MAX)
        )

    async def track(self, host: str, pid: int) -> TargetInfo:
        """As ``Collector.track``."""
        response = await self._ask(lambda stubs: stubs.dirty.Track, requests.track(host, pid), AGENT_SECONDS_MAX)
        return target_of(response.target)

    async def untrack(self, target: str) -> TargetInfo:
        """As ``Collector.untrack``."""
        response = await self._ask(lambda stubs: stubs.dirty.Untrack, requests.untrack(target), AGENT_SECONDS_MAX)
        return target_of(response.target)

    async def barrier(
        self, selection: Selectable, *, barrier_seconds: float = BARRIER_SECONDS, freeze: Freeze | bool = False
    ) -> BarrierResult:
        """As ``Collector.barrier``."""
        how = Freeze.of(freeze)
        request = requests.barrier(selection, barrier_seconds=barrier_seconds, freeze=how)
        result = barrier_of(
            await self._ask(lambda stubs: stubs.dirty.Barrier, request, barrier_seconds + MARGIN_SECONDS)
        )
        check_frozen(result.targets.values(), how, self.address)
        return result

    async def thaw(self, selection: Selectable, hold: str = "") -> Mapping[str, Thawed]:
        """As ``Collector.thaw``."""
        return thawed_of(
            await self._ask(lambda stubs: stubs.dirty.Thaw, requests.thaw(selection, hold), AGENT_SECONDS_MAX)
        )

    async def dirty(
        self,
        selection: Selectable,
        since: str | None = None,
        *,
        barrier: bool = False,
        barrier_seconds: float = BARRIER_SECONDS,
        freeze: Freeze | bool = False,
        transfer_seconds: float = TRANSFER_SECONDS_MAX,
        strictness: Strictness = Strictness.STRICT,
    ) -> DirtySet:
        """As ``Collector.dirty``: copy what is written, drop what vanished, finish, and only then ask again."""
        how = Freeze.of(freeze)
        barrier = barrier or how is not None
        request = requests.dirty(
            selection, since, barrier=barrier, barrier_seconds=barrier_seconds, strictness=strictness, freeze=how
        )
        deadline_seconds = transfer_seconds + (barrier_seconds if barrier else 0)
        answer = one_answer()
        async for part in self._listen(lambda stubs: stubs.dirty.GetDirty, request, deadline_seconds):
            answer.take(part)
        found = answer.finish()
        check_frozen(found.targets.values(), how, self.address)
        return found

    async def watch(
        self,
        selection: Selectable,
        since: str | None = None,
        *,
        interval_seconds_min: float = 0.0,
        strictness: Strictness = Strictness.STRICT,
    ) -> AsyncGenerator[DirtySet]:
        """As ``Collector.watch``."""
        chosen = Selection.of(selection)
        request = requests.watch(
            chosen, since, pages=True, interval_seconds_min=interval_seconds_min, strictness=strictness
        )
        assembly = _assembly()
        is_over = False
        async with aclosing(self._listen(lambda stubs: stubs.dirty.Watch, request, None)) as parts:
            async for part in parts:
                answer = assembly.take(part)
                is_over = answer is not None and all_ended(chosen, answer)
                if answer is not None:
                    yield answer
        if not is_over:
            raise _watch_ended(self.address)

    async def watch_counts(
        self,
        selection: Selectable,
        since: str | None = None,
        *,
        interval_seconds_min: float = 0.0,
        strictness: Strictness = Strictness.STRICT,
    ) -> AsyncGenerator[DirtyCounts]:
        """As ``Collector.watch_counts``."""
        chosen = Selection.of(selection)
        request = requests.watch(
            chosen, since, pages=False, interval_seconds_min=interval_seconds_min, strictness=strictness
        )
        is_over = False
        async with aclosing(self._listen(lambda stubs: stubs.dirty.Watch, request, None)) as parts:
            async for part in parts:
                counts = watched_counts_of(part)
                is_over = all_ended(chosen, counts)
                yield counts
        if not is_over:
            raise _watch_ended(self.address)

    async def events(self, target: str, *, follow: bool = False) -> AsyncGenerator[EventBatch]:
        """As ``Collector.events``."""
        request = dirty_pb2.StreamEventsRequest(target=target, follow=follow)
        reader = _event_reader()
        deadline_seconds = None if follow else TRANSFER_SECONDS_MAX
        async with aclosing(
            self._listen(lambda stubs: stubs.dirty.StreamEvents, request, deadline_seconds)
        ) as messages:
            async for message in messages:
                yield reader.read(message)

    async def _walk(
        self,
        method: Callable[[AsyncStubs], grpc.aio.UnaryUnaryMultiCallable[_ListRequest, _ListResponse]],
        request: _ListRequest,
    ) -> AsyncGenerator[_ListResponse]:
        until = time.monotonic() + LIST_SECONDS_MAX
        while True:
            page = await self._ask(method, request, until - time.monotonic())
            yield page
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token


def one_answer() -> OneAnswer:
    """Begin to put the parts of one answer together.

    Imported here, since numpy comes with page sets and takes 0.2 s: who only lists should not wait for it.
    """
    from wetink_client.answers import OneAnswer  # noqa: PLC0415

    return OneAnswer()


def _assembly() -> Assembly:
    from wetink_client.answers import Assembly  # noqa: PLC0415 - as above

    return Assembly()


def _event_reader() -> EventReader:
    from wetink_client.events import EventReader  # noqa: PLC0415 - as above

    return EventReader()


def _watch_ended(address: str) -> CollectorUnavailable:
    return CollectorUnavailable(f"collector {address} ended the watch: watch again since the last answer's cursor")
