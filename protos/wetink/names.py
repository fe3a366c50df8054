"""The printed names of hosts, targets (``HOST/PID@START``), collectors (``HOST:PORT``) and labels (``KEY=VALUE``)."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from wetink.v1.types_pb2 import Target

HOST_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,253}")
_TARGET: Final = re.compile(r"(?P<host>[A-Za-z0-9._-]{1,253})/(?P<pid>[0-9]{1,10})(?:@(?P<start>[0-9]{1,20}))?")
_ADDRESS: Final = re.compile(r"(?:\[[0-9A-Fa-f:.%]+\]|[A-Za-z0-9._-]+):(?P<port>[0-9]{1,5})|unix:\S.*")
_LABEL_KEY: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,62}")
_PORT_MAX: Final = 65535
_PID_MAX: Final = (1 << 32) - 1
_START_MAX: Final = (1 << 64) - 1

LABELS_MAX: Final = 32
"""Bound of the contract on the labels of a target and of a selection."""

LABEL_VALUE_CHARACTERS_MAX: Final = 253
"""Bound of the contract on a label's value: the longest name that Kubernetes gives an object."""


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


def parse_labels(texts: Iterable[str]) -> dict[str, str]:
    """Read ``KEY=VALUE`` of each label; of two with one key, the later one counts.

    Raises:
        NameMalformed: One is none, or there are too many.
    """
    labels = {}
    for text in texts:
        key, separator, value = text.partition("=")
        if not separator:
            message = f"{text[:300]!r} is no label: write KEY=VALUE"
            raise NameMalformed(message)
        labels[key] = value
    check_labels(labels)
    return labels


def check_labels(labels: Mapping[str, str]) -> None:
    """Accept the labels of a target or of a selection.

    Raises:
        NameMalformed: A key or a value cannot be one, or there are too many.
    """
    if len(labels) > LABELS_MAX:
        message = f"{len(labels)} labels are too many: a target has at most {LABELS_MAX}"
        raise NameMalformed(message)
    for key, value in labels.items():
        if not _LABEL_KEY.fullmatch(key):
            message = (
                f"{key[:300]!r} is no label's key: use 1 to 63 of letters, digits, dot, slash, underscore and hyphen, "
                "a letter or digit first"
            )
            raise NameMalformed(message)
        if len(value) > LABEL_VALUE_CHARACTERS_MAX or not value.isprintable():
            message = (
                f"label {key} has a value over {LABEL_VALUE_CHARACTERS_MAX} characters, or one that cannot be printed"
            )
            raise NameMalformed(message)
