"""Which targets a call means."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field, replace
from typing import Final

from wetink.names import NameMalformed, TargetName, check_host_id, check_labels, parse_target
from wetink.v1.dirty_pb2 import Selection
from wetink_collector.catalog import Catalog, TargetRecord
from wetink_collector.errors import SelectionMalformed, TargetUnknown
from wetink_collector.identity import TargetKey
from wetink_collector.message_checks import PATH_CHARACTERS_MAX

TARGETS_MAX: Final = 4096
"""Bound on the targets of one call, and on the names in it: an answer's summary takes some 150 bytes for each, and
must fit in one message."""


@dataclass(frozen=True, slots=True)
class Chosen:
    """A selection that is well formed. Empty means all. Of ``labels`` a target has all or is not meant by them."""

    names: tuple[TargetName, ...]
    hosts: frozenset[str]
    cgroups: frozenset[str]
    labels: tuple[tuple[str, str], ...] = ()
    _named: frozenset[TargetName] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Look names up once: an answer about thousands of targets that are named asks for each of them."""
        object.__setattr__(self, "_named", frozenset(self.names))

    @property
    def only_names(self) -> bool:
        """Whether no target can come to match later."""
        return not (self.hosts or self.cgroups or self.labels)

    def names_target(self, target: TargetKey) -> bool:
        """Whether a target is meant by its name, and not only by where it runs."""
        pid = TargetName(target.host_id, target.pid)
        return pid in self._named or replace(pid, start_time_ticks=target.start_time_ticks) in self._named

    def has_cgroup(self, path: str) -> bool:
        """Whether a cgroup is a selected one, or below it. Takes no longer where very many are selected."""
        if not self.cgroups or not path.startswith("/"):
            return False
        ends = (place for place, character in enumerate(path) if character == "/")
        return path in self.cgroups or any((path[:end] or "/") in self.cgroups for end in ends)


def parse(selection: Selection) -> Chosen:
    """Read a selection.

    Raises:
        SelectionMalformed: A name in it cannot be one, or there are too many.
    """
    if len(selection.targets) + len(selection.hosts) + len(selection.cgroups) > TARGETS_MAX:
        message = f"the selection has more than {TARGETS_MAX} names; ask in several calls"
        raise SelectionMalformed(message)
    try:
        names = tuple(parse_target(text) for text in selection.targets)
        hosts = frozenset(check_host_id(text) for text in selection.hosts)
        check_labels(selection.labels)
    except NameMalformed as error:
        raise SelectionMalformed(str(error)) from error
    cgroups = frozenset(_cgroup(text) for text in selection.cgroups)
    return Chosen(names, hosts, cgroups, tuple(selection.labels.items()))


def parse_non_empty(selection: Selection) -> Chosen:
    """Read a selection where pages are asked for.

    Raises:
        SelectionMalformed: As ``parse``, or it is empty.
    """
    chosen = parse(selection)
    if chosen.only_names and not chosen.names:
        message = "the selection is empty; name targets, hosts, cgroups or labels"
        raise SelectionMalformed(message)
    return chosen


def listed(chosen: Chosen, catalog: Catalog) -> Collection[TargetRecord]:
    """Give the targets a list means, each once. What is not there is left out."""
    if chosen.only_names and not chosen.names:
        return catalog.all()
    named = (catalog.find(name) for name in chosen.names)
    return _once([*filter(None, named), *_living(chosen, catalog)])


def resolve(chosen: Chosen, catalog: Catalog, held: Iterable[TargetKey] = ()) -> list[TargetRecord]:
    """Give the targets a call for pages means, in the order of their names. There may be none.

    Args:
        chosen: The selection, not empty.
        catalog: What there is.
        held: Targets that the reader holds a copy of. Those of a selected host, cgroup or label are meant even when
            they have ended: otherwise their last pages, and their end, would never be told.

    Raises:
        TargetUnknown: A target or host is not there.
        SelectionMalformed: There are too many.
    """
    found = [_named(name, catalog) for name in chosen.names]
    for host_id in sorted(chosen.hosts - catalog.hosts.keys()):
        message = f"host {host_id} is not known here; `wetink hosts` lists those that are"
        raise TargetUnknown(message)
    found += _living(chosen, catalog)
    records = (catalog.get(target) for target in held)
    found += [record for record in records if record and _matches(record, chosen)]
    records_in_order = _in_order(found)
    if len(records_in_order) > TARGETS_MAX:
        message = f"the selection means {len(records_in_order)} targets, at most {TARGETS_MAX} go in one call"
        raise SelectionMalformed(message)
    return records_in_order


def _named(name: TargetName, catalog: Catalog) -> TargetRecord:
    record = catalog.find(name)
    if record is None:
        message = f"target {name} is not known here; `wetink targets` lists those that are"
        raise TargetUnknown(message)
    return record


def _living(chosen: Chosen, catalog: Catalog) -> list[TargetRecord]:
    if chosen.only_names:
        return []
    if chosen.cgroups or chosen.labels:
        return [record for record in catalog.all() if catalog.may_live(record) and _matches(record, chosen)]
    return [record for host in chosen.hosts for record in catalog.on_host(host) if catalog.may_live(record)]


def _matches(record: TargetRecord, chosen: Chosen) -> bool:
    """Whether a target is on a selected host, or in a selected cgroup or below it, or has all of the labels."""
    if record.target.host_id in chosen.hosts:
        return True
    labels = record.started.labels
    return chosen.has_cgroup(record.started.cgroup) or (
        bool(chosen.labels) and all(labels.get(key) == value for key, value in chosen.labels)
    )


def _in_order(records: Iterable[TargetRecord]) -> list[TargetRecord]:
    return sorted(_once(records), key=lambda record: record.order)


def _once(records: Iterable[TargetRecord]) -> Collection[TargetRecord]:
    return {record.target: record for record in records}.values()


def _cgroup(text: str) -> str:
    if not text.startswith("/") or len(text) > PATH_CHARACTERS_MAX:
        message = f"{text[:300]!r} is no cgroup path: write it as in /proc/PID/cgroup, from its first slash"
        raise SelectionMalformed(message)
    return text.rstrip("/") or "/"
