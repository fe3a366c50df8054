"""The one writer: order, groups, bounds, and what happens when the store fails."""

import asyncio
from collections.abc import Sequence

import pytest

from tests.unit.collector.bench import Bench, Stubborn, bench, runs, until
from tests.unit.collector.changes import appended, incarnation, started
from wetink_collector import committer as module
from wetink_collector.errors import StoreUnavailable
from wetink_collector.room import IN_ALL_BYTES_MAX
from wetink_collector.settlement import Settlement
from wetink_collector.store.interface import Change, Contents, RecordDamaged, RoundsAppended, StoreFailed

ONE = incarnation()


async def wait_for(settled: Settlement) -> None:
    """Wait in a task of its own."""
    await settled


@runs
async def test_what_is_settled_is_in_the_store_and_in_the_catalog(one: Bench) -> None:
    """Not before the commit, and at once after it."""
    one.store.gate.clear()
    settled = await one.committer.submit([started(ONE), appended(ONE, 1, [1])])
    await asyncio.sleep(0.05)
    assert not settled.done()
    assert one.catalog.get(ONE.target) is None

    one.store.gate.set()
    await settled

    record = one.catalog.get(ONE.target)
    assert record is not None
    assert record.round == 1
    assert [block.last_round for stored in one.store.contents().incarnations for block in stored.blocks] == [1]


@runs
async def test_all_that_waits_goes_in_one_group(one: Bench) -> None:
    """A hundred batches cost one fsync, not a hundred."""
    one.store.gate.clear()
    first = await one.committer.submit([started(ONE)])
    await until(lambda: not one.committer._work._items)
    rest = [await one.committer.submit([appended(ONE, number)]) for number in range(1, 101)]
    one.store.gate.set()
    await asyncio.gather(first, *rest)

    assert one.store.groups == [1, 100]


@runs
async def test_group_is_bounded_in_bytes(one: Bench) -> None:
    """Nobody's acknowledgement waits for all of a long queue."""
    one.store.gate.clear()
    half = module.GROUP_BYTES_MAX // 2
    hosts = [incarnation(host_id=f"host-{number}") for number in range(7)]
    settled = [await one.committer.submit([started(hosts[0])])]
    await until(lambda: not one.committer._work._items)
    settled += [await one.committer.submit([started(host)], size_bytes=half) for host in hosts[1:]]
    one.store.gate.set()
    await asyncio.gather(*settled)

    assert one.store.groups == [1, 2, 2, 2]


@runs
async def test_host_with_little_does_not_wait_for_one_with_much(one: Bench) -> None:
    """Not for all of that which came before its own: its round is in the next group, and everybody's are in order."""
    one.store.gate.clear()
    busy, quiet = incarnation(host_id="busy"), incarnation(host_id="quiet")
    settled = [await one.committer.submit([started(busy)])]
    await until(lambda: not one.committer._work._items)
    turn = module.TURN_BYTES
    settled += [await one.committer.submit([appended(busy, number)], size_bytes=turn) for number in range(1, 21)]
    settled += [await one.committer.submit([started(quiet), appended(quiet, 1)], size_bytes=100)]
    order: list[int] = []
    for number, each in enumerate(settled):
        each.then(lambda _, number=number: order.append(number))  # type: ignore[misc]
    one.store.gate.set()
    await asyncio.gather(*settled)

    # Behind the start of the other, and its first turn.
    assert order.index(len(settled) - 1) <= 2
    assert one.catalog.get(busy.target).round == 20  # type: ignore[union-attr]


@runs
async def test_queue_over_its_bound_makes_the_next_wait(one: Bench) -> None:
    """Until there is room; a single round may be larger than the bound, alone."""
    one.store.gate.clear()
    settled = [await one.committer.submit([started(ONE)], size_bytes=IN_ALL_BYTES_MAX * 2)]
    other = incarnation(host_id="another")
    waiting = asyncio.create_task(one.committer.submit([started(other)], size_bytes=1))
    await asyncio.sleep(0.05)
    assert not waiting.done()

    one.store.gate.set()
    await asyncio.gather(*settled)
    await (await waiting)


@runs
async def test_failure_settles_nothing_and_closes_the_door(one: Bench) -> None:
    """
    What waited behind the failed group fails with it, so that no later round becomes durable before an earlier one;
    and nothing is taken until the store has recovered.
    """
    await one.committer.commit([started(ONE)])
    one.store.gate.clear()
    one.store.recovering_fails = True
    first = await one.committer.submit([appended(ONE, 1)])
    await until(lambda: not one.committer._work._items)
    second = await one.committer.submit([appended(ONE, 2)])
    one.store.failing = StoreFailed("disk full")
    one.store.gate.set()

    for settled in (first, second):
        with pytest.raises(StoreUnavailable):
            await settled
    with pytest.raises(StoreUnavailable):
        await one.committer.submit([appended(ONE, 3)])
    assert one.heard.told == ["failed"]
    assert one.catalog.get(ONE.target).round == 0  # type: ignore[union-attr]

    one.store.recovering_fails = False
    await until(lambda: "recovered" in one.heard.told)
    await one.committer.commit([appended(ONE, 1)])
    assert one.heard.told == ["failed", "recovered"]


@runs
async def test_what_was_queued_before_the_failure_was_known_is_not_written_afterwards(one: Bench) -> None:
    """Not even when the store could take it again by then."""
    one.store.gate.clear()
    one.store.failing = StoreFailed("a moment")
    one.store.fails_once = True
    first = await one.committer.submit([started(ONE)])
    await until(lambda: not one.committer._work._items)
    second = await one.committer.submit([started(incarnation(2))])
    one.store.gate.set()

    for settled in (first, second):
        with pytest.raises(StoreUnavailable):
            await settled
    await until(lambda: "recovered" in one.heard.told)
    assert one.store.contents().incarnations == []


@runs
async def test_bug_in_a_commit_is_a_failure_too(one: Bench) -> None:
    """Whatever is raised, nothing of the group is acknowledged, and the thread lives."""
    await one.committer.commit([started(ONE)])

    with pytest.raises(StoreUnavailable):
        await one.committer.commit([appended(ONE, 5)])
    await until(lambda: "recovered" in one.heard.told)

    await one.committer.commit([appended(ONE, 1)])


@runs
async def test_damage_is_told_and_the_writer_goes_on(one: Bench) -> None:
    """The listener decides what becomes of it."""
    one.store.damage.append(RecordDamaged(ONE, "a reason"))
    await one.committer.commit([started(ONE)])
    await until(lambda: bool(one.heard.damage))

    await one.committer.commit([appended(ONE, 1)])
    assert one.heard.told == []


@runs
async def test_blocks_are_merged_when_nobody_waits(one: Bench) -> None:
    """Without being asked."""
    await one.committer.commit([started(ONE)])
    for number in range(1, 101):
        await one.committer.commit([appended(ONE, number)])

    await until(lambda: len(one.store.contents().incarnations[0].blocks) <= 30)


@runs
async def test_waiter_that_was_cancelled_does_not_harm_the_others(one: Bench) -> None:
    """Its changes are written all the same."""
    one.store.gate.clear()
    both = [await one.committer.submit([started(ONE)]), await one.committer.submit([appended(ONE, 1)])]
    lost, kept = (asyncio.create_task(wait_for(each)) for each in both)
    await asyncio.sleep(0)
    lost.cancel()
    one.store.gate.set()

    await kept
    with pytest.raises(asyncio.CancelledError):
        await lost

    assert one.catalog.get(ONE.target) is not None


@runs
async def test_bug_with_one_keeps_no_acknowledgement_back(one: Bench) -> None:
    """Neither its own, nor of those that are told of with it or after it: all of it is durable."""
    one.store.gate.clear()
    settled = [await one.committer.submit([started(ONE)])]
    await until(lambda: not one.committer._work._items)
    settled += [await one.committer.submit([appended(ONE, number)]) for number in range(1, 41)]
    errors: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: errors.append(context["exception"]))
    apply = one.catalog.apply

    def apply_but_some(changes: Sequence[Change]) -> None:
        if isinstance(changes[0], RoundsAppended) and changes[0].block.last_round in {3, 20, 40}:
            raise ValueError(changes[0].block.last_round)
        apply(changes)

    one.catalog.apply = apply_but_some  # type: ignore[method-assign, assignment]
    one.store.gate.set()
    async with asyncio.timeout(10):
        await asyncio.gather(*settled)

    assert [str(error) for error in errors] == ["3", "20", "40"]
    assert one.catalog.get(ONE.target).round == 39  # type: ignore[union-attr]
    assert one.committer._room.size_bytes == 0

    await one.committer.commit([appended(ONE, 41)])
    assert one.catalog.get(ONE.target).round == 41  # type: ignore[union-attr]


@runs
async def test_bug_while_the_store_recovers_is_tried_again(one: Bench) -> None:
    """In the store or in the catalog: otherwise nothing would ever be taken again."""
    errors: list[str] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: errors.append(str(context["exception"])))
    recover, load = one.store.recover, one.catalog.load
    bugs = iter(["in recover"])

    def recover_later() -> Contents:
        if bug := next(bugs, None):
            raise ValueError(bug)
        return recover()

    def load_later(_: Contents) -> None:
        one.catalog.load = load  # type: ignore[method-assign]
        message = "in load"
        raise ValueError(message)

    one.store.recover = recover_later  # type: ignore[method-assign]
    one.catalog.load = load_later  # type: ignore[method-assign, assignment]
    one.store.failing = StoreFailed("a moment")
    with pytest.raises(StoreUnavailable):
        await one.committer.commit([started(ONE)])
    await until(lambda: "recovered" in one.heard.told)

    assert errors == ["in recover", "in load"]
    await one.committer.commit([started(ONE)])


@runs
async def test_callback_that_raises_keeps_nobody_from_hearing(one: Bench) -> None:
    """Of the same and of others, where they are durable and where they have failed."""
    errors: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: errors.append(context["exception"]))
    for fails in (False, True):
        one.store.failing = StoreFailed("disk full") if fails else None
        one.store.gate.clear()
        told: list[object] = []
        settled = [await one.committer.submit([started(incarnation(pid))]) for pid in (1, 2)]
        for each in settled:
            each.then(lambda _: 1 // 0)  # type: ignore[arg-type]
            each.then(told.append)
        one.store.gate.set()
        async with asyncio.timeout(10):
            found = await asyncio.gather(*settled, return_exceptions=True)

        assert [isinstance(each, StoreUnavailable) for each in found] == [fails, fails]
        assert told == found
        assert [type(error) for error in errors] == [ZeroDivisionError] * 2
        assert one.committer._room.size_bytes == 0
        errors.clear()


@runs
async def test_who_asks_late_is_told_at_once(one: Bench) -> None:
    """Of what is durable, and of what failed."""
    settled = await one.committer.submit([started(ONE)])
    await settled
    told: list[object] = []
    settled.then(told.append)
    await settled
    one.store.failing = StoreFailed("disk full")
    failed = await one.committer.submit([appended(ONE, 1)])
    with pytest.raises(StoreUnavailable):
        await failed
    failed.then(told.append)

    assert told[0] is None
    assert isinstance(told[1], StoreUnavailable)
    with pytest.raises(StoreUnavailable):
        await failed


def test_leaving_commits_what_waits() -> None:
    """A drain loses nothing that was taken."""

    async def scenario() -> Stubborn:
        async with bench() as one:
            one.store.gate.clear()
            await one.committer.submit([started(ONE), appended(ONE, 1)])
            one.store.gate.set()
        return one.store

    store = asyncio.run(scenario())

    assert [block.last_round for block in store.contents().incarnations[0].blocks] == [1]
