"""The stop policies by the names under which they are asked for."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from wetink_collector.insight.policies import (
    DOWNTIME_SECONDS,
    CloudHypervisor,
    Downtime,
    GoPhaul,
    Incus,
    KubevirtRamp,
    Ovirt,
    Phaul,
    Policy,
    Qemu,
    Xen,
)
from wetink_collector.insight.stall import KubevirtStall


@dataclass(frozen=True, slots=True)
class NamedPolicy:
    """How a policy is made: from the downtime aimed at, in seconds, and whether it may throttle the target.

    ``downtime_seconds`` is what it aims at where nobody says. Where ``aims`` is False it looks at no downtime, and the
    one aimed at only judges how it ends.
    """

    make: Callable[[float, bool], Policy]
    downtime_seconds: float = DOWNTIME_SECONDS
    aims: bool = True
    may_throttle: bool = False


POLICIES: Final[Mapping[str, NamedPolicy]] = {
    "downtime": NamedPolicy(lambda seconds, _: Downtime(seconds)),
    "phaul": NamedPolicy(lambda *_: Phaul(), aims=False),
    "go-phaul": NamedPolicy(lambda *_: GoPhaul(), aims=False),
    "incus": NamedPolicy(lambda *_: Incus(), aims=False),
    "xen": NamedPolicy(lambda *_: Xen(), aims=False),
    "cloud-hypervisor": NamedPolicy(CloudHypervisor, may_throttle=True),
    "qemu": NamedPolicy(Qemu, may_throttle=True),
    "ovirt": NamedPolicy(lambda *_: Ovirt(), downtime_seconds=Ovirt.SCHEDULE[-1][1], aims=False),
    "kubevirt-stall": NamedPolicy(
        lambda seconds, _: KubevirtStall(seconds), downtime_seconds=KubevirtStall.MAX_SECONDS
    ),
    "kubevirt-ramp": NamedPolicy(lambda seconds, _: KubevirtRamp(seconds), downtime_seconds=KubevirtRamp.MAX_SECONDS),
}
"""Every policy there is; "downtime" is asked for by the empty name as well."""
