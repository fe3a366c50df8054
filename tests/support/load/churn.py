"""Arrays that are made, changed in places and let go."""

import time

import numpy as np

random = np.random.default_rng(1)
kept = {}
print("ready", flush=True)  # noqa: T201 - to whoever waits for it
for turn in range(1 << 62):
    array = random.random(int(random.integers(100, 40_000)))
    kept[turn % 200] = np.sort(array)
    other = kept[int(random.integers(0, len(kept)))] if turn > 200 else array
    other[int(random.integers(0, other.size))] = turn
    time.sleep(0.001)
