"""What the collector counts. Labels are bounded, and no label names a process or an address."""

from typing import Final

from prometheus_client import Counter, Gauge, Histogram

_SECONDS: Final = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
_SHARES: Final = (0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1)

BATCHES: Final = Counter("wetink_batches_received", "Batches by what became of them.", ["result"])
PAGES: Final = Counter("wetink_pages_received", "Pages in batches that were taken.", ["kind"])
EVENTS: Final = Counter("wetink_events_received", "Single writes in batches that were taken.")
EVENTS_LOST: Final = Counter("wetink_events_lost", "Single writes that were lost on their way, as agents say.")
EVENTS_STREAM_ONLY: Final = Counter(
    "wetink_events_stream_only_pages", "Pages that had a fault and were not written in the round: reads, mostly."
)
EVENTS_CENSUS_ONLY: Final = Counter(
    "wetink_events_census_only_pages", "Pages that were written with no event: by the kernel, or the event was lost."
)
EVENTS_BYTES: Final = Gauge("wetink_events_kept_bytes", "Bytes of single writes kept in memory.")
HISTORY_BYTES: Final = Gauge("wetink_insight_history_bytes", "Bytes of rounds and counts kept in memory for insight.")
ROUND_INTERVAL_SECONDS: Final = Histogram(
    "wetink_round_interval_seconds",
    "From round to round of a target, as its agent paces it.",
    buckets=(0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 600, 3600),
)
AGENT_SHARE: Final = Histogram(
    "wetink_round_agent_share_ratio", "Part of a processor that an agent spends on a target.", buckets=_SHARES
)
TARGET_SHARE: Final = Histogram(
    "wetink_round_target_share_ratio", "Time that a target loses to tracking, as estimated.", buckets=_SHARES
)
ROUNDS_UNITED: Final = Counter("wetink_rounds_united", "Rounds that agents united because their spools were full.")
GAPS: Final = Counter("wetink_gaps", "Rounds that were missing, by the layer that found out.", ["layer"])
RESYNCS: Final = Counter("wetink_resyncs", "Incarnations that ended with a gap, by reason.", ["reason"])
for _layer in ("ingest", "store"):
    GAPS.labels(_layer)  # there from the start: of a series that begins with its first gap no increase is seen
STREAMS: Final = Gauge("wetink_streams", "Agents' streams that are open.")
STREAMS_REFUSED: Final = Counter("wetink_streams_refused", "Agents' streams that were ended with an error.", ["reason"])
LIMITED: Final = Counter(
    "wetink_agents_limited",
    "Times an agent met a limit: messages after which it waited, and targets refused.",
    ["limit"],
)
for _limit in ("bytes", "targets", "pages", "round"):
    LIMITED.labels(_limit)  # as above
REFUSED: Final = Counter("wetink_calls_refused", "Calls that the caller may not make, by reason.", ["reason"])
for _reason in ("HANDSHAKE_FAILED", "IDENTITY_UNKNOWN", "ROLE_LACKING", "TOKEN_IN_CLEAR"):
    REFUSED.labels(_reason)  # as above
CERTIFICATE_EXPIRY: Final = Gauge(
    "wetink_certificate_expiry_timestamp_seconds", "Until when the collector's own certificate is good; 0 without TLS."
)
UNACKED_BYTES: Final = Gauge("wetink_unacked_bytes", "Bytes of page sets taken and not yet durable.")
COMMIT_SECONDS: Final = Histogram(
    "wetink_store_commit_duration_seconds", "Time of one group commit, with its fsync.", buckets=_SECONDS
)
COMMITS_FAILED: Final = Counter("wetink_store_failures", "Times the store could not write.")
MERGE_SECONDS: Final = Histogram(
    "wetink_store_merge_duration_seconds", "Time of one piece of merging old rounds.", buckets=_SECONDS
)
STORE_BYTES: Final = Gauge("wetink_store_bytes", "Bytes of the store's file that are in use.")
SESSIONS: Final = Gauge("wetink_sessions", "Sessions of orchestrators whose leases live.")
SESSION_ROUNDS_EXPIRED: Final = Counter(
    "wetink_session_rounds_expired",
    "Times that rounds of a target went though a session needed them, for want of room.",
)
TARGETS: Final = Gauge("wetink_targets", "Targets kept, by state.", ["state"])
HOSTS: Final = Gauge("wetink_hosts", "Hosts known.")
CALLS: Final = Counter("wetink_calls", "Calls of orchestrators by how they ended.", ["method", "code"])
ANSWER_SECONDS: Final = Histogram(
    "wetink_answer_duration_seconds",
    "Time to answer a call, without waiting for its reader.",
    ["method"],
    buckets=_SECONDS,
)
PREDICTION_ERROR: Final = Histogram(
    "wetink_prediction_error_ratio",
    "How far predictions of migrations were off, as a part of what was reported: bytes, downtime, seconds in all.",
    ["quantity"],
    buckets=(0.01, 0.02, 0.05, 0.1, 0.15, 0.25, 0.5, 1, 2, 5),
)
PREDICTIONS_SCORED: Final = Counter(
    "wetink_predictions_scored", "Predictions that were reported on, by whether it converges as they said.", ["verdict"]
)
for _verdict in ("right", "wrong"):
    PREDICTIONS_SCORED.labels(_verdict)  # as above
