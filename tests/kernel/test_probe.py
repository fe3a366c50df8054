"""Whether the kernel can do what is needed is found out by doing it, and said in one sentence where it cannot."""

import errno
import os
import subprocess
import sys
from ctypes import Structure

import pytest

from tests.support.descriptors import own_descriptors
from tests.support.seccomp import NR_USERFAULTFD, UNDER_A_FILTER
from wetink import syscalls
from wetink_agent.probe import is_forbidden_by_own_filter, why_not_wp_async
from wetink_agent.uapi import fs
from wetink_agent.uapi import userfaultfd as uf

pytestmark = pytest.mark.needs("kernel")


def refuse(monkeypatch: pytest.MonkeyPatch, request: int, number: int) -> None:
    """Make one ioctl fail with an errno."""
    real = syscalls.ioctl

    def ioctl(fd: int, asked: int, argument: Structure, name: str) -> int:
        if asked == request:
            raise OSError(number, os.strerror(number))
        return real(fd, asked, argument, name)

    monkeypatch.setattr(syscalls, "ioctl", ioctl)


def test_nothing_is_missing_here() -> None:
    """Where the need "kernel" is met the probe has nothing to say, and leaves nothing open."""
    before = own_descriptors()

    assert [why_not_wp_async() for _ in range(5)] == [None] * 5
    assert own_descriptors() == before


@pytest.mark.parametrize(
    "request_number,error,sentence",
    [
        pytest.param(uf.UFFDIO_API, errno.EINVAL, "lacks UFFD_FEATURE_WP_ASYNC", id="before 6.7"),
        pytest.param(
            uf.UFFDIO_REGISTER, errno.EINVAL, "write-protection fails: Invalid argument", id="no registration"
        ),
        pytest.param(fs.PAGEMAP_SCAN, errno.ENOTTY, "lacks PAGEMAP_SCAN", id="no scan"),
    ],
)
def test_what_is_missing_is_named(
    monkeypatch: pytest.MonkeyPatch, request_number: int, error: int, sentence: str
) -> None:
    """Each step that a kernel refuses has its own end of a sentence, and leaves no descriptor."""
    refuse(monkeypatch, request_number, error)
    before = own_descriptors()

    why = why_not_wp_async()

    assert why is not None
    assert sentence in why
    assert "\n" not in why
    assert own_descriptors() == before


def test_a_kernel_that_forbids_userfaultfd_is_told_from_one_that_lacks_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under a seccomp filter the call itself fails, and the sentence says with what."""

    def forbidden(_flags: int) -> int:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(syscalls, "userfaultfd", forbidden)

    assert why_not_wp_async() == "userfaultfd(2) fails here: Operation not permitted"


def test_a_filter_of_the_agents_own_is_told_from_the_kernel() -> None:
    """A process under a filter that forbids userfaultfd knows that it is its filter; this one has none."""
    source = "from wetink_agent.probe import is_forbidden_by_own_filter\nprint(is_forbidden_by_own_filter())"
    said = subprocess.run(
        [sys.executable, "-c", UNDER_A_FILTER, str(NR_USERFAULTFD), sys.executable, "-c", source],
        capture_output=True,
        text=True,
        check=True,
    )

    assert said.stdout == "True\n"
    assert not is_forbidden_by_own_filter()


def test_a_kernel_that_lies_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where every call succeeds and no write is ever reported, the probe says so."""
    real = syscalls.ioctl

    def ioctl(fd: int, asked: int, argument: Structure, name: str) -> int:
        if asked == fs.PAGEMAP_SCAN:
            return 0
        return real(fd, asked, argument, name)

    monkeypatch.setattr(syscalls, "ioctl", ioctl)

    assert why_not_wp_async() == "its write-protection does not report a write that happened"
