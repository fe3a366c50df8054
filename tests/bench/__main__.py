"""All benchmarks, or those that are named: ``make bench``, ``make bench ARGS='rounds redis'``.

The exit code is 1 when a limit does not hold.
"""

import os
import sys
from collections.abc import Callable, Iterator
from typing import Final

from tests.bench import (
    backends,
    backends_sync,
    corners,
    decode,
    first_writes,
    following,
    insight,
    load,
    prediction,
    prediction_speed,
    redis,
    replay,
    run,
    unseen,
)
from tests.support.environment import forget_callers
from wetink import logs

BENCHES: Final[dict[str, Callable[[], Iterator[bool]]]] = {
    "machine": backends.bench_machine,
    **run.BENCHES,
    "first-write": first_writes.bench_first_write,
    "rounds": backends.bench_rounds,
    "sparse": corners.bench_sparse,
    "audit": corners.bench_audit,
    "unseen": unseen.bench_unseen,
    "decode-ring": decode.bench_decode_ring,
    **{f"sync-{name}": bench for name, bench in backends_sync.BENCHES.items()},
    "redis": redis.bench_redis,
    "following": following.bench_following,
    "replay": replay.bench_replay,
    "load": load.bench_load,
    "prediction": prediction.bench_prediction,
    "prediction-speed": prediction_speed.bench_prediction_speed,
    "insight": insight.bench_insight,
}


def main() -> int:
    """Run them; names are the arguments."""
    names = sys.argv[1:] or list(BENCHES)
    unknown = [name for name in names if name not in BENCHES]
    if unknown:
        sys.stderr.write(f"no benchmark {unknown[0]!r}: there are {', '.join(BENCHES)}\n")
        return 2
    if os.geteuid():
        sys.stderr.write("the benchmarks track other processes and need root: run `sudo make bench`\n")
        return 1
    forget_callers()
    logs.configure()  # to standard error: the agent's own parts, used here, log too
    results = [holds for name in names for holds in BENCHES[name]()]
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
