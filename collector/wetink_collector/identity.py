"""Who is meant: targets and their incarnations, as values that can be keys.

The messages of the contract say the same, but cannot be hashed.
"""

from dataclasses import dataclass
from typing import Self

from wetink.names import name_of
from wetink.v1.types_pb2 import Target


@dataclass(frozen=True, slots=True, order=True)
class TargetKey:
    """One process on one boot of one host."""

    host_id: str
    boot_id: str
    pid: int
    start_time_ticks: int

    @classmethod
    def of(cls, target: Target) -> Self:
        """Take a target from its message."""
        return cls(target.host_id, target.boot_id, target.pid, target.start_time_ticks)

    def message(self) -> Target:
        """Give the message."""
        return Target(host_id=self.host_id, boot_id=self.boot_id, pid=self.pid, start_time_ticks=self.start_time_ticks)

    def __str__(self) -> str:
        """Give the printed name: ``HOST/PID@START``."""
        return name_of(self.message())


@dataclass(frozen=True, slots=True, order=True)
class IncarnationKey:
    """One unbroken stretch of tracking of a target."""

    target: TargetKey
    incarnation: int
