"""What becomes of something that is to be durable: heard of on the event loop, at once.

A future would do, but tells of its result a pass of the event loop later, for which a thread that counts may keep the
interpreter's lock; and with each round of a fleet it takes as long as some of its checks.
"""

import asyncio
from collections.abc import Callable, Generator
from typing import Any, TypeAlias

from wetink_collector.errors import StoreUnavailable

Then: TypeAlias = Callable[[StoreUnavailable | None], None]


class Settlement:
    """Whether something is durable, or has failed to be, or neither yet. Awaited, it raises what it failed with.

    Whoever waits may be cancelled; it settles all the same.
    """

    __slots__ = ("_done", "_error", "_then")

    def __init__(self) -> None:
        """Begin with neither."""
        self._done = False
        self._error: StoreUnavailable | None = None
        self._then: list[Then] = []

    def done(self) -> bool:
        """Whether it is settled."""
        return self._done

    def then(self, callback: Then) -> None:
        """Have somebody hear of it: now if it is settled, else in the moment when it is.

        Args:
            callback: Is given why it failed, or None.
        """
        if self._done:
            callback(self._error)
        else:
            self._then.append(callback)

    def settle(self, error: StoreUnavailable | None = None) -> None:
        """Say that it is durable, or why not. Once. What a callback raises keeps nobody else from hearing of it."""
        assert not self._done
        self._done, self._error = True, error
        waiting, self._then = self._then, []
        for callback in waiting:
            try:
                callback(error)
            except Exception as bug:  # noqa: BLE001 (it is the callback's, and goes where those of the event loop go)
                context = {"message": "a callback of a settlement raised", "exception": bug}
                asyncio.get_running_loop().call_exception_handler(context)

    def __await__(self) -> Generator[Any, None, None]:
        """Wait until it is settled.

        Raises:
            StoreUnavailable: It failed.
        """
        if not self._done:
            settled: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._then.append(lambda _: None if settled.done() else settled.set_result(None))
            yield from settled
        if self._error:
            raise self._error.with_traceback(None)
