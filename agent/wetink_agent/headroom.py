"""Whether there are descriptors for one more target, and still some for the rounds of those that are tracked.

A round opens files of ``/proc`` for a moment. Without a reserve the last target that fits would take the descriptors
that the others' next round needs, and all of them would end.
"""

import os
import resource
from typing import Final

from wetink_agent.errors import DescriptorsFew

RESERVE: Final = 128
"""Descriptors that are left: four harvests and eight attachments at once open up to eight each for a moment, and the
uplink, the spool and the guard have some. Of few no more than half are kept back."""


def check(pid: int) -> None:
    """See that there are descriptors for one more process.

    Raises:
        DescriptorsFew: There are not.
    """
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    # Each look at the directory takes one itself.
    count = len(os.listdir("/proc/self/fd")) - 1  # noqa: PTH208 (once a target, and there may be thousands of entries)
    if count > most - min(RESERVE, most // 2):
        message = (
            f"process {pid} is not tracked: of {most} descriptors the agent has {count}, and leaves the others to the "
            "targets that it has; raise its RLIMIT_NOFILE, or let it track fewer"
        )
        raise DescriptorsFew(message)
