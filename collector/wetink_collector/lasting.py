"""Calls that stay open: who makes one must go on to be who they were, or it ends."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final

from wetink_collector.errors import Refusal

CHECK_SECONDS: Final = 30.0
"""How long a call may outlive the token or the certificate that it was let in with. Agents come back and lose nothing,
so that they need not be warned."""


@asynccontextmanager
async def held_to(check: Callable[[], None]) -> AsyncIterator[None]:
    """Ask again and again while the body runs, and end it once the answer is no.

    Args:
        check: Raises a refusal where the call is to end.

    Raises:
        Refusal: That of ``check``.
    """
    loop = asyncio.get_running_loop()
    # Nothing is due yet. To cancel the task ourselves, we would have to tell our cancellation from others'.
    limit = asyncio.timeout(None)
    refused: Refusal | None = None
    again: asyncio.TimerHandle

    def look() -> None:
        nonlocal refused, again
        try:
            check()
        except Refusal as refusal:
            refused = refusal
            limit.reschedule(loop.time())
        else:
            again = loop.call_later(CHECK_SECONDS, look)

    again = loop.call_later(CHECK_SECONDS, look)
    try:
        async with limit:
            yield
    except TimeoutError:
        if refused is None or not limit.expired():
            raise
        raise refused from None
    finally:
        again.cancel()
