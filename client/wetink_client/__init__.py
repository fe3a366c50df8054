"""The SDK for orchestrators, and the ``wetink`` command.

    with Collector("collector:7419") as collector:
        held = collector.dirty("host-1/4711")
        while not small_enough(held):
            copy(held.ranges()), drop(held.vanished_ranges())
            held = collector.dirty("host-1/4711", since=held.cursor, barrier=True)

The reader's rule: copy what is written, drop what vanished, finish, and only then ask for the next set. A set read late
is still right: what changed after it is in the next. Do not finish a migration on an answer that is not ``complete``.
After ``ResynchronisationNeeded``, drop all you hold of the target and ask without a cursor.

The contract, and the rules between calls: ``protos/README.md``.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

    from wetink_client.answers import DirtySet, NotOneTarget, TargetDirty
    from wetink_client.collector import AsyncCollector, Collector
    from wetink_client.errors import (
        AgentUnavailable,
        BrokenAnswer,
        CollectorFailed,
        CollectorUnavailable,
        InvalidRequest,
        MappingsUnknown,
        NotFound,
        Refused,
        ResynchronisationNeeded,
        TooLarge,
        Unavailable,
        WetinkError,
    )
    from wetink_client.events import Event, EventBatch
    from wetink_client.migrations import (
        Accuracy,
        Candidate,
        Confidence,
        DrainPlan,
        ErrorStatistics,
        HoldBack,
        LeftOut,
        MigrationCause,
        MigrationCosts,
        MigrationEnd,
        MigrationPlan,
        MigrationReport,
        PlannedMove,
        PredictedRounds,
        Prediction,
        PredictionBasis,
        PredictionError,
        Predictions,
        QuietWindow,
        Ranking,
        Reported,
        WindowFound,
    )
    from wetink_client.values import (
        Backend,
        BarrierResult,
        Consistency,
        DirtyCounts,
        EndReason,
        Host,
        IncompleteReason,
        Pace,
        Selection,
        Strictness,
        TargetInfo,
        TargetMapping,
        TargetMappings,
        TargetStatus,
        Uncertainty,
        UnseenWriter,
    )

__all__ = [
    "Accuracy",
    "AgentUnavailable",
    "AsyncCollector",
    "Backend",
    "BarrierResult",
    "BrokenAnswer",
    "Candidate",
    "Collector",
    "CollectorFailed",
    "CollectorUnavailable",
    "Confidence",
    "Consistency",
    "DirtyCounts",
    "DirtySet",
    "DrainPlan",
    "EndReason",
    "ErrorStatistics",
    "Event",
    "EventBatch",
    "HoldBack",
    "Host",
    "IncompleteReason",
    "InvalidRequest",
    "LeftOut",
    "MappingsUnknown",
    "MigrationCause",
    "MigrationCosts",
    "MigrationEnd",
    "MigrationPlan",
    "MigrationReport",
    "NotFound",
    "NotOneTarget",
    "Pace",
    "PlannedMove",
    "PredictedRounds",
    "Prediction",
    "PredictionBasis",
    "PredictionError",
    "Predictions",
    "QuietWindow",
    "Ranking",
    "Refused",
    "Reported",
    "ResynchronisationNeeded",
    "Selection",
    "Strictness",
    "TargetDirty",
    "TargetInfo",
    "TargetMapping",
    "TargetMappings",
    "TargetStatus",
    "TooLarge",
    "Unavailable",
    "Uncertainty",
    "UnseenWriter",
    "WetinkError",
    "WindowFound",
]

_HOME_OF: "Final[Mapping[str, str]]" = {
    "AsyncCollector": "collector",
    "Collector": "collector",
    "DirtyCounts": "values",
    "DirtySet": "answers",
    "NotOneTarget": "answers",
    "TargetDirty": "answers",
    "Backend": "values",
    "BarrierResult": "values",
    "Consistency": "values",
    "EndReason": "values",
    "Event": "events",
    "EventBatch": "events",
    "Host": "values",
    "IncompleteReason": "values",
    "Pace": "values",
    "Selection": "values",
    "Strictness": "values",
    "TargetInfo": "values",
    "TargetMapping": "values",
    "TargetMappings": "values",
    "TargetStatus": "values",
    "Uncertainty": "values",
    "UnseenWriter": "values",
    "Accuracy": "migrations",
    "Candidate": "migrations",
    "Confidence": "migrations",
    "DrainPlan": "migrations",
    "ErrorStatistics": "migrations",
    "HoldBack": "migrations",
    "LeftOut": "migrations",
    "MigrationCause": "migrations",
    "MigrationCosts": "migrations",
    "MigrationEnd": "migrations",
    "MigrationPlan": "migrations",
    "MigrationReport": "migrations",
    "PlannedMove": "migrations",
    "PredictedRounds": "migrations",
    "Prediction": "migrations",
    "PredictionBasis": "migrations",
    "PredictionError": "migrations",
    "Predictions": "migrations",
    "QuietWindow": "migrations",
    "Ranking": "migrations",
    "Reported": "migrations",
    "WindowFound": "migrations",
}


def __getattr__(name: str) -> object:
    """Import a public name when it is first used.

    ``wetink --help`` then needs neither gRPC nor numpy, which together take longer than all the rest.
    """
    if name not in __all__:
        message = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(message)
    return getattr(import_module(f"{__name__}.{_HOME_OF.get(name, 'errors')}"), name)
