"""Which backend is picked, and why: never one unasked that can harm a target."""

import pytest

from wetink_agent import probe, soft_dirty
from wetink_agent.backends import HAZARDS, BackendName, choose
from wetink_agent.errors import KernelLacks


@pytest.fixture
def lacks(monkeypatch: pytest.MonkeyPatch) -> dict[str, str | None]:
    """Give what the probes say; None where a backend works."""
    said: dict[str, str | None] = {"wp-async": None, "soft-dirty": None}
    monkeypatch.setattr(probe, "why_not_wp_async", lambda: said["wp-async"])
    monkeypatch.setattr(soft_dirty, "why_not_soft_dirty", lambda: said["soft-dirty"])
    return said


def test_auto_takes_what_no_target_waits_for(lacks: dict[str, str | None]) -> None:
    """wp-async where it works, with the reason."""
    best = choose(BackendName.AUTO, events_ring_bytes=4096)

    assert best.name is BackendName.WP_ASYNC
    assert best.reason.startswith("a probe saw")
    assert best.reason.endswith("; with the stream of events")
    assert lacks["wp-async"] is None


def test_auto_falls_back_to_soft_dirty_and_says_why(lacks: dict[str, str | None]) -> None:
    """What the better one lacks is said wherever targets are listed, and the log has what this one does to them."""
    lacks["wp-async"] = "it is too old"

    picked = choose(BackendName.AUTO)

    assert picked.name is BackendName.SOFT_DIRTY
    assert picked.reason.startswith("not wp-async: it is too old; a probe saw the soft-dirty bit")
    assert HAZARDS[picked.name]


def test_auto_never_takes_what_can_harm_a_target(lacks: dict[str, str | None]) -> None:
    """wp-sync would work: it is for those who ask. What each of the others lacks is said."""
    lacks.update({"wp-async": "it is too old", "soft-dirty": "it has no bit"})

    with pytest.raises(KernelLacks) as caught:
        choose(BackendName.AUTO)

    assert str(caught.value) == (
        "this kernel cannot track with wp-async: it is too old; this kernel cannot track with soft-dirty: it has no bit"
    )


def test_auto_with_events_takes_nothing_that_has_none(lacks: dict[str, str | None]) -> None:
    """Who asks for the stream of events hears that there is none."""
    lacks["wp-async"] = "it is too old"

    with pytest.raises(KernelLacks, match="cannot track with wp-async: it is too old"):
        choose(BackendName.AUTO, events_ring_bytes=4096)


def test_what_was_asked_for_is_not_replaced(lacks: dict[str, str | None]) -> None:
    """A backend that is named and lacks something is refused, whatever else would work."""
    lacks["soft-dirty"] = "it has no bit"

    with pytest.raises(KernelLacks, match="cannot track with soft-dirty: it has no bit"):
        choose(BackendName.SOFT_DIRTY)


def test_a_filter_of_the_agents_own_says_nothing_of_the_kernel(
    lacks: dict[str, str | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a container, where no probe can run, the targets' own userfaultfds are what counts."""
    lacks["wp-async"] = "userfaultfd(2) fails here: Operation not permitted"
    monkeypatch.setattr(probe, "is_forbidden_by_own_filter", lambda: True)

    assert choose(BackendName.AUTO).reason.startswith("the agent's own seccomp filter forbids the probe")
