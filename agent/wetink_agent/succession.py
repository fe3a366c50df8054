"""Going on with a target where an earlier worker left it."""

import os
from collections.abc import Sequence
from dataclasses import dataclass

from wetink_agent import procfs
from wetink_agent.backend import Backend, Harvest
from wetink_agent.backends import Choice, go_on
from wetink_agent.errors import NoSuchProcess, TargetExited
from wetink_agent.keeping import Left
from wetink_agent.keepsake import Keepsake
from wetink_agent.rounds import Round
from wetink_agent.wp_async import Continued


@dataclass(frozen=True, slots=True)
class TakenOver:
    """A target that is gone on with, and its next round.

    ``is_whole`` is whether nothing was lost with the other worker; else the round has everything.
    """

    backend: Backend
    first: Harvest
    keepsake: Keepsake
    is_whole: bool


def take_over(left: Left, rounds: Sequence[Round], choice: Choice) -> TakenOver:
    """Go on with a target. Takes milliseconds: not for an event loop.

    Args:
        left: What the other worker left; its descriptors are owned from now on.
        rounds: What the disk has of it, behind what is durable.
        choice: What ``choose`` gave.

    Raises:
        TargetExited, TargetReplaced: There is nothing to go on with.
        TrackingError: It cannot be tracked any more.
    """
    kept = left.kept
    pid = kept.started.target.pid
    keepsake = Keepsake(left.keepsake)
    is_whole = kept.is_whole_with(rounds[-1].last if rounds else kept.durable)
    try:
        _check_is_there(left)
        scope = [(each.start_address, each.start_address + each.size_bytes) for each in kept.started.scope]
        backend = go_on(choice, pid, left.uffd, scope, Continued(kept.layout, kept.pages, is_whole))
        try:
            # A harvest is under way from now on, for whoever comes next.
            keepsake.begin(kept.started, kept.layout, kept)
            return TakenOver(backend, backend.harvest(), keepsake, is_whole)
        except BaseException:
            backend.close()
            raise
    except BaseException:
        keepsake.close()
        raise


def _check_is_there(left: Left) -> None:
    target = left.kept.started.target
    try:
        if procfs.stat(target.pid).start_time_ticks == target.start_time_ticks:
            return
    except NoSuchProcess:
        pass
    os.close(left.uffd)
    message = f"process {target.pid} exited"
    raise TargetExited(message)
