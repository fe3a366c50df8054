"""What the collector knows of hosts and targets without looking at pages, and who wants to hear of a change.

It holds what is durable: changes come here after their commit. Used on the event loop only.
"""

import asyncio
from collections import defaultdict
from collections.abc import Collection, Container, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import count
from typing import Final, Protocol, TypeVar

from wetink.names import TargetName
from wetink.v1.ingest_pb2 import TargetStarted
from wetink.v1.types_pb2 import END_REASON_FAILED, END_REASON_LOST, END_REASON_REFUSED, Pace
from wetink_collector import metrics
from wetink_collector.event_history import EventHistory
from wetink_collector.identity import IncarnationKey, TargetKey
from wetink_collector.mapping_tables import MappingTables
from wetink_collector.round_log import Block
from wetink_collector.store.interface import (
    Change,
    Contents,
    HostForgotten,
    HostSeen,
    IncarnationEnded,
    IncarnationStarted,
    RoundsAppended,
    TargetForgotten,
    TargetUnwanted,
    TargetWanted,
)

ENDED_KEPT_SECONDS: Final = 3600
"""How long an ended target is kept: a reader that comes back within the hour still gets its last set."""

REFUSED_KEPT_SECONDS: Final = 900
"""How long a target that was refused is answered for as not covered, from when its agent last tried: three times what
agents are told to wait. Then the process has gone, or nobody wants it tracked. As long for one whose agent failed, or
came back without it."""

MAY_LIVE: Final = frozenset({END_REASON_REFUSED, END_REASON_FAILED, END_REASON_LOST})
"""Reasons for which tracking ends while the process may well write on, and nothing need follow. Not exec: the next
incarnation does, and of what starts programs one after the other no answer would ever be complete."""

HOST_KEPT_SECONDS: Final = 86_400
"""How long a host is waited for whose agent is away: who comes back within a day goes on where it was. Then what it
left is taken for lost, so that a node that is gone for good neither stays for ever nor spoils answers by label."""

ENDED_KEPT_MAX: Final = 4096
"""Bound on ended targets kept: as many as one selection can name."""


_K = TypeVar("_K")


@dataclass(frozen=True, slots=True)
class TargetRecord:
    """One target with its newest incarnation.

    ``last`` describes its last batch and is None before the first; ``window_ns`` is the time from the as-of before to
    that of ``last``, and 0 for the first round. ``pace`` is not kept in the store.
    """

    incarnation: IncarnationKey
    started: TargetStarted
    last: Block | None = None
    window_ns: int = 0
    ended: IncarnationEnded | None = None
    pace: Pace | None = None
    name: str = ""
    order: str = ""

    def __post_init__(self) -> None:
        """Print the name once, not with each round: lists are in its order. Two boots may have two of the same."""
        if not self.name:
            object.__setattr__(self, "name", str(self.target))
            object.__setattr__(self, "order", f"{self.name} {self.target.boot_id}")

    @property
    def target(self) -> TargetKey:
        """The process."""
        return self.incarnation.target

    @property
    def is_refused(self) -> bool:
        """Whether the process may well live, and no more of it is taken because of a limit."""
        return self.ended is not None and self.ended.reason == END_REASON_REFUSED

    @property
    def round(self) -> int:
        """The last durable round. 0 means none."""
        return self.last.last_round if self.last else 0


@dataclass(slots=True)
class HostRecord:
    """One host. ``connected`` and what follows it are of the stream and are not kept in the store.

    ``durable_time_ns`` is that of its last HostSeen, and ``away_since`` when this saw first that it was away.
    """

    host_id: str
    boot_id: str
    agent_version: str
    last_seen_time_ns: int
    durable_time_ns: int
    connected: bool = False
    away_since: float | None = None
    spool_bytes: int = 0
    rounds_united: int = 0


class Catalog:
    """Every host and target, by what they are asked for."""

    def __init__(self, store_id: str, contents: Contents) -> None:
        """Start with what a store has."""
        self.store_id = store_id
        self.hosts: dict[str, HostRecord] = {}
        self.events = EventHistory()
        self.mappings = MappingTables()
        self._targets: dict[TargetKey, TargetRecord] = {}
        self._by_pid: defaultdict[tuple[str, int], set[TargetKey]] = defaultdict(set)
        self._by_host: defaultdict[str, set[TargetKey]] = defaultdict(set)
        self._arrived: dict[TargetKey, int] = {}
        self._arrivals = count()
        self._ended: dict[TargetKey, float | None] = {}
        self._refused: dict[TargetKey, float | None] = {}
        # Of those that have ended, the ones that may well live, for as long as that is said.
        self._may_live: set[TargetKey] = set()
        self._wanted: defaultdict[str, set[TargetKey]] = defaultdict(set)
        self._bells: set[Bell] = set()
        self._followers: list[Follower] = []
        self.load(contents)

    def load(self, contents: Contents) -> None:
        """Take what a store has, in place of everything known."""
        for target in list(self._targets):
            self._forget(target)
        self._wanted.clear()
        for host in contents.hosts:
            self._see(host)
        for stored in contents.incarnations:
            last = stored.blocks[-1] if stored.blocks else None
            before = stored.blocks[-2] if len(stored.blocks) > 1 else None
            window_ns = _window_ns(before, last)
            self._put(TargetRecord(stored.incarnation, stored.started, last, window_ns, stored.ended))
        for target in contents.wanted:
            self._wanted[target.host_id].add(target)
        for follower in self._followers:
            follower.loaded()
        self.ring(None)

    def follow(self, follower: "Follower") -> None:
        """Let somebody hear of every change from now on, right after it."""
        self._followers.append(follower)

    def apply(self, changes: Iterable[Change]) -> None:
        """Take changes that are durable now."""
        for change in changes:
            self._apply(change)
            for follower in self._followers:
                follower.took(change)

    def get(self, target: TargetKey) -> TargetRecord | None:
        """Give a target."""
        return self._targets.get(target)

    def find(self, name: TargetName) -> TargetRecord | None:
        """Give the target with a name; where the name leaves it open, the youngest with that pid.

        Of several boots the one that its agent named last counts, or else the one of which something began last: no
        clock says which is newer.
        """
        keys = self._by_pid.get((name.host_id, name.pid), ())
        start = name.start_time_ticks
        found = [self._targets[key] for key in keys if start is None or key.start_time_ticks == start]
        host = self.hosts.get(name.host_id)
        boot_id = host.boot_id if host else ""
        newest = max(
            found, key=lambda record: (record.target.boot_id == boot_id, self._arrived[record.target]), default=None
        )
        on_newest_boot = (record for record in found if newest and record.target.boot_id == newest.target.boot_id)
        return max(on_newest_boot, key=lambda record: record.target.start_time_ticks, default=None)

    def all(self) -> Collection[TargetRecord]:
        """Give every target."""
        return self._targets.values()

    def may_live(self, record: TargetRecord) -> bool:
        """Whether a process may well live, tracked or not: no answer that leaves it out is complete."""
        if not record.ended:
            return True
        host = self.hosts.get(record.target.host_id)
        # Nothing of an earlier boot runs any more.
        same_boot = host is None or host.boot_id == record.target.boot_id
        return same_boot and (record.is_refused or record.target in self._may_live)

    def on_host(self, host_id: str) -> list[TargetRecord]:
        """Give the targets of a host."""
        return [self._targets[key] for key in self._by_host.get(host_id, ())]

    def wanted(self, host_id: str) -> list[TargetKey]:
        """Give the processes of a host that orchestrators want tracked."""
        return sorted(self._wanted.get(host_id, ()))

    def connected(self, host_id: str) -> bool:
        """Whether a stream of a host's agent is open."""
        host = self.hosts.get(host_id)
        return host is not None and host.connected

    def set_connected(self, host_id: str, *, connected: bool) -> None:
        """Say that a host's stream has opened or closed."""
        self.hosts[host_id].connected = connected
        self.ring(None)

    def hosts_gone(self, now: float) -> list[HostRecord]:
        """Give the hosts whose agents have been away, since this saw it first, for so long that nobody waits for them.

        Args:
            now: As in ``to_forget``.
        """
        for host in self.hosts.values():
            if host.connected:
                host.away_since = None
            elif host.away_since is None:
                host.away_since = now
        hosts = self.hosts.values()
        return [one for one in hosts if one.away_since is not None and now - one.away_since >= HOST_KEPT_SECONDS]

    def ended(self) -> list[IncarnationKey]:
        """Give the incarnations that have ended, in the order in which they did; those refused are not among them."""
        return [self._targets[target].incarnation for target in self._ended]

    def to_forget(self, now: float, needed: Container[IncarnationKey] = ()) -> list[IncarnationKey]:
        """Give the ended targets that are kept long enough since this saw them first, or are too many.

        Args:
            now: As ``time.monotonic`` gives it: by a clock that jumps, targets would be forgotten too early or never.
            needed: Whose rounds sessions may still ask for: they go only where there are too many.
        """
        for target, since in self._ended.items():
            if since is None:
                self._ended[target] = now
            elif now - since >= REFUSED_KEPT_SECONDS and target in self._may_live:
                self._may_live.discard(target)
                self.ring(None)
        for target, since in self._refused.items():
            # Who is away cannot try.
            if since is None or not self.connected(target.host_id):
                self._refused[target] = now
        refused = [
            target
            for target, since in self._refused.items()
            if since is not None and since <= now - REFUSED_KEPT_SECONDS
        ]
        too_many = len(self._ended) - ENDED_KEPT_MAX
        ended = [
            target
            for place, (target, since) in enumerate(self._ended.items())
            if place < too_many
            or (
                since is not None
                and now - since >= ENDED_KEPT_SECONDS
                and self._targets[target].incarnation not in needed
            )
        ]
        return [self._targets[target].incarnation for target in refused + ended]

    @contextmanager
    def bell(self, targets: Collection[TargetKey] | None) -> "Iterator[Bell]":
        """Give a bell that rings when one of some targets changes; of any target where it is None.

        It also rings when a target or a stream comes or goes.
        """
        bell = Bell(targets)
        self._bells.add(bell)
        try:
            yield bell
        finally:
            self._bells.discard(bell)

    def ring(self, target: TargetKey | None) -> None:
        """Tell of a change to a target, or to what there is (None)."""
        for bell in self._bells:
            bell.ring(target)

    def _apply(self, change: Change) -> None:
        match change:
            case HostSeen():
                self._see(change)
            case HostForgotten():
                self._forget_host(change)
            case IncarnationStarted():
                self._arrived.pop(change.incarnation.target, None)
                self._put(TargetRecord(change.incarnation, change.started))
                self.ring(None)
            case RoundsAppended():
                if record := self._kept(change.incarnation):
                    window_ns = _window_ns(record.last, change.block)
                    self._put(replace(record, last=change.block, window_ns=window_ns, pace=change.pace))
                    rounds = change.block.oldest_round, change.block.last_round
                    self.events.add(change.incarnation, rounds, change.events)
                    _count_pace(change.pace)
                    self.ring(record.target)
            case IncarnationEnded():
                self._end(change)
            case TargetForgotten():
                self._forget_ended(change)
            case TargetWanted():
                self._wanted[change.target.host_id].add(change.target)
            case TargetUnwanted():
                self._wanted[change.target.host_id].discard(change.target)

    def _end(self, change: IncarnationEnded) -> None:
        if record := self._kept(change.incarnation):
            last = None if change.rounds_dropped else record.last
            self._put(replace(record, last=last, ended=change))
            self.ring(None)

    def _see(self, seen: HostSeen) -> None:
        known = self.hosts.get(seen.host_id)
        if known is None:
            version, time_ns = seen.agent_version, seen.time_ns
            self.hosts[seen.host_id] = HostRecord(seen.host_id, seen.boot_id, version, time_ns, time_ns)
        else:
            known.boot_id, known.agent_version = seen.boot_id, seen.agent_version
            known.durable_time_ns, known.away_since = seen.time_ns, None
            known.last_seen_time_ns = max(known.last_seen_time_ns, seen.time_ns)

    def _forget_host(self, change: HostForgotten) -> None:
        if (host := self.hosts.get(change.host_id)) and host.durable_time_ns == change.time_ns:
            del self.hosts[change.host_id]
            self._wanted.pop(change.host_id, None)
            self.ring(None)

    def _kept(self, incarnation: IncarnationKey) -> TargetRecord | None:
        record = self._targets.get(incarnation.target)
        return record if record is not None and record.incarnation == incarnation else None

    def _put(self, record: TargetRecord) -> None:
        target = record.target
        self._targets[target] = record
        self._arrived.setdefault(target, next(self._arrivals))
        self._refused.pop(target, None)
        if record.is_refused:
            self._refused[target] = None
        elif record.ended:
            self._ended.setdefault(target, None)
            if record.ended.reason in MAY_LIVE:
                self._may_live.add(target)
        else:
            self._ended.pop(target, None)
            self._may_live.discard(target)
        self._by_pid[target.host_id, target.pid].add(target)
        self._by_host[target.host_id].add(target)

    def _forget_ended(self, change: TargetForgotten) -> None:
        if (record := self._kept(change.incarnation)) and record.ended:
            self._forget(record.target)
            self.events.forget(record.target)
            self.mappings.forget(record.target)
            if change.unwanted:
                self._wanted[record.target.host_id].discard(record.target)
            self.ring(None)

    def _forget(self, target: TargetKey) -> None:
        if self._targets.pop(target, None):
            del self._arrived[target]
            self._ended.pop(target, None)
            self._may_live.discard(target)
            self._refused.pop(target, None)
            _drop(self._by_pid, (target.host_id, target.pid), target)
            _drop(self._by_host, target.host_id, target)


class Follower(Protocol):
    """Who keeps up with what is durable. Called on the event loop, which must not wait."""

    def loaded(self) -> None:
        """Everything may be different: the catalog has what a store has."""

    def took(self, change: Change) -> None:
        """A change is durable, and in the catalog."""


class Bell:
    """Lets one reader sleep until something it reads has changed."""

    def __init__(self, targets: Collection[TargetKey] | None) -> None:
        """Listen to some targets, or to all of them (None)."""
        self.targets = targets
        self._rung = asyncio.Event()

    def ring(self, target: TargetKey | None) -> None:
        """Wake the reader if it listens to a target, or if what changed is what there is (None)."""
        if target is None or self.targets is None or target in self.targets:
            self._rung.set()

    async def wait(self) -> None:
        """Sleep until it rings, or return at once if it has rung since the last time."""
        await self._rung.wait()
        self._rung.clear()


def _count_pace(pace: Pace | None) -> None:
    if pace:
        metrics.ROUND_INTERVAL_SECONDS.observe(pace.interval_ms / 1000)
        metrics.AGENT_SHARE.observe(pace.agent_share)
        metrics.TARGET_SHARE.observe(pace.target_share)


def _window_ns(before: Block | None, last: Block | None) -> int:
    return max(0, last.last_time_ns - before.last_time_ns) if before and last else 0


def _drop(index: dict[_K, set[TargetKey]], key: _K, target: TargetKey) -> None:
    members = index[key]
    members.discard(target)
    if not members:
        del index[key]
