"""The power goes: whatever the disk had come to, what was acknowledged is there, and the store is whole."""

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from random import Random
from typing import Final

import pytest

from tests.support.amounts import amount
from tests.support.disk import Operation, left, operations, preloaded
from tests.unit.collector import stories
from wetink_collector.store.connections import CHECKPOINT_PAGES
from wetink_collector.store.sqlite import FILE_NAME, SqliteStore

ACKNOWLEDGED: Final = "acknowledged"
"""A file that is written to after each commit: in the log it says when the collector would have acknowledged."""

WRITER: Final = """
import sys
from pathlib import Path
from tests.unit.collector import stories
from wetink_collector.store import connections
from wetink_collector.store.sqlite import SqliteStore

directory, seed, length, lives = Path(sys.argv[1]), *map(int, sys.argv[2:])
connections.CHECKPOINT_PAGES = 16  # so that the log goes back into the file many times
commits = stories.tell(seed, length).commits
with (directory / "acknowledged").open("ab", buffering=0) as acknowledged:
    for life in range(lives):
        store = SqliteStore(directory)
        for commit in commits[length * life // lives : length * (life + 1) // lives]:
            store.commit(commit)
            acknowledged.write(b"+")
            store.maintain()
        store.close()
"""


def recorded(directory: Path, seed: int, length: int) -> Sequence[Operation]:
    """Let a store live through a story in a process of its own, three times opened and closed; give what it wrote."""
    data = directory / "data"
    data.mkdir()
    log = directory / "log"
    command = [sys.executable, "-c", WRITER, str(data), str(seed), str(length), "3"]
    environment = {**preloaded(data, log=log), "PYTHONPATH": ":".join(filter(None, sys.path))}
    subprocess.run(command, check=True, env=environment, timeout=300)
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
@pytest.mark.timeout(120)
def test_every_prefix_of_what_was_written_recovers(tmp_path: Path) -> None:
    """
    Cut after any operation, with nothing lost but what came after, and with anything lost that was not synced, in part
    too: each acknowledged round is there, and every answer is right.
    """
    random = Random(amount(gate=1, soak=2))  # noqa: S311 (no secret)
    for seed in range(amount(gate=1, soak=40)):
        length = amount(gate=24, soak=60)
        directory = tmp_path / str(seed)
        directory.mkdir()
        story, done = stories.tell(seed, length), recorded(directory, seed, length)
        assert CHECKPOINT_PAGES > 16
        assert sum(1 for one in done if one.name == ACKNOWLEDGED and one.kind == "w") == length
        cuts = [number for number in range(len(done) + 1) if number == len(done) or done[number].name != ACKNOWLEDGED]
        for cut in random.sample(cuts, min(len(cuts), amount(gate=250, soak=10**6))):
            check_left(done[:cut], story, None)
        for _ in range(amount(gate=250, soak=4000)):
            check_left(done[: random.choice(cuts)], story, random)
