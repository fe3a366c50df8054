"""What ``wp-async`` finds in the memory of real processes, on the real kernel."""

import os
import random
import signal
import struct
import subprocess
import time
from pathlib import Path

import pytest

from tests.support import programs, truth
from tests.support.descriptors import own_descriptors
from tests.support.huge_pages import huge_pages
from tests.support.victim import PAGE, USERFAULTFD, Victim, tracked, victim, within
from wetink_agent.attach import take_userfaultfd
from wetink_agent.errors import TargetExited, TargetReplaced, Untrackable
from wetink_agent.wp_async import PIECES_MAX, WpAsync

pytestmark = pytest.mark.needs("kernel", "root", "cc")

MADV_DONTNEED = 4
MADV_REMOVE = 9


def populated(pid: int) -> set[int]:
    """Give the populated pages of a frozen process, by the second witness."""
    return {page for page, _ in truth.populated(pid)}


def status_kib(pid: int, name: str) -> int:
    """Give a number from ``/proc/PID/status``."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    return int(next(line for line in lines if line.startswith(f"{name}:")).split()[1])


def maps_of(pid: int) -> list[str]:
    """Give the lines of ``/proc/PID/maps``."""
    return Path(f"/proc/{pid}/maps").read_text(encoding="utf-8").splitlines()


def kernel_made(pid: int) -> list[range]:
    """Give the pages of what the kernel maps into every process, the vdso last."""
    made = []
    for line in sorted(maps_of(pid), key=lambda line: line.endswith("[vdso]")):
        if line.endswith(("[vdso]", "[vvar]", "[vvar_vclock]", "[vsyscall]")):
            start, end = (int(part, 16) // PAGE for part in line.split()[0].split("-"))
            made.append(range(start, end))
    return made


def test_the_first_round_has_every_populated_page_and_the_second_nothing() -> None:
    """On a frozen process round 1 is what the page map file shows; round 2 says that it is frozen, and no more."""
    with victim() as target, tracked(target.pid) as tracker:
        target.map(300)
        target.program.stop()
        first, second = tracker.harvest(), tracker.harvest()

        missing = populated(target.pid) - set(first.written)
        assert not missing
        # Over-reporting in round 1 is zero pages at most: they are populated and stand for nothing.
        assert len(first.written) - len(populated(target.pid)) < 300
        assert first.populated_page_count == len(first.written)
        assert not first.vanished
        assert (first.frozen, second.frozen) == (True, True)
        assert not second.written
        assert not second.vanished
        assert second.populated_page_count == first.populated_page_count
        assert second.cautious_page_count == 0


def test_what_is_written_is_reported_and_nothing_else() -> None:
    """In a region of 4,000 pages each round has exactly the pages that were written since the one before."""
    choose = random.Random(5)  # noqa: S311 - repeatable, not secret
    with victim() as target:
        first = target.map(4000)
        with tracked(target.pid) as tracker:
            tracker.harvest()
            for _ in range(20):
                pages = set(choose.sample(range(4000), choose.choice([0, 1, 7, 300])))
                target.write(*(first + page for page in pages))
                harvest = tracker.harvest()
                assert within(harvest, first, 4000) == (pages, set())
                assert not harvest.frozen


def test_zapped_pages_vanish_and_come_back_written() -> None:
    """A page given back is vanished once; filled again it is written; given back and filled it is only written."""
    with victim() as target:
        first = target.map(100)
        with tracked(target.pid) as tracker:
            tracker.harvest()
            target.do(f"checked(libc.madvise({(first + 10) * PAGE}, {5 * PAGE}, {MADV_DONTNEED}))")
            assert within(tracker.harvest(), first, 100) == (set(), {10, 11, 12, 13, 14})
            assert within(tracker.harvest(), first, 100) == (set(), set())
            target.write(first + 11)
            assert within(tracker.harvest(), first, 100) == ({11}, set())
            target.do(f"checked(libc.madvise({(first + 20) * PAGE}, {PAGE}, {MADV_DONTNEED}))")
            target.write(first + 20)
            assert within(tracker.harvest(), first, 100) == ({20}, set())
            target.do(f"checked(libc.munmap({first * PAGE}, {50 * PAGE}))")
            gone = within(tracker.harvest(), first, 100)
            assert gone == (set(), set(range(50)) - {10, 12, 13, 14})


def test_forget_makes_the_next_round_a_first_one() -> None:
    """After ``forget`` a harvest has every populated page, nothing vanished, and the caution of a first round."""
    with victim() as target:
        target.map(50)
        target.map(20, more="flags=0x21")
        target.program.stop()
        with tracked(target.pid) as tracker:
            first = tracker.harvest()
            tracker.harvest()
            tracker.forget()
            again = tracker.harvest()

            assert again.written == first.written
            assert not again.vanished
            assert again.populated_page_count == first.populated_page_count
            assert again.cautious_page_count == first.cautious_page_count
            assert len(tracker.harvest().written) == first.cautious_page_count


def test_new_memory_is_found_wherever_it_appears() -> None:
    """A mapping beside a tracked one, a grown heap and a grown stack are found in the next round, page by page."""
    with victim() as target:
        reserved = target.map(300, filled=False, more="protection=0")
        target.map(100, more=f"address={reserved * PAGE}, flags=0x32")
        heap = target.number("libc.sbrk(0)") // PAGE + 1
        with tracked(target.pid) as tracker:
            tracker.harvest()
            beside = target.map(100, more=f"address={(reserved + 100) * PAGE}, flags=0x32")
            target.do(f"libc.sbrk({50 * PAGE}); fill({heap * PAGE}, 40)")
            harvest = tracker.harvest()
            assert within(harvest, beside, 100)[0] == set(range(100))
            assert set(range(1, 40)) <= within(harvest, heap, 40)[0]
            assert harvest.mapped
            target.write(beside + 3, heap + 5)
            harvest = tracker.harvest()
            assert within(harvest, beside, 100)[0] == {3}
            assert 5 in within(harvest, heap, 40)[0]


def test_what_is_mapped_and_filled_between_the_audits_is_written() -> None:
    """Memory that appears when the first audit has passed is found by the second one, or by the next round."""
    with victim() as target:
        late: list[int] = []

        class Slow(WpAsync):
            def _shared(self) -> object:  # type: ignore[override]
                late.append(target.map(30))
                return super()._shared()

        tracker = Slow(target.pid, take_userfaultfd(target.pid))
        try:
            for _ in range(3):
                harvest = tracker.harvest()
                assert within(harvest, late[-1], 30)[0] == set(range(30))
            assert within(tracker.harvest(), late[0], 30)[0] == set()
        finally:
            tracker.close()


def test_a_mapping_in_the_place_of_another_loses_nothing() -> None:
    """Mapped afresh at the same address, partly filled: what is there is written, what is not there has vanished."""
    with victim() as target:
        first = target.map(64)
        with tracked(target.pid) as tracker:
            tracker.harvest()
            target.map(64, filled=False, more=f"address={first * PAGE}, flags=0x32")
            target.write(first + 1, first + 63)
            assert within(tracker.harvest(), first, 64) == ({1, 63}, set(range(64)) - {1, 63})
            target.write(first + 1)
            assert within(tracker.harvest(), first, 64) == ({1}, set())


def test_memory_that_may_not_be_touched_is_tracked_all_the_same() -> None:
    """Pages under PROT_NONE are populated: they are in round 1, and a write after the protection is lifted is seen."""
    with victim() as target:
        first = target.map(20)
        target.do(f"checked(libc.mprotect({first * PAGE}, {20 * PAGE}, 0))")
        with tracked(target.pid) as tracker:
            assert within(tracker.harvest(), first, 20)[0] == set(range(20))
            target.do(f"checked(libc.mprotect({first * PAGE}, {20 * PAGE}, 3))")
            target.write(first + 4)
            assert within(tracker.harvest(), first, 20)[0] == {4}


def test_locked_memory_that_grows_is_found() -> None:
    """Under mlockall(MCL_FUTURE) new mappings are populated at once, unwritten, and are in the next round."""
    with victim() as target:
        target.do("checked(libc.mlockall(2))")
        with tracked(target.pid) as tracker:
            tracker.harvest()
            first = target.map(64, filled=False)
            assert within(tracker.harvest(), first, 64)[0] == set(range(64))


def best_round_seconds(tracker: WpAsync) -> float:
    """Give what the quickest of some rounds takes, for others run here too."""
    took = []
    for _ in range(3):
        began = time.perf_counter()
        tracker.harvest()
        took.append(time.perf_counter() - began)
    return min(took)


def test_a_sparse_mapping_costs_no_page_tables() -> None:
    """A mapping of 64 GiB with 32 pages in it is harvested without the kernel making tables for its holes."""
    with victim() as target:
        first = target.map(64 << 18, filled=False, more="flags=0x4022")
        pages = [first + (n << 19) for n in range(32)]
        target.write(*pages)
        before = status_kib(target.pid, "VmPTE")
        with tracked(target.pid) as tracker:
            assert set(pages) <= set(tracker.harvest().written)
            took = best_round_seconds(tracker)
            target.write(pages[7])
            harvest = tracker.harvest()

            assert pages[7] in harvest.written
            assert not set(pages[8:]) & set(harvest.written)
            assert status_kib(target.pid, "VmPTE") - before <= 64
            assert took < 1


def test_five_thousand_small_mappings_are_harvested_in_reasonable_time() -> None:
    """Each is registered once; a round over them all stays below a second."""
    with victim() as target:
        first = target.map(10_000, more="protection=3")
        target.do(f"for n in range(5000): checked(libc.mprotect({first * PAGE} + n * 2 * PAGE, PAGE, 1))")
        with tracked(target.pid) as tracker:
            assert within(tracker.harvest(), first, 10_000)[0] == set(range(10_000))
            assert best_round_seconds(tracker) < 1
            target.write(first + 4001)
            assert within(tracker.harvest(), first, 10_000)[0] == {4001}


def test_only_what_was_offered_is_reported() -> None:
    """With a scope of two regions, writes elsewhere are not reported, and elsewhere is not registered."""
    with victim() as target:
        first = target.map(100)
        scope = [((first + start) * PAGE, (first + end) * PAGE) for start, end in ((10, 20), (50, 60))]
        with tracked(target.pid, scope) as tracker:
            inside = set(range(10, 20)) | set(range(50, 60))
            harvest = tracker.harvest()
            assert within(harvest, first, 100)[0] == inside
            assert len(harvest.written) == 20
            target.write(*(first + page for page in range(5, 55)))
            assert set(tracker.harvest().written) == {first + page for page in (*range(10, 20), *range(50, 55))}
            target.do(f"checked(libc.munmap({first * PAGE}, {15 * PAGE}))")
            harvest = tracker.harvest()
            assert set(harvest.vanished) == {first + page for page in range(10, 15)}
            registered = Path(f"/proc/{target.pid}/smaps").read_text(encoding="utf-8").count(" uw")
            assert registered == 2


def test_memory_shared_through_a_descriptor_is_reported_though_nobody_here_writes_it() -> None:
    """A memfd changed by write(2), and shared memory changed by a child, are cautiously written in every round."""
    with victim() as target:
        target.do("global fd; fd = os.memfd_create('x'); os.ftruncate(fd, 8 * PAGE)")
        memfd = target.map(8, filled=False, more="flags=1, fd=fd")
        target.do(f"fill({memfd * PAGE}, 4)")
        shared = target.map(8, more="flags=0x21")
        with tracked(target.pid) as tracker:
            tracker.harvest()
            target.do("os.pwrite(fd, b'x', 2 * PAGE)")
            target.do(
                f"child = os.fork()\nif child == 0:\n    poke({(shared + 5) * PAGE}, 9); os._exit(0)\n"
                "os.waitpid(child, 0)"
            )
            harvest = tracker.harvest()
            assert {0, 1, 2, 3} == within(harvest, memfd, 8)[0]
            assert within(harvest, shared, 8)[0] == set(range(8))
            assert harvest.cautious_page_count >= 12
            target.do(f"checked(libc.madvise({shared * PAGE}, {2 * PAGE}, {MADV_REMOVE}))")
            assert within(tracker.harvest(), shared, 8) == (set(range(2, 8)), {0, 1})


def test_shared_memory_is_the_objects_and_not_what_the_page_table_shows() -> None:
    """What a zap took from the table has not vanished, and a child has what its parent filled before the fork."""
    with victim() as target:
        shared = target.map(8, more="flags=0x21")
        with tracked(target.pid) as tracker:
            tracker.harvest()
            target.do(f"checked(libc.madvise({shared * PAGE}, {4 * PAGE}, {MADV_DONTNEED}))")
            assert within(tracker.harvest(), shared, 8) == (set(range(8)), set())
        target.do("global child\nchild = os.fork()\nif child == 0:\n    import time; time.sleep(60); os._exit(0)")
        child = target.number("child")
        try:
            with tracked(child) as tracker:
                assert within(tracker.harvest(), shared, 8)[0] == set(range(8))
        finally:
            os.kill(child, signal.SIGKILL)


def test_a_scope_that_ends_within_shared_memory_has_what_its_object_has() -> None:
    """Pages the target has not touched itself are reported too where only a part of their mapping was offered."""
    with victim() as target:
        target.do("global fd; fd = os.memfd_create('x'); os.ftruncate(fd, 32 * PAGE)")
        first = target.map(16, filled=False, more="flags=1, fd=fd, offset=8 * PAGE")
        target.do(f"fill({first * PAGE}, 4)\nfor page in (0, 13, 15, 20, 31): os.pwrite(fd, b'x', page * PAGE)")
        with tracked(target.pid, [((first + 2) * PAGE, (first + 12) * PAGE)]) as tracker:
            for _ in range(3):
                assert within(tracker.harvest(), first, 16) == ({2, 3, 5, 7}, set())
            target.do("os.pwrite(fd, b'x', 18 * PAGE)")
            assert within(tracker.harvest(), first, 16) == ({2, 3, 5, 7, 10}, set())


@pytest.mark.parametrize("hidden", ["unmounted", "behind a chroot"])
def test_shared_memory_of_a_mount_that_the_process_does_not_see(hidden: str, tmp_path: Path) -> None:
    """A file on a tmpfs that is unmounted, or outside the process's root, is memory in every round all the same."""
    (tmp_path / "root").mkdir()
    (tmp_path / "memory").mkdir()
    with victim() as target:
        target.do(
            "checked(libc.unshare(0x20000))\nchecked(libc.mount(b'none', b'/', None, 0x44000, None))\n"
            f"memory = {os.fsencode(tmp_path / 'memory')!r}\n"
            "checked(libc.mount(b'tmpfs', memory, b'tmpfs', 0, None))\n"
            "global fd; fd = os.open(memory + b'/file', os.O_RDWR | os.O_CREAT); os.ftruncate(fd, 8 * PAGE)"
        )
        first = target.map(8, filled=False, more="flags=1, fd=fd")
        target.do(f"fill({first * PAGE}, 4)")
        if hidden == "unmounted":
            target.do(f"checked(libc.umount2({os.fsencode(tmp_path / 'memory')!r}, 2))")
        else:
            target.do(f"os.chroot({str(tmp_path / 'root')!r}); os.chdir('/')")
        with tracked(target.pid) as tracker:
            tracker.harvest()
            for _ in range(2):
                assert within(tracker.harvest(), first, 8) == ({0, 1, 2, 3}, set())
            target.do("os.pwrite(fd, b'x', 6 * PAGE)")
            assert within(tracker.harvest(), first, 8) == ({0, 1, 2, 3, 6}, set())


def test_shared_memory_whose_object_cannot_be_looked_at_is_not_said_to_vanish() -> None:
    """The ring of a packet socket is no file to seek in: once seen it is reported, also when the table shows it not."""
    with victim() as target:
        # PACKET_RX_RING: blocks of one page, frames of half a page.
        target.do(
            "import socket, struct\n"
            "global ring; ring = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)\n"
            "ring.setsockopt(263, 5, struct.pack('IIII', PAGE, 8, PAGE // 2, 16))"
        )
        first = target.map(8, filled=False, more="flags=1, fd=ring.fileno()")
        with tracked(target.pid) as tracker:
            for _ in range(2):
                assert within(tracker.harvest(), first, 8) == (set(range(8)), set())
            target.do(f"checked(libc.madvise({first * PAGE}, {3 * PAGE}, {MADV_DONTNEED}))")
            for _ in range(2):
                assert within(tracker.harvest(), first, 8) == (set(range(8)), set())


def test_many_pieces_of_own_pages_in_a_read_only_file_mapping_are_reported_in_every_round(tmp_path: Path) -> None:
    """They stay unregistered, so that the target keeps its mappings; what is written to them is never missed."""
    path = tmp_path / "file"
    pieces = PIECES_MAX + 10
    path.write_bytes(bytes(2 * pieces * PAGE))
    with victim() as target:
        target.do(f"global fd; fd = os.open({str(path)!r}, os.O_RDWR)")
        first = target.map(2 * pieces, filled=False, more="flags=2, fd=fd")
        own = set(range(0, 2 * pieces, 2))
        target.write(*(first + page for page in own))
        target.do(f"checked(libc.mprotect({first * PAGE}, {2 * pieces * PAGE}, 1))")
        mapping_count = len(maps_of(target.pid))
        with tracked(target.pid) as tracker:
            for _ in range(3):
                harvest = tracker.harvest()
                assert within(harvest, first, 2 * pieces) == (own, set())
                assert harvest.cautious_page_count >= pieces
            assert len(maps_of(target.pid)) < mapping_count + pieces


def test_a_private_copy_of_a_file_page_that_is_given_back_is_written(tmp_path: Path) -> None:
    """Its content is the file's again: the page counts as written from then on, never as unchanged."""
    path = tmp_path / "file"
    path.write_bytes(b"f" * (16 * PAGE))
    with victim() as target:
        target.do(f"global fd; fd = os.open({str(path)!r}, os.O_RDWR)")
        first = target.map(16, filled=False, more="flags=2, fd=fd")
        with tracked(target.pid) as tracker:
            assert within(tracker.harvest(), first, 16) == (set(), set())
            target.write(first + 3, first + 5)
            assert within(tracker.harvest(), first, 16) == ({3, 5}, set())
            target.write(first + 5)
            assert within(tracker.harvest(), first, 16) == ({5}, set())
            target.do(f"checked(libc.madvise({(first + 3) * PAGE}, {PAGE}, {MADV_DONTNEED}))")
            written, vanished = within(tracker.harvest(), first, 16)
            assert 3 in written | vanished
            assert 5 not in written | vanished


def test_a_debuggers_write_to_program_text_is_found(tmp_path: Path) -> None:
    """A breakpoint makes a private copy of a text page: found once, tracked from then on, the rest left to the file."""
    with programs.running("sleeper", "nanosleep", tmp_path / "progress") as target:
        text = next(line for line in maps_of(target.pid) if " r-xp " in line and "sleeper" in line)
        page = int(text.split("-")[0], 16) // PAGE
        with tracked(target.pid) as tracker, Path(f"/proc/{target.pid}/mem").open("r+b", buffering=0) as memory:
            assert page not in tracker.harvest().written
            content = os.pread(memory.fileno(), 1, page * PAGE)
            for seen in (True, True):
                os.pwrite(memory.fileno(), content, page * PAGE)
                assert (page in tracker.harvest().written) is seen
            harvest = tracker.harvest()
            assert page not in harvest.written
            assert page not in harvest.vanished


def test_what_the_kernel_maps_is_never_reported() -> None:
    """Neither vdso nor vvar nor vsyscall is the target's memory, though attaching wrote to the first."""
    with victim() as target, tracked(target.pid) as tracker:
        for _ in range(3):
            harvest = tracker.harvest()
            for made in kernel_made(target.pid):
                assert not [page for page in made if page in harvest.written or page in harvest.vanished]


def test_memory_that_touches_the_vdso_is_not_taken_for_it() -> None:
    """A page right behind the vdso, which attaching has given a page of its own, is reported and tracked."""
    with victim() as target:
        behind = kernel_made(target.pid)[-1].stop
        if not any(f"{behind * PAGE:x}-" in line for line in maps_of(target.pid)):
            target.map(1, more=f"address={behind * PAGE}, flags=0x100022")
        os.close(take_userfaultfd(target.pid))
        with tracked(target.pid) as tracker, Path(f"/proc/{target.pid}/mem").open("r+b", buffering=0) as memory:
            content = os.pread(memory.fileno(), 1, behind * PAGE)
            for _ in range(2):
                os.pwrite(memory.fileno(), content, behind * PAGE)
                assert behind in tracker.harvest().written
            assert behind not in tracker.harvest().written


def test_a_file_with_the_name_of_something_the_kernel_maps_is_a_file(tmp_path: Path) -> None:
    """Private copies of the pages of a file called [vdso] are reported like any others."""
    path = tmp_path / "[vdso]"
    path.write_bytes(bytes(8 * PAGE))
    with victim() as target:
        target.do(f"global fd; fd = os.open({str(path)!r}, os.O_RDWR)")
        first = target.map(8, more="flags=2, fd=fd")
        with tracked(target.pid) as tracker:
            assert within(tracker.harvest(), first, 8)[0] == set(range(8))


def test_exec_is_an_end_and_never_an_empty_harvest() -> None:
    """A process that has called execve(2) has other memory: the next harvest says so, again and again."""
    with victim() as target, tracked(target.pid) as tracker:
        tracker.harvest()
        exec_again(target)
        for _ in range(2):
            with pytest.raises(TargetReplaced, match=f"process {target.pid} replaced its memory"):
                tracker.harvest()


def exec_again(target: Victim) -> None:
    """Have a victim execute its own program once more, with the same words and environment."""
    command = Path(f"/proc/{target.pid}/cmdline").read_bytes().split(b"\0")[:-1]
    assert target.program.process.stdin is not None
    source = f"os.execv('/proc/self/exe', {[os.fsdecode(word) for word in command]!r})"
    target.program.process.stdin.write(b'"' + source.replace("\\", "\\\\").replace('"', '\\"').encode() + b'"\n')
    assert target.program.read_line().startswith("ready")


@pytest.mark.parametrize("sibling", ["alone", "memory kept alive"])
def test_exec_of_the_same_program_at_the_same_addresses_is_an_end_too(sibling: str, tmp_path: Path) -> None:
    """Without address randomisation old and new memory look alike, and another process may keep the old one alive."""
    source = tmp_path / "again.c"
    source.write_text(AGAIN, encoding="utf-8")
    subprocess.run(["cc", "-O1", "-o", tmp_path / "again", source], check=True)
    words = ["setarch", "-R", str(tmp_path / "again"), "sibling" if sibling != "alone" else "alone"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, start_new_session=True) as target:
        try:
            assert target.stdout is not None
            assert target.stdout.readline() == b"ready\n"
            with tracked(target.pid) as tracker:
                first = tracker.harvest()
                assert first.written
                tracker.harvest()
                target.send_signal(signal.SIGUSR1)
                assert target.stdout.readline() == b"ready\n"
                with pytest.raises(TargetReplaced):
                    tracker.harvest()
        finally:
            os.killpg(target.pid, signal.SIGKILL)


AGAIN = """
#define _GNU_SOURCE
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>
static char stack[65536];
static int sleeps(void *nothing) { (void)nothing; for (;;) pause(); }
int main(int count, char **words) {
    (void)count;
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    sigprocmask(SIG_BLOCK, &set, NULL);
    memset(malloc(100000), 1, 100000);
    if (!strcmp(words[1], "sibling") && clone(sleeps, stack + sizeof stack, CLONE_VM, NULL) < 0) return 1;
    puts("ready");
    fflush(stdout);
    int number;
    sigwait(&set, &number);
    execv(words[0], words);
    return 2;
}
"""


def test_exit_is_an_end_and_never_an_empty_harvest() -> None:
    """A target that has been killed, reaped or not, is gone: each harvest says so."""
    with victim() as target, tracked(target.pid) as tracker:
        tracker.harvest()
        os.kill(target.pid, signal.SIGKILL)
        os.waitid(os.P_PID, target.pid, os.WEXITED | os.WNOWAIT)
        with pytest.raises(TargetExited, match=f"process {target.pid} exited"):
            tracker.harvest()
        target.program.process.wait()
        with pytest.raises(TargetExited):
            tracker.harvest()


@pytest.mark.parametrize("mode", ["missing", "asynchronous"])
def test_a_target_that_uses_userfaultfd_itself_is_refused(mode: str) -> None:
    """Two readers would take each other's marks away: one sentence says where, and the target keeps its own."""
    with victim() as target:
        first = target.map(16)
        target.do(USERFAULTFD)
        features, wanted = ("1 | 1 << 13 | 1 << 15", 2) if mode == "asynchronous" else ("0", 1)
        target.do(f"own_userfaultfd({first * PAGE}, {16 * PAGE}, {features}, {wanted})")
        with (
            pytest.raises(Untrackable, match=f"process {target.pid} uses userfaultfd itself at"),
            tracked(target.pid) as tracker,
        ):
            tracker.harvest()
        assert target.number(f"peek({first * PAGE})") == 1


def test_a_target_that_begins_to_use_userfaultfd_is_given_up() -> None:
    """A region that it registers for itself later, and fills, ends tracking; it is never taken for unwritten."""
    with victim() as target, tracked(target.pid) as tracker:
        tracker.harvest()
        target.do(USERFAULTFD)
        first = target.map(16, filled=False)
        target.do(f"own_userfaultfd({first * PAGE}, {16 * PAGE}, 1 | 1 << 13 | 1 << 15, 2)")
        target.do(f"fill({first * PAGE}, 16)")
        with pytest.raises(Untrackable, match="uses userfaultfd itself"):
            tracker.harvest()


@pytest.mark.parametrize("flags", ["0x40022", "0x40021"])
def test_huge_pages_are_reported_in_every_round_and_never_registered(flags: str) -> None:
    """Private or shared, they are written out of caution, and said to be; an unmapped one has vanished."""
    with huge_pages(2), victim() as target:
        first = target.map(1024, filled=False, more=f"flags={flags}")
        target.write(first)
        with tracked(target.pid) as tracker:
            tracker.harvest()
            target.program.stop()
            tracker.harvest()
            harvest = tracker.harvest()
            assert within(harvest, first, 1024)[0] == set(range(512))
            assert harvest.cautious_page_count == 512
            smaps = Path(f"/proc/{target.pid}/smaps").read_text(encoding="utf-8").splitlines()
            assert not [line for line in smaps if line.startswith("VmFlags") and " ht" in line and " uw" in line]
            target.program.cont()
            target.do(f"checked(libc.munmap({first * PAGE}, {1024 * PAGE}))")
            assert within(tracker.harvest(), first, 1024) == (set(), set(range(512)))


def test_writes_from_outside_are_seen() -> None:
    """What a debugger, process_vm_writev or read(2) writes into the target is in the next round."""
    with victim() as target:
        first = target.map(16)
        with tracked(target.pid) as tracker:
            tracker.harvest()
            with Path(f"/proc/{target.pid}/mem").open("r+b", buffering=0) as memory:
                os.pwrite(memory.fileno(), struct.pack("Q", 77), (first + 2) * PAGE)
            target.do(
                "ends = os.pipe(); os.write(ends[1], b'x' * 100)\n"
                f"checked(libc.read(ends[0], ctypes.c_void_p({(first + 9) * PAGE - 50}), 100))"
            )
            assert within(tracker.harvest(), first, 16)[0] == {2, 8, 9}


def test_a_forked_childs_writes_are_not_the_parents() -> None:
    """Copy-on-write on either side leaves the parent's record exact."""
    with victim() as target:
        first = target.map(16)
        with tracked(target.pid) as tracker:
            tracker.harvest()
            target.do(
                f"child = os.fork()\nif child == 0:\n    fill({first * PAGE}, 16, 9); os._exit(0)\nos.waitpid(child, 0)"
            )
            target.write(first + 6)
            assert within(tracker.harvest(), first, 16) == ({6}, set())


def test_nothing_is_open_after_a_refusal() -> None:
    """A target that cannot be tracked costs no descriptor, whichever way it fails."""
    with victim() as target:
        first = target.map(4)
        target.do(USERFAULTFD)
        target.do(f"own_userfaultfd({first * PAGE}, {4 * PAGE}, 0, 1)")
        before = own_descriptors()
        for _ in range(3):
            with pytest.raises(Untrackable), tracked(target.pid) as tracker:
                tracker.harvest()
        reading, writing = os.pipe()
        with pytest.raises(Untrackable):
            WpAsync(target.pid, reading)
        os.close(writing)

        assert own_descriptors() == before
