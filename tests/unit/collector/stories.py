"""Stories of what a store is told, made from a seed, and what it must have at each point: every round, for ever."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Final, TypeAlias

from pyroaring import BitMap64

from tests.unit.collector.changes import appended, ended, incarnation, started
from wetink.v1.dirty_pb2 import Selection
from wetink.v1.session_pb2 import OpenSessionRequest
from wetink_collector.identity import IncarnationKey
from wetink_collector.round_log import RoundPages, fold, is_exact, is_expired, is_whole
from wetink_collector.session_state import stored
from wetink_collector.store.interface import (
    Change,
    RoundsExpired,
    SessionForgotten,
    SessionKept,
    Store,
    TargetForgotten,
)

PIDS: Final = (1, 2, 3)
PAGES: Final = 4000
SESSIONS: Final = ("move-1", "move-2")


Kept: TypeAlias = tuple[dict[IncarnationKey, tuple[int, bool]], dict[str, SessionKept]]


@dataclass
class Truth:
    """What was written: of each incarnation that is kept, every round and whether it has ended; and the sessions."""

    rounds: dict[IncarnationKey, list[RoundPages]] = field(default_factory=dict)
    ended: set[IncarnationKey] = field(default_factory=set)
    sessions: dict[str, SessionKept] = field(default_factory=dict)

    def copy(self) -> "Truth":
        """Give one that does not change when this does."""
        return Truth({key: list(rounds) for key, rounds in self.rounds.items()}, set(self.ended), dict(self.sessions))

    def kept(self) -> Kept:
        """Say of each incarnation how many rounds it has, and whether it has ended; and what each session is."""
        return {key: (len(rounds), key in self.ended) for key, rounds in self.rounds.items()}, dict(self.sessions)


@dataclass
class Story:
    """Groups of changes, each of which is one commit, and the truth after each; the first is of nothing."""

    commits: list[Sequence[Change]]
    truths: list[Truth]


def tell(seed: int, length: int) -> Story:
    """Make a story of so many commits."""
    random = Random(seed)  # noqa: S311 (no secret)
    truth = Truth()
    lives: dict[int, int] = {}
    story = Story([], [truth.copy()])
    for _ in range(length):
        changes: list[Change] = []
        for _ in range(random.randrange(1, 6)):
            changes += _happens(random, truth, lives)
        story.commits.append(changes)
        story.truths.append(truth.copy())
    return story


def kept(store: Store) -> Kept:
    """Say the same of a store as ``Truth.kept``."""
    contents = store.contents()
    incarnations = {
        one.incarnation: (one.blocks[-1].last_round if one.blocks else 0, one.ended is not None)
        for one in contents.incarnations
    }
    return incarnations, {one.name: one for one in contents.sessions}


def check(store: Store, truth: Truth) -> None:
    """Compare every answer that a store can give with the truth: never fewer pages, and no more where it is exact."""
    assert kept(store) == truth.kept()
    for key, rounds in truth.rounds.items():
        for cursor in range(len(rounds) + 1):
            check_answer(store, key, rounds, cursor)


def check_answer(store: Store, key: IncarnationKey, rounds: Sequence[RoundPages], cursor: int) -> bool:
    """Compare the answer since one cursor; say whether there is one, or the cursor has expired."""
    stored = list(store.read(key, after_round=cursor))
    blocks = [one.block for one in stored]
    assert is_whole(blocks, after_round=cursor, last_round=len(rounds))
    if is_expired(blocks, cursor):
        return False
    answer, raw = fold(one.pages for one in stored), fold(rounds[cursor:])
    if not cursor:
        assert answer.written == raw.written
    elif is_exact(blocks, cursor):
        assert answer == raw
    assert raw.written <= answer.written
    assert raw.vanished <= answer.vanished or not cursor
    return True


def _happens(random: Random, truth: Truth, lives: dict[int, int]) -> list[Change]:
    pid = random.choice(PIDS)
    key = incarnation(pid, lives.get(pid, 0))
    what = random.random()
    if what > 0.95:
        return [_session(random, truth)]
    if key not in truth.rounds or what < 0.04:
        truth.rounds.pop(key, None)
        lives[pid] = lives.get(pid, 0) + 1
        key = incarnation(pid, lives[pid])
        truth.rounds[key] = []
        return [started(key)]
    rounds = truth.rounds[key]
    if what < 0.07:
        truth.ended.add(key)
        return [ended(key)]
    if what < 0.09:
        # What has followed what was to go stays.
        late = TargetForgotten(incarnation(pid, lives[pid] - 1))
        del truth.rounds[key]
        truth.ended.discard(key)
        return [late, ended(key), late, TargetForgotten(key)]
    if what < 0.2:
        return [RoundsExpired(key, random.randrange(len(rounds) + 1))]
    pages = _pages(random)
    rounds.append(pages)
    return [appended(key, len(rounds), pages.written, pages.vanished)]


def _session(random: Random, truth: Truth) -> SessionKept | SessionForgotten:
    name = random.choice(SESSIONS)
    if random.random() < 0.3:
        truth.sessions.pop(name, None)
        return SessionForgotten("mover", name)
    targets = [f"host-1/{random.randrange(1, 1 << 22)}" for _ in range(random.choice((1, 3000)))]
    opened = OpenSessionRequest(session=name, selection=Selection(targets=targets))
    truth.sessions[name] = SessionKept("mover", name, stored(opened, {}))
    return truth.sessions[name]


def _pages(random: Random) -> RoundPages:
    written = BitMap64(random.sample(range(PAGES), random.choice((0, 3, 50, 1500))))
    vanished = BitMap64(random.sample(range(PAGES), random.choice((0, 0, 3, 50))))
    return RoundPages(written, vanished - written)
