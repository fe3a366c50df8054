"""Records one process: tracks it and writes each round into a file instead of sending it."""

import time
from collections.abc import Callable
from pathlib import Path

from wetink.pages import PAGE_SIZE
from wetink.v1 import ingest_pb2, types_pb2
from wetink_agent import procfs
from wetink_agent.backend import Backend
from wetink_agent.backends import Choice, open_backend
from wetink_agent.errors import TargetExited, TargetReplaced, TrackingError
from wetink_agent.recording import RecordingWriter
from wetink_agent.rounds import Round, round_of


def record(
    path: Path,
    *,
    host_id: str,
    pid: int,
    choice: Choice,
    interval_seconds: float,
    round_count: int | None,
    overwrite: bool,
    wait: Callable[[float], bool],
) -> ingest_pb2.TargetEnded:
    """Write the rounds of a process until it ends, until so many are written, or until it is told to stop.

    Args:
        path: Of the file.
        host_id: Whose process it is.
        pid: The process.
        choice: What tracks it.
        interval_seconds: From the start of one round to the start of the next.
        round_count: How many at most.
        overwrite: Whether a file that is there may be lost.
        wait: Waits for so many seconds, or until the recording is to end; tells whether it is.

    Returns:
        What the file says of its end.

    Raises:
        TrackingError: The process cannot be tracked; there is no file then.
        FileExistsError: A file is there.
        OSError: The file cannot be written, or not any further.
    """
    start = procfs.stat(pid).start_time_ticks
    backend = open_backend(choice, pid, None, ())
    try:
        started = ingest_pb2.TargetStarted(
            target=types_pb2.Target(host_id=host_id, boot_id=procfs.boot_id(), pid=pid, start_time_ticks=start),
            incarnation=time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1000,
            time_ns=time.time_ns(),
            command=procfs.command(pid),
            cgroup=procfs.cgroup(pid),
            page_size=PAGE_SIZE,
            backend=backend.kind,
            backend_reason=choice.reason,
        )
        began = time.monotonic()
        # Before the file is made: it finds what only arming can find.
        first = _next_round(backend, started, 1)
        with RecordingWriter(path, started, overwrite=overwrite) as writer:
            writer.add(first)
            reason, message = _go_on(writer, backend, started, began, interval_seconds, round_count, wait)
            ended = ingest_pb2.TargetEnded(
                target=started.target,
                incarnation=started.incarnation,
                reason=reason,
                time_ns=time.time_ns(),
                message=message,
            )
            writer.end(ended)
    finally:
        backend.close()
    return ended


def _go_on(
    writer: RecordingWriter,
    backend: Backend,
    started: ingest_pb2.TargetStarted,
    began: float,
    interval_seconds: float,
    round_count: int | None,
    wait: Callable[[float], bool],
) -> tuple[types_pb2.EndReason.ValueType, str]:
    """Write the rounds after the first, which began at this time of the monotonic clock; tell why there are no more."""
    number = 1
    while number != round_count:
        now = time.monotonic()
        # As the agent does it: a round that takes longer than the interval is followed by as long a rest.
        due = max(began + interval_seconds, now + (now - began))
        if wait(due - now):
            return types_pb2.END_REASON_UNTRACKED, "the recorder was stopped"
        began = time.monotonic()
        number += 1
        try:
            harvested = _next_round(backend, started, number)
        except TargetExited as error:
            return types_pb2.END_REASON_EXITED, str(error)
        except TargetReplaced as error:
            return types_pb2.END_REASON_EXEC, str(error)
        except (TrackingError, OSError) as error:
            return types_pb2.END_REASON_FAILED, str(error)
        writer.add(harvested)
    return types_pb2.END_REASON_UNTRACKED, f"{number} rounds were asked for"


def _next_round(backend: Backend, started: ingest_pb2.TargetStarted, number: int) -> Round:
    return round_of(
        backend.harvest(),
        target=started.target,
        incarnation=started.incarnation,
        number=number,
        backend=backend.kind,
    )
