"""A DirtyService that fails on purpose: what no real collector can be made to answer."""

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import grpc

from wetink.v1 import dirty_pb2


@contextmanager
def fake_collector(
    parts: Sequence[dirty_pb2.GetDirtyResponse] = (), *, hangs: bool = False, address: str = "127.0.0.1:0"
) -> Iterator[str]:
    """Serve one script to every call of GetDirty and Watch, and give the address.

    Args:
        parts: What is sent. Then the stream ends well, as if that had been all.
        hangs: Whether it does not end, and nothing else is answered either.
        address: Where it listens.
    """
    over = threading.Event()

    def stream(_request: bytes, context: grpc.ServicerContext) -> Iterator[dirty_pb2.GetDirtyResponse]:
        yield from parts
        while hangs and context.is_active() and not over.wait(0.05):
            pass

    def hosts(_request: bytes, context: grpc.ServicerContext) -> dirty_pb2.ListHostsResponse:
        while hangs and context.is_active() and not over.wait(0.05):
            pass
        return dirty_pb2.ListHostsResponse()

    def serialize(part: dirty_pb2.GetDirtyResponse) -> bytes:
        return part.SerializeToString()  # the parts of a watch have the same form

    service = grpc.method_handlers_generic_handler(
        "wetink.v1.DirtyService",
        {
            "GetDirty": grpc.unary_stream_rpc_method_handler(stream, response_serializer=serialize),
            "Watch": grpc.unary_stream_rpc_method_handler(stream, response_serializer=serialize),
            "ListHosts": grpc.unary_unary_rpc_method_handler(
                hosts, response_serializer=dirty_pb2.ListHostsResponse.SerializeToString
            ),
        },
    )
    with ThreadPoolExecutor(max_workers=8) as pool:
        server = grpc.server(pool, handlers=[service])
        port = server.add_insecure_port(address)
        server.start()
        try:
            yield f"127.0.0.1:{port}"
        finally:
            over.set()
            server.stop(grace=0).wait()
