"""The mover over a link: as fast as the link and no faster, and what arrives is what was there."""

import os
import signal
import subprocess
import sys
import time

import pytest

from tests.support.agent import HOST, running_agent
from tests.support.collector import running_collector
from wetink_client import Collector
from wetink_client.link import Link, Pacer, precopy_over
from wetink_client.shadow import ShadowCopy
from wetink_client.verify import differences

MIB = 1 << 20

WRITER = """
import mmap, time
memory = mmap.mmap(-1, 24 << 20, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
for page in range(6144):
    memory[page * 4096] = 1
print("ready", flush=True)
number = 0
while True:
    for _ in range(20):
        number += 1
        memory[number % 3000 * 4096 + 8] = number % 256
    time.sleep(0.01)
"""


@pytest.mark.needs("kernel", "root")
def test_memory_moves_over_a_link_and_is_identical() -> None:
    """24 MiB over 16 MiB/s take a second and a half at least; the pages are those of the frozen process."""
    link = Link(16 * MIB, downtime_seconds=0.4)
    with (
        subprocess.Popen([sys.executable, "-c", WRITER], stdout=subprocess.PIPE) as writer,
        running_collector() as collector,
    ):
        try:
            assert writer.stdout is not None
            writer.stdout.readline()
            with (
                running_agent(collector.address, "--pid", str(writer.pid)),
                Collector(collector.address) as client,
                ShadowCopy(writer.pid) as copy,
            ):
                rounds = list(precopy_over(link, client, f"{HOST}/{writer.pid}", writer.pid, copy))
                page_count, wrong = differences(writer.pid, copy.pages)
        finally:
            os.kill(writer.pid, signal.SIGCONT)
            writer.kill()

    assert page_count > 6000
    assert not wrong
    assert [one.frozen for one in rounds] == [False] * (len(rounds) - 1) + [True]
    assert rounds[0].sent_bytes >= 24 * MIB
    assert all(one.seconds >= 0.99 * one.sent_bytes / link.bytes_a_second for one in rounds)
    assert rounds[-1].end in {"target-met", "stalled", "rounds-max"}
    if rounds[-1].end == "target-met":
        assert rounds[-2].left_page_count * 4096 / link.bytes_a_second <= 0.4


def test_pacer_waits_for_the_link() -> None:
    """A mebibyte over 16 MiB/s takes a sixteenth of a second, sent in however many pieces."""
    began = time.monotonic()
    pacer = Pacer(16 * MIB)
    for _ in range(256):
        pacer.sent(4096)
    pacer.finish()

    assert time.monotonic() - began >= 0.99 / 16
