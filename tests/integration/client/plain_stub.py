"""An orchestrator that knows nothing of wetink but its .proto: run as a program of its own by ``test_plain_stub``.

    plain_stub.py ADDRESS HOST PID

It asks by reflection what there is, tracks a process, sets a barrier, asks what is dirty, and prints one JSON object.
"""

import json
import sys
import zlib

import grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from pyroaring import BitMap64

from wetink.v1 import dirty_pb2, dirty_pb2_grpc


def main(address: str, host_id: str, pid: int) -> None:
    """Do it."""
    with grpc.insecure_channel(address) as channel:
        reflection = ProtoReflectionDescriptorDatabase(channel)
        stub = dirty_pb2_grpc.DirtyServiceStub(channel)
        tracked = stub.Track(dirty_pb2.TrackRequest(host_id=host_id, pid=pid), timeout=10).target
        selection = dirty_pb2.Selection(targets=[tracked.name])
        barrier = stub.Barrier(dirty_pb2.BarrierRequest(selection=selection), timeout=10)
        request = dirty_pb2.GetDirtyRequest(selection=selection, barrier=True)
        *parts, end = stub.GetDirty(request, timeout=10)
        written = BitMap64()
        for part in parts:
            data = part.pages.written.roaring64
            if zlib.crc32(data) != part.pages.written.crc32:
                sys.exit("checksum")
            written |= BitMap64.deserialize(data)
        found = {
            "generated": dirty_pb2.__file__,
            "services": sorted(reflection.get_services()),
            "methods": [
                method.name
                for method in reflection.FindFileContainingSymbol("wetink.v1.DirtyService").service[0].method
            ],
            "target": tracked.name,
            "reached": [status.complete for status in barrier.targets],
            "written": list(written),
            "complete": end.summary.complete,
            "cursor": end.summary.cursor,
        }
    print(json.dumps(found))  # noqa: T201


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
