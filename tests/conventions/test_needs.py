import pytest

from tests.support import needs as machine
from tests.support.needs import REQUIRE, UnknownNeed, needs


@pytest.fixture
def poor_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without redis, where nothing is required."""
    monkeypatch.setattr(machine, "PROBES", {"redis": lambda: "there is no redis-server", "cc": lambda: None})
    monkeypatch.setattr(machine, "missing", machine.missing.__wrapped__)
    monkeypatch.delenv(REQUIRE, raising=False)


@pytest.mark.usefixtures("poor_machine")
def test_a_missing_need_skips_and_says_what_is_missing() -> None:
    """Who reads the summary knows what to install."""
    with pytest.raises(pytest.skip.Exception, match="needs redis: there is no redis-server"):
        needs("cc", "redis")


@pytest.mark.usefixtures("poor_machine")
def test_a_missing_need_that_is_required_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """On CI nothing is left out in silence."""
    monkeypatch.setenv(REQUIRE, "cc, redis")

    with pytest.raises(pytest.fail.Exception, match="needs redis: there is no redis-server"):
        needs("redis")


@pytest.mark.usefixtures("poor_machine")
def test_a_need_that_is_there_lets_the_test_go_on() -> None:
    """Nothing happens."""
    needs("cc")


@pytest.mark.usefixtures("poor_machine")
def test_a_need_that_nobody_defined_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """A misspelt need would otherwise be met everywhere, and a misspelt requirement never enforced."""
    with pytest.raises(UnknownNeed):
        needs("rediss")
    monkeypatch.setenv(REQUIRE, "rediss")
    with pytest.raises(UnknownNeed):
        machine.required()
