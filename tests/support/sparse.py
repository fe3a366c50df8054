"""A target of many mappings that hold next to nothing: 64 GiB of them, of which every other one may not be touched."""

from typing import Final

from tests.support.obedient import ANONYMOUS, MAP_NORESERVE, PAGE, PROT_READ, Obedient, command

SPAN_BYTES: Final = 64 << 30
MAPPING_COUNT: Final = 20_000

_COMMANDS_A_LINE: Final = 500


def map_sparsely(target: Obedient) -> list[int]:
    """Have a target make the mappings, side by side; gives the address of a page in each that is writable.

    In these it has written one page.
    """
    pages = SPAN_BYTES // PAGE // MAPPING_COUNT
    around = target.map(pages * MAPPING_COUNT, flags=ANONYMOUS | MAP_NORESERVE, filled=False)
    starts = [around + index * pages * PAGE for index in range(MAPPING_COUNT)]
    protections = [command("mprotect", start, pages * PAGE, PROT_READ) for start in starts[::2]]
    for first in range(0, len(protections), _COMMANDS_A_LINE):
        assert not any(target.do(";".join(protections[first : first + _COMMANDS_A_LINE])))
    written = [start + pages // 2 * PAGE for start in starts[1::2]]
    target.store(*written)
    return written
