"""Deficit round robin against a model: nothing lost, each stream in its order, and nobody waits for long."""

from collections import defaultdict, deque
from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from wetink_collector.fair_queue import FairQueue

QUANTUM = 8

COST_MAX = 40
"""Of an item: five turns' worth."""

Operation = tuple[str, int]
"""A stream and the cost of what is put into it; or an empty name, and up to which cost is taken."""

operations = st.lists(
    st.tuples(st.sampled_from(["a", "b", "c", "d"]), st.integers(1, COST_MAX))
    | st.tuples(st.just(""), st.integers(1, 3 * COST_MAX)),
    max_size=60,
)


@dataclass
class Model:
    """What waits, and how much of each other stream has gone since the first of each was at the front."""

    waiting: dict[str, deque[tuple[int, int]]] = field(default_factory=lambda: defaultdict(deque))
    gone_meanwhile: dict[str, dict[str, int]] = field(default_factory=lambda: defaultdict(lambda: defaultdict(int)))

    def put(self, stream: str, number: int, cost: int) -> None:
        """Take an item."""
        self.waiting[stream].append((number, cost))

    def take(self, stream: str, number: int, cost: int) -> None:
        """Let an item go, which must be the first of its stream, and not before the others' time."""
        assert self.waiting[stream].popleft() == (number, cost)
        self.gone_meanwhile.pop(stream, None)
        for other, items in self.waiting.items():
            if items and other != stream:
                self.gone_meanwhile[other][stream] += cost
                turns = -(-items[0][1] // QUANTUM)
                assert self.gone_meanwhile[other][stream] <= turns * QUANTUM + COST_MAX


@given(operations)
def test_each_stream_is_in_order_and_waits_for_its_turns_alone(operations: list[Operation]) -> None:
    """
    Whatever is put and taken when: an item that costs as much as some turns waits, from when it is its stream's first,
    for as many of each other stream, and what that had saved up.
    """
    queue: FairQueue[str, tuple[str, int, int]] = FairQueue(QUANTUM)
    model = Model()
    for number, (stream, cost) in enumerate([*operations, ("", COST_MAX * len(operations) + 1)]):
        if stream:
            queue.put(stream, (stream, number, cost), cost)
            model.put(stream, number, cost)
            continue
        is_empty = not any(model.waiting.values())
        taken = queue.take(cost)
        assert is_empty == (not taken)
        # Never more than asked for, but for the last; and less only where no more waits.
        assert sum(cost for _, _, cost in taken[:-1]) < cost
        for item in taken:
            model.take(*item)
        assert sum(cost for _, _, cost in taken) >= cost or not any(model.waiting.values())

    assert not any(model.waiting.values())
    assert len(queue) == 0


def test_turns_are_worth_cost_and_not_items() -> None:
    """A stream with large items gets as much as one with small ones, and not ten times as much."""
    queue: FairQueue[str, str] = FairQueue(QUANTUM)
    for _ in range(100):
        queue.put("large", "large", 10 * QUANTUM)
    for _ in range(1000):
        queue.put("small", "small", 1)
    taken = queue.take(100 * QUANTUM)

    assert abs(taken.count("large") * 10 * QUANTUM - taken.count("small")) <= 10 * QUANTUM


def test_who_had_nothing_to_say_saved_nothing_up() -> None:
    """A stream that was empty for long gets no more than those that were not."""
    queue: FairQueue[str, str] = FairQueue(QUANTUM)
    for _ in range(100):
        queue.put("busy", "busy", 1)
        queue.put("seldom", "seldom", 1)
        queue.take(2)
    for _ in range(100):
        queue.put("busy", "busy", 1)
        queue.put("seldom", "seldom", 1)

    assert queue.take(4 * QUANTUM).count("seldom") <= 3 * QUANTUM
