"""What following costs: a fork of a target with and without fork events, and a look at every process of the host."""

import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Final

from tests.bench.run import say
from tests.support.agent import running_agent
from tests.support.collector import running_collector
from wetink_agent import discovery
from wetink_agent.following import LOOK_SECONDS

FORKS: Final = 200
LOOKS: Final = 20

PROGRAM: Final = f"""
import os, sys, time
memory = bytearray(8 << 20)
for line in sys.stdin:
    times = []
    for _ in range({FORKS}):
        began = time.perf_counter()
        child = os.fork()
        if child == 0:
            os._exit(0)
        times.append(time.perf_counter() - began)
        os.waitpid(child, 0)
    print(sorted(times)[len(times) // 2], flush=True)
"""


def bench_following() -> Iterator[bool]:
    """Time forks of one program: alone, as a target, and as one whose children are targets at once; and the looks."""
    seconds = [_fork_seconds(*options) for options in ((), ("--tree",), ("--follow-fork",))]
    yield say("fork of a target, as a ratio to one without tracking", seconds[1] / seconds[0], "times")
    yield say(
        "fork of a target with --follow-fork, likewise",
        seconds[2] / seconds[0],
        "times",
        fork_microseconds=[round(each * 1e6) for each in seconds],
    )
    found = discovery.processes()
    began = time.process_time()
    for _ in range(LOOKS):
        discovery.processes()
    share = (time.process_time() - began) / LOOKS / LOOK_SECONDS
    yield say("looks for processes to follow", share * 100, "% of a core", limit=5, processes=len(found))


def _fork_seconds(*options: str) -> float:
    with ExitStack() as stack:
        program = stack.enter_context(
            subprocess.Popen([sys.executable, "-c", PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        )
        stack.callback(program.kill)
        if options:
            collector = stack.enter_context(running_collector())
            stack.enter_context(running_agent(collector.address, "--pid", str(program.pid), *options, interval="1s"))
        return statistics.median(_measured(program) for _ in range(5))


def _measured(program: subprocess.Popen[str]) -> float:
    assert program.stdin is not None
    assert program.stdout is not None
    program.stdin.write("\n")
    program.stdin.flush()
    return float(program.stdout.readline())
