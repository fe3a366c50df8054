"""What ``wetink --json`` prints: one JSON object a line, with the same keys in the same order each time."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from wetink_client import BarrierResult, DirtySet, EventBatch, Host, TargetInfo, TargetMappings, Thawed
    from wetink_client.clean import Verdict


def plain(values: "Iterable[Host | TargetInfo | TargetMappings]") -> Iterator[str]:
    """Give hosts, targets or their mappings, with the names and units of ``dirty.proto``."""
    return (json.dumps(asdict(value)) for value in values)


def barrier(result: "BarrierResult") -> Iterator[str]:
    """Give how far each target has come. The cursor is that of all of them together."""
    for status in result.targets.values():
        yield json.dumps(
            {
                "target": status.name,
                "incarnation": status.incarnation,
                "cursor": result.cursor,
                "reached": status.complete,
                "round": status.round,
                "as_of_time_ns": status.as_of_time_ns,
                "consistency": result.consistency,
                "freeze_method": status.freeze_method,
                "frozen_ns": status.frozen_ns,
                "incomplete_reason": status.incomplete_reason,
                "incomplete_message": status.incomplete_message,
            }
        )


def dirty(answer: "DirtySet") -> Iterator[str]:
    """Give each target's dirty pages. The cursor is that of all of them together."""
    for part in answer.targets.values():
        yield json.dumps(
            {
                "target": part.name,
                "incarnation": part.incarnation,
                "cursor": answer.cursor,
                "complete": part.complete,
                "exact": part.exact,
                "page_size": part.page_size,
                "pages": len(part.written),
                "ranges": part.ranges(),
                "vanished": part.vanished_ranges(),
                "strict": not part.lenient,
                "uncertain": part.uncertain_ranges(),
                "freeze_method": part.freeze_method,
                "frozen_ns": part.frozen_ns,
                "incomplete_reason": part.incomplete_reason,
                "incomplete_message": part.incomplete_message,
                "end_reason": part.end_reason,
            }
        )


def verdict(target: str, found: "Verdict") -> Iterator[str]:
    """Give what a verification came to."""
    yield json.dumps(
        {
            "target": target,
            "compared_page_count": found.compared_page_count,
            "reported_page_count": found.reported_page_count,
            "changed": [
                {
                    "mapping": mapping.name,
                    "uncertainty": mapping.uncertainty,
                    "pages": len(mapping.pages),
                    "ranges": mapping.ranges(),
                }
                for mapping in found.changed
            ],
            "unseen_writers": [
                {"uncertainty": writer.uncertainty, "what": writer.what} for writer in found.unseen_writers
            ],
        }
    )


def thawed(found: "Iterable[Thawed]") -> Iterator[str]:
    """Give what became of each target's hold."""
    return (json.dumps({"target": one.name, "held": one.held, "message": one.message}) for one in found)


def events(target: str, batch: "EventBatch") -> Iterator[str]:
    """Give each event, with the round it may be of; first, where some are missing, how many."""
    about = {"target": target, "incarnation": batch.incarnation, "round": batch.last_round}
    if batch.lost_count or batch.forgotten_count:
        yield json.dumps({**about, "lost": batch.lost_count, "forgotten": batch.forgotten_count})
    for event in batch.events:
        yield json.dumps({**about, **asdict(event)})
