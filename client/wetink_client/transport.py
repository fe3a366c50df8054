"""How one call goes to a collector and how it fails, for threads and for asyncio, whichever service it is of."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Self, TypeVar

import grpc

from wetink.tls import Security
from wetink.v1.dirty_pb2_grpc import DirtyServiceStub
from wetink.v1.insight_pb2_grpc import InsightServiceStub
from wetink.v1.session_pb2_grpc import SessionServiceStub
from wetink_client import requests
from wetink_client.connection import Connection
from wetink_client.errors import CollectorUnavailable, from_call
from wetink_client.requests import CHANNEL_OPTIONS

if TYPE_CHECKING:
    import os
    from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterator
    from types import TracebackType

    from wetink.v1.dirty_pb2_grpc import DirtyServiceAsyncStub
    from wetink.v1.insight_pb2_grpc import InsightServiceAsyncStub
    from wetink.v1.session_pb2_grpc import SessionServiceAsyncStub

    _File = str | os.PathLike[str]

_Request = TypeVar("_Request")
_Response = TypeVar("_Response")


class Stubs(NamedTuple):
    """The collector's services on one channel."""

    dirty: DirtyServiceStub
    insight: InsightServiceStub
    session: SessionServiceStub


class AsyncStubs(NamedTuple):
    """The same on a channel for asyncio."""

    dirty: DirtyServiceAsyncStub
    insight: InsightServiceAsyncStub
    session: SessionServiceAsyncStub


class Transport:
    """A connection to a collector. It connects at the first call, and again by itself after a failure."""

    def __init__(
        self,
        address: str,
        *,
        tls_ca: _File | None = None,
        tls_cert: _File | None = None,
        tls_key: _File | None = None,
        token_file: _File | None = None,
    ) -> None:
        """Take the collector's address, and what it is to be proven with; without any of these it speaks in the clear.

        The files are looked at before each call: once they were written again, it and later ones go over a new
        connection. Calls that are under way stay on theirs.

        Args:
            address: ``HOST:PORT`` or ``unix:PATH``.
            tls_ca: PEM certificates that the collector's is checked against: speak TLS.
            tls_cert: PEM certificate that says who we are.
            tls_key: Private key to it, in PEM and without a password.
            token_file: Has a bearer token that says who we are. Over TCP it needs ``tls_ca``.

        Raises:
            InvalidRequest: A file cannot be used, or is missing beside another.
        """
        self.address = requests.check_address(address)
        self._connection = Connection(address, _security(tls_ca, tls_cert, tls_key, token_file), _dial)

    def __enter__(self) -> Self:
        """Give the client itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close the connection."""
        self.close()

    def close(self) -> None:
        """Close the connection, and every call under way, which raises CollectorUnavailable. Later ones are invalid."""
        for channel in self._connection.close():
            channel.close()

    def _ask(
        self,
        method: Callable[[Stubs], grpc.UnaryUnaryMultiCallable[_Request, _Response]],
        request: _Request,
        deadline_seconds: float,
    ) -> _Response:
        with self._stubs() as stubs:
            try:
                return method(stubs)(request, timeout=deadline_seconds)
            except grpc.RpcError as error:
                raise from_call(error, self.address) from error

    def _listen(
        self,
        method: Callable[[Stubs], grpc.UnaryStreamMultiCallable[_Request, _Response]],
        request: _Request,
        deadline_seconds: float | None,
    ) -> Generator[_Response]:
        with self._stubs() as stubs:
            stream = method(stubs)(request, timeout=deadline_seconds)
            try:
                yield from stream
            except grpc.RpcError as error:
                raise from_call(error, self.address) from error
            finally:
                # A reader may stop in the middle; the collector should hear of it now.
                stream.cancel()

    @contextmanager
    def _stubs(self) -> Iterator[Stubs]:
        line = self._connection.take()
        try:
            yield line.stubs
        except ValueError as error:
            # What gRPC raises where the channel was closed between taking it and calling.
            if not self._connection.is_closed:
                raise
            raise _client_closed(self.address) from error
        finally:
            for channel in self._connection.give_back(line):
                channel.close()


class AsyncTransport:
    """The same for asyncio. Make it inside the loop."""

    def __init__(
        self,
        address: str,
        *,
        tls_ca: _File | None = None,
        tls_cert: _File | None = None,
        tls_key: _File | None = None,
        token_file: _File | None = None,
    ) -> None:
        """As ``Collector`` takes them."""
        self.address = requests.check_address(address)
        self._connection = Connection(address, _security(tls_ca, tls_cert, tls_key, token_file), _dial_async)

    async def __aenter__(self) -> Self:
        """Give the client itself."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close the connection."""
        await self.close()

    async def close(self) -> None:
        """As ``Collector.close``."""
        for channel in self._connection.close():
            await channel.close()

    async def _ask(
        self,
        method: Callable[[AsyncStubs], grpc.aio.UnaryUnaryMultiCallable[_Request, _Response]],
        request: _Request,
        deadline_seconds: float,
    ) -> _Response:
        async with self._stubs() as stubs:
            try:
                return await method(stubs)(request, timeout=deadline_seconds)
            except grpc.RpcError as error:
                raise from_call(error, self.address) from error

    async def _listen(
        self,
        method: Callable[[AsyncStubs], grpc.aio.UnaryStreamMultiCallable[_Request, _Response]],
        request: _Request,
        deadline_seconds: float | None,
    ) -> AsyncGenerator[_Response]:
        async with self._stubs() as stubs:
            stream = method(stubs)(request, timeout=deadline_seconds)
            try:
                async for part in stream:
                    yield part
            except grpc.RpcError as error:
                raise from_call(error, self.address) from error
            finally:
                stream.cancel()

    @asynccontextmanager
    async def _stubs(self) -> AsyncIterator[AsyncStubs]:
        line = self._connection.take()
        try:
            yield line.stubs
        except (asyncio.CancelledError, grpc.aio.UsageError) as error:
            # gRPC cancels whoever waits where a channel is closed, as if somebody had cancelled the task.
            task = asyncio.current_task()
            if not self._connection.is_closed or (task is not None and task.cancelling()):
                raise
            raise _client_closed(self.address) from error
        finally:
            for channel in self._connection.give_back(line):
                await channel.close()


def _security(
    tls_ca: _File | None, tls_cert: _File | None, tls_key: _File | None, token_file: _File | None
) -> Security:
    return Security(*(Path(file) if file is not None else None for file in (tls_ca, tls_cert, tls_key, token_file)))


def _dial(address: str, credentials: grpc.ChannelCredentials | None) -> tuple[grpc.Channel, Stubs]:
    channel = (
        grpc.secure_channel(address, credentials, CHANNEL_OPTIONS)
        if credentials
        else grpc.insecure_channel(address, CHANNEL_OPTIONS)
    )
    return channel, Stubs(DirtyServiceStub(channel), InsightServiceStub(channel), SessionServiceStub(channel))


def _dial_async(address: str, credentials: grpc.ChannelCredentials | None) -> tuple[grpc.aio.Channel, AsyncStubs]:
    channel = (
        grpc.aio.secure_channel(address, credentials, CHANNEL_OPTIONS)
        if credentials
        else grpc.aio.insecure_channel(address, CHANNEL_OPTIONS)
    )
    return channel, AsyncStubs(DirtyServiceStub(channel), InsightServiceStub(channel), SessionServiceStub(channel))


def _client_closed(address: str) -> CollectorUnavailable:
    return CollectorUnavailable(f"this client of collector {address} was closed before it had an answer")
