"""An agent and a collector of another version, on the contract as that version has it, which say what a test tells."""

import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Final, Self, TypeAlias

import grpc
from pyroaring import BitMap64

from tests.support.contracts import Contract
from wetink.pages import encode

PATIENCE_SECONDS: Final = 60.0
"""How long anything may take before a test fails."""

Fields: TypeAlias = dict[str, object]
"""A message, by the names of its fields: those of the version that it is made in."""


def target(host_id: str, pid: int = 1) -> Fields:
    """Give a target."""
    return {"host_id": host_id, "boot_id": "boot-1", "pid": pid, "start_time_ticks": 100}


def position(host_id: str, round_: int) -> Fields:
    """Give how far the first incarnation of the first process has come."""
    return {"target": target(host_id), "incarnation": 1, "round": round_}


def start(host_id: str) -> Fields:
    """Give the start of that incarnation."""
    return {
        "target": target(host_id),
        "incarnation": 1,
        "time_ns": 1,
        "command": "a command",
        "cgroup": "/test",
        "page_size": 4096,
        "backend": "BACKEND_REPLAY",
        "backend_reason": "there is no kernel",
        "labels": {"pod": "cart-0"},
    }


def batch(host_id: str, number: int, written: Iterable[int], vanished: Iterable[int] = ()) -> Fields:
    """Give one of its rounds."""
    return {
        "target": target(host_id),
        "incarnation": 1,
        "first_round": number,
        "last_round": number,
        "part_count": 1,
        "first_time_ns": number,
        "last_time_ns": number,
        "backend": "BACKEND_REPLAY",
        "written": page_set(written),
        "vanished": page_set(vanished),
        "populated_page_count": 100,
        "pace": {"interval_ms": 50},
    }


def page_set(pages: Iterable[int]) -> Fields:
    """Give pages."""
    encoded = encode(BitMap64(pages))
    return {"roaring64": encoded.roaring64, "crc32": encoded.crc32, "page_count": encoded.page_count}


class PeerAgent:
    """An agent's stream to the collector under test."""

    def __init__(self, contract: Contract, address: str, host_id: str, *, version: str = "0.1.0") -> None:
        """Take the contract it speaks, the collector's address, and what it says of itself."""
        self._contract = contract
        self._address = address
        self._host_id = host_id
        self._version = version
        self._said: queue.SimpleQueue[object] = queue.SimpleQueue()

    def __enter__(self) -> Self:
        """Open the stream, and say nothing yet."""
        self._channel = grpc.insecure_channel(self._address, (("grpc.use_local_subchannel_pool", 1),))
        stub = self._contract.stub(self._channel, "IngestService")
        self._call = stub.Stream(iter(self._said.get, None), timeout=PATIENCE_SECONDS * 2)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Let go of the stream, whatever state it is in."""
        self._said.put(None)
        self._call.cancel()
        self._channel.close()

    def hello(self, *positions: Fields) -> Any:  # noqa: ANN401 (classes that are made when the tests run have no types)
        """Say Hello, and give the Welcome."""
        hello = {
            "protocol_version": 1,
            "host_id": self._host_id,
            "boot_id": "boot-1",
            "agent_instance": "peer",
            "agent_version": self._version,
            "positions": positions,
        }
        self._said.put(self._contract.message("AgentMessage")(hello=hello))
        return self.hear("welcome")

    def say(self, **message: Fields) -> None:
        """Say one thing, and before it what nobody of another version has heard of."""
        for unheard in self._contract.unheard("AgentMessage"):
            self._said.put(unheard)
        self._said.put(self._contract.message("AgentMessage")(**message))

    def hear(self, kind: str) -> Any:  # noqa: ANN401 (as above)
        """Give the next thing of a kind that the collector says, passing over others."""
        while (message := next(self._call)).WhichOneof("message") != kind:
            pass
        return getattr(message, kind)

    def acknowledged(self, round_: int) -> None:
        """Wait until a round is acknowledged."""
        while all(position.round < round_ for position in self.hear("ack").positions):
            pass

    def end(self) -> None:
        """Half-close, and hear the collector out; it must end the stream well."""
        self._said.put(None)
        for _ in self._call:
            pass
        assert self._call.code() is grpc.StatusCode.OK


class PeerStream:
    """What the agent under test says on one stream, as a collector of another version hears it."""

    def __init__(self, messages: Iterator[Any]) -> None:
        """Take what comes."""
        self._messages = messages

    def hear(self, kind: str) -> Any:  # noqa: ANN401 (as above)
        """Give the next thing of a kind, passing over others."""
        for message in self._messages:
            if message.WhichOneof("message") == kind:
                return getattr(message, kind)
        text = f"the agent half-closed before {kind}"
        raise AssertionError(text)

    def hear_out(self) -> None:
        """Wait until the agent half-closes."""
        for _ in self._messages:
            pass


Script = Callable[[PeerStream], Iterator[Fields]]
"""What a collector hears and says on one stream; its end is the stream's end."""


class PeerCollector:
    """A collector of another version, with a script for each stream in their order."""

    def __init__(self, contract: Contract, scripts: Sequence[Script]) -> None:
        """Take the contract it speaks."""
        self._contract = contract
        self._left = list(scripts)
        self._over = [threading.Event() for _ in scripts]
        self._failures: list[BaseException] = []

    def stream(self, messages: Iterator[Any], _context: grpc.ServicerContext) -> Iterator[object]:
        """Serve one stream, and say before each thing what nobody of another version has heard of."""
        over = self._over[-len(self._left)]
        script = self._left.pop(0)
        try:
            for said in script(PeerStream(messages)):
                yield from self._contract.unheard("CollectorMessage")
                yield self._contract.message("CollectorMessage")(**said)
        except BaseException as error:
            self._failures.append(error)
            raise
        finally:
            over.set()

    def wait(self) -> None:
        """Wait until all scripts are over."""
        for over in self._over:
            self.wait_for(over)

    def wait_for(self, event: threading.Event) -> None:
        """Wait until something has happened on a stream, and raise what a script raised."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not event.wait(0.05) and not self._failures:
            assert time.monotonic() < deadline, "the agent did not come so far"
        if self._failures:
            raise self._failures[0]


@contextmanager
def served(handler: grpc.GenericRpcHandler) -> Iterator[str]:
    """Serve calls, and give the address."""
    with ThreadPoolExecutor(max_workers=4) as pool:
        server = grpc.server(pool, handlers=[handler])
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        try:
            yield f"127.0.0.1:{port}"
        finally:
            server.stop(grace=0).wait()
