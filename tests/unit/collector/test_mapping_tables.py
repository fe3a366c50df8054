"""Tables of mappings: the newest of each target, within a bound on all together."""

from wetink.v1 import ingest_pb2, types_pb2
from wetink_collector.identity import IncarnationKey, TargetKey
from wetink_collector.mapping_tables import MappingTables


def key(pid: int, incarnation: int = 1) -> IncarnationKey:
    """Give an incarnation."""
    return IncarnationKey(TargetKey("host-1", "boot-1", pid, 100), incarnation)


def table(incarnation: int = 1, *, size_bytes: int = 100) -> ingest_pb2.TargetMappings:
    """Give a table of about so many bytes."""
    return ingest_pb2.TargetMappings(incarnation=incarnation, mappings=[types_pb2.Mapping(name="x" * size_bytes)])


def test_those_told_longest_ago_go_first() -> None:
    """Over the bound tables are forgotten, which is to say not known; room is given back."""
    tables = MappingTables(1000)
    for pid in range(1, 12):
        tables.put(key(pid), table())
        tables.put(key(1), table())

    kept = [pid for pid in range(1, 12) if tables.get(key(pid))]
    assert kept == [1, *range(12 - len(kept) + 1, 12)]
    assert 5 < len(kept) < 10
    for pid in kept:
        tables.forget(key(pid).target)
    tables.put(key(99), table(size_bytes=950))
    assert tables.get(key(99))


def test_a_table_is_of_its_incarnation_only() -> None:
    """That of an older one takes the place of none, and answers for none."""
    tables = MappingTables()
    tables.put(key(1, 2), table(2))
    tables.put(key(1, 1), table(1))

    assert tables.get(key(1, 2)) == table(2)
    assert tables.get(key(1, 1)) is None
    assert tables.get(key(1, 3)) is None
