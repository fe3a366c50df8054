"""Room before the writer: bounded for each stream and in all, in order, and nobody is held up by another's bound."""

import asyncio
from collections import defaultdict

from hypothesis import given, settings
from hypothesis import strategies as st

from wetink_collector.room import IN_ALL_BYTES_MAX, OF_STREAM_BYTES_MAX, Place, Room

MIB = 1 << 20


async def a_moment() -> None:
    """Let everything happen that can."""
    for _ in range(3):
        await asyncio.sleep(0)


def test_stream_over_its_bound_holds_nobody_else_up() -> None:
    """It waits for what it has there itself, and the next one walks past."""

    async def scenario() -> None:
        room = Room()
        await room.enter(Place("busy", OF_STREAM_BYTES_MAX))
        busy = asyncio.create_task(room.enter(Place("busy", 1)))
        await a_moment()
        await asyncio.wait_for(room.enter(Place("quiet", 1)), 1)
        assert not busy.done()

        room.leave([Place("busy", OF_STREAM_BYTES_MAX)])
        await asyncio.wait_for(busy, 1)

    asyncio.run(scenario())


def test_large_one_that_waits_for_room_in_all_is_not_passed_for_ever() -> None:
    """Small ones that come later wait behind it, or it would never find as much room at once."""

    async def scenario() -> None:
        room = Room()
        streams = IN_ALL_BYTES_MAX // OF_STREAM_BYTES_MAX
        for number in range(streams):
            await room.enter(Place(f"s{number}", OF_STREAM_BYTES_MAX))
        large = asyncio.create_task(room.enter(Place("large", OF_STREAM_BYTES_MAX)))
        await a_moment()
        small = asyncio.create_task(room.enter(Place("small", 1)))
        room.leave([Place("s0", OF_STREAM_BYTES_MAX)])
        await asyncio.wait_for(large, 1)
        assert not small.done()

        room.leave([Place("s1", OF_STREAM_BYTES_MAX)])
        await asyncio.wait_for(small, 1)

    asyncio.run(scenario())


class Model:
    """Who is inside, and who has got in and in which order, by stream."""

    def __init__(self) -> None:
        """Begin empty."""
        self.room = Room()
        self.inside: dict[str, list[Place]] = defaultdict(list)
        self.admitted: dict[str, list[int]] = defaultdict(list)
        self.coming: dict[str, list[asyncio.Task[None]]] = defaultdict(list)

    async def do(self, what: str, place: Place, number: int) -> None:
        """Let one come, give up or go, and look at the bounds."""
        coming, inside = self.coming[place.stream], self.inside[place.stream]
        if what == "enter":
            coming.append(asyncio.create_task(self._enter(place, number)))
        elif what == "give up" and coming:
            coming[place.size_bytes % len(coming)].cancel()
        elif what == "leave" and inside:
            self.room.leave([inside.pop(0)])
        await a_moment()
        self._check()

    async def empty(self) -> None:
        """Let everybody leave who gets in, until there is nobody."""
        while any(self.inside.values()):
            for stream in list(self.inside):
                await self.do("leave", Place(stream, 1), 0)

    async def _enter(self, place: Place, number: int) -> None:
        await self.room.enter(place)
        self.inside[place.stream].append(place)
        self.admitted[place.stream].append(number)

    def _check(self) -> None:
        places = [place for some in self.inside.values() for place in some]
        for some in self.inside.values():
            assert len(some) <= 1 or sum(place.size_bytes for place in some) <= OF_STREAM_BYTES_MAX
        assert self.room.size_bytes == sum(place.size_bytes for place in places)
        assert len(places) <= 1 or self.room.size_bytes <= IN_ALL_BYTES_MAX


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["enter", "enter", "leave", "give up"]),
            st.builds(Place, st.sampled_from("abcdefghijkl"), st.integers(1, OF_STREAM_BYTES_MAX + 4 * MIB)),
        ),
        max_size=60,
    )
)
def test_bounds_hold_and_everybody_gets_in(operations: list[tuple[str, Place]]) -> None:
    """
    Whoever comes, goes and gives up: each stream and all together stay within their bounds, but for one that is alone,
    each stream's get in in their order, and when all leave who was let in, everybody who waits gets in.
    """

    async def scenario() -> None:
        model = Model()
        for number, (what, place) in enumerate(operations):
            await model.do(what, place, number)
        await model.empty()

        assert all(task.done() for tasks in model.coming.values() for task in tasks)
        assert all(numbers == sorted(numbers) for numbers in model.admitted.values())
        assert model.room.size_bytes == 0

    asyncio.run(scenario())
