"""What a round costs with each backend, by the size of the target and the share of it that was written.

Beside it stands what a round would cost that looks only where events tell of a write, with no scan at all, as the mail
that this project starts from proposes: reading the ring, and arming again page by page. wetink has no such round: a
write that the kernel makes on somebody's behalf is no event. And what the walk costs that soft-dirty needs, on any
kernel: reading ``/proc/PID/pagemap``.

All of it is processor time of the thread that does it, so that other work on the machine counts for little.
"""

import contextlib
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np

from tests.bench.crossing import Cost, Curve, crossing, event_costs
from tests.bench.first_writes import WP_SYNC_TOGETHER, first_write_costs
from tests.bench.run import dirty, say, skip
from tests.bench.trackers import EVENTS, WP_ASYNC, WP_SYNC, apart, choices, together, tracking
from tests.support import programs
from wetink.pages import PAGE_SIZE
from wetink_agent.attach import take_userfaultfd
from wetink_agent.page_faults import PageFaults, parse
from wetink_agent.runs import adjacent_runs
from wetink_agent.wp_async import WpAsync

SHARES: Final = (0, 0.1, 1, 10, 100)
"""Shares of pages written, in per cent."""

GIB_SHARES: Final = (0, 0.1, 1, 3, 10, 30, 50, 100)
"""Those at 1 GiB, where the cost is shown against the share."""

TURNS: Final = {16: 15, 64: 15, 256: 11, 1024: 9, 4096: 5, 12288: 5}
"""How often each round is measured, for each size of the target in MiB."""

SPARSE_MIB: Final = 1024
SPARSE_SPAN_MIB: Final = 4 << 20
SPARSE_TURNS: Final = 5

ROOM_MIB: Final = 1024
"""Memory that must be there besides the target's: page tables, the agent's sets and events."""

POPULATE_SECONDS_MAX: Final = 300.0

STREAM_MIB: Final = 1024
STREAM_SHARES: Final = (0.01, 0.1, 1, 10, 50)
STREAM_RING_BYTES: Final = 16 << 20
STREAM_TURNS: Final = 9

WRITTEN_COUNTS: Final = (100, 1_000, 10_000, 100_000, 1_000_000)
"""Pages written in a round, for which the size is sought from which on the event stream is cheaper."""

SIZE_MIB_MAX: Final = 64 << 20
"""A target larger than this is not asked about."""

LARGE_MIB: Final = 256 << 10
"""Of a region of hundreds of gigabytes, as the mail has it."""


@dataclass(slots=True)
class Costs:
    """What was measured: milliseconds of a round by backend, size in MiB and share; of the walk, by size."""

    rounds: dict[str, dict[int, dict[float, float]]] = field(default_factory=dict)
    walks: dict[int, float] = field(default_factory=dict)


def bench_machine() -> Iterator[bool]:
    """Print where all this is measured, and how busy it is at the start."""
    processor = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
            if line.startswith("model name")
        ),
        "unknown",
    )
    yield say(
        "machine",
        len(os.sched_getaffinity(0)),
        "cores",
        figure="machine",
        kernel=os.uname().release,
        processor=processor,
        memory_gib=round(_meminfo_mib("MemTotal") / 1024, 1),
        available_gib=round(_meminfo_mib("MemAvailable") / 1024, 1),
        load_of_a_minute=round(os.getloadavg()[0], 2),
        date=time.strftime("%Y-%m-%d", time.gmtime()),
    )


def bench_rounds() -> Iterator[bool]:
    """Time rounds by size and share, rounds from events alone, and find where they cross."""
    costs = Costs()
    for size_mib, turns in TURNS.items():
        yield from _rounds_of(size_mib, size_mib, turns, costs)
    yield from _rounds_of(SPARSE_MIB, SPARSE_SPAN_MIB, SPARSE_TURNS, Costs())
    stream: dict[float, float] = {}
    yield from _stream_rounds(stream)
    yield from _crossings(costs, stream)


def _rounds_of(size_mib: int, span_mib: int, turns: int, costs: Costs) -> Iterator[bool]:
    """Measure all backends over one target, one after the other: a mapping has room for one."""
    about = f"{size_mib} MiB" if span_mib == size_mib else f"{size_mib} MiB in a mapping of {span_mib >> 20} TiB"
    available_mib = _meminfo_mib("MemAvailable")
    if available_mib < size_mib + ROOM_MIB:
        why = f"it takes {size_mib + ROOM_MIB} MiB of memory, and {available_mib} MiB are available"
        skip(f"round of {about}", why, figure="round", size_mib=size_mib, span_mib=span_mib)
        return
    arguments = [size_mib, *([span_mib] if span_mib != size_mib else [])]
    with (
        programs.running("scan", "victim", *arguments, deadline_seconds=POPULATE_SECONDS_MAX) as victim,
        apart(victim.pid),
    ):
        for name in choices():
            of_size = costs.rounds.setdefault(name, {}).setdefault(size_mib, {})
            # Targets of wp-sync wait for it, and would for longer on another core: see ``first_writes``.
            beside = together(victim.pid) if name == WP_SYNC else contextlib.nullcontext()
            with beside, tracking(name, victim.pid) as tracker:
                tracker.harvest()
                for share in GIB_SHARES if span_mib == size_mib == 1024 else SHARES:
                    took = []
                    for turn in range(turns):
                        dirty(victim, share, turn)
                        took.append(_milliseconds(tracker.harvest))
                    of_size[share] = statistics.median(took)
                    yield say(
                        f"round of {about}, {share:g} % of pages written, {name}",
                        of_size[share],
                        "ms of CPU, median",
                        figure="round",
                        backend=name,
                        size_mib=size_mib,
                        span_mib=span_mib,
                        share_percent=share,
                        ms_a_gib=round(of_size[share] / size_mib * 1024, 3),
                        ms_min=round(min(took), 3),
                        turns=turns,
                    )
        start = int(victim.ready[2], 16)
        walks = [
            _milliseconds(lambda: _read_page_map(victim.pid, start, span_mib << 20))
            for _ in range(turns if span_mib == size_mib else 1)
        ]
    costs.walks[size_mib] = statistics.median(walks)
    yield say(
        f"page map of {about}, read as soft-dirty needs it",
        costs.walks[size_mib],
        "ms of CPU, median",
        figure="walk",
        size_mib=size_mib,
        span_mib=span_mib,
    )


def _stream_rounds(stream: dict[float, float]) -> Iterator[bool]:
    """Time rounds from events alone, into milliseconds by pages written: the ring read and decoded, the pages armed."""
    with (
        programs.running("scan", "victim", STREAM_MIB) as victim,
        apart(victim.pid),
        programs.running("scan", "attach", victim.pid) as bare,
        tempfile.NamedTemporaryFile() as file,
    ):
        tracker = WpAsync(victim.pid, take_userfaultfd(victim.pid))
        events = PageFaults(victim.pid, STREAM_RING_BYTES)
        tracker.harvest()
        for share in STREAM_SHARES:
            decoding, arming, counts = [], [], []
            for turn in range(STREAM_TURNS):
                tracker.harvest()
                _pages_of(events)
                dirty(victim, share, turn)
                began = time.thread_time()
                starts, ends = _pages_of(events)
                decoding.append((time.thread_time() - began) * 1e6)
                Path(file.name).write_bytes(np.column_stack((starts, ends)).tobytes())
                answer = json.loads(bare.ask(f"arm {file.name}"))
                arming.append(float(answer["us"]))
                counts.append(int((ends - starts).sum()) // PAGE_SIZE)
            count = statistics.median(counts)
            microseconds = statistics.median(map(sum, zip(decoding, arming, strict=True)))
            stream[count] = microseconds / 1000
            yield say(
                f"round from events alone, {count:.0f} pages written at random",
                microseconds / count * 1000,
                "ns of CPU a page, median",
                figure="stream",
                page_count=count,
                ms=round(microseconds / 1000, 4),
                decode_ns=round(statistics.median(decoding) / count * 1000),
                arm_ns=round(statistics.median(arming) / count * 1000),
            )
        events.close()
        tracker.close()


def _pages_of(stream: PageFaults) -> tuple[np.ndarray, np.ndarray]:
    """Take what is in the rings, and give the runs of pages it tells of, as addresses."""
    stream.drain()
    data, stream._pending, stream._pending_bytes = b"".join(stream._pending), [], 0
    samples, lost = parse(data)
    assert not lost, lost
    pages = np.unique(samples["address"] & np.uint64(-PAGE_SIZE & (1 << 64) - 1))
    runs = adjacent_runs(pages, pages + np.uint64(PAGE_SIZE))
    return runs.starts, runs.ends


def _crossings(costs: Costs, stream: Mapping[float, float]) -> Iterator[bool]:
    """Find where an event stream is cheaper than a scan, and the other way round."""
    if not {WP_ASYNC, EVENTS, WP_SYNC} <= costs.rounds.keys():
        skip("crossings of event stream and scan", "a backend that they compare is missing", figure="crossing")
        return
    first_writes = first_write_costs()["random"]
    streams = event_costs(
        stream,
        ring_added_ns=first_writes[EVENTS] - first_writes[WP_ASYNC],
        messages_added_ns=first_writes[WP_SYNC_TOGETHER] - first_writes[WP_ASYNC],
    )
    scans = {
        size_mib: Curve.through((share / 100 * _pages(size_mib), cost) for share, cost in of_share.items())
        for size_mib, of_share in costs.rounds[WP_ASYNC].items()
    }
    walks = {size_mib: _constant(cost) for size_mib, cost in costs.walks.items()}
    for against, looks in (("scan", scans), ("page map", walks)):
        for events, cost in streams.items():
            yield from _crossing_shares(against, looks, events, cost)
            yield from _crossing_sizes(against, looks, events, cost)


def _crossing_shares(against: str, looks: Mapping[int, Cost], events: str, cost: Cost) -> Iterator[bool]:
    """For each size, find the share of pages written from which on the stream is no longer cheaper."""
    for size_mib, look in looks.items():
        pages = _pages(size_mib)
        count = crossing(cost, look, 1, pages)
        share = 100.0 if count is None else count / pages * 100
        yield say(
            f"{size_mib} MiB: events ({events}) cost less than the {against} below",
            share,
            "% of pages written",
            figure="crossing share",
            against=against,
            events=events,
            size_mib=size_mib,
            page_count=round(share / 100 * pages),
        )


def _crossing_sizes(against: str, looks: Mapping[int, Cost], events: str, cost: Cost) -> Iterator[bool]:
    """For each number of pages written in a round, find the size from which on the stream is cheaper.

    Beyond what was measured the curve goes on straight: what a scan adds is in proportion to the pages it passes.
    """
    for count in WRITTEN_COUNTS:
        sizes = [size_mib for size_mib in looks if _pages(size_mib) >= count]
        if len(sizes) < 2:
            continue
        by_size = Curve.through((size_mib, looks[size_mib](count)) for size_mib in sizes)
        size = crossing(by_size, _constant(cost(count)), count / _pages(1), SIZE_MIB_MAX)
        yield say(
            f"{count:,} pages written in a round: events ({events}) cost less than the {against} from",
            SIZE_MIB_MAX if size is None else size,
            "MiB of memory",
            figure="crossing size",
            against=against,
            events=events,
            page_count=count,
            measured_to_mib=max(sizes),
            events_ms=round(cost(count), 4),
            ms_at_large=round(by_size(LARGE_MIB), 1),
            large_mib=LARGE_MIB,
        )


def _constant(value: float) -> Cost:
    return lambda _: value


def _pages(size_mib: float) -> float:
    return size_mib * (1 << 20) / PAGE_SIZE


def _milliseconds(act: Callable[[], object]) -> float:
    began = time.thread_time()
    act()
    return (time.thread_time() - began) * 1e3


def _read_page_map(pid: int, start: int, size_bytes: int) -> None:
    """Read the entries of a range, 8 bytes a page, into a buffer that is used again."""
    buffer = memoryview(bytearray(1 << 20))
    first, last = start // PAGE_SIZE * 8, (start + size_bytes) // PAGE_SIZE * 8
    fd = os.open(f"/proc/{pid}/pagemap", os.O_RDONLY | os.O_CLOEXEC)
    try:
        for offset in range(first, last, len(buffer)):
            os.preadv(fd, [buffer[: last - offset]], offset)
    finally:
        os.close(fd)


def _meminfo_mib(name: str) -> int:
    for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) >> 10
    raise AssertionError(name)
