"""Who may put something before the writer, and who waits until there is room: bounded for each stream, and in all."""

import asyncio
from collections import defaultdict, deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

IN_ALL_BYTES_MAX: Final = 64 << 20
"""Bound on the page sets that wait for the writer: half a second of it at its slowest. Streams are read no further
while it is reached, and their agents unite rounds."""

OF_STREAM_BYTES_MAX: Final = 8 << 20
"""Bound on those of one stream, so that it cannot take all of the room; as much as an agent may send without an
acknowledgement, so that one that keeps to that never waits for itself."""


@dataclass(frozen=True, slots=True)
class Place:
    """What somebody takes of the room."""

    stream: str
    size_bytes: int


class Room:
    """What was let in and has not left, by stream. Used on the event loop only."""

    def __init__(self) -> None:
        """Begin empty."""
        self.size_bytes = 0
        self._of_stream: defaultdict[str, int] = defaultdict(int)
        self._waiting: deque[tuple[Place, asyncio.Future[None]]] = deque()

    async def enter(self, place: Place) -> None:
        """Wait until there is room, and take it; what is larger than a bound goes alone.

        A stream's wait in their order, and a stream that is over its own bound holds nobody else up. For room in all,
        they wait in the order in which they came, whatever their size, so that none waits for ever.
        """
        if not self._waiting and self._fits_stream(place) and self._fits_all(place):
            self._take(place)
            return
        admitted = asyncio.get_running_loop().create_future()
        self._waiting.append((place, admitted))
        self._admit()
        try:
            await admitted
        except asyncio.CancelledError:
            if admitted.cancelled():
                self._waiting.remove((place, admitted))
                self._admit()
            else:
                self.leave([place])
            raise

    def leave(self, places: Iterable[Place]) -> None:
        """Give places back, and let in who waits for them."""
        for place in places:
            self.size_bytes -= place.size_bytes
            self._of_stream[place.stream] -= place.size_bytes
            if not self._of_stream[place.stream]:
                del self._of_stream[place.stream]
        self._admit()

    def _admit(self) -> None:
        held_up: set[str] = set()
        for place, admitted in list(self._waiting):
            if admitted.done():
                # Cancelled, and about to say so.
                continue
            if place.stream in held_up or not self._fits_stream(place):
                held_up.add(place.stream)
                continue
            if not self._fits_all(place):
                return
            self._waiting.remove((place, admitted))
            self._take(place)
            admitted.set_result(None)

    def _take(self, place: Place) -> None:
        self.size_bytes += place.size_bytes
        self._of_stream[place.stream] += place.size_bytes

    def _fits_stream(self, place: Place) -> bool:
        own = self._of_stream.get(place.stream, 0)
        return not own or own + place.size_bytes <= OF_STREAM_BYTES_MAX

    def _fits_all(self, place: Place) -> bool:
        return not self.size_bytes or self.size_bytes + place.size_bytes <= IN_ALL_BYTES_MAX
