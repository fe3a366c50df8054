"""What a session of an orchestrator has come to: as bytes for a store, and which rounds of targets it still needs.

Left out: the calls that change it, and when it is forgotten.
"""

import asyncio
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

from wetink.v1 import session_pb2 as pb
from wetink_collector.cursor import decode
from wetink_collector.errors import RoundOpen, RoundUnknown
from wetink_collector.identity import IncarnationKey

LEASE_MS_DEFAULT: Final = 60_000
"""As the contract says."""


@dataclass(slots=True)
class SessionState:
    """One session: what is durable of it, and until when its lease goes (``time.monotonic``).

    ``lock`` is held by whoever changes it.
    """

    open: pb.OpenSessionRequest
    rounds: Mapping[str, pb.SessionRound]
    until: float = 0.0
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    _call_count: int = 0
    _expired: dict[IncarnationKey, int] = field(default_factory=dict)
    _needed: Mapping[IncarnationKey, int] | None = None

    def renew(self) -> None:
        """Begin the lease anew."""
        self.until = time.monotonic() + (self.open.lease_ms or LEASE_MS_DEFAULT) / 1000

    def is_over(self, now: float) -> bool:
        """Whether nobody has asked for it for as long as its lease; a call that is under way counts as asking."""
        return self.until < now and not self._call_count

    @contextmanager
    def called(self) -> Iterator[None]:
        """Let it live for as long as a call takes, and for its lease after that."""
        self._call_count += 1
        try:
            yield
        finally:
            self._call_count -= 1
            self.renew()

    def take(self, rounds: Mapping[str, pb.SessionRound]) -> None:
        """Have these rounds, which are durable now."""
        self.rounds = rounds
        self._needed = None
        if self._expired:
            named = needed_after(rounds)
            self._expired = {key: last_round for key, last_round in self._expired.items() if key in named}

    def round(self, name: str) -> pb.SessionRound:
        """Give a round.

        Raises:
            RoundUnknown: It was not begun, or is forgotten.
        """
        if name not in self.rounds:
            message = f"session {self.open.session} has no round {name[:64]!r}, or not any more: begin it"
            raise RoundUnknown(message)
        return self.rounds[name]

    def closed(self, name: str) -> pb.SessionRound:
        """Give a round that has an end.

        Raises:
            RoundUnknown, RoundOpen: It has none.
        """
        found = self.round(name)
        if not found.closed:
            message = f"round {name} of session {self.open.session} is still open: close it first"
            raise RoundOpen(message)
        return found

    def needed(self) -> Mapping[IncarnationKey, int]:
        """Give the round of each target after which it must still be answered: see ``needed_after``."""
        if self._needed is None:
            self._needed = needed_after(self.rounds, self._expired)
        return self._needed

    def expire(self, incarnation: IncarnationKey, last_round: int | None) -> bool:
        """Take it that rounds up to one have gone, or all (None); say whether it needed them, and need them no more."""
        after = self.needed().get(incarnation)
        if after is None or (last_round is not None and not 0 < after < last_round):
            return False
        self._expired[incarnation] = sys.maxsize if last_round is None else last_round
        self._needed = None
        return True


def needed_after(
    rounds: Mapping[str, pb.SessionRound], gone: Mapping[IncarnationKey, int] = MappingProxyType({})
) -> Mapping[IncarnationKey, int]:
    """Give the round of each target after which a session must still be answered.

    A round from which a closed one goes on has been acknowledged: who moves has what it carries, for otherwise it would
    not have asked for the next. Of all others that are closed, what they carry may be asked for, and from all of them
    the next round may go on.

    Args:
        rounds: All of the session that are kept.
        gone: The last round of targets that cannot be asked for any more; what would need it needs nothing.

    Returns:
        A round of each target; 0 where only all of it may be asked for, for which its newest rounds suffice.
    """
    acknowledged = {one.parent for one in rounds.values() if one.closed}
    needed: dict[IncarnationKey, int] = {}
    for one in rounds.values():
        if one.round in acknowledged:
            continue
        parent = rounds.get(one.parent)
        for cursor in (one.cursor, parent.cursor if parent else ""):
            for target, position in decode(cursor).positions.items() if cursor else ():
                key = IncarnationKey(target, position.incarnation)
                if not 0 < position.round < gone.get(key, 0):
                    needed[key] = earlier(needed.get(key, 0), position.round)
    return needed


def earlier(one: int, other: int) -> int:
    """Give the round that asks for more, of two as ``needed_after`` gives them."""
    return min(filter(None, (one, other)), default=0)


def stored(open_: pb.OpenSessionRequest, rounds: Mapping[str, pb.SessionRound]) -> bytes:
    """Turn what is durable of a session into bytes: how it was opened, then its rounds, each with its length."""
    messages = [open_.SerializeToString(), *(one.SerializeToString() for one in rounds.values())]
    return b"".join(len(one).to_bytes(4, "little") + one for one in messages)


def restored(data: bytes) -> SessionState:
    """Read a session from bytes that ``stored`` gave; its lease begins anew."""
    messages = []
    while data:
        end = 4 + int.from_bytes(data[:4], "little")
        messages.append(data[4:end])
        data = data[end:]
    rounds = [pb.SessionRound.FromString(one) for one in messages[1:]]
    session = SessionState(pb.OpenSessionRequest.FromString(messages[0]), {one.round: one for one in rounds})
    session.renew()
    return session
