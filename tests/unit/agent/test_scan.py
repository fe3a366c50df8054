"""Scans against a kernel that misstates where it stopped, as real ones do after more than 512 regions."""

import ctypes
from ctypes import Structure
from itertools import pairwise
from typing import cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyroaring import BitMap64

from wetink import syscalls
from wetink.pages import PAGE_SIZE
from wetink_agent.pagemap_scan import region_runs, scan
from wetink_agent.uapi import fs

BUFFER_REGIONS = 4
END = 400 * PAGE_SIZE


class Kernel:
    """PAGEMAP_SCAN over pages that change from call to call.

    It answers to the end, in regions; once it has emptied its buffer of a few regions on the way, it gives the place
    where it last did as the end of its walk.
    """

    def __init__(self, states: list[frozenset[int]]) -> None:
        """Take the populated pages at each call; the last state stays."""
        self.states = states
        self.seen: set[int] = set()

    def ioctl(self, _fd: int, _request: int, argument: Structure, _name: str) -> int:
        """Answer one scan."""
        asked = cast("fs.pm_scan_arg", argument)
        state = self.states.pop(0) if len(self.states) > 1 else self.states[0]
        pages = sorted(page for page in state if asked.start <= page * PAGE_SIZE < asked.end)
        regions: list[list[int]] = []
        for page in pages:
            if regions and regions[-1][1] == page * PAGE_SIZE:
                regions[-1][1] += PAGE_SIZE
            else:
                regions.append([page * PAGE_SIZE, (page + 1) * PAGE_SIZE, fs.PAGE_IS_PRESENT])
        assert len(regions) <= asked.vec_len
        answer = np.array(regions, dtype=np.uint64).reshape(-1, 3)
        ctypes.memmove(asked.vec, answer.ctypes.data, answer.nbytes)
        emptied = (len(regions) - 1) // BUFFER_REGIONS * BUFFER_REGIONS
        asked.walk_end = regions[emptied - 1][1] if emptied > 0 else asked.end
        self.seen.update(pages)
        return len(regions)


STATES = st.lists(st.frozensets(st.integers(0, 399), min_size=10, max_size=60), min_size=1, max_size=6)


@given(states=STATES, cuts=st.lists(st.integers(1, 399), max_size=3, unique=True))
def test_whatever_the_kernel_answered_counts(states: list[frozenset[int]], cuts: list[int]) -> None:
    """Every region of every answer is given on, in arrays that are ascending each: what was answered was armed."""
    kernel = Kernel(list(states))
    bounds = [0, *sorted(cuts), 400]
    spans = [(start * PAGE_SIZE, end * PAGE_SIZE) for start, end in pairwise(bounds)]
    found = BitMap64()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(syscalls, "ioctl", kernel.ioctl)
        for regions in scan(-1, spans, mask=0, inverted=0):
            assert (regions[1:, 0] >= regions[:-1, 1]).all()
            found |= region_runs(regions).to_set()

    assert set(found) == kernel.seen
