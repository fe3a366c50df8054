"""Build the requests of InsightService from what a caller says. Nothing is sent from here."""

from typing import Final

from wetink.v1 import insight_pb2 as pb
from wetink_client.errors import InvalidRequest
from wetink_client.requests import selected
from wetink_client.values import Selectable, Selection

ORDERS: Final = {"rounds": pb.HOT_ORDER_ROUNDS, "age": pb.HOT_ORDER_AGE}

_UINT32_MAX: Final = (1 << 32) - 1
_UINT64_MAX: Final = (1 << 64) - 1


def working_set(selection: Selectable) -> pb.GetWorkingSetRequest:
    """Ask for working sets."""
    return pb.GetWorkingSetRequest(selection=selected(selection))


def heatmap(
    target: str, *, rows: int, columns: int, since_time_ns: int, start_address: int, end_address: int
) -> pb.GetHeatmapRequest:
    """Ask for a heatmap."""
    return pb.GetHeatmapRequest(
        target=_name(target),
        address_bin_count=_count("rows", rows),
        time_bin_count=_count("columns", columns),
        since_time_ns=_number("since_time_ns", since_time_ns),
        start_address=_number("start_address", start_address),
        end_address=_number("end_address", end_address),
    )


def hot_pages(selection: Selectable, limit: int, order: str) -> pb.GetHotPagesRequest:
    """Ask for hot pages."""
    if order not in ORDERS:
        message = f"{order!r} is no order of pages: write {' or '.join(ORDERS)}"
        raise InvalidRequest(message, "REQUEST_MALFORMED")
    return pb.GetHotPagesRequest(selection=selected(selection), limit=_count("limit", limit), order=ORDERS[order])


def cold_first(target: str, classes: int) -> pb.GetColdFirstRequest:
    """Ask for an order of sending."""
    return pb.GetColdFirstRequest(target=_name(target), class_count=_count("classes", classes))


def writers(target: str, limit: int, since_time_ns: int) -> pb.GetWritersRequest:
    """Ask who writes."""
    return pb.GetWritersRequest(
        target=_name(target), limit=_count("limit", limit), since_time_ns=_number("since_time_ns", since_time_ns)
    )


def _name(target: str) -> str:
    (name,) = Selection(targets=(target,)).targets
    return name


def _count(what: str, value: int) -> int:
    return _number(what, value, _UINT32_MAX)


def _number(what: str, value: int, most: int = _UINT64_MAX) -> int:
    if not 0 <= value <= most:
        message = f"{what} cannot be {value}: write a number from 0 to {most}"
        raise InvalidRequest(message, "REQUEST_MALFORMED")
    return value
