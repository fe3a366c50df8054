"""An agent that sends as fast as its stream takes, with no regard to credits, until it is killed.

``with flooding(address, "flood"):`` runs one, in a process of its own. Each of its rounds has the same pages, as many
as fit in one message.
"""

import itertools
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import grpc
from pyroaring import BitMap64

from tests.integration.collector.wire import batch, start, target
from tests.support.service import Service
from tests.support.service import start as start_service
from wetink.v1 import ingest_pb2
from wetink.v1.ingest_pb2_grpc import IngestServiceStub

PAGES: Final = range(0, 480_000 * 17, 17)
"""So far apart that a set takes two bytes for each, 960,000 in all."""

ROUNDS_BEFORE: Final = 10
"""Rounds that are acknowledged before others are looked at."""


def main() -> None:
    """Flood a collector: ADDRESS HOST."""
    address, host_id = sys.argv[1:]
    with grpc.insecure_channel(address) as channel:
        for heard in IngestServiceStub(channel).Stream(_messages(host_id)):
            if heard.HasField("ack"):
                entry = {"event": "acknowledged", "round": heard.ack.positions[0].round}
                print(json.dumps(entry), file=sys.stderr)  # noqa: T201 (its log)


def _messages(host_id: str) -> Iterator[ingest_pb2.AgentMessage]:
    yield ingest_pb2.AgentMessage(
        hello=ingest_pb2.Hello(protocol_version=1, host_id=host_id, boot_id="boot-1", agent_instance="flood")
    )
    one = target(host_id=host_id)
    yield ingest_pb2.AgentMessage(target_started=start(one))
    message = ingest_pb2.AgentMessage(write_protect_batch=batch(one, 1, written=BitMap64(PAGES)))
    for number in itertools.count(1):
        message.write_protect_batch.first_round = message.write_protect_batch.last_round = number
        yield message


@contextmanager
def flooding(address: str, host_id: str) -> Iterator[Service]:
    """Flood a collector while the body runs; begins when its first rounds are acknowledged."""
    process = start_service("tests.support.flooding_agent", [address, host_id])
    service = Service(process, "flooding agent")
    try:
        while (
            int(service.wait_for_log("acknowledged", len(service.events("acknowledged")) + 1)["round"]) < ROUNDS_BEFORE
        ):
            pass
        yield service
    finally:
        service.kill()
        service.close()
