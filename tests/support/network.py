"""Two network namespaces with a wire between them, for faults on it: made and removed by the test, and nobody else's.

The agent is in one, the collector in the other. Between them, in the collector's, stands a relay that delays, since not
every kernel has netem; what is lost, cut or narrowed is so by iptables and tc on the wire itself. A test that stands in
neither reaches the collector by a Unix socket, of which namespaces know nothing.
"""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

COLLECTOR: Final = "10.77.0.2"
PORT: Final = 7419
RELAY_PORT: Final = 7420
PATIENCE_SECONDS: Final = 20.0

_RELAY: Final = """
import asyncio, pathlib, sys

listen, port, delay = sys.argv[1], int(sys.argv[2]), pathlib.Path(sys.argv[3])

async def pass_on(reader, writer, opposite):
    # What has come is on its way for as long as it takes, and what comes after it need not wait for it.
    queue = asyncio.Queue(4096)
    async def deliver():
        while (item := await queue.get()) is not None:
            due, piece = item
            await asyncio.sleep(due - asyncio.get_running_loop().time())
            writer.write(piece)
            await writer.drain()
        writer.write_eof()
    delivering = asyncio.create_task(deliver())
    try:
        while piece := await reader.read(65536):
            due = asyncio.get_running_loop().time() + float(delay.read_text())
            putting = asyncio.create_task(queue.put((due, piece)))
            await asyncio.wait({putting, delivering}, return_when=asyncio.FIRST_COMPLETED)
            if delivering.done():
                return
        await queue.put(None)
        await delivering
    finally:
        delivering.cancel()
        for one in (writer, opposite):
            one.close()

async def serve(reader, writer):
    try:
        other_reader, other = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        writer.close()
        return
    await asyncio.gather(pass_on(reader, other, writer), pass_on(other_reader, writer, other), return_exceptions=True)

async def main():
    if "/" in listen:
        starting = asyncio.start_unix_server(serve, listen)
    else:
        starting = asyncio.start_server(serve, "0.0.0.0", int(listen))
    async with await starting as server:
        await server.serve_forever()

asyncio.run(main())
"""


class Network:
    """The namespaces, and what is wrong between them.

    Attributes:
        in_agents: Words before a command that runs it in the agent's namespace.
        in_collectors: The same for the collector's.
        agent_address: Where the agent reaches the collector.
        test_address: Where the test does.
    """

    def __init__(self, directory: Path) -> None:
        """Name them."""
        self._agents, self._collectors = f"wetink-a{os.getpid()}", f"wetink-c{os.getpid()}"
        self._delay, self._none = directory / "delay", directory / "none"
        for delay in (self._delay, self._none):
            delay.write_text("0")
        self.in_agents = ("ip", "netns", "exec", self._agents)
        self.in_collectors = ("ip", "netns", "exec", self._collectors)
        self.agent_address = f"{COLLECTOR}:{RELAY_PORT}"
        self.test_address = f"unix:{directory}/relay.sock"

    @contextmanager
    def made(self) -> Iterator[None]:
        """Make them, and remove them at the end."""
        with ExitStack() as made:
            for name in (self._agents, self._collectors):
                _run("ip", "netns", "add", name)
                made.callback(_run, "ip", "netns", "delete", name)
                _run("ip", "-netns", name, "link", "set", "lo", "up")
            _run(
                "ip",
                "-netns",
                self._agents,
                "link",
                "add",
                "wire",
                "type",
                "veth",
                "peer",
                "wire",
                "netns",
                self._collectors,
            )
            for name, address in ((self._agents, "10.77.0.1"), (self._collectors, COLLECTOR)):
                _run("ip", "-netns", name, "address", "add", f"{address}/24", "dev", "wire")
                _run("ip", "-netns", name, "link", "set", "wire", "up")
            path = self.test_address.removeprefix("unix:")
            for listen, delay in ((str(RELAY_PORT), self._delay), (path, self._none)):
                command = [*self.in_collectors, sys.executable, "-c", _RELAY, listen, str(PORT), str(delay)]
                relay = subprocess.Popen(command)
                made.callback(relay.wait)
                made.callback(relay.kill)
            until = time.monotonic() + PATIENCE_SECONDS
            while not Path(path).exists():
                assert time.monotonic() < until, "the relay did not start"
                time.sleep(0.01)
            yield

    @contextmanager
    def delayed(self, seconds: float) -> Iterator[None]:
        """Let everything take so much longer, there and back."""
        self._delay.write_text(str(seconds))
        yield
        self._delay.write_text("0")

    @contextmanager
    def dropped(self, *chains: str, share: float = 1.0) -> Iterator[None]:
        """Lose what the agent's host sends (OUTPUT) or should receive (INPUT), all of it or a share at random."""
        some = () if share == 1.0 else ("-m", "statistic", "--mode", "random", "--probability", str(share))
        for chain in chains:
            _run(*self.in_agents, "iptables", "--append", chain, *some, "--jump", "DROP")
        yield
        _run(*self.in_agents, "iptables", "--flush")

    @contextmanager
    def narrowed(self, rate: str) -> Iterator[None]:
        """Let no more than this through from the agent's host, as tc(8) writes rates."""
        _run(
            *self.in_agents,
            "tc",
            "qdisc",
            "add",
            "dev",
            "wire",
            "root",
            "tbf",
            "rate",
            rate,
            "burst",
            "16k",
            "latency",
            "50ms",
        )
        yield
        _run(*self.in_agents, "tc", "qdisc", "delete", "dev", "wire", "root")


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)
