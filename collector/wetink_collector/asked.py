"""What calls for pages have in common: which targets are meant, where the reader stands, and how to harvest."""

import re
from collections.abc import Mapping, Sequence
from typing import Final

from wetink.v1 import dirty_pb2 as pb
from wetink.v1 import session_pb2
from wetink.v1.types_pb2 import Freeze
from wetink_collector.answer import check_cursor, check_remembered
from wetink_collector.catalog import Catalog, TargetRecord
from wetink_collector.cursor import Cursor, Position
from wetink_collector.errors import RequestMalformed, TargetUnknown
from wetink_collector.identity import TargetKey
from wetink_collector.selection import Chosen, resolve

BARRIER_MS_DEFAULT: Final = 5000
"""As the contract says."""

BARRIER_MS_MAX: Final = 60_000
"""As the contract says, also of a hold."""

NAME: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")
"""The name of a hold, a session or a round."""


def chosen_now(catalog: Catalog, chosen: Chosen, cursor: Cursor | None = None) -> list[TargetRecord]:
    """Give the targets that are meant, at least one.

    Raises:
        TargetUnknown, SelectionMalformed: As ``resolve``, or there is none.
    """
    records = resolve(chosen, catalog, cursor.positions if cursor else ())
    if not records:
        message = "the selection means no target that is tracked now; `wetink targets` lists those that are"
        raise TargetUnknown(message)
    return records


def positions_of(
    catalog: Catalog, cursor: Cursor | None, chosen: Chosen, records: Sequence[TargetRecord]
) -> Mapping[TargetKey, Position]:
    """Give where a reader stands with some targets.

    Raises:
        Refusal: As ``check_cursor`` and ``check_remembered``.
    """
    # Before it can be taken for the cursor of others: who followed a host is told to begin afresh, and can.
    if cursor and cursor.store_id == catalog.store_id and not chosen.only_names:
        check_remembered(cursor, catalog.get)
    return check_cursor(cursor, records, catalog.store_id)


def barrier_seconds(timeout_ms: int) -> float:
    """Give how long a barrier may take.

    Raises:
        RequestMalformed: It is too long.
    """
    if timeout_ms > BARRIER_MS_MAX:
        message = f"the barrier's timeout is {timeout_ms} ms, at most {BARRIER_MS_MAX} is possible"
        raise RequestMalformed(message)
    return (timeout_ms or BARRIER_MS_DEFAULT) / 1000


def freeze_of(request: pb.BarrierRequest | pb.GetDirtyRequest | session_pb2.CloseRoundRequest) -> Freeze | None:
    """Give how targets are to be frozen.

    Raises:
        RequestMalformed: A field is out of its bounds.
    """
    if not request.HasField("freeze"):
        return None
    freeze = request.freeze
    if freeze.hold_ms > BARRIER_MS_MAX:
        message = f"hold_ms is {freeze.hold_ms}, at most {BARRIER_MS_MAX} is possible; ask again to hold for longer"
        raise RequestMalformed(message)
    if freeze.hold_ms:
        check_hold(freeze.hold)
    return Freeze(hold_ms=freeze.hold_ms, hold=freeze.hold, whole_cgroups=freeze.whole_cgroups)


def check_hold(text: str) -> None:
    """Accept the name of a hold.

    Raises:
        RequestMalformed: It cannot be one.
    """
    check_name(text, "hold")


def check_name(text: str, what: str) -> None:
    """Accept the name of something.

    Raises:
        RequestMalformed: It cannot be one.
    """
    if not NAME.fullmatch(text):
        message = f"{text[:300]!r} is no name of a {what}: 1 to 64 of [A-Za-z0-9._-]"
        raise RequestMalformed(message)
