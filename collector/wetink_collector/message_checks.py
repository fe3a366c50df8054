"""What the contract allows in a message of an agent: what is not so is refused before anything is made of it. Pure."""

from collections.abc import Mapping
from typing import Final

from wetink.names import NameMalformed, check_host_id, check_labels
from wetink.pages import CorruptPageSet, decode
from wetink.v1.ingest_pb2 import Hello, TargetMappings, TargetStarted, WriteProtectBatch
from wetink.v1.types_pb2 import Target
from wetink_collector.errors import BatchCorrupt, MessageMalformed
from wetink_collector.event_history import count
from wetink_collector.identity import IncarnationKey, TargetKey
from wetink_collector.round_log import RoundPages

PROTOCOL_VERSION: Final = 1

PAGE_NUMBER_MAX: Final = (1 << 52) - 1
"""Bound on page numbers: the address of the last one's 4096 bytes still has 64 bits."""

EVENT_NAMES_MAX: Final = 256
"""As the contract says of threads and of mappings that are named, and of the characters of a mapping's name."""

TABLE_MAPPINGS_MAX: Final = 2048
UNSEEN_WRITERS_MAX: Final = 16
"""As the contract says of a table of mappings."""

MAPPINGS_MAX: Final = 1024
"""As the contract says: ``mapped``, ``unmapped``; and ``scope``, which it leaves open."""

ANCESTORS_MAX: Final = 64
"""As the contract says of the generations before a process."""

COMMAND_CHARACTERS_MAX: Final = 256
"""As the contract says; and an agent's version."""

PATH_CHARACTERS_MAX: Final = 4096
"""Bound on a cgroup's path: the kernel's PATH_MAX; and on the sentence about a backend, which may name one."""

SHARE_MAX: Final = 1e6
"""Bound on shares of a processor: no host has as many."""

BOOT_ID_CHARACTERS_MAX: Final = 64
"""Bound on a boot id, which has 36 characters."""

NUMBER_MAX: Final = (1 << 63) - 1
"""Bound on every number of an agent: no clock, tick or round gets there, and stores keep signed integers."""


def check_hello(hello: Hello) -> None:
    """Accept the first message of a stream.

    Raises:
        MessageMalformed: It breaks the contract.
    """
    if hello.protocol_version != PROTOCOL_VERSION:
        message = (
            f"the agent speaks version {hello.protocol_version} of the contract, the collector {PROTOCOL_VERSION}; "
            "upgrade the older of the two"
        )
        raise MessageMalformed(message)
    try:
        check_host_id(hello.host_id)
    except NameMalformed as error:
        raise MessageMalformed(str(error)) from error
    if not 1 <= len(hello.boot_id) <= BOOT_ID_CHARACTERS_MAX:
        message = f"host {hello.host_id} has a boot id of {len(hello.boot_id)} characters"
        raise MessageMalformed(message)
    if len(hello.agent_version) > COMMAND_CHARACTERS_MAX:
        message = f"host {hello.host_id} has an agent whose version has {len(hello.agent_version)} characters"
        raise MessageMalformed(message)
    for position in hello.positions:
        key_of(position.target, position.incarnation, hello)
        _check_numbers(position.target, position.round)


def key_of(target: Target, incarnation: int, hello: Hello) -> IncarnationKey:
    """Say whose incarnation a message of a stream is about.

    Raises:
        MessageMalformed: It is of another host or boot than the stream's, or names no process.
    """
    if target.host_id != hello.host_id or target.boot_id != hello.boot_id:
        message = (
            f"a target of host {target.host_id[:253]!r} came in the stream of host {hello.host_id}, or of another boot"
        )
        raise MessageMalformed(message)
    if not target.pid:
        message = f"a target of host {hello.host_id} has no pid"
        raise MessageMalformed(message)
    _check_numbers(target, target.start_time_ticks, incarnation)
    return IncarnationKey(TargetKey.of(target), incarnation)


def check_started(message: TargetStarted) -> None:
    """Accept the start of an incarnation.

    Raises:
        MessageMalformed: It breaks the contract.
    """
    if (
        not message.page_size
        or len(message.command) > COMMAND_CHARACTERS_MAX
        or max(len(message.cgroup), len(message.backend_reason)) > PATH_CHARACTERS_MAX
        or len(message.scope) > MAPPINGS_MAX
        or len(message.ancestors) > ANCESTORS_MAX
    ):
        text = f"TargetStarted of process {message.target.pid} has no page size, or a field that is too long"
        raise MessageMalformed(text)
    try:
        check_labels(message.labels)
    except NameMalformed as error:
        text = f"TargetStarted of process {message.target.pid}: {error}"
        raise MessageMalformed(text) from error


def check_mappings(message: TargetMappings) -> None:
    """Accept a table of mappings.

    Raises:
        MessageMalformed: It breaks the contract.
    """
    _check_numbers(message.target, message.round)
    names = (*(mapping.name for mapping in message.mappings), *(writer.what for writer in message.unseen_writers))
    if (
        len(message.mappings) > TABLE_MAPPINGS_MAX
        or len(message.unseen_writers) > UNSEEN_WRITERS_MAX
        or any(len(name) > EVENT_NAMES_MAX for name in names)
    ):
        text = f"the mappings of process {message.target.pid} are too many, or have names that are too long"
        raise MessageMalformed(text)


def check_batch(message: WriteProtectBatch) -> None:
    """Accept what a batch says beside its page sets.

    Raises:
        MessageMalformed: It breaks the contract.
        BatchCorrupt: Its columns of events do not fit together.
    """
    _check_numbers(
        message.target,
        message.last_round,
        message.populated_page_count,
        message.cautious_page_count,
    )
    if not 1 <= message.first_round <= message.last_round or message.part >= message.part_count:
        text = (
            f"a batch of process {message.target.pid} has rounds {message.first_round} to {message.last_round}, part "
            f"{message.part} of {message.part_count}"
        )
        raise MessageMalformed(text, **metadata(message))
    if max(len(message.mapped), len(message.unmapped)) > MAPPINGS_MAX:
        text = f"a batch of process {message.target.pid} has more than {MAPPINGS_MAX} mappings"
        raise MessageMalformed(text, **metadata(message))
    # Most batches have neither pace nor events, and a field that is not there costs as much to look at as one that is.
    shares = (message.pace.agent_share, message.pace.target_share) if message.HasField("pace") else ()
    if not all(0 <= share < SHARE_MAX for share in shares):  # neither is what is no number
        text = f"a batch of process {message.target.pid} has shares of a processor that cannot be: {shares}"
        raise MessageMalformed(text, **metadata(message))
    if message.HasField("events"):
        _check_events(message)


def pages_of(message: WriteProtectBatch) -> RoundPages:
    """Decode the page sets of a batch.

    Raises:
        BatchCorrupt: They are damaged, or have pages that no address space has.
    """
    try:
        pages = RoundPages(decode(message.written), decode(message.vanished), decode(message.uncertain))
    except CorruptPageSet as error:
        text = f"round {message.last_round} of process {message.target.pid} is corrupt: {error}"
        raise BatchCorrupt(text, **metadata(message)) from error
    last = max((one.max() for one in (pages.written, pages.vanished) if one), default=0)
    if last > PAGE_NUMBER_MAX:
        text = f"round {message.last_round} of process {message.target.pid} has page {last}, which has no address"
        raise BatchCorrupt(text, **metadata(message))
    return pages


def check_sets(message: WriteProtectBatch, pages: RoundPages) -> None:
    """Accept the page sets of a whole round.

    Raises:
        BatchCorrupt: They contradict each other.
    """
    if not pages.uncertain.issubset(pages.written):
        text = f"round {message.last_round} of process {message.target.pid} has uncertain pages that are not written"
        raise BatchCorrupt(text, **metadata(message))
    if not pages.written.isdisjoint(pages.vanished):
        text = f"round {message.last_round} of process {message.target.pid} has pages that are written and vanished"
        raise BatchCorrupt(text, **metadata(message))


def metadata(message: WriteProtectBatch) -> Mapping[str, str]:
    """Tell, for a refusal, which round it is about."""
    target = str(TargetKey.of(message.target))
    return {"target": target, "incarnation": str(message.incarnation), "round": str(message.last_round)}


def _check_numbers(target: Target, *numbers: int) -> None:
    if max(numbers) > NUMBER_MAX:
        message = f"a message about process {target.pid} has the number {max(numbers)}, which is over {NUMBER_MAX}"
        raise MessageMalformed(message)


def _check_events(message: WriteProtectBatch) -> None:
    columns = message.events
    _check_numbers(message.target, columns.lost_count, columns.stream_only_count, columns.census_only_count)
    number = count(columns)
    sizes = ((columns.address, 8), (columns.uffd_flags, 8), (columns.thread_id, 4), (columns.time_ns, 8))
    whole = all(len(column) in {0, number * size} for column, size in (*sizes, (columns.instruction_pointer, 8)))
    if not whole or len(columns.address) != number * 8:
        text = f"round {message.last_round} of process {message.target.pid} has columns of events of different lengths"
        raise BatchCorrupt(text, **metadata(message))
    names = (
        [thread.name for thread in columns.threads],
        [mapping.name for mapping in columns.mappings],
        [code.symbol for code in columns.code],
        [code.file for code in columns.code],
    )
    if max(map(len, names)) > EVENT_NAMES_MAX or any(len(name) > EVENT_NAMES_MAX for named in names for name in named):
        text = f"round {message.last_round} of process {message.target.pid} has too many names beside its events"
        raise MessageMalformed(text, **metadata(message))
