"""The printed names of hosts, targets (``HOST/PID@START``) and collectors (``HOST:PORT``)."""

import re
from dataclasses import dataclass
from typing import Final

from wetink.v1.types_pb2 import Target

HOST_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,253}")
_TARGET: Final = re.compile(r"(?P<host>[A-Za-z0-9._-]{1,253})/(?P<pid>[0-9]{1,10})(?:@(?P<start>[0-9]{1,20}))?")
_ADDRESS: Final = re.compile(r"(?:\[[0-9A-Fa-f:.%]+\]|[A-Za-z0-9._-]+):(?P<port>[0-9]{1,5})|unix:\S.*")
_PORT_MAX: Final = 65535
_PID_MAX: Final = (1 << 32) - 1
_START_MAX: Final = (1 << 64) - 1


class NameMalformed(ValueError):
    """A name that cannot be one. The sentence says of what form it should be."""


@dataclass(frozen=True, slots=True)
class TargetName:
    """A target as a person names it.

    ``start_time_ticks`` is None where the name leaves it open: the youngest process with that pid.
    """

    host_id: str
    pid: int
    start_time_ticks: int | None = None

    def __str__(self) -> str:
        """Give the printed form."""
        start = "" if self.start_time_ticks is None else f"@{self.start_time_ticks}"
        return f"{self.host_id}/{self.pid}{start}"


def parse_target(text: str) -> TargetName:
    """Read ``HOST/PID`` or ``HOST/PID@START``.

    Raises:
        NameMalformed: It is neither.
    """
    match = _TARGET.fullmatch(text)
    pid = int(match["pid"]) if match else 0
    start = int(match["start"]) if match and match["start"] is not None else None
    if match is None or not 1 <= pid <= _PID_MAX or (start is not None and start > _START_MAX):
        message = f"{text[:300]!r} names no target: write HOST/PID or HOST/PID@START, as `wetink targets` prints it"
        raise NameMalformed(message)
    return TargetName(match["host"], pid, start)


def check_host_id(text: str) -> str:
    """Give a host id back when it can be one.

    Raises:
        NameMalformed: It cannot.
    """
    if not HOST_ID.fullmatch(text):
        message = f"{text[:300]!r} is no host id: use 1 to 253 of letters, digits, dot, underscore and hyphen"
        raise NameMalformed(message)
    return text


def check_address(text: str) -> str:
    """Give a collector's address back when it can be one.

    Raises:
        NameMalformed: It is neither ``HOST:PORT`` nor ``unix:PATH``.
    """
    match = _ADDRESS.fullmatch(text)
    if match is None or (match["port"] is not None and not 1 <= int(match["port"]) <= _PORT_MAX):
        message = f"{text[:300]!r} is no collector's address: write HOST:PORT or unix:PATH"
        raise NameMalformed(message)
    return text


def name_of(target: Target) -> str:
    """Give the full printed name of a target: ``HOST/PID@START``."""
    return f"{target.host_id}/{target.pid}@{target.start_time_ticks}"
