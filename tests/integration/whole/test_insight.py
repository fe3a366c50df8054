"""Insight from a real process to the command: each answer against what the process is known to do."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import pytest

from tests.support.agent import HOST, running_agent
from tests.support.collector import running_collector
from tests.support.programs import running
from tests.support.victim import PAGE, Victim, victim
from wetink.command_line import Failure
from wetink_client import AsyncCollector, Collector
from wetink_client.plot import draw_heatmap

pytestmark = pytest.mark.needs("kernel", "root", "cc")

COMMAND: Final = [sys.executable, "-c", "from wetink_client.command import main; main()"]
PATIENCE_SECONDS: Final = 30.0

HOT_PAGES: Final = 16
COLD_PAGES: Final = 400
STILL_PAGES: Final = 96
"""Of hot_and_cold.c."""

ROUNDS: Final = 30


class Place:
    """A collector that has followed the program for some rounds."""

    def __init__(self, address: str, name: str, first_page: int) -> None:
        """Take what is where."""
        self.address = address
        self.name = name
        self.first_page = first_page

    def run(self, *arguments: str) -> str:
        """Run a command to its end; give what it printed."""
        environment = {**os.environ, "WETINK_COLLECTOR": self.address}
        done = subprocess.run(
            [*COMMAND, *arguments], check=False, capture_output=True, text=True, env=environment, timeout=60
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def ask(self, *arguments: str) -> list[Any]:
        """Run a command with ``--json``; give its lines."""
        return [json.loads(line) for line in self.run(*arguments, "--json").splitlines()]

    def part_of(self, page: int) -> str:
        """Say in which part of the program's memory a page is; empty for pages of none."""
        at = page - self.first_page
        parts = {"hot": HOT_PAGES, "cold": HOT_PAGES + COLD_PAGES, "still": HOT_PAGES + COLD_PAGES + STILL_PAGES}
        return next((part for part, end in parts.items() if 0 <= at < end), "")


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    """Follow the program with events, until its cold thread has been everywhere and functions have names."""
    with (
        running("hot_and_cold") as program,
        running_collector() as collector,
        running_agent(collector.address, "--pid", str(program.pid), "--events", interval="100ms"),
        Collector(collector.address) as client,
    ):
        name = f"{HOST}/{program.pid}"
        place = Place(collector.address, name, int(program.ready[1], 16) // PAGE)
        until(lambda: client.targets(name)[0].round >= ROUNDS)
        until(lambda: {"write_hot", "write_cold"} <= {code.symbol for code in client.writers(name).code})
        yield place


def until(holds: Callable[[], bool]) -> None:
    """Wait until something holds."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def pages_of(ranges: Sequence[Sequence[int]]) -> Iterator[int]:
    """Give the pages of ranges of bytes."""
    for start, length in ranges:
        yield from range(start // PAGE, (start + length) // PAGE)


def test_working_set(place: Place) -> None:
    """Each window has the hot pages; longer ones have more cold ones; none has those that are never written."""
    (line,) = place.ask("working-set", place.name)
    points = line["working_set"]["points"]

    assert line["history"]["exact"]
    assert all(point["exact"] for point in points)
    assert all(point["pages"]["p50"] >= HOT_PAGES for point in points)
    means = [point["pages"]["mean"] for point in points]
    assert means[-1] > means[0] + 50
    # The interpreter of the test is no part of it: what the program's libraries write is little.
    assert line["working_set"]["writable_page_count"] <= HOT_PAGES + COLD_PAGES + 64
    assert line["working_set"]["populated_page_count"] >= HOT_PAGES + COLD_PAGES + STILL_PAGES
    printed = place.run("working-set", place.name)
    assert "writable working set" in printed
    assert "█" in printed


def test_hot_pages(place: Place) -> None:
    """The hottest are those that are written in each round."""
    (line,) = place.ask("hot-pages", place.name, "--limit", "200")
    found = pages_of([(pages["start_address"], pages["length_bytes"]) for pages in line["pages"]])
    # The stacks of its threads are as hot.
    ours = [page for page in found if place.part_of(page)]

    assert sorted(ours[:HOT_PAGES]) == list(range(place.first_page, place.first_page + HOT_PAGES))
    assert f"of {line['written_page_count'] // 100}" in place.run("hot-pages", place.name)


def test_cold_pages_first(place: Place) -> None:
    """Those never written come first, the hot ones last, and each populated page once."""
    lines = place.ask("cold-first", place.name)
    order = [(line["class"], page) for line in lines for page in pages_of(line["ranges"])]
    pages = [page for _, page in order]

    assert len(pages) == len(set(pages))
    classes = {page: index for index, page in order}
    last = max(classes.values())
    for page in range(place.first_page, place.first_page + HOT_PAGES + COLD_PAGES + STILL_PAGES):
        if place.part_of(page) == "hot":
            assert classes[page] == last
        if place.part_of(page) == "still":
            assert classes[page] == 0
    assert "never" in place.run("cold-first", place.name)


def test_heatmap(place: Place, tmp_path: Path) -> None:
    """Rows of hot pages are full in each column, those of still ones empty; pictures are pictures."""
    (line,) = place.ask("heatmap", place.name, "--rows", "256", "--columns", "5")
    seen = set()
    for row, counts in zip(line["rows"], line["page_counts"], strict=True):
        parts = {place.part_of(page) for page in pages_of([(row["start_address"], row["length_bytes"])])}
        if parts == {"hot"}:
            assert counts == [row["page_count"]] * len(line["columns"])
        if parts == {"still"}:
            assert not any(counts)
        seen |= parts if len(parts) == 1 else set()
    assert seen >= {"hot", "cold", "still"}
    assert {"[stack]", "[heap]"} & {row["label"] for row in line["rows"]}
    assert "@" in place.run("heatmap", place.name, "--rows", "256")
    png, svg = tmp_path / "heat.png", tmp_path / "heat.svg"
    place.run("heatmap", place.name, "--output", str(png))
    with Collector(place.address) as client:
        found = client.heatmap(place.name)
        draw_heatmap(found, svg)
    with pytest.raises(Failure, match="nothing to draw"):
        draw_heatmap(replace(found, rows=(), page_counts=()), tmp_path / "nothing.png")
    assert png.read_bytes().startswith(b"\x89PNG\r\n")
    assert "<svg" in svg.read_text()


def test_writers(place: Place) -> None:
    """Both threads and both functions, each with the pages that it writes."""
    (line,) = place.ask("writers", place.name)
    threads = {thread["name"]: thread for thread in line["threads"]}
    code = {one["symbol"]: one for one in line["code"]}

    assert threads["hot"]["page_count"] < COLD_PAGES // 4 < threads["cold"]["page_count"]
    assert code["write_hot"]["page_count"] == HOT_PAGES
    assert code["write_cold"]["page_count"] > COLD_PAGES // 4
    assert "hot_and_cold" in code["write_hot"]["file"]
    assert code["write_hot"]["file_offset"] > 0
    printed = place.run("writers", place.name)
    assert "write_hot" in printed
    assert "write_cold" in printed


async def everything(place: Place) -> None:
    """Ask each question by asyncio."""
    async with AsyncCollector(place.address) as client:
        sets = await client.working_set(place.name)
        heat = await client.heatmap(place.name, rows=4, columns=4)
        (hot,) = await client.hot_pages(place.name, limit=3)
        cold = [pages async for pages in client.cold_first(place.name)]
        writers = await client.writers(place.name)
    assert sets.targets[0].working_set
    assert len(heat.rows) <= 4
    assert hot.pages[0].length_bytes <= 3 * PAGE
    assert cold[0].ranges()
    assert writers.threads


def test_asyncio_has_the_same(place: Place) -> None:
    """The same names give the same values."""
    import asyncio  # noqa: PLC0415 (for this alone)

    asyncio.run(everything(place))


@contextmanager
def sharing(path: Path) -> Iterator[tuple[Victim, Victim, list[int]]]:
    """Start two processes that map the same memfd and the same file in memory, and write each page of both."""
    with victim() as one, victim() as two:
        path.write_bytes(bytes(8 * PAGE))
        one.do("global fd; fd = os.memfd_create('shared'); os.ftruncate(fd, 8 * PAGE)")
        handle = one.number("fd")
        firsts = []
        for who, memory in ((one, "fd"), (two, f"os.open('/proc/{one.pid}/fd/{handle}', os.O_RDWR)")):
            for opened in (memory, f"os.open({str(path)!r}, os.O_RDWR)"):
                address = who.number(f"mmap(8, flags=0x1, fd={opened})")
                who.do(f"fill({address}, 8)")
                firsts.append(address // PAGE)
        yield one, two, firsts


CHILD: Final = (
    "os.close(go[1]), os.read(go[0], 1), fill({address}, 6, 3), os.write(done[1], b'.'), os.read(go[0], 1), os._exit(0)"
)
"""A forked child waits to be told, writes six pages, says so, and stays until its parent has gone."""


def test_shared_pages_count_once_and_copies_of_a_fork_for_each(tmp_path: Path) -> None:
    """
    Two processes write one memfd and one file of tmpfs: each page counts once. What a parent and its child write to
    memory that they shared since the fork are copies, which count for each.
    """
    shared = Path("/dev/shm") / f"wetink-{os.getpid()}-{tmp_path.name}"  # noqa: S108 (memory that others map too)
    try:
        with sharing(shared) as (one, two, firsts), victim() as parent:
            private = parent.map(8)
            parent.do("global go, done; go, done = os.pipe(), os.pipe()")
            child = parent.number(f"os.fork() or ({CHILD.format(address=private * PAGE)})")
            pids = [one.pid, two.pid, parent.pid, child]
            with (
                running_collector() as collector,
                running_agent(
                    collector.address, *(word for pid in pids for word in ("--pid", str(pid))), interval="60s"
                ),
                Collector(collector.address) as client,
            ):
                names = [f"{HOST}/{pid}" for pid in pids]
                client.barrier(names)
                cursors = [client.dirty(name).cursor for name in names[2:]]
                one.do(f"fill({firsts[0] * PAGE}, 5); fill({firsts[1] * PAGE}, 3)")
                two.do(f"fill({firsts[2] * PAGE + 3 * PAGE}, 5); fill({firsts[3] * PAGE}, 2)")
                # Both write to the same addresses, and to pages that they share no more from the first write on.
                parent.do(f"fill({private * PAGE}, 4, 9); os.write(go[1], b'.'); os.read(done[0], 1)")
                written = [
                    {page - private for page in client.dirty(name, since=cursor, barrier=True).written} & set(range(8))
                    for name, cursor in zip(names[2:], cursors, strict=True)
                ]
                client.barrier(names)
                both = client.working_set(names[:2])
                alone = sum(target.working_set.writable_page_count for target in both.targets if target.working_set)
                forked = client.working_set(names[2:])
                assert both.group
                assert both.group.targets_without_mappings == ()
                # All eight of either are in each round: nobody can tell which of them the other process wrote.
                assert both.group.working_set.writable_page_count == alone - 16
                assert both.group.shared_page_count == 16
                tree = Place(collector.address, names[2], 0).ask("working-set", "--tree", names[2])
                assert {line["history"]["name"].partition("@")[0] for line in tree[:-1]} == set(names[2:])
                assert written == [set(range(4)), set(range(6))]
                assert forked.group
                assert forked.group.working_set.writable_page_count == sum(
                    target.working_set.writable_page_count for target in forked.targets if target.working_set
                )
            parent.do(f"os.kill({child}, 9)")
    finally:
        shared.unlink(missing_ok=True)
