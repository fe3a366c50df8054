"""The workload of ``compose.yaml``: writes to pages of 32 MiB at random, most of the time to a tenth of them."""  # noqa: INP001 - a script that is mounted

import random
import time

memory = bytearray(32 << 20)
while True:
    for _ in range(50):
        span = len(memory) // 10 if random.random() < 0.9 else len(memory)  # noqa: PLR2004, S311 - not secret
        memory[random.randrange(span)] = random.randrange(256)  # noqa: S311 - as above
    time.sleep(0.01)
