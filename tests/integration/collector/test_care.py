"""``check`` finds whatever was changed in a store, and ``compact`` makes it small and changes no answer."""

import os
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from tests.support.collector import running_collector
from tests.unit.collector import stories
from tests.unit.collector.changes import appended, ended, incarnation, started
from wetink_collector.store.interface import TargetForgotten
from wetink_collector.store.sqlite import FILE_NAME, SqliteStore

ONE = incarnation(1)


def command(*arguments: str) -> list[str]:
    """Give the command line of ``wetink-collector``."""
    return [sys.executable, "-c", "from wetink_collector.command import main; main()", *arguments]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run ``wetink-collector`` to its end."""
    return subprocess.run(command(*arguments), check=False, capture_output=True, text=True, timeout=100)


@pytest.fixture
def full(tmp_path: Path) -> Path:
    """Give a directory with a store in which much has happened."""
    with closing(SqliteStore(tmp_path)) as store:
        for commit in stories.tell(5, 60).commits:
            store.commit(commit)
            store.maintain()
        big = incarnation(9)
        store.commit([started(big), *(appended(big, n, range(n, 1 << 20, 9)) for n in range(1, 12))])
    return tmp_path


def damage(directory: Path, statement: str) -> None:
    """Change a store's file behind its back."""
    with closing(sqlite3.connect(directory / FILE_NAME, isolation_level=None)) as connection:
        assert connection.execute(statement).rowcount


def test_check_finds_nothing_in_a_store_that_is_whole_or_in_use(full: Path) -> None:
    """And says so; where a collector uses it, that too."""
    done = run("check", str(full))
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr.endswith(": no findings\n")

    with running_collector(full):
        done = run("check", str(full))
    assert (done.returncode, done.stdout) == (0, "")
    assert "which a collector is using" in done.stderr


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE block SET written = x'00' WHERE last_round = 2 AND incarnation_id = (SELECT max(id) FROM incarnation)",
        (
            "UPDATE block SET written = (SELECT written FROM block AS other WHERE other.last_round = 10 AND"
            " other.incarnation_id = block.incarnation_id) WHERE last_round = 11 AND"
            " incarnation_id = (SELECT max(id) FROM incarnation)"
        ),
        "UPDATE block SET written_page_count = 5 WHERE last_round = 2",
        "DELETE FROM block WHERE last_round = 2 AND incarnation_id = (SELECT max(id) FROM incarnation)",
        "UPDATE incarnation SET started = x'ffff' WHERE id = (SELECT max(id) FROM incarnation)",
    ],
    ids=["byte changed", "of another round", "count changed", "round removed", "start changed"],
)
def test_check_finds_what_was_changed(full: Path, statement: str) -> None:
    """One line for each, and exit code 1."""
    damage(full, statement)

    done = run("check", str(full))

    assert done.returncode == 1
    assert done.stdout.count("\n") >= 1
    assert "is damaged: " in done.stdout


def test_check_finds_pages_that_were_overwritten(full: Path) -> None:
    """Whatever SQLite says of them, without a traceback."""
    with (full / FILE_NAME).open("r+b") as file:
        file.seek(20 << 14)
        file.write(b"\xa5" * (20 << 14))

    done = run("check", str(full))

    assert done.returncode == 1
    assert done.stdout
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("name", ["check", "compact"])
def test_directory_without_a_store_is_said_to_be_one(tmp_path: Path, name: str) -> None:
    """Nothing is made there."""
    done = run(name, str(tmp_path))

    assert done.returncode == 1
    assert "there is no store in" in done.stderr
    assert not (tmp_path / FILE_NAME).exists()


def test_compact_makes_a_store_small_and_changes_no_answer(full: Path) -> None:
    """What was dropped takes no more room."""
    with closing(SqliteStore(full)) as store:
        store.commit([ended(incarnation(9)), TargetForgotten(incarnation(9))])
    before = (full / FILE_NAME).stat().st_size

    done = run("compact", str(full))

    assert done.returncode == 0, done.stderr
    assert (full / FILE_NAME).stat().st_size < before / 2
    with closing(SqliteStore(full)) as store:
        stories.check(store, stories.tell(5, 60).truths[-1])
    assert run("check", str(full)).returncode == 0


def test_compact_leaves_a_store_alone_that_is_in_use(full: Path) -> None:
    """It says so, and the collector goes on."""
    with running_collector(full):
        done = run("compact", str(full))
    assert done.returncode == 1
    assert "in use by another collector" in done.stderr


def test_compact_that_is_killed_leaves_every_answer(full: Path) -> None:
    """At whatever moment."""
    truth = stories.tell(5, 60).truths[-1]
    for wait in (0.0, 0.02, 0.05, 0.1):
        process = subprocess.Popen(command("compact", str(full)), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(0.5 + wait)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    with closing(SqliteStore(full)) as store:
        store.commit([ended(incarnation(9)), TargetForgotten(incarnation(9))])
        stories.check(store, truth)
