"""The channel a client's calls go over: a new one once its certificates or its token were written again.

gRPC connects again by itself, and always with the certificates that the channel was made with.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import grpc

from wetink.tls import Security, SecurityUnusable
from wetink_client.errors import InvalidRequest

ChannelT = TypeVar("ChannelT")
StubsT = TypeVar("StubsT")


@dataclass(slots=True)
class Line(Generic[ChannelT, StubsT]):
    """A channel, its stubs, and how many calls are on it."""

    channel: ChannelT
    stubs: StubsT
    stamp: tuple[object, ...]
    call_count: int = 0


class Connection(Generic[ChannelT, StubsT]):
    """Gives each call the newest channel. An older one stays while calls are on it, and is the caller's to close."""

    def __init__(
        self,
        address: str,
        security: Security,
        dial: Callable[[str, grpc.ChannelCredentials | None], tuple[ChannelT, StubsT]],
    ) -> None:
        """Read the files and make a channel; it connects at the first call.

        Raises:
            InvalidRequest: A file cannot be used.
        """
        self._address = address
        self._security = security
        self._dial = dial
        self._lock = threading.Lock()
        try:
            self._line = self._new()
        except SecurityUnusable as error:
            raise InvalidRequest(str(error)) from error
        self._older: list[Line[ChannelT, StubsT]] = []
        self._is_closed = False

    @property
    def is_closed(self) -> bool:
        """Whether ``close`` was called."""
        return self._is_closed

    def take(self) -> Line[ChannelT, StubsT]:
        """Give the channel for a call.

        Raises:
            InvalidRequest: The connection was closed.
        """
        with self._lock:
            if self._is_closed:
                message = f"this client of collector {self._address} was closed: make another"
                raise InvalidRequest(message)
            if self._security and self._security.stamp() != self._line.stamp:
                self._renew()
            self._line.call_count += 1
            return self._line

    def give_back(self, line: Line[ChannelT, StubsT]) -> list[ChannelT]:
        """Say that the call is over, and give the channels that nobody needs any more, to be closed."""
        with self._lock:
            line.call_count -= 1
            idle = [older for older in self._older if not older.call_count]
            self._older = [older for older in self._older if older.call_count]
            return [older.channel for older in idle]

    def close(self) -> list[ChannelT]:
        """Give every channel, to be closed, and none for a call any more."""
        with self._lock:
            self._is_closed = True
            return [line.channel for line in (*self._older, self._line)]

    def _renew(self) -> None:
        try:
            line = self._new()
        except SecurityUnusable:
            # Somebody may be writing them just now: the next call looks again.
            return
        self._older.append(self._line)
        self._line = line

    def _new(self) -> Line[ChannelT, StubsT]:
        # Before the files are read: what is written in between is seen at the next call.
        stamp = self._security.stamp()
        return Line(*self._dial(self._address, self._security.credentials(self._address)), stamp)
