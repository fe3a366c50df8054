"""The power goes: whatever the disk had come to, what was acknowledged is there, and the store is whole."""

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import closing
from itertools import count
from pathlib import Path
from random import Random
from typing import Final

import pytest

from tests.support.amounts import amount
from tests.support.disk import Faults, Operation, left, operations, preloaded
from tests.unit.collector import stories
from wetink_collector.store.sqlite import FILE_NAME, SqliteStore

ACKNOWLEDGED: Final = "acknowledged"
"""A file that is written to after each commit: in the log it says when the collector would have acknowledged."""

DIED: Final = 3

WRITER: Final = """
import os, sys
from errno import EIO
from pathlib import Path
from random import Random
from tests.support.disk import Faults
from tests.unit.collector import stories
from wetink_collector.store import connections
from wetink_collector.store.interface import StoreFailed
from wetink_collector.store.sqlite import SqliteStore

directory, faults, seed, length, lives = Path(sys.argv[1]), sys.argv[2], *map(int, sys.argv[3:])
random = Random(1000 * seed + lives)
connections.CHECKPOINT_PAGES = 16  # so that the log goes back into the file many times
story, failing = stories.tell(seed, length), Faults(Path(faults)) if faults else None
acknowledged = (directory / "acknowledged").open("ab", buffering=0)

def opened():
    store = SqliteStore(directory)
    list(store.read(stories.incarnation(), after_round=0))  # readers stay: nobody tidies up behind them
    return store

store = opened()
while (number := acknowledged.tell()) < length:
    if random.random() < 0.1:
        store.close()
        store = opened()
    if stories.kept(store) != story.truths[number + 1].kept():
        if failing:
            failing.set(sync=EIO if random.random() < 0.3 else 0)
        try:
            store.commit(story.commits[number])
        except StoreFailed:
            failing.set()
            if random.random() < 0.5:
                os._exit(3)
            store.recover()
            continue
    acknowledged.write(b"+")
    store.maintain()
"""
"""Lives through a story from where it is, or until it dies (exit code 3). A commit that is there is not made again."""


def recorded(directory: Path, seed: int, length: int, *, has_faults: bool = False) -> Sequence[Operation]:
    """Let a store live through a story, in processes of its own; give what they wrote."""
    directory.mkdir()
    faults = Faults(directory / "faults") if has_faults else None
    data = directory / "data"
    data.mkdir()
    log = directory / "log"
    told = [str(data), str(faults.path) if faults else "", str(seed), str(length)]
    command = [sys.executable, "-c", WRITER, *told]
    environment = {**preloaded(data, log=log, faults=faults), "PYTHONPATH": ":".join(filter(None, sys.path))}
    codes = (subprocess.run([*command, str(life)], check=False, env=environment).returncode for life in count())
    assert next(code for code in codes if code != DIED) == 0
    return operations(log)


def check_left(done: Sequence[Operation], story: stories.Story, random: Random | None) -> None:
    """Start on what a power cut leaves, and compare everything with the truth."""
    acknowledged = sum(1 for one in done if one.kind == "w" and one.name == ACKNOWLEDGED)
    files = left(done, random)
    memory = Path("/dev/shm")  # noqa: S108 (a directory of our own in it; nothing there waits for a disk)
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as directory:
        for name, content in files.items():
            if name.startswith(FILE_NAME) and not name.endswith("-shm"):
                (Path(directory) / name).write_bytes(content)
        with closing(SqliteStore(Path(directory))) as store:
            # The commit that was under way may have come down whole, or not at all.
            known = {
                number: story.truths[number]
                for number in (acknowledged, acknowledged + 1)
                if number < len(story.truths)
            }
            truth = next((truth for truth in known.values() if truth.kept() == stories.kept(store)), None)
            assert truth is not None, (acknowledged, stories.kept(store), [truth.kept() for truth in known.values()])
            stories.check(store, truth)
        assert not (Path(directory) / f"{FILE_NAME}.damaged").exists()


@pytest.mark.soak
@pytest.mark.timeout(amount(gate=600, soak=3600))  # seconds, for a machine that is busy
@pytest.mark.needs("cc")
@pytest.mark.parametrize("has_faults", [False, True], ids=["disk works", "fsyncs fail"])
def test_every_prefix_of_what_was_written_recovers(tmp_path: Path, *, has_faults: bool) -> None:
    """
    Cut after any operation, with nothing lost but what came after, and with anything lost that was not synced, in part
    too: each acknowledged round is there, and every answer is right. So it is where fsyncs fail now and then, for which
    the store says so and recovers.
    """
    random = Random(1)  # noqa: S311 (no secret)
    for seed in range(amount(gate=1, soak=20)):
        length = amount(gate=24, soak=60)
        story, done = stories.tell(seed, length), recorded(tmp_path / str(seed), seed, length, has_faults=has_faults)
        assert sum(1 for one in done if one.name == ACKNOWLEDGED and one.kind == "w") == length
        assert has_faults == any(one.kind == "f" for one in done)
        cuts = [number for number in range(len(done) + 1) if number == len(done) or done[number].name != ACKNOWLEDGED]
        for cut in random.sample(cuts, min(len(cuts), amount(gate=200, soak=10**6))):
            check_left(done[:cut], story, None)
        for _ in range(amount(gate=200, soak=1000)):
            check_left(done[: random.choice(cuts)], story, random)
