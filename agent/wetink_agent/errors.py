"""What can keep the agent from tracking a process: each a sentence a person can act on."""


class TrackingError(Exception):
    """A process cannot be tracked, or not any longer. The text names the process and says what to do."""


class NoSuchProcess(TrackingError):
    """There is no process with that pid, or it has exited."""


class NotPermitted(TrackingError):
    """The agent lacks a right over the process."""


class Untrackable(TrackingError):
    """The process is of a kind that cannot be tracked, or something else holds what tracking needs."""


class DescriptorsFew(TrackingError):
    """The agent itself has no descriptors left for one more target."""


class KernelLacks(TrackingError):
    """The kernel of this machine lacks a feature that the backend needs."""


class TargetExited(TrackingError):
    """The target exited: its memory is gone. Never means that nothing was written."""


class TargetReplaced(TrackingError):
    """The target replaced its memory with execve(2). Never means that nothing was written."""
