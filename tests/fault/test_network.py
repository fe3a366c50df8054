"""A network that loses, delays, narrows or cuts between agent and collector: the target runs on, no page is lost."""

import random
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Final

import pytest

from tests.support import programs
from tests.support.agent import HOST, worker_pid
from tests.support.amounts import amount
from tests.support.collector import COMMAND
from tests.support.network import PORT, Network
from tests.support.reader import Reader
from tests.support.service import Service, start
from wetink_agent.spool import SPOOL_BYTES_MAX
from wetink_client import Collector
from wetink_client.errors import Unavailable
from wetink_client.shadow import ShadowCopy
from wetink_client.verify import differences

pytestmark = [pytest.mark.needs("kernel", "root", "cc", "network"), pytest.mark.timeout(900)]

FAULT_SECONDS: Final = amount(gate=2.0, soak=60.0)

LOOKS: Final = 10
"""At what a target does, between two reads."""

BESIDE_SPOOL_BYTES: Final = 96 << 20
"""What a worker takes beside its spool: its libraries, and the sets that it is working on."""

FAULTS: Final[dict[str, Callable[[Network], AbstractContextManager[None]]]] = {
    "delay of 500 ms": lambda network: network.delayed(0.5),
    "loss of 30 %": lambda network: network.dropped("INPUT", "OUTPUT", share=0.3),
    "half open: what the collector says is lost": lambda network: network.dropped("INPUT"),
    "half open: what the agent says is lost": lambda network: network.dropped("OUTPUT"),
    "1 Mbit/s": lambda network: network.narrowed("1mbit"),
    "cut": lambda network: network.dropped("INPUT", "OUTPUT"),
}


@pytest.mark.soak
def test_faults_of_the_network_cost_time_and_no_page(tmp_path: Path) -> None:
    """Through one fault after the other: memory in bounds, a target that never waits, and the same incarnation.

    At the end the copy is the target's in every byte, and was never begun anew.
    """
    network = Network(tmp_path)
    with (
        network.made(),
        programs.running("writer", "random", 4) as writer,
        programs.running("sleeper", "busy", tmp_path / "count") as busy,
        _collector(network),
        _agent(network, writer.pid, busy.pid) as agent,
        Collector(network.test_address) as client,
        ShadowCopy(writer.pid) as copy,
    ):
        progress = programs.Progress(busy, tmp_path / "count")
        reader = Reader(client, f"{HOST}/{writer.pid}", copy)
        reader.read_complete()
        for name, fault in FAULTS.items():
            with fault(network):
                speed, awake = speed_of(progress, FAULT_SECONDS, lambda: read(reader))
                memory_bytes = resident_bytes(worker_pid(agent))
            # The machine may be busy with others, for which it waits as well: but then it can run, and is not asleep.
            assert speed > 0, name
            assert awake > 0.8, f"{name}: could run at {awake:.2f} of the looks at it"
            assert memory_bytes < SPOOL_BYTES_MAX + BESIDE_SPOOL_BYTES, f"{name}: {memory_bytes >> 20} MiB"
            recovered = time.monotonic()
            reader.read_complete()
            print(  # noqa: T201 (figures, for pytest -s)
                f"{name}: {speed:.0f} turns a second, awake at {awake:.2f} of the looks, "
                f"agent {memory_bytes >> 20} MiB, complete {time.monotonic() - recovered:.1f} s after it"
            )
        writer.stop()
        last = reader.read_complete()

        assert last.consistency.name == "FROZEN"
        assert differences(writer.pid, copy.pages)[1] == []
        assert reader.resynchronised == 0
        assert agent.process.poll() is None


@contextmanager
def _collector(network: Network) -> Iterator[None]:
    arguments = ["--listen", f"0.0.0.0:{PORT}", "--insecure"]
    service = Service(start(COMMAND, arguments, before=network.in_collectors), "collector")
    try:
        service.wait_for_log("listening")
        yield
    finally:
        service.close()


@contextmanager
def _agent(network: Network, *pids: int) -> Iterator[Service]:
    named = [word for pid in pids for word in ("--pid", str(pid))]
    arguments = ["--collector", network.agent_address, "--host-id", HOST, "--interval", "50ms", *named]
    agent = Service(start("wetink_agent.entry", arguments, before=network.in_agents), "agent")
    try:
        agent.wait_for_log("connected")
        yield agent
    finally:
        agent.close()


def speed_of(progress: programs.Progress, seconds: float, meanwhile: Callable[[], None]) -> tuple[float, float]:
    """Watch a target that never sleeps of its own accord for some time.

    Returns:
        How many turns it does in a second, and the share of looks at which it ran or could have run.
    """
    first, began = progress.count(), time.monotonic()
    stat = Path(f"/proc/{progress.program.pid}/stat")
    awake = []
    while time.monotonic() - began < seconds:
        meanwhile()
        for _ in range(LOOKS):
            awake.append(stat.read_text(encoding="ascii").rpartition(")")[2].split()[0] == "R")
            time.sleep(0.05 / LOOKS)
    return (progress.count() - first) / (time.monotonic() - began), sum(awake) / len(awake)


def read(reader: Reader) -> None:
    """Read what is there; the agent may not be."""
    try:
        reader.read(barrier=random.random() < 0.5)  # noqa: S311 (not secret)
    except Unavailable:
        time.sleep(0.05)


def resident_bytes(pid: int) -> int:
    """Give the memory that a process takes."""
    (line,) = (
        line for line in Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines() if line[:6] == "VmRSS:"
    )
    return int(line.split()[1]) << 10
