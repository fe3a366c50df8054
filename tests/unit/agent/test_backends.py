"""Which backend is picked: the best that works, never one that can harm unasked, and why."""

import pytest

from wetink_agent import probe, soft_dirty
from wetink_agent.backends import BackendName, choose
from wetink_agent.errors import KernelLacks


@pytest.fixture
def lacks(monkeypatch: pytest.MonkeyPatch) -> dict[str, str | None]:
    """Give what the probes say; None where a backend works."""
    said: dict[str, str | None] = {"wp-async": None, "soft-dirty": None}
    monkeypatch.setattr(probe, "why_not_wp_async", lambda: said["wp-async"])
    monkeypatch.setattr(soft_dirty, "why_not_soft_dirty", lambda: said["soft-dirty"])
    return said


def test_auto_takes_the_best_that_works(lacks: dict[str, str | None]) -> None:
    """wp-async where it works, else soft-dirty, and the reason says what the other lacked."""
    best = choose(BackendName.AUTO, events_ring_bytes=4096)
    lacks["wp-async"] = "it is too old"
    second = choose(BackendName.AUTO)

    assert (best.name, second.name) == (BackendName.WP_ASYNC, BackendName.SOFT_DIRTY)
    assert best.reason.startswith("a probe saw")
    assert best.reason.endswith("; with the stream of events")
    assert second.reason.startswith("not wp-async: it is too old; a probe saw the soft-dirty bit")


def test_auto_never_takes_what_can_harm(lacks: dict[str, str | None]) -> None:
    """Where nothing else works it says what each lacks, though wp-sync would work."""
    lacks["wp-async"], lacks["soft-dirty"] = "it is too old", "it has no bit"

    with pytest.raises(KernelLacks) as caught:
        choose(BackendName.AUTO)

    assert str(caught.value) == (
        "this kernel cannot track with wp-async: it is too old; this kernel cannot track with soft-dirty: it has no bit"
    )


def test_what_was_asked_for_is_not_replaced(lacks: dict[str, str | None]) -> None:
    """A backend that is named and lacks something is refused, whatever else would work."""
    lacks["soft-dirty"] = "it has no bit"

    with pytest.raises(KernelLacks, match="cannot track with soft-dirty: it has no bit"):
        choose(BackendName.SOFT_DIRTY)
