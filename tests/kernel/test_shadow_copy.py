"""A copy made from dirty sets alone is the process's memory, byte for byte; and the test notices when it is not."""

import pytest
from pyroaring import BitMap64

from tests.support.copying import Outcome, shadow_copy
from tests.support.programs import WRITER_PATTERNS
from wetink_agent.runs import Runs
from wetink_agent.wp_async import WpAsync

pytestmark = pytest.mark.needs("kernel", "root", "cc")

ROUNDS = 25


@pytest.mark.parametrize("pattern", WRITER_PATTERNS)
def test_copy_of_a_frozen_writer_is_identical(pattern: str) -> None:
    """After 25 rounds of copying what is written and dropping what vanished, every byte is the frozen process's."""
    outcome = shadow_copy(pattern, rounds=ROUNDS, seed=1)

    assert outcome.differences == []
    assert outcome.page_count > 500
    assert outcome.frozen
    assert outcome.again_page_count == 0, "a frozen process writes nothing, so nothing may be reported"


class WithoutAudit(WpAsync):
    """Finds no memory outside what is registered, after the first round."""

    def _audit(self) -> Runs:
        found = super()._audit()
        return found if self._known is None else Runs(found.starts[:0], found.ends[:0])


class WithoutLateAuditAndKnownSet(WpAsync):
    """Skips the second audit, and knows only what the last census saw."""

    _audit_count = 0

    def _audit(self) -> Runs:
        self._audit_count += 1
        found = super()._audit()
        return found if self._audit_count % 2 else Runs(found.starts[:0], found.ends[:0])

    def _settle(self, populated: Runs, reported: BitMap64) -> tuple[BitMap64, int]:
        result = super()._settle(populated, reported)
        self._known = self._populated
        return result


class WithoutVanished(WpAsync):
    """Never says that a page is gone."""

    def _settle(self, populated: Runs, reported: BitMap64) -> tuple[BitMap64, int]:
        _, count = super()._settle(populated, reported)
        return BitMap64(), count


class WithoutRearming(WpAsync):
    """Looks at what was written and does not arm it again."""

    def _census(self, flags: int = 0) -> tuple[Runs, BitMap64]:
        return super()._census(flags)


@pytest.mark.parametrize("broken", [WithoutAudit, WithoutLateAuditAndKnownSet, WithoutVanished, WithoutRearming])
def test_a_tracker_that_leaves_out_a_step_is_found_out(broken: type[WpAsync]) -> None:
    """The same run with one step switched off fails within a few tries: the test above would see such a mistake."""
    assert any(found_out(shadow_copy("mapfixed", rounds=ROUNDS, seed=seed, backend=broken)) for seed in range(1, 11))


def found_out(outcome: Outcome) -> bool:
    """Whether the claims of the test above do not hold."""
    return bool(outcome.differences) or outcome.again_page_count > 0
