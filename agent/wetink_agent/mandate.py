"""What an agent was told to track, as its keeper holds it: the next worker may be told something else.

After a crash, an upgrade or a restart with the same options the next worker goes on with everything. With others, which
a file of options or systemd's unit may have by then, the new ones hold: a target that they leave out is not gone on
with. What orchestrators and the programs themselves have asked for is no option, and stays.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, Self

from wetink_agent import discovery, procfs
from wetink_agent.errors import NoSuchProcess

_IDENTITIES: Final = ("wanted", "offered", "untracked")

Identity = tuple[int, int]
"""Pid and start time."""

LEFT_OUT: Final = "the agent was started again with options that leave it out"


@dataclass(frozen=True, slots=True)
class Rules:
    """The options that say what to track; equal where they say the same."""

    pids: tuple[int, ...] = ()
    commands: tuple[str, ...] = ()
    cgroups: tuple[str, ...] = ()
    tree: bool = False
    offers: bool = False
    """Whether programs may offer their memory."""

    @classmethod
    def of(cls, pids: Iterable[int], selection: discovery.Selection, *, offers: bool) -> Self:
        """Give the rules of an agent with these options."""
        commands = sorted(pattern.pattern for pattern in selection.commands)
        return cls(tuple(sorted(pids)), tuple(commands), tuple(sorted(selection.cgroups)), selection.tree, offers)


@dataclass(frozen=True, slots=True)
class Mandate:
    """The rules, and what is or is not tracked for another reason.

    Attributes:
        rules: The options.
        wanted: Targets that orchestrators have asked for.
        offered: Targets that have offered their memory.
        untracked: Processes that somebody does not want tracked, whatever the rules say.
    """

    rules: Rules = field(default_factory=Rules)
    wanted: frozenset[Identity] = frozenset()
    offered: frozenset[Identity] = frozenset()
    untracked: frozenset[Identity] = frozenset()

    def to_bytes(self) -> bytes:
        """Write it down."""
        rules = {name: getattr(self.rules, name) for name in Rules.__slots__}
        identities = {name: sorted(getattr(self, name)) for name in _IDENTITIES}
        return json.dumps({"rules": rules, **identities}).encode()

    @classmethod
    def from_bytes(cls, text: bytes) -> Self | None:
        """Read what a worker has written down; None where it is of another version."""
        try:
            read = json.loads(text)
            rules = read["rules"]
            lists = {name: tuple(rules[name]) for name in ("pids", "commands", "cgroups")}
            identities = {name: frozenset((pid, start) for pid, start in read[name]) for name in _IDENTITIES}
            return cls(Rules(**lists, tree=rules["tree"], offers=rules["offers"]), **identities)
        except (ValueError, TypeError, KeyError, AttributeError):
            return None


def selected(rules: Rules, selection: discovery.Selection, before: Mandate, named: Mapping[int, int]) -> "Selected":
    """Find what new rules mean. A look at every process of the host: not for an event loop.

    Args:
        rules: The new ones.
        selection: The part of them that is looked for.
        before: What the worker before had.
        named: Processes that the worker before was told to track by pid, and when each started.
    """
    identities = set(before.wanted | (before.offered if rules.offers else frozenset()))
    identities.update((pid, named[pid]) for pid in rules.pids if pid in named)
    pids = {pid for pid in rules.pids if pid not in named}
    if not selection.is_empty:
        pids |= selection.select(discovery.processes(selection), frozenset(pids | {pid for pid, _ in identities}))
    for pid in pids:
        try:
            identities.add((pid, procfs.stat(pid).start_time_ticks))
        except NoSuchProcess:
            continue
    return Selected(frozenset(identities), frozenset(rules.pids) | pids if rules.tree else frozenset())


@dataclass(frozen=True, slots=True)
class Selected:
    """What rules mean at one time.

    ``roots`` are pids whose descendants count, those too that are children of nobody's any more.
    """

    identities: frozenset[Identity]
    roots: frozenset[int]

    def has(self, identity: Identity, ancestors: Iterable[int]) -> bool:
        """Whether a target is among them; ``ancestors`` are those it had when it became one."""
        return identity in self.identities or not self.roots.isdisjoint(ancestors)
